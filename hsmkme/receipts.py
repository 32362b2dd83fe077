"""Receipts of destruction: what the log says of it, bound to the token's seals, for who has only the public key.

A key is destroyed when its block has ended and every master key that its block key was ever under is destroyed, proved
by the token each time. The rows that say so are in the receipt, with all rows up to the next seal; ``verify.py`` checks
it and shares no code with this module.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from hsmkme.audit import canonical, timestamp
from hsmkme.custody import Custody
from hsmkme.errors import StoreError
from hsmkme.model import Clock
from hsmkme.store import Span, Store

Row = dict[str, Any]

_BEGINS: Final = ("block.deposit", "block.carry")
_MOVES: Final = ("block.rewrap", "block.copy")
_ENDS: Final = ("epoch.give-up", "epoch.destroy")


class Receipts:
    """The receipts of one KME. Each raises `StoreError` saying what is not destroyed yet, and what to do."""

    def __init__(self, kme_id: str, custody: Custody, store: Store, clock: Clock) -> None:
        self._kme_id = kme_id
        self._custody = custody
        self._store = store
        self._clock = clock

    def of_epoch(self, epoch: int) -> str:
        """That the master key of an epoch is destroyed."""
        return self._receipt({"epoch": epoch}, self._end_of(epoch))

    def of_block(self, name: str) -> str:
        """That nothing of the block ``name``, which is ``link/block_id``, can be opened from any copy of the store."""
        return self._receipt({"block": name}, self._ends_of_block(name))

    def of_key(self, key_id: UUID) -> str:
        """The same of a key, for every block that it has a part of."""
        history = self._store.views.history(key_id)
        blocks = sorted({name for row in history for name in blocks_of(row)})
        if not blocks:
            raise StoreError(f"the log does not say which block key {key_id} was of: it was never claimed here")
        ends = [row for name in blocks for row in self._ends_of_block(name)]
        return self._receipt({"key": str(key_id)}, [*history, *ends])

    def _end_of(self, epoch: int) -> list[Row]:
        """How an epoch was given up, with a key that its master key wrapped, and the proof that nothing unwraps it."""
        told = self._store.views.history('"event":"epoch.')
        ends = [row for row in told if row["event"] in _ENDS and row["epoch"] == epoch]
        if "epoch.destroy" in {row["event"] for row in ends}:
            return ends
        raise StoreError(f"epoch {epoch} is not destroyed: `hsmkme epoch show {epoch}` says what is to be done")

    def _ends_of_block(self, name: str) -> list[Row]:
        """How a block came, moves and copies of its key, its end, and the end of every epoch that its key was under."""
        link_id, _, block_id = name.partition("/")
        told = self._store.views.history(f'"block":{json.dumps(block_id, ensure_ascii=False)}')
        came = [row for row in told if row["event"] in _BEGINS and (row["link"], row["block"]) == (link_id, block_id)]
        if not came:
            raise StoreError(f"no block {name} ever came here; a block is named LINK/BLOCK_ID")
        named = self._store.views.history(json.dumps(name, ensure_ascii=False))
        moves = [row for row in named if row["event"] in _MOVES]
        ended = [row for row in named if row["event"] == "block.destroy"]
        ever = [came[0]["epoch"], *came[0].get("also", []), *(row["to"] for row in moves)]
        left = {row["from"] for row in moves if "from" in row}
        alive = sorted({*ever} - left - {row["epoch"] for row in ended})
        if alive:
            raise StoreError(
                f"block {name} is not destroyed: it is under epoch {alive[0]}. Upkeep destroys it with that epoch once "
                f"all its keys have ended; so do `hsmkme epoch rotate`, `rewrap {alive[0]}` and `shred {alive[0]}`."
            )
        return [came[0], *moves, *ended, *(row for epoch in ever for row in self._end_of(epoch))]

    def _receipt(self, subject: dict[str, object], rows: Iterable[Row]) -> str:
        numbers = sorted({int(row["seq"]) for row in rows})
        at = timestamp(self._clock())
        text = canonical({"kme": self._kme_id, "at": at, "version": 1, "subject": subject, "rows": numbers})
        signature = self._custody.logbook.sign_receipt(text)
        spans = [_shown(span) for span in self._store.log.spans(numbers)]
        return json.dumps({"receipt": text, "signature": _base64(signature), "spans": spans})


def blocks_of(row: Row) -> list[str]:
    """The blocks that a row about keys says they are of; of keys that were carried here it is the one they came as."""
    if row["event"] == "block.carry":
        return [f"{row['link']}/{row['block']}"]
    return list(row.get("blocks", []))


def _shown(span: Span) -> dict[str, object]:
    seal = {"seq": span.seal.seq, "hash": span.seal.hash.hex(), "at": span.seal.at}
    return {
        "before": span.before.hex(),
        "rows": span.rows,
        "seal": {**seal, "signature": _base64(span.seal.signature)},
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
