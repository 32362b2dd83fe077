"""Keeper of the log: one canonical JSON row for each transition, chained by hash, sealed by signature.

Row *n* has ``hash = SHA-256("hsmkme/log/1" ‖ hash of row n−1 ‖ text)``; the row before the first is 32 zero
bytes. A seal signs ``SHA-256("hsmkme/seal/1" ‖ seq (8 bytes) ‖ hash)``. An export begins with a line that
says how many rows it has and what the last hash is, signed too: it cannot be cut short unseen.
``verify.py`` checks all of it and shares no code with this module.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from hsmkme.model import Entry, LogRow, Seal

_ROW_DOMAIN: Final = b"hsmkme/log/1"
_SEAL_DOMAIN: Final = b"hsmkme/seal/1"
_EXPORT_DOMAIN: Final = b"hsmkme/export/1"
_RECEIPT_DOMAIN: Final = b"hsmkme/receipt/1"
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class AuditChain:
    """Makes rows of entries; the store calls it inside the transaction that the entry records."""

    def extend(self, previous: bytes, seq: int, now: float, entry: Entry) -> LogRow:
        """Row ``seq``, chained to the row whose hash is ``previous``; ``now`` in seconds since the epoch."""
        text = canonical(
            {**entry.facts, "seq": seq, "at": timestamp(now), "event": entry.event, "actor": entry.actor}
        )
        return LogRow(seq, text, row_hash(previous, text))


def canonical(value: dict[str, Any]) -> str:
    """Canonical JSON: members sorted, no white space, no infinities, UTF-8."""
    return _CANONICAL.encode(value)


def timestamp(now: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    second, millisecond = divmod(int(now * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()


def row_hash(previous: bytes, text: str) -> bytes:
    """The hash that chains a row to the one before."""
    return hashlib.sha256(_ROW_DOMAIN + previous + text.encode()).digest()


def seal_digest(seq: int, row: bytes) -> bytes:
    """What a seal of row ``seq`` signs."""
    return hashlib.sha256(_SEAL_DOMAIN + seq.to_bytes(8, "big") + row).digest()


def export_digest(header: str) -> bytes:
    """What the first line of an export signs."""
    return hashlib.sha256(_EXPORT_DOMAIN + header.encode()).digest()


def receipt_digest(text: str) -> bytes:
    """What a receipt signs."""
    return hashlib.sha256(_RECEIPT_DOMAIN + text.encode()).digest()


def export_header(kme_id: str, seq: int, row: bytes, at: str) -> str:
    """What the first line of an export says: the log of ``kme_id`` has ``seq`` rows, the last with hash ``row``."""
    return canonical({"kme": kme_id, "rows": seq, "head": row.hex(), "at": at, "version": 1})


def signed_header(header: str, signature: bytes) -> str:
    """The first line of an export."""
    return json.dumps({"export": header, "signature": base64.b64encode(signature).decode()})


def export_lines(rows: Iterable[LogRow], seals: Iterable[Seal]) -> Iterator[str]:
    """The other lines of an export: rows, each seal after the row it seals."""
    by_row = {seal.seq: seal for seal in seals}
    for row in rows:
        yield json.dumps({"row": row.text, "hash": row.hash.hex()})
        seal = by_row.get(row.seq)
        if seal is not None:
            signature = base64.b64encode(seal.signature).decode()
            yield json.dumps({"seal": seal.seq, "hash": seal.hash.hex(), "at": seal.at, "signature": signature})
