"""Keys that two ends agree on before one is delivered: offered here, confirmed by the peer, then given out.

The order of a claim: `offer` (durable, numbered), the message to the peer, `settle` or `withdraw`. A key that was
offered once is never offered for another relation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import KeyNotHeld, LinkFrozen, PeerUnavailable, PoolShort
from hsmkme.messages.bodies import Assign, AssignedKey, Place
from hsmkme.model import Demand, Entry, Part, Relation, Retry, SealedKey, segment_bytes
from hsmkme.states import KeyState
from hsmkme.store.answers import remember
from hsmkme.store.database import Database, Transaction
from hsmkme.store.inbox import revoke
from hsmkme.store.outbox import OPEN, Draft, numbered, require_open
from hsmkme.store.rows import BARRED, KeyRow, blocks_of, rows_of, void_rows
from hsmkme.store.veins import Vein, claim_entry, cut, key_rate, relation_id, take, veins_of

DEPTH_MOST: Final = 128
"""The most keys that a relation is given ahead of need."""

BUSY_SECONDS: Final = 10
"""A relation that comes back within this time is given more ahead; one that stays away much longer, nothing."""

AWAY_SECONDS: Final = 8
"""A peer that was not heard of for so long is away: nothing is claimed that it would have to confirm."""

NewIds = Callable[[int], tuple[UUID, ...]]
"""Makes so many new key_IDs."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Keys that were claimed and that the peer has not confirmed: those wanted now, and those ahead of need."""

    draft: Draft
    wanted: tuple[SealedKey, ...]
    ahead: tuple[UUID, ...]

    @property
    def key_ids(self) -> list[UUID]:
        """All of them."""
        return [*(key.key_id for key in self.wanted), *self.ahead]


