"""Blocks that two ends share, as the end that speaks first sees them: what to announce, what to give away."""

from __future__ import annotations

from collections.abc import Mapping

from hsmkme.messages.bodies import BLOCKS_MOST, BlockTag, Grant, GrantedBlock
from hsmkme.model import Entry
from hsmkme.store.database import Database
from hsmkme.store.ending import revoke
from hsmkme.store.inbox import make_ready, quarantine, set_owner
from hsmkme.store.outbox import post
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.segments import erase
from hsmkme.store.timekeeping import clock_of


class Sharing:
    """Blocks of links to peers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unconfirmed(self, link_id: str, after: str = "") -> list[BlockTag]:
        """Blocks that wait for the peer's confirmation, by their ids, the first of them after ``after``.

        Not those that are not to be released yet.
        """
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT block_id, key_count, key_bits, tag FROM block"  # noqa: S608 - ours alone
                " WHERE link_id = ? AND state = 'deposited' AND tag IS NOT NULL AND block_id > ? AND not_before <= ?"
                f" AND {BLOCK_IS_SOUND} ORDER BY block_id LIMIT ?",
                (link_id, after, clock_of(connection, self._database.clock()).vouched, BLOCKS_MOST),
            ).fetchall()
        return [BlockTag(block_id=name, count=count, bits=bits, tag=tag.hex()) for name, count, bits, tag in rows]

    def compared(self, link_id: str, results: Mapping[str, str], entry: Entry) -> None:
        """What the peer said of blocks that were announced.

        Writes, in one commit: block states, audit row for those that are ready and an alarm for each that differs.
        """
        with self._database.write() as transaction:
            matches = [block_id for block_id, result in results.items() if result == "match"]
            ready = [block_id for block_id in matches if make_ready(transaction, link_id, block_id)]
            if ready:
                transaction.append(entry.knowing(link=link_id, blocks=ready))
            for block_id, result in results.items():
                if result == "mismatch":
                    quarantine(transaction, link_id, block_id, entry.actor)

    def grant(self, link_id: str, key_bits: int, blocks: int, entry: Entry) -> int:
        """Give away up to so many untouched blocks, the youngest first; returns how many.

        Writes, in one commit: owners, the message to the peer, audit row. Row first, message second.
        """
        with self._database.write() as transaction:
            granted = transaction.execute(
                "SELECT block_pk, block_id, own_epoch + 1 FROM block WHERE link_id = ? AND key_bits = ?"  # noqa: S608
                f" AND state = 'ready' AND mine = 1 AND next_index = 0 AND {BLOCK_IS_SOUND}"
                " ORDER BY block_pk DESC LIMIT ?",
                (link_id, key_bits, min(blocks, BLOCKS_MOST)),
            ).fetchall()
            for block_pk, _, own_epoch in granted:
                set_owner(transaction, block_pk, mine=False, own_epoch=own_epoch)
            if granted:
                moved = [GrantedBlock(block_id=block_id, own_epoch=own_epoch) for _, block_id, own_epoch in granted]
                post(transaction, link_id, "blocks/grant", Grant(blocks=moved))
                transaction.append(entry.knowing(link=link_id, blocks=[block.block_id for block in moved]))
            return len(granted)

    def revoke(self, link_id: str, block_ids: list[str], entry: Entry) -> None:
        """End blocks that neither end owns any more, or that the peer does not have."""
        with self._database.write() as transaction:
            revoke(transaction, link_id, block_ids, entry)

    def expire(self, deposited_before: int, entry: Entry, limit: int = BLOCKS_MOST) -> int:
        """End and erase blocks that the peer never confirmed; returns how many.

        Writes, in one commit: block states, zeros over their segments, audit row.
        """
        with self._database.write() as transaction:
            rows = transaction.execute(
                "UPDATE block SET state = 'expired' WHERE block_pk IN (SELECT block_pk FROM block WHERE"  # noqa: S608
                f" state = 'deposited' AND deposited_at < ? AND not_before < ? AND {BLOCK_IS_SOUND} LIMIT ?)"
                " RETURNING block_pk, link_id, block_id, key_count",
                (deposited_before, deposited_before, limit),
            ).fetchall()
            if rows:
                erase(transaction, [(block_pk, 0, key_count) for block_pk, _, _, key_count in rows])
                names = [f"{link_id}/{block_id}" for _, link_id, block_id, _ in rows]
                transaction.append(entry.knowing(blocks=names, keys=sum(row[3] for row in rows)))
            return len(rows)
