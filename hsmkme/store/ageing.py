"""What a block's age does: one whose time has come is released, one that is older than its link allows ends."""

from __future__ import annotations

from typing import Final

from hsmkme.model import Entry
from hsmkme.store.database import Database, Transaction
from hsmkme.store.locks import unlock
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.segments import erase
from hsmkme.store.timekeeping import clock_of

BLOCKS_AT_ONCE: Final = 64
GRACE_SECONDS: Final = 60
"""How much longer a block lives at the end that does not own it: what its owner assigned last may be under way."""

_AGED: Final = f"""
UPDATE block SET state = 'expired' WHERE block_pk IN (SELECT block_pk FROM block WHERE link_id = :link
    AND state IN ('deposited', 'ready') AND deposited_at < :before AND not_before < :before
    AND (mine = 1 OR deposited_at < :before - :grace) AND {BLOCK_IS_SOUND} ORDER BY deposited_at LIMIT :most)
RETURNING block_pk, block_id, mine, next_index, key_count
"""  # noqa: S608 - ours alone
"""No block ends because of a time that was altered."""


class Ageing:
    """The lifetimes of blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unlock(self, actor: str) -> int:
        """Release local blocks whose time has come; returns how many. Writes, in one commit: states, audit row."""
        with self._database.write() as transaction:
            return unlock(transaction, clock_of(transaction.connection, transaction.now()), actor)

    def expire(self, link_id: str, deposited_before: int, entry: Entry) -> int:
        """End up to `BLOCKS_AT_ONCE` blocks of a link that are older than that; returns how many.

        The age of one that was not to be released before a time begins with that time. What was claimed of them is
        collected as before. Writes, in one commit: block states, zeros over the segments that nobody claimed, audit
        row.
        """
        values = {"link": link_id, "before": deposited_before, "grace": GRACE_SECONDS, "most": BLOCKS_AT_ONCE}
        with self._database.write() as transaction:
            rows = transaction.execute(_AGED, values).fetchall()
            if rows:
                unclaimed = [place for row in rows for place in _unclaimed(transaction, row)]
                erase(transaction, unclaimed)
                names = [f"{link_id}/{block_id}" for _, block_id, _, _, _ in rows]
                transaction.append(entry.knowing(blocks=names, keys=sum(count for _, _, count in unclaimed)))
            return len(rows)


def _unclaimed(transaction: Transaction, row: tuple[int, str, int, int, int]) -> list[tuple[int, int, int]]:
    """The segments of a block that are of no key."""
    block_pk, _, mine, cursor, key_count = row
    if mine:
        return [(block_pk, cursor, key_count - cursor)]
    found = transaction.execute("SELECT segment FROM assigned_segment WHERE block_pk = ?", (block_pk,))
    taken = {segment for (segment,) in found}
    return [(block_pk, segment, 1) for segment in range(key_count) if segment not in taken]