class Agreed:
    """Keys of links to peers that are assigned by this end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count(self, relation: Relation, size: int) -> int:
        """How many keys are agreed for a relation and can be drawn now."""
        with self._database.read() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM key JOIN relation USING (relation_id)"
                " WHERE master = ? AND slaves = ? AND size = ? AND key.state = 'assigned' AND key.mine = 1"
                " AND NOT EXISTS (SELECT 1 FROM json_each(parts) AS part JOIN block ON block_pk = part.value ->> '$[0]'"
                " JOIN link USING (link_id) WHERE why <> '' OR block.state IN ('frozen', 'revoked'))",
                (relation.master, relation.packed, size),
            ).fetchone()
        return int(count)

    def deliver(self, demand: Demand, entry: Entry, retry: Retry | None = None) -> list[SealedKey] | None:
        """Deliver keys that were agreed before; None, and nothing is changed, when they are not enough.

        Writes, in one commit: the keys' rows, the answer if there may be a ``retry``, audit row. After it the keys
        count as delivered, whatever happens to the caller.
        """
        with self._database.write() as transaction:
            rows = _drawable(transaction, demand)
            if len(rows) < len(demand.key_ids):
                return None
            keys = _sealed(transaction, rows)
            _delivered(transaction, demand, keys, entry, retry)
            return keys

    def offer(self, demand: Demand, new_ids: NewIds, entry: Entry) -> Offer:
        """Claim keys for ``demand``, and more ahead of need if the relation draws often, from one link.

        Writes, in one commit: cursors of the blocks, a row for each key, the message's number, audit row.
        Raises `PoolShort` or `LinkFrozen`; nothing was claimed then.
        """
        wanted = len(demand.key_ids)
        with self._database.write() as transaction:
            relation = relation_id(transaction, demand.relation)
            vein = _vein(transaction, demand)
            ahead = new_ids(min(_depth(transaction, relation, demand), vein.keys - wanted))
            if not demand.key_ids and not ahead:
                raise PoolShort(0, 0.0)
            keys, places = _claimed(transaction, vein, demand, (*demand.key_ids, *ahead))
            now = transaction.now()
            transaction.executemany(
                "INSERT INTO key (key_id, relation_id, state, size, parts, claimed_at, due)"
                " VALUES (?, ?, 'assigning', ?, ?, ?, ?)",
                [
                    (key.key_id.bytes, relation, demand.size, place, now, demand.due)
                    for key, place in zip(keys, places, strict=True)
                ],
            )
            draft = numbered(transaction, vein.link_id, "keys/assign", _assign(transaction, demand, keys))
            transaction.append(claim_entry(entry, demand, keys))
            return Offer(draft, tuple(keys[:wanted]), tuple(key.key_id for key in keys[wanted:]))

    def settle(self, offer: Offer, demand: Demand, entry: Entry, retry: Retry | None = None) -> list[SealedKey]:
        """The peer confirmed: the keys ahead wait, those wanted are delivered.

        Writes, in one commit: the keys' rows, the answer if there may be a ``retry``, audit row. Raises `KeyNotHeld`
        if the offer was given up meanwhile: nothing is delivered then.
        """
        with self._database.write() as transaction:
            require_open(transaction, offer.draft.link_id)
            moved = transaction.executemany(
                "UPDATE key SET state = 'assigned' WHERE key_id = ? AND state = 'assigning'",
                [(key_id.bytes,) for key_id in offer.key_ids],
            )
            if moved.rowcount != len(offer.key_ids):
                raise KeyNotHeld("the offer was given up before the peer confirmed it")
            keys = list(offer.wanted)
            if keys:
                _delivered(transaction, demand, keys, entry, retry)
            else:
                transaction.append(entry.knowing(key_IDs=[str(key_id) for key_id in offer.key_ids]))
            return keys

    def withdraw(self, offer: Offer, entry: Entry, *, blocks_too: bool = False) -> None:
        """Void the keys of an offer that the peer did not confirm; the peer is told until it acknowledges.

        Its relation is given nothing ahead of need for a while: that would be burnt too. ``blocks_too``: the peer
        has ended a block of it, from which nothing can be agreed on any more, so they end here.
        """
        with self._database.write() as transaction:
            rows = rows_of(transaction.connection, offer.key_ids)
            for number, size in {(relation_id(transaction, row.relation), row.size) for row in rows}:
                transaction.execute("DELETE FROM draw WHERE relation_id = ? AND size = ?", (number, size))
            waiting = [row for row in rows if row.state == KeyState.ASSIGNING]
            void_rows(transaction, rows, entry)
            if blocks_too:  # an offer that was given up meanwhile may be void at the peer for that reason alone
                _end_blocks(transaction, offer.draft.link_id, waiting, entry)

    def thirsty(self, peer: str, now: float) -> list[tuple[Relation, int]]:
        """Relations with slaves at ``peer`` that draw often and have few keys left ahead, and the size they draw."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT master, slaves, size FROM draw JOIN relation USING (relation_id)"
                " WHERE peer = ? AND at >= ? AND depth > 1 AND depth / 2 > (SELECT count(*) FROM key"
                " WHERE key.relation_id = draw.relation_id AND key.size = draw.size"
                " AND state = 'assigned' AND mine = 1)",
                (peer, int(now) - BUSY_SECONDS),
            ).fetchall()
        return [(Relation.unpacked(master, slaves), size) for master, slaves, size in rows]


def _end_blocks(transaction: Transaction, link_id: str, rows: Sequence[KeyRow], entry: Entry) -> None:
    names = [
        transaction.execute("SELECT block_id FROM block WHERE block_pk = ?", (block_pk,)).fetchone()[0]
        for block_pk in sorted({place[0] for row in rows for place in row.places})
    ]
    revoke(transaction, link_id, names, Entry("block.revoke", entry.actor, {"reason": "the peer has ended it"}))


def _drawable(transaction: Transaction, demand: Demand) -> list[KeyRow]:
    """The oldest agreed keys of the relation whose block and link nothing is wrong with."""
    found = transaction.execute(
        "SELECT key_id FROM key JOIN relation USING (relation_id) WHERE master = ? AND slaves = ? AND size = ?"
        " AND key.state = 'assigned' AND mine = 1 ORDER BY key_id LIMIT ?",
        (demand.relation.master, demand.relation.packed, demand.size, len(demand.key_ids) + DEPTH_MOST),
    ).fetchall()
    rows = rows_of(transaction.connection, [UUID(bytes=key_id) for (key_id,) in found])
    barred: dict[int, bool] = {}
    for block_pk in {place[0] for row in rows for place in row.places}:
        state, why = transaction.execute(
            "SELECT block.state, why FROM block JOIN link USING (link_id) WHERE block_pk = ?", (block_pk,)
        ).fetchone()
        barred[block_pk] = state in BARRED or why != OPEN
    good = [row for row in rows if not any(barred[place[0]] for place in row.places)]
    return good[: len(demand.key_ids)]


