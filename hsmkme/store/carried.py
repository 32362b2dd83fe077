"""Keys that a peer carries here: masked by one-time pads of its link, kept as a block of this end's own.

Such a block has a name that no device gives, no tag, and nothing to claim: the other end does not have it, and it is
never compared, granted or reconciled. Its pads are taken like keys that are assigned, for good, and erased at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final
from uuid import UUID

from hsmkme.messages.bodies import Assign
from hsmkme.model import BlockName, BlockSeal, Entry, Part, Relation, SealedBlock, SealedKey, segment_bytes
from hsmkme.states import BlockState
from hsmkme.store.accepting import NotAssignedError, Told, insert_keys, taken, told
from hsmkme.store.blocks import insert_block
from hsmkme.store.copies import count_wraps, epochs_of
from hsmkme.store.database import Database, Transaction
from hsmkme.store.inbox import Inbox, Receipt
from hsmkme.store.outbox import OPEN
from hsmkme.store.rows import rows_of
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.segments import erase

_PART: Final = f"""
SELECT epoch, key_bits, wrapped, coalesce(substr(sealed, :first * (key_bits / 8 + :tag) + 1,
    :count * (key_bits / 8 + :tag)), x'') FROM block LEFT JOIN segments USING (block_pk)
WHERE link_id = :link AND block_id = :block AND tag IS NOT NULL AND state IN ('ready', 'exhausted') AND mine = 0
    AND own_epoch = :own_epoch AND :first + :count <= key_count AND NOT EXISTS (SELECT 1 FROM assigned_segment
    WHERE assigned_segment.block_pk = block.block_pk AND segment >= :first AND segment < :first + :count)
    AND {BLOCK_IS_SOUND}
"""  # noqa: S608 - ours alone


def carried_name(link_id: str, txid: UUID) -> BlockName:
    """What the block is called that came in a message."""
    return BlockName(link_id, f"carried/{txid}")


class Carried:
    """What comes masked over a link."""

    def __init__(self, database: Database, inbox: Inbox) -> None:
        self._database = database
        self._inbox = inbox

    def pads(self, link_id: str, assign: Assign) -> list[SealedKey] | None:
        """The pads of a message, while nothing speaks against opening them; `accept` says what does. Reads only."""
        with self._database.read() as connection:
            is_open = connection.execute("SELECT 1 FROM link WHERE link_id = ? AND why = ?", (link_id, OPEN)).fetchone()
            if is_open is None or rows_of(connection, assign.named):
                return None
            named = zip(assign.named, told(assign), strict=True)
            epochs = {place.block_id: place.own_epoch for place in assign.places}
            pads = [_pad(connection, link_id, assign.size, epochs, each) for each in named]
        return None if None in pads else [pad for pad in pads if pad is not None]

    def accept(self, receipt: Receipt, assign: Assign, due: int, block: SealedBlock | None, entry: Entry) -> bytes:
        """The peer gives keys to a relation, which came masked and are now sealed in ``block``: all of them or none.

        Everything is checked anew, for the pads were opened before. Writes, in one commit: the block, its segments,
        rows of keys, pads taken for good and zeros over them, audit row.
        """
        return self._inbox.assign(receipt, assign, due, entry, partial(_insert, block, entry.actor))


def _pad(
    connection: sqlite3.Connection, link_id: str, size: int, epochs: Mapping[str, int], of: tuple[UUID, Told]
) -> SealedKey | None:
    """One pad, where its segments are still to be had; ``epochs``: of ownership, by block."""
    key_id, places = of
    parts = []
    for block_id, first, count in places:
        where = {"link": link_id, "block": block_id, "own_epoch": epochs[block_id]}
        row = connection.execute(_PART, {**where, "first": first, "count": count, "tag": segment_bytes(0)}).fetchone()
        if row is None:
            return None
        epoch, key_bits, wrapped, sealed = row
        parts.append(Part(BlockSeal(BlockName(link_id, block_id), epoch, key_bits, wrapped), first, count, sealed))
    long_enough = sum(part.count * part.block.key_bits for part in parts) >= size
    return SealedKey(key_id, size, tuple(parts)) if long_enough else None


def _insert(
    block: SealedBlock | None,
    actor: str,
    transaction: Transaction,
    link_id: str,
    relation: Relation,
    assign: Assign,
    due: int,
) -> None:
    pads = taken(transaction, link_id, assign)
    if block is None or block.key_count != assign.count:
        raise NotAssignedError("unknown")  # what spoke against opening the pads is over: the peer may ask again
    erase(transaction, [place for places in pads for place in places])
    name, seal = block.seal.name, block.seal
    block_pk = insert_block(transaction, replace(block, mine=False), BlockState.EXHAUSTED, block.key_count)
    count_wraps(transaction, [seal.epoch, *(copy.epoch for copy in block.copies)])
    places = [[(block_pk, index, 1)] for index in range(block.key_count)]
    insert_keys(transaction, relation, assign, places, due)
    facts = {"link": name.link_id, "block": name.block_id, "keys": block.key_count, **epochs_of(block)}
    key_ids = [str(key_id) for key_id in assign.named]
    transaction.append(Entry("block.carry", actor, {**facts, "bits": seal.key_bits, "key_IDs": key_ids}))
