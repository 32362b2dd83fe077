"""An exported audit log as an auditor reads it: proved by the verifier that shares no code with the service.

A store that was replaced by an old copy goes on from there with a log of its own: a fork. What the replaced store
logged after the copy was made is no longer in it, and is known from an export made just before; both branches
happened, and both are read here. A row that only the earlier export has is ``lost``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmkme import verify


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log of ``kme``."""

    kme: str
    facts: dict[str, Any]
    lost: bool

    @property
    def event(self) -> str:
        return str(self.facts["event"])

    @property
    def key_ids(self) -> list[str]:
        return list(self.facts.get("key_IDs", ()))


@dataclass(frozen=True, slots=True)
class Trail:
    """What the log of one KME tells; ``forked_after`` is the last row that both branches have, None without a fork."""

    kme: str
    rows: list[Row]
    forked_after: int | None

    @property
    def lost(self) -> int:
        """How many rows only the earlier export has."""
        return sum(row.lost for row in self.rows)


def read(directory: Path, kme: str) -> Trail:
    """The trail of ``kme`` in ``directory``; raises `verify.BrokenError` where an export does not prove itself."""
    key = load_pem_public_key((directory / f"{kme}.pem").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    now, before = directory / f"{kme}.log.jsonl", directory / f"{kme}.lost.jsonl"
    rows = _proved(now, kme, key)
    if not before.exists():
        return Trail(kme, [Row(kme, facts, False) for _, facts in rows], None)
    older = _proved(before, kme, key)
    both = sum(1 for one, other in zip(rows, older, strict=False) if one[0] == other[0])
    lost = [Row(kme, facts, True) for _, facts in older[both:]]
    return Trail(kme, [*(Row(kme, facts, False) for _, facts in rows), *lost], both)


def _proved(path: Path, kme: str, key: ec.EllipticCurvePublicKey) -> list[tuple[str, dict[str, Any]]]:
    """Hash and facts of every row."""
    lines = path.read_text().splitlines()
    header = verify.verify(iter(lines), [key])
    assert header["kme"] == kme, f"{path} is of {header['kme']}"
    records = (json.loads(line) for line in lines)
    return [(record["hash"], json.loads(record["row"])) for record in records if "row" in record]