def _sealed(transaction: Transaction, rows: Sequence[KeyRow]) -> list[SealedKey]:
    blocks = blocks_of(transaction.connection, {place[0] for row in rows for place in row.places})
    keys = []
    for row in rows:
        parts = []
        for block_pk, first, count in row.places:
            seal, _, sealed = blocks[block_pk]
            stride = segment_bytes(seal.key_bits)
            parts.append(Part(seal, first, count, sealed[first * stride : (first + count) * stride]))
        keys.append(SealedKey(row.key_id, row.size, tuple(parts)))
    return keys


def _delivered(
    transaction: Transaction, demand: Demand, keys: Sequence[SealedKey], entry: Entry, retry: Retry | None
) -> None:
    now, key_ids = transaction.now(), [key.key_id for key in keys]
    transaction.executemany(
        "UPDATE key SET state = ?, claimed_at = ? WHERE key_id = ?",
        [(KeyState.DELIVERED.value, now, key_id.bytes) for key_id in key_ids],
    )
    if retry is not None:
        remember(transaction, retry, key_ids)
    transaction.append(claim_entry(entry, demand, keys))


def _vein(transaction: Transaction, demand: Demand) -> Vein:
    """The first vein that can give all keys: a message to the peer is of one link."""
    veins = veins_of(transaction.connection, demand.peer, demand.size)
    for vein in veins:
        if vein.keys >= len(demand.key_ids):
            _require_in_touch(transaction, vein.link_id)
            return vein
    frozen = transaction.execute("SELECT link_id, why FROM link WHERE peer = ?", (demand.peer,)).fetchall()
    if frozen and all(why != OPEN for _, why in frozen):
        raise LinkFrozen(f"every link to {demand.peer} is frozen: {dict(frozen)}")
    raise PoolShort(max((vein.keys for vein in veins), default=0), key_rate(transaction, demand))


def _require_in_touch(transaction: Transaction, link_id: str) -> None:
    """Claim nothing that the peer cannot confirm: what is offered once and not accepted is burnt."""
    row = transaction.execute("SELECT heard FROM far_end WHERE link_id = ?", (link_id,)).fetchone()
    if row is None or row[0] < transaction.now() - AWAY_SECONDS:
        raise PeerUnavailable(f"the peer of link {link_id} was not heard of lately", asked=False)


def _claimed(
    transaction: Transaction, vein: Vein, demand: Demand, key_ids: Sequence[UUID]
) -> tuple[list[SealedKey], list[str]]:
    keys, places = [], []
    runs = take(transaction, vein, len(key_ids) * vein.per_key)
    for key_id, (parts, place) in zip(key_ids, cut(runs, vein.per_key), strict=True):
        keys.append(SealedKey(key_id, demand.size, parts))
        places.append(place)
    return keys, places


def _assign(transaction: Transaction, demand: Demand, keys: Sequence[SealedKey]) -> Assign:
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


def _depth(transaction: Transaction, relation: int, demand: Demand) -> int:
    """How many keys to agree on ahead of need: twice as many as before while the relation keeps coming back.

    None while another request waits for an answer to an offer for the same relation.
    """
    now = transaction.now()
    waits = transaction.execute(
        "SELECT 1 FROM key WHERE state = 'assigning' AND relation_id = ? AND claimed_at >= ? LIMIT 1",
        (relation, now - BUSY_SECONDS),
    ).fetchone()
    row = transaction.execute("SELECT depth, at FROM draw WHERE relation_id = ? AND size = ?", (relation, demand.size))
    depth, at = row.fetchone() or (1, 0)
    if waits is not None:
        return 0
    if now - at <= BUSY_SECONDS:
        depth = min(2 * max(depth, len(demand.key_ids)), DEPTH_MOST)
    elif now - at > 6 * BUSY_SECONDS:
        depth = 1
    transaction.execute(
        "INSERT INTO draw VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET depth = excluded.depth, at = excluded.at",
        (relation, demand.size, demand.peer, depth, now),
    )
    return depth if depth > 1 else 0
