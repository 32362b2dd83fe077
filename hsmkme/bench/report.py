"""Figures for programs and for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hsmkme.bench.ledger import Ledger
from hsmkme.bench.rounds import Record, medians
from hsmkme.bench.targets import TARGETS, Target

_COLUMNS: Final = {
    "requests_per_second": ("requests/s", "{:,.0f}"),
    "keys_per_second": ("keys/s", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "server_us_per_request": ("server µs/request", "{:,.0f}"),
    "generator_us_per_request": ("generator µs/request", "{:,.0f}"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio and what it is to be."""

    target: Target
    ratio: float

    @property
    def what(self) -> str:
        """Which ratio, for people."""
        target = self.target
        return f"{target.of} ÷ {target.to} ({target.figure.removesuffix('_ms').replace('_', ' ')})"

    @property
    def reached(self) -> bool:
        """Whether it is what it is to be."""
        return self.target.reached(self.ratio)


class Report:
    """What a run found."""

    def __init__(self, record: Record, ledger: Ledger, rounds: int, seconds: float) -> None:
        self.record = record
        self.medians = medians(record)
        self._ledger = ledger
        self._rounds = rounds
        self._seconds = seconds

    @property
    def columns(self) -> list[str]:
        """The headings of `rows` after the first."""
        return [heading for heading, _ in _COLUMNS.values()]

    def rows(self) -> Iterator[Sequence[str]]:
        """A line for each scenario."""
        for name, figures in self.medians.items():
            yield [name, *(form.format(figures[key]) if key in figures else "" for key, (_, form) in _COLUMNS.items())]

    def verdicts(self) -> list[Verdict]:
        """Every target of which both sides were measured."""
        found = ((target, target.ratio(self.medians)) for target in TARGETS)
        return [Verdict(target, ratio) for target, ratio in found if ratio is not None]

    def remarks(self) -> Iterator[str]:
        """What else is to be known of the run."""
        yield f"medians of {self._rounds} rounds of {self._seconds:g} s; {len(self._ledger):,} keys, none came twice"
        for (name, status), count in sorted(self._ledger.others.items()):
            yield f"{name}: {count} answers were {f'HTTP {status}' if status else 'none: the connection ended'}"

    def tree(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "rounds": self._rounds,
            "seconds": self._seconds,
            "keys": len(self._ledger),
            "scenarios": {
                name: {"median": self.medians[name], "rounds": list(rounds)} for name, rounds in self.record.items()
            },
            "ratios": [
                {"of": v.target.of, "to": v.target.to, "figure": v.target.figure, "ratio": v.ratio,
                 "target": v.target.wanted, "reached": v.reached}
                for v in self.verdicts()
            ],
            "others": [
                {"scenario": name, "status": status, "answers": count}
                for (name, status), count in sorted(self._ledger.others.items())
            ],
        }
