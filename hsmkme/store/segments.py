"""Sealed segments of blocks: reading runs of them, writing zeros over them. For verbs inside a transaction."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from hsmkme.errors import StoreTampered
from hsmkme.model import GCM_TAG_BYTES, BlockName, BlockSeal, Part, segment_bytes
from hsmkme.store.database import Transaction
from hsmkme.store.seals import BLOCK_IS_SOUND

Name = TypeVar("Name", int, str)
"""What a block is called: its number in the store, or its name in the log."""

Places = list[tuple[int, int, int]]
"""Where a key is, as its row keeps it: block, first segment, count."""

_ENDED: Final = ("exhausted", "expired", "revoked")
"""A block in these states, of whose keys none is live, is retired."""

_RUN: Final = f"""
SELECT link_id, block_id, epoch, key_bits, wrapped, state, coalesce(substr(sealed,
    :first * (key_bits / 8 + :tag) + 1, :count * (key_bits / 8 + :tag)), x'')
FROM block LEFT JOIN segments USING (block_pk) WHERE block_pk = :block AND {BLOCK_IS_SOUND}
"""  # noqa: S608 - ours alone
_LOSE: Final = """
UPDATE block SET live = CASE WHEN state IN ('frozen', 'revoked') THEN max(live - :lost, 0) ELSE live - :lost END
WHERE block_pk = :block RETURNING live, state, key_bits,
    EXISTS (SELECT 1 FROM segments WHERE segments.block_pk = block.block_pk)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive segments of one block, which is in ``state``."""

    block_pk: int
    block: BlockSeal
    state: str
    first: int
    count: int
    sealed: bytes

    def part(self, first: int, count: int) -> Part:
        """Some of them; segments that are lost are missing there too, and do not open."""
        stride = segment_bytes(self.block.key_bits)
        start = (first - self.first) * stride
        return Part(self.block, first, count, self.sealed[start : start + count * stride])


def runs_of(connection: sqlite3.Connection, places: Iterable[tuple[int, int, int]]) -> dict[int, Run]:
    """For each block of ``places`` the shortest run that has all of them."""
    extents: dict[int, tuple[int, int]] = {}
    for block_pk, first, count in places:
        start, end = extents.get(block_pk, (first, 0))
        extents[block_pk] = min(start, first), max(end, first + count)
    return {block_pk: _run(connection, block_pk, start, end - start) for block_pk, (start, end) in extents.items()}


def _run(connection: sqlite3.Connection, block_pk: int, first: int, count: int) -> Run:
    row = connection.execute(_RUN, {"block": block_pk, "first": first, "count": count, "tag": GCM_TAG_BYTES}).fetchone()
    if row is None:
        raise StoreTampered(f"a claimed key is of block {block_pk}, which the store does not have")
    link_id, block_id, epoch, key_bits, wrapped, state, sealed = row
    return Run(block_pk, BlockSeal(BlockName(link_id, block_id), epoch, key_bits, wrapped), state, first, count, sealed)


def erase(transaction: Transaction, places: Iterable[tuple[int, int, int]]) -> None:
    """Write zeros over segments; a block with none left, and none to give, is retired.

    What was tampered with may be shorter, or gone: that ends too.
    """
    by_block: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for block_pk, first, count in joined(places):
        by_block[block_pk].append((first, count))
    for block_pk, runs in by_block.items():
        try:
            lost = sum(count for _, count in runs)
            row = transaction.execute(_LOSE, {"lost": lost, "block": block_pk}).fetchone()
        except sqlite3.IntegrityError as error:
            raise StoreTampered(f"block {block_pk} loses more keys than it has", [block_pk]) from error
        live, state, key_bits, has_segments = row or (None, "", 0, False)
        if has_segments:
            _overwrite(transaction, block_pk, runs, segment_bytes(key_bits))
        if live == 0 and state in _ENDED:
            transaction.execute("UPDATE block SET state = 'retired' WHERE block_pk = ?", (block_pk,))
            transaction.execute("DELETE FROM segments WHERE block_pk = ?", (block_pk,))
            transaction.execute("DELETE FROM assigned_segment WHERE block_pk = ?", (block_pk,))


def _overwrite(transaction: Transaction, block_pk: int, runs: Sequence[tuple[int, int]], stride: int) -> None:
    """Zeros over ``runs`` (first segment, count)."""
    with transaction.connection.blobopen("segments", "sealed", block_pk) as blob:
        length = len(blob)
        for first, count in runs:
            start, end = min(first * stride, length), min((first + count) * stride, length)
            blob.seek(start)
            blob.write(bytes(end - start))


def shares(runs: Iterable[tuple[Name, int, int]], each: int) -> Iterator[list[tuple[Name, int, int]]]:
    """Runs of segments, cut for one key after the other: block, first segment and count of the parts of each, which
    together have ``each`` segments."""
    parts: list[tuple[Name, int, int]] = []
    missing = each
    for block, first, count in runs:
        end = first + count
        while first < end:
            taken = min(missing, end - first)
            parts.append((block, first, taken))
            first, missing = first + taken, missing - taken
            if not missing:
                yield parts
                parts, missing = [], each


def joined(places: Iterable[tuple[Name, int, int]]) -> list[tuple[Name, int, int]]:
    """The same segments, of one key after the other, in as few runs as they make: block, first segment and count."""
    runs: list[tuple[Name, int, int]] = []
    for block, first, count in places:
        if runs and runs[-1][0] == block and runs[-1][1] + runs[-1][2] == first:
            runs[-1] = (block, runs[-1][1], runs[-1][2] + count)
        else:
            runs.append((block, first, count))
    return runs
