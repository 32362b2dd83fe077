"""Claimed keys: looking them up, collecting, voiding. Each verb is one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import KeyNotHeld, StoreError
from hsmkme.model import BlockName, BlockSeal, Entry, HeldKey, Part, Relation, Retry, SealedKey, segment_bytes
from hsmkme.states import BlockState, KeyState
from hsmkme.store.answers import remember
from hsmkme.store.database import Database, Transaction

_CHUNK: Final = 500
"""SQL parameters used at once; SQLite allows at least 999."""

_BARRED: Final = frozenset({BlockState.FROZEN, BlockState.REVOKED})
"""Nothing is collected from a block in these states."""

_SELECT: Final = (
    "SELECT key_id, master, slaves, state, size, parts, served FROM key JOIN relation USING (relation_id)"
    " WHERE key_id IN"
)


@dataclass(frozen=True, slots=True)
class _Row:
    key_id: UUID
    relation: Relation
    state: str
    size: int
    places: list[tuple[int, int, int]]
    served: int


class Keys:
    """The keys that were claimed, and the tombstones of those that ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def held(self, key_ids: Sequence[UUID]) -> dict[UUID, HeldKey]:
        """Those of ``key_ids`` that exist, with their sealed parts while they have any. Reads only."""
        with self._database.read() as connection:
            rows = _rows(connection, key_ids)
            live = {row.key_id: row for row in rows if row.state == KeyState.DELIVERED or _is_kept(connection, row)}
            blocks = _blocks(connection, {place[0] for row in live.values() for place in row.places})
        return {row.key_id: _held(row, blocks if row.key_id in live else {}) for row in rows}

    def collect(
        self, slave: str, key_ids: Sequence[UUID], entry: Entry, retry: Retry | None = None, keep_seconds: int = 0
    ) -> None:
        """Mark keys collected by ``slave``; those that every slave now has are consumed, and erased.

        With ``keep_seconds`` they are erased that much later, for requests that are repeated. Writes, in one
        commit: the keys' rows, zeros over consumed segments, the answer if there may be a ``retry``, audit
        row. All or none: raises `KeyNotHeld` if any was collected by this slave, or ended, or its block
        frozen, since it was looked up, or is not for this slave.
        """
        with self._database.write() as transaction:
            rows = _rows(transaction.connection, key_ids)
            _refuse_barred(transaction, rows)
            moved = [_collected(row, slave) for row in rows]
            cursor = transaction.executemany(
                "UPDATE key SET served = served | :bit, state = :state"
                " WHERE key_id = :key_id AND state = 'delivered' AND served & :bit = 0",
                moved,
            )
            if len(rows) != len(key_ids) or cursor.rowcount != len(key_ids):
                raise KeyNotHeld("a key was collected or ended a moment ago")
            consumed = [r for r, m in zip(rows, moved, strict=True) if m["state"] == KeyState.CONSUMED]
            if keep_seconds:
                due = transaction.now() + keep_seconds
                kept = [(row.key_id.bytes, due) for row in consumed]
                transaction.executemany("INSERT INTO erase_later VALUES (?, ?)", kept)
            else:
                _erase(transaction, [place for row in consumed for place in row.places])
            if retry is not None:
                remember(transaction, retry, key_ids)
            transaction.append(
                entry.knowing(
                    key_IDs=[str(key_id) for key_id in key_ids],
                    consumed=len(consumed) == len(rows) or [str(row.key_id) for row in consumed],
                )
            )

    def void(self, key_ids: Sequence[UUID], entry: Entry) -> list[UUID]:
        """Void those of ``key_ids`` that are not ended and erase their segments; returns those voided.

        Writes, in one commit: the keys' rows, zeros over their segments, audit row.
        """
        with self._database.write() as transaction:
            return _void(transaction, _rows(transaction.connection, key_ids), entry)

    def expire(self, claimed_before: int, entry: Entry, limit: int = _CHUNK) -> int:
        """Void up to ``limit`` keys claimed before that time and never fully collected; returns how many."""
        with self._database.write() as transaction:
            found = transaction.execute(
                "SELECT key_id FROM key WHERE state IN ('assigning', 'assigned', 'delivered') AND claimed_at < ?"
                " ORDER BY claimed_at LIMIT ?",
                (claimed_before, limit),
            ).fetchall()
            rows = _rows(transaction.connection, [UUID(bytes=key_id) for (key_id,) in found])
            return len(_void(transaction, rows, entry))

    def erase_due(self, entry: Entry, limit: int = _CHUNK) -> int:
        """Erase up to ``limit`` consumed keys whose time to be asked for again is over; returns how many.

        Writes, in one commit: zeros over their segments, audit row.
        """
        with self._database.write() as transaction:
            due = transaction.execute(
                "DELETE FROM erase_later WHERE key_id IN (SELECT key_id FROM erase_later WHERE due <= ? LIMIT ?)"
                " RETURNING key_id",
                (transaction.now(), limit),
            ).fetchall()
            if not due:
                return 0
            rows = _rows(transaction.connection, [UUID(bytes=key_id) for (key_id,) in due])
            _erase(transaction, [place for row in rows for place in row.places])
            transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in rows]))
            return len(rows)


def _is_kept(connection: sqlite3.Connection, row: _Row) -> bool:
    """Whether a consumed key is not erased yet."""
    statement = "SELECT 1 FROM erase_later WHERE key_id = ?"
    return (
        row.state == KeyState.CONSUMED and connection.execute(statement, (row.key_id.bytes,)).fetchone() is not None
    )


