"""Reads both audit exports and every client's record of a soak and says what became of every key.

usage: python -m tests.soak.auditor DIRECTORY [--json]

Exit 0: no key was delivered to two relations, no bytes differ, every key is accounted for. 1: the findings name each
key for which this is not so. What the files are, `tests/soak/evidence.py` says. The log of a KME that was restored is
a fork: the export from just before the restore and the one of the end are both read, and what either says happened.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from tests.soak.casefile import Case
from tests.soak.checks import CHECKS, Finding, deposited

NAMED = 40
"""How many names of a finding are printed for people; JSON has all."""

MEANING = {
    "delivered": "went to their master",
    "burnt": "count as delivered, and no master has them",
    "void": "will never be delivered",
    "agreed": "wait at both ends to be drawn",
    "left": "are in the pool",
    "revoked": "are in blocks that ended",
    "given up": "were given up after a restore, as they might have been delivered",
    "lost": "were in blocks that only a replaced store had",
    "unaccounted": "are nowhere",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``keys``: key_IDs by what became of them; ``deposited``: keys of devices likewise."""

    keys: Counter[str]
    deposited: Counter[str]
    facts: dict[str, Any]
    notes: list[str]
    found: dict[str, list[Finding]]
    """By the name of the check."""

    @property
    def findings(self) -> list[Finding]:
        return [finding for findings in self.found.values() for finding in findings]

    @property
    def good(self) -> bool:
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        findings = [{"what": finding.what, "names": finding.names} for finding in self.findings]
        figures = {"keys": dict(self.keys), "deposited": dict(self.deposited), **self.facts}
        return {"good": self.good, **figures, "notes": self.notes, "findings": findings}


def audited(directory: Path) -> Verdict:
    """The verdict on the evidence in ``directory``."""
    case = Case(directory)
    found = {check.__name__: list(check(case)) for check in CHECKS}
    return Verdict(_keys(case), Counter(name for _, name in deposited(case)), _facts(case), _notes(case), found)


def _keys(case: Case) -> Counter[str]:
    reached = {key_id for key_id, _, _ in case.clients.fetched}
    counts: Counter[str] = Counter()
    for key in case.keys.values():
        outcome = case.outcome(key) if key.relations else None
        name = outcome.name if outcome else "unaccounted"
        counts["burnt" if name == "delivered" and key.key_id not in reached else name] += 1
    return counts


def _facts(case: Case) -> dict[str, Any]:
    answers = {f"{call} {status}": times for (call, status), times in sorted(case.clients.answers.items())}
    refused = {pair for pair in case.clients.refused if pair not in {(k, s) for k, s, _ in case.clients.collected}}
    return {
        "collected": len(case.clients.collected),
        "refused": len(refused),
        "answers": answers,
        "rows": {each.kme: len(each.rows) for each in case.trails},
        "run": case.run,
    }


def _notes(case: Case) -> list[str]:
    notes = [
        f"{each.kme} was restored: its log forks after row {each.forked_after}; the {each.lost} rows that only the "
        "export from before the restore has are read too, as both branches happened"
        for each in case.trails
        if each.forked_after is not None
    ]
    by_restore = sum(1 for key in case.keys.values() if (o := case.outcome(key)) is not None and o.by_restore)
    if by_restore:
        notes.append(f"{by_restore} keys of the replaced store count as void: it had delivered none of them")
    return notes


def printed(verdict: Verdict, *, as_json: bool) -> int:
    """Print it; the exit status."""
    if as_json:
        print(json.dumps(verdict.as_json(), indent=2))
        return 0 if verdict.good else 1
    console = Console(soft_wrap=True, highlight=False)
    table = Table("keys", Column("key_IDs", justify="right"), Column("deposited", justify="right"), "", box=None)
    for name, meaning in MEANING.items():
        if verdict.keys[name] or verdict.deposited[name] or name == "unaccounted":
            table.add_row(name, str(verdict.keys[name]), str(verdict.deposited[name]), meaning)
    table.add_row("total", str(verdict.keys.total()), str(verdict.deposited.total()), "")
    console.print(table)
    facts = verdict.facts
    console.print(f"collected by slaves {facts['collected']} times, refused to slaves {facts['refused']}")
    console.print(f"answers {facts['answers']}; rows of the logs {facts['rows']}", markup=False)
    console.print(f"blows {facts['run']['blows']}; restored {facts['run']['restored']}", markup=False)
    for note in verdict.notes:
        console.print(note, markup=False)
    for finding in verdict.findings:
        console.print(f"[red]WRONG[/red]  {len(finding.names) or ''} {finding.what}")
        for name in finding.names[:NAMED]:
            console.print(f"       {name}", markup=False)
        if finding.names[NAMED:]:
            console.print(f"       and {len(finding.names) - NAMED} more: --json names all")
    if verdict.good:
        console.print("[green]good[/green]   0 keys in two relations, 0 mismatched bytes, 0 keys unaccounted for")
    return 0 if verdict.good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="What became of every key of a soak.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    return printed(audited(asked.directory), as_json=asked.json)


if __name__ == "__main__":
    sys.exit(main())
