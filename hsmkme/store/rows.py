"""Rows of claimed keys: reading them, and the two ways in which their segments end. For verbs inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import StoreError
from hsmkme.model import BlockName, BlockSeal, Entry, Part, Relation, segment_bytes
from hsmkme.states import BlockState, KeyState
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import post_voids

CHUNK: Final = 500
"""SQL parameters used at once; SQLite allows at least 999."""

BARRED: Final = frozenset({BlockState.FROZEN, BlockState.REVOKED})
"""Nothing is collected from a block in these states."""

_SELECT: Final = (
    "SELECT key_id, master, slaves, state, size, parts, served, mine, due FROM key JOIN relation USING (relation_id)"
    " WHERE key_id IN"
)



@dataclass(frozen=True, slots=True)
class KeyRow:
    key_id: UUID
    relation: Relation
    state: str
    size: int
    places: list[tuple[int, int, int]]
    served: int
    mine: bool
    due: int

    @property
    def collectable(self) -> bool:
        """Whether a slave may have it: the master has it, or a peer that assigned it may have given it to one."""
        return self.state == KeyState.DELIVERED or (self.state == KeyState.ASSIGNED and not self.mine)


def rows_of(connection: sqlite3.Connection, key_ids: Sequence[UUID]) -> list[KeyRow]:
    """The rows of ``key_ids`` that exist, in the order given."""
    found: dict[bytes, KeyRow] = {}
    for start in range(0, len(key_ids), CHUNK):
        wanted = [key_id.bytes for key_id in key_ids[start : start + CHUNK]]
        marks = ",".join("?" * len(wanted))
        for key_id, master, slaves, state, size, parts, served, mine, due in connection.execute(
            f"{_SELECT} ({marks})",  # only question marks are inserted
            wanted,
        ):
            relation = Relation.unpacked(master, slaves)
            found[key_id] = KeyRow(UUID(bytes=key_id), relation, state, size, _places(parts), served, bool(mine), due)
    return [found[key_id.bytes] for key_id in key_ids if key_id.bytes in found]


def _places(parts: str) -> list[tuple[int, int, int]]:
    try:
        return [(pk, first, count) for pk, first, count in json.loads(parts)]
    except (ValueError, TypeError) as error:
        raise StoreError("the row of a claimed key was tampered with: it does not say where the key is") from error


def note_blocks(transaction: Transaction, placed: Iterable[tuple[bytes, str]]) -> None:
    """Note of which blocks keys that a peer knows of are; ``placed`` are key_IDs and places as their rows keep them.

    Not by a trigger: the store allows no schema to call functions that look into JSON.
    """
    pairs = {(place[0], key_id) for key_id, parts in placed for place in _places(parts)}
    transaction.executemany("INSERT INTO key_of_block VALUES (?, ?)", sorted(pairs))


def blocks_of(connection: sqlite3.Connection, block_pks: Iterable[int]) -> dict[int, tuple[BlockSeal, str, bytes]]:
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


def parts_of(row: KeyRow, blocks: dict[int, tuple[BlockSeal, str, bytes]]) -> tuple[Part, ...]:
    """The sealed parts of a key, out of what `blocks_of` gave of its blocks."""
    parts = []
    for block_pk, first, count in row.places:
        seal, _, sealed = blocks[block_pk]
        stride = segment_bytes(seal.key_bits)
        parts.append(Part(seal, first, count, sealed[first * stride : (first + count) * stride]))
    return tuple(parts)


def void_rows(transaction: Transaction, rows: Sequence[KeyRow], entry: Entry, *, tell: bool = True) -> list[UUID]:
    """Void keys that are not ended and erase them.

    With ``tell`` the peer that accepted them is told. Not of keys that went to their master long ago: a slave there
    may have them, and is entitled to.
    """
    ended = (KeyState.CONSUMED, KeyState.VOID)
    doomed = [row for row in rows if row.state not in ended]
    if not doomed:
        return []
    transaction.executemany("UPDATE key SET state = 'void' WHERE key_id = ?", [(r.key_id.bytes,) for r in doomed])
    erase(transaction, [place for row in doomed for place in row.places])
    transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in doomed]))
    if tell:
        _tell(transaction, [row for row in doomed if row.mine], str(entry.facts.get("reason", entry.event)))
    return [row.key_id for row in doomed]


def _tell(transaction: Transaction, rows: Sequence[KeyRow], reason: str) -> None:
    """Leave messages to the peers that may have accepted these keys."""
    by_link: dict[str, list[UUID]] = defaultdict(list)
    for row in rows:
        for link_id in _offered_on(transaction, row):
            by_link[link_id].append(row.key_id)
    for link_id, key_ids in by_link.items():
        post_voids(transaction, link_id, key_ids, reason)


def _offered_on(transaction: Transaction, row: KeyRow) -> list[str]:
    """The links over which peers heard of a key: the one it is of, and those it was carried over. Of a pad, none."""
    found = transaction.execute(
        "SELECT link_id FROM block WHERE block_pk = :block AND tag IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM pad WHERE pad_id = :key) UNION SELECT link_id FROM pad WHERE key_id = :key",
        {"block": row.places[0][0] if row.places else None, "key": row.key_id.bytes},
    )
    return [link_id for (link_id,) in found]


def erase(transaction: Transaction, places: Sequence[tuple[int, int, int]]) -> None:
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
            transaction.execute("DELETE FROM assigned_segment WHERE block_pk = ?", (block_pk,))


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
