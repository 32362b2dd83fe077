"""Claiming keys that a peer is to confirm: all from one vein, and only while the peer is in touch. In a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from hsmkme.errors import LinkFrozen, PeerUnavailable, PoolShort
from hsmkme.messages.bodies import Assign, AssignedKey, Place
from hsmkme.model import Demand, Part, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import OPEN
from hsmkme.store.rows import Batch, insert_rows
from hsmkme.store.veins import Vein, cut, key_rate, take, veins_of

AWAY_SECONDS: Final = 8
"""A peer that was not heard of for so long is away: nothing is claimed that it would have to confirm."""


def vein_to(transaction: Transaction, demand: Demand) -> Vein:
    """The first vein that can give all keys: a message to the peer is of one link."""
    veins = veins_of(transaction.connection, demand.peer, demand.size, transaction.now(), demand.away)
    for vein in veins:
        if vein.keys >= len(demand.key_ids):
            _require_in_touch(transaction, vein.link_id)
            return vein
    frozen = transaction.execute("SELECT link_id, why FROM link WHERE peer = ?", (demand.peer,)).fetchall()
    if frozen and all(why != OPEN for _, why in frozen):
        raise LinkFrozen(f"every link to {demand.peer} is frozen: {dict(frozen)}")
    raise PoolShort(max((vein.keys for vein in veins), default=0), key_rate(transaction, demand.peer, demand.size))


def _require_in_touch(transaction: Transaction, link_id: str) -> None:
    """Claim nothing that the peer cannot confirm: what is offered once and not accepted is burnt."""
    row = transaction.execute("SELECT heard FROM far_end WHERE link_id = ?", (link_id,)).fetchone()
    if row is None or row[0] < transaction.now() - AWAY_SECONDS:
        raise PeerUnavailable(f"the peer of link {link_id} was not heard of lately", asked=False)


def claimed(transaction: Transaction, vein: Vein, demand: Demand, key_ids: Sequence[UUID]) -> list[SealedKey]:
    """Keys of a vein that wait for the peer: cursors of the blocks, and a row for each key."""
    runs = take(transaction, vein, len(key_ids) * vein.per_key)
    pieces = list(cut(runs, vein.per_key))
    batch = Batch(demand.relation, demand.size, KeyState.ASSIGNING, due=demand.due)
    insert_rows(transaction, batch, key_ids, [places for _, places in pieces])
    return [SealedKey(key_id, demand.size, parts) for key_id, (parts, _) in zip(key_ids, pieces, strict=True)]


def assign_of(transaction: Transaction, demand: Demand, keys: Sequence[SealedKey]) -> Assign:
    """The body that tells the peer of keys and of where they are."""
    epochs: dict[str, int] = {}
    for name in {part.block.name for key in keys for part in key.parts}:
        (epochs[name.block_id],) = transaction.execute(
            "SELECT own_epoch FROM block WHERE link_id = ? AND block_id = ?", (name.link_id, name.block_id)
        ).fetchone()
    return Assign(
        master=demand.relation.master,
        slaves=list(demand.relation.slaves),
        size=demand.size,
        keys=[AssignedKey(key_id=key.key_id, parts=[_place(part, epochs) for part in key.parts]) for key in keys],
    )


def _place(part: Part, epochs: dict[str, int]) -> Place:
    block_id = part.block.name.block_id
    return Place(block_id=block_id, first=part.first, count=part.count, own_epoch=epochs[block_id])
