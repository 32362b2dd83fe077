"""Figures for programs and for people."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hsmkme.bench.ledger import Ledger
from hsmkme.bench.rounds import Record, medians
from hsmkme.bench.sampled import PARTS
from hsmkme.bench.splits import Split
from hsmkme.bench.targets import TARGETS, Target

_FIGURES: Final = {
    "requests_per_second": ("requests/s", "{:,.0f}"),
    "keys_per_second": ("keys/s", "{:,.0f}"),
    "blocks_per_second": ("blocks/s", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "refused_per_second": ("refused/s", "{:,.0f}"),
    "refused_p99_ms": ("refusal p99 ms", "{:.1f}"),
    "least_share": ("least share", "{:.2f}"),
    "server_us_per_request": ("server µs", "{:,.0f}"),
    "generator_us_per_request": ("generator µs", "{:,.0f}"),
    "commits_per_key": ("commits/key", "{:.3f}"),
    "messages_per_1000_keys": ("messages/1,000 keys", "{:.1f}"),
    "start_ms": ("start ms", "{:,.0f}"),
    "tick_ms": ("upkeep's tick ms", "{:.2f}"),
    "status_us": ("status µs", "{:,.0f}"),
    "enc_keys_us": ("enc_keys µs", "{:,.0f}"),
    "dec_keys_us": ("dec_keys µs", "{:,.0f}"),
}

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """``title``, headings and rows; all but the first column are numbers, and those of ``words``."""

    title: str
    headings: Row
    rows: Sequence[Row]
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found: the figures of every round, what the server was watched doing, every answer."""

    record: Record
    splits: Mapping[str, Split]
    ledger: Ledger
    rounds: int
    seconds: float

    @property
    def tables(self) -> list[Table]:
        """All of it, for people; a table of nothing is left out."""
        tables = [self._figures(), self._ratios(), self._microseconds(), self._calls()]
        return [table for table in tables if table.rows]

    def markdown(self) -> str:
        """The tables for a page."""
        lines = []
        for table in self.tables:
            rule = ["---" if name in table.words else "--:" for name in table.headings[1:]]
            rows = (table.headings, ["---", *rule], *table.rows)
            lines += [f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
        return "\n".join([*lines, *self.remarks])

    def _figures(self) -> Table:
        measured = medians(self.record)
        shown = {name: form for name, form in _FIGURES.items() if any(name in figures for figures in measured.values())}
        rows = [
            [scenario, *(form.format(figures[name]) if name in figures else "" for name, (_, form) in shown.items())]
            for scenario, figures in measured.items()
        ]
        title = f"Medians of {self.rounds} rounds; µs are CPU time of a request"
        return Table(title, ["scenario", *(heading for heading, _ in shown.values())], rows)

    def verdicts(self) -> list[tuple[Target, float]]:
        """Every target of which there are figures, and what it came to."""
        measured = medians(self.record)
        found = ((target, target.value(measured)) for target in TARGETS)
        return [(target, value) for target, value in found if value is not None]

    def _ratios(self) -> Table:
        rows = [
            [target.what, f"{value:.2f}", target.wanted, "reached" if target.reached(value) else "not reached"]
            for target, value in self.verdicts()
        ]
        return Table("Targets", ["what", "is", "target", "verdict"], rows, frozenset({"verdict"}))

    def _microseconds(self) -> Table:
        rows = [
            [name, *(f"{split.microseconds[part]:,.0f}" for part in PARTS)] for name, split in self.splits.items()
        ]
        return Table("CPU time of a request by part, µs, of a server that is watched", ["scenario", *PARTS], rows)

    def _calls(self) -> Table:
        calls = sorted({call for split in self.splits.values() for call in split.calls})
        rows = [
            [name, *(f"{split.calls[call]:.2f}" if call in split.calls else "" for call in calls)]
            for name, split in self.splits.items()
        ]
        return Table("Calls of the token for a request", ["scenario", *calls], rows)

    @property
    def machine(self) -> str:
        """What it was measured on."""
        models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = models[0] if models else platform.machine()
        system, python = f"{platform.system()} {platform.release()}", f"Python {platform.python_version()}"
        return f"{os.cpu_count()} × {processor}, {system}, {python}"

    @property
    def remarks(self) -> Iterator[str]:
        """What else is to be known of the run."""
        yield f"{self.rounds} rounds of {self.seconds:g} s each; {len(self.ledger):,} keys, and none came twice"
        for (name, status), count in sorted(self.ledger.others.items()):
            yield f"{name}: {count} answers were {f'HTTP {status}' if status else 'none, the connection ended'}"

    def tree(self) -> dict[str, Any]:
        """All of it, for programs."""
        measured = medians(self.record)
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "keys": len(self.ledger),
            "scenarios": {
                name: {"median": measured[name], "rounds": list(rounds)} for name, rounds in self.record.items()
            },
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "targets": [
                {**asdict(target), "value": value, "reached": target.reached(value)}
                for target, value in self.verdicts()
            ],
            "other_answers": [
                {"scenario": name, "status": status, "answers": count}
                for (name, status), count in sorted(self.ledger.others.items())
            ],
        }
