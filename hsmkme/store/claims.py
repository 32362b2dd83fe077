"""Claiming keys that a peer is to confirm: all from one vein, and only while the peer is in touch. In a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from hsmkme.errors import LinkFrozen, PeerUnavailable, PoolShort
from hsmkme.messages.bodies import Assign, Place
from hsmkme.model import Demand, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import OPEN
from hsmkme.store.rows import Batch, insert_rows
from hsmkme.store.segments import Run, shares
from hsmkme.store.veins import Vein, cut, key_rate, take, veins_of, where

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


def claimed(transaction: Transaction, vein: Vein, demand: Demand, key_ids: Sequence[UUID]) -> list[Run]:
    """Claim keys of a vein, which wait for the peer; gives the runs that they are, one after the other.

    Writes: cursors of the blocks, and a row for each key."""
    runs = take(transaction, vein, len(key_ids) * vein.per_key)
    batch = Batch(demand.relation, demand.size, KeyState.ASSIGNING, due=demand.due)
    insert_rows(transaction, batch, key_ids, list(shares(where(runs), vein.per_key)))
    return runs


def sealed(key_ids: Sequence[UUID], size: int, runs: Sequence[Run], per_key: int) -> tuple[SealedKey, ...]:
    """The first keys that are cut from ``runs``: as many as there are ``key_ids``."""
    return tuple([SealedKey(key_id, size, parts) for key_id, (parts, _) in zip(key_ids, cut(runs, per_key))])  # noqa: B905


def assign_of(transaction: Transaction, demand: Demand, key_ids: Sequence[UUID], runs: Sequence[Run]) -> Assign:
    """The body that tells the peer of keys and of where they are."""
    return Assign(
        master=demand.relation.master,
        slaves=list(demand.relation.slaves),
        size=demand.size,
        key_ids=b"".join([key_id.bytes for key_id in key_ids]).hex(),
        places=[_place(transaction, run) for run in runs],
    )


def _place(transaction: Transaction, run: Run) -> Place:
    statement = "SELECT own_epoch FROM block WHERE block_pk = ?"
    (own_epoch,) = transaction.execute(statement, (run.block_pk,)).fetchone()
    return Place(block_id=run.block.name.block_id, first=run.first, count=run.count, own_epoch=own_epoch)