def _rows(connection: sqlite3.Connection, key_ids: Sequence[UUID]) -> list[_Row]:
    """The rows of ``key_ids`` that exist, in the order given."""
    found: dict[bytes, _Row] = {}
    for start in range(0, len(key_ids), _CHUNK):
        wanted = [key_id.bytes for key_id in key_ids[start : start + _CHUNK]]
        marks = ",".join("?" * len(wanted))
        for key_id, master, slaves, state, size, parts, served in connection.execute(
            f"{_SELECT} ({marks})",  # only question marks are inserted
            wanted,
        ):
            relation = Relation(master, tuple(json.loads(slaves)))
            found[key_id] = _Row(UUID(bytes=key_id), relation, state, size, _places(parts), served)
    return [found[key_id.bytes] for key_id in key_ids if key_id.bytes in found]


def _places(parts: str) -> list[tuple[int, int, int]]:
    try:
        return [(pk, first, count) for pk, first, count in json.loads(parts)]
    except (ValueError, TypeError) as error:
        raise StoreError("the row of a claimed key was tampered with: it does not say where the key is") from error


def _blocks(connection: sqlite3.Connection, block_pks: Iterable[int]) -> dict[int, tuple[BlockSeal, str, bytes]]:
    """Seal, state and all segments of each block."""
    blocks = {}
    for block_pk in block_pks:
        row = connection.execute(
            "SELECT link_id, block_id, epoch, key_bits, wrapped, state, coalesce(sealed, x'') FROM block"
            " LEFT JOIN segments USING (block_pk) WHERE block_pk = ?",
            (block_pk,),
        ).fetchone()
        if row is None:
            raise StoreError(f"a claimed key is of block {block_pk}, which the store does not have")
        link_id, block_id, epoch, key_bits, wrapped, state, sealed = row
        blocks[block_pk] = (BlockSeal(BlockName(link_id, block_id), epoch, key_bits, wrapped), state, sealed)
    return blocks


def _held(row: _Row, blocks: dict[int, tuple[BlockSeal, str, bytes]]) -> HeldKey:
    state, parts = row.state, []
    for block_pk, first, count in row.places if blocks else []:
        seal, block_state, sealed = blocks[block_pk]
        if block_state in _BARRED:
            state = block_state
        stride = segment_bytes(seal.key_bits)
        parts.append(Part(seal, first, count, sealed[first * stride : (first + count) * stride]))
    collected = frozenset(s for i, s in enumerate(row.relation.slaves) if row.served >> i & 1)
    return HeldKey(SealedKey(row.key_id, row.size, tuple(parts)), row.relation, state, collected)


def _refuse_barred(transaction: Transaction, rows: Sequence[_Row]) -> None:
    for block_pk in {place[0] for row in rows for place in row.places}:
        row = transaction.execute("SELECT state FROM block WHERE block_pk = ?", (block_pk,)).fetchone()
        if row is None or row[0] in _BARRED:
            raise KeyNotHeld("a key is of a block that is frozen or revoked")


def _collected(row: _Row, slave: str) -> dict[str, object]:
    """The row's new values when ``slave`` has the key."""
    slaves = row.relation.slaves
    if slave not in slaves:
        raise KeyNotHeld("a key is not for this SAE")
    bit = 1 << slaves.index(slave)
    everyone = (1 << len(slaves)) - 1
    state = KeyState.CONSUMED if row.served | bit == everyone else KeyState.DELIVERED
    return {"bit": bit, "state": state.value, "key_id": row.key_id.bytes}


def _void(transaction: Transaction, rows: Sequence[_Row], entry: Entry) -> list[UUID]:
    ended = (KeyState.CONSUMED, KeyState.VOID)
    doomed = [row for row in rows if row.state not in ended]
    if not doomed:
        return []
    transaction.executemany("UPDATE key SET state = 'void' WHERE key_id = ?", [(r.key_id.bytes,) for r in doomed])
    _erase(transaction, [place for row in doomed for place in row.places])
    transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in doomed]))
    return [row.key_id for row in doomed]


def _erase(transaction: Transaction, places: Sequence[tuple[int, int, int]]) -> None:
    """Write zeros over segments; a block with none left, and none to give, is retired."""
    by_block: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for block_pk, first, count in places:
        by_block[block_pk].append((first, count))
    for block_pk, runs in by_block.items():
        _overwrite(transaction, block_pk, runs)
        transaction.execute(
            "UPDATE block SET live = live - ? WHERE block_pk = ?", (sum(count for _, count in runs), block_pk)
        )
        retired = transaction.execute(
            "UPDATE block SET state = 'retired' WHERE block_pk = ? AND live = 0"
            " AND state IN ('exhausted', 'expired', 'revoked')",
            (block_pk,),
        )
        if retired.rowcount:
            transaction.execute("DELETE FROM segments WHERE block_pk = ?", (block_pk,))


def _overwrite(transaction: Transaction, block_pk: int, runs: Sequence[tuple[int, int]]) -> None:
    """Zeros over ``runs`` (first segment, count). What was tampered with may be shorter, or gone: that ends too."""
    row = transaction.execute(
        "SELECT key_bits, length(sealed) FROM block JOIN segments USING (block_pk) WHERE block_pk = ?", (block_pk,)
    ).fetchone()
    if row is None:
        return
    stride, length = segment_bytes(row[0]), row[1]
    with transaction.connection.blobopen("segments", "sealed", block_pk) as blob:
        for first, count in runs:
            start, end = min(first * stride, length), min((first + count) * stride, length)
            blob.seek(start)
            blob.write(bytes(end - start))
