"""Keys that two ends agree on before one is delivered: offered here, confirmed by the peer, then given out.

The order of a claim: `offer` (durable, numbered), the message to the peer, `settle` or `withdraw`. A key that was
offered once is never offered for another relation. Where slaves are at further KMEs too, the key is carried to them
under one-time pads, which are claimed, used up or given up together with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from hsmkme.errors import KeyNotHeld, PoolShort
from hsmkme.messages.bodies import KEYS_MOST
from hsmkme.model import Demand, Entry, Relation, Retry, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.ahead import DEPTH_MOST, depth, give_none, is_agreeing, thirsty
from hsmkme.store.answers import remember
from hsmkme.store.blocks import Claim
from hsmkme.store.claims import assign_of, claimed, sealed, vein_to
from hsmkme.store.copies import IN_REACH, packed
from hsmkme.store.database import Database, Transaction
from hsmkme.store.ending import revoke
from hsmkme.store.outbox import Draft, numbered, require_open
from hsmkme.store.pads import Pads, claim_pads, use_up
from hsmkme.store.rows import KeyRow, parts_of, rows_of, rows_where, update_rows, void_rows
from hsmkme.store.seals import is_sealed, seal_of
from hsmkme.store.segments import runs_of
from hsmkme.store.timekeeping import require_time
from hsmkme.store.veins import claim_entry, claim_entry_of

_OLDEST: Final = "master = ? AND slaves = ? AND size = ? AND state = 'assigned' AND mine = 1 ORDER BY key_id LIMIT ?"
_WRONG: Final = """
SELECT 1 FROM block JOIN link USING (link_id) WHERE block_pk = ? AND (why <> '' OR block.state IN ('frozen', 'revoked'))
"""
_OUT_OF_REACH: Final = f"SELECT 1 FROM block WHERE block_pk = ?1 AND NOT {IN_REACH.format('?2')}"  # noqa: S608 - ours
_DELIVER: Final = f"""
UPDATE key SET state = 'delivered', claimed_at = ?1, seal = {seal_of("key", claimed_at="?1")}
FROM relation WHERE relation.relation_id = key.relation_id AND key.state = 'assigned' AND {is_sealed("key")}
"""  # noqa: S608 - ours alone

NewIds = Callable[[int], tuple[UUID, ...]]
"""Makes so many new key_IDs."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Keys that were claimed and that the peer has not confirmed: those wanted now, and those ahead of need.

    ``pads``: for each further KME, what those wanted are masked with. ``far_rows``: how many rows the logs at the
    other ends of links had when they confirmed them.
    """

    draft: Draft
    wanted: tuple[SealedKey, ...]
    ahead: tuple[UUID, ...]
    pads: tuple[Pads, ...] = ()
    far_rows: Mapping[str, int] = field(default_factory=dict)

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

    def deliver(self, draws_now: Callable[[], Sequence[Claim]]) -> list[list[SealedKey] | None]:
        """Deliver keys that were agreed before; None, and nothing is changed, for whom they are not enough.

        Who draws is asked for once nobody else writes. Writes, in one commit: the keys' rows, the answers to requests
        that may be repeated, audit rows. After it the keys count as delivered, whatever happens to the caller.
        """
        with self._database.write() as transaction:
            draws = draws_now()
            drawn = _drawn(transaction, [draw.demand for draw in draws])
            delivered = [(draw, keys) for draw, keys in zip(draws, drawn, strict=True) if keys]
            if delivered:
                require_time(transaction)
                _delivered(transaction, delivered)
            return drawn

    def is_agreeing(self, demand: Demand) -> bool:
        """Whether a request waits for the peer to confirm keys of this relation, perhaps more than it needs."""
        with self._database.read() as connection:
            return is_agreeing(connection, demand, int(self._database.clock()))

    def offer(self, demand: Demand, new_ids: NewIds, entry: Entry) -> Offer:
        """Claim keys for ``demand``, and more ahead of need if the relation draws often, from one link; and a pad for
        each of them from a link to every further KME.

        Writes, in one commit: cursors of the blocks, a row for each key and pad, the message's number, audit rows.
        Raises `PoolShort`, `LinkFrozen` or `PeerUnavailable`; nothing was claimed then.
        """
        wanted = len(demand.key_ids)
        with self._database.write() as transaction:
            require_time(transaction)
            vein = vein_to(transaction, demand)
            spare = min((vein.keys - wanted) // 4, KEYS_MOST - wanted)  # other relations want some too
            ahead = new_ids(depth(transaction, demand, spare))
            key_ids = (*demand.key_ids, *ahead)
            if not key_ids:
                raise PoolShort(0, 0.0)
            runs = claimed(transaction, vein, demand, key_ids)
            assign = assign_of(transaction, demand, key_ids, runs)
            draft = numbered(transaction, vein.link_id, "keys/assign", assign)
            transaction.append(claim_entry_of(entry, demand, key_ids, runs).knowing(txid=str(draft.txid)))
            pads = [
                claim_pads(transaction, replace(demand, peer=peer), new_ids(wanted), entry) for peer in demand.further
            ]
            return Offer(draft, sealed(demand.key_ids, demand.size, runs, vein.per_key), ahead, tuple(pads))

    def settle(self, offer: Offer, demand: Demand, entry: Entry, retry: Retry | None = None) -> list[SealedKey]:
        """Every peer confirmed: the keys ahead wait, those wanted are delivered.

        Writes, in one commit: the keys' rows, zeros over their pads, what is known of the peers' logs, the answer if
        there may be a ``retry``, audit rows. Raises `KeyNotHeld` if the offer was given up meanwhile, `LinkFrozen` if a
        link was frozen: nothing is delivered then.
        """
        with self._database.write() as transaction:
            require_open(transaction, offer.draft.link_id)
            for pads in offer.pads:
                use_up(transaction, pads, entry.actor)
            moved = update_rows(
                transaction, "UPDATE key SET state = 'assigned' WHERE state = 'assigning'", offer.key_ids
            )
            if moved != len(offer.key_ids):
                raise KeyNotHeld("the offer was given up before the peer confirmed it")
            transaction.executemany(
                "UPDATE far_end SET log_rows = max(log_rows, ?) WHERE link_id = ?",
                [(rows, link_id) for link_id, rows in offer.far_rows.items()],
            )
            keys = list(offer.wanted)
            if keys:
                _delivered(transaction, [(Claim(demand, entry, retry), keys)])
            else:
                transaction.append(entry.knowing(link=offer.draft.link_id, txid=str(offer.draft.txid)))
            return keys

    def withdraw(self, offer: Offer, entry: Entry, *, ended_on: str = "") -> None:
        """Void the keys of an offer that a peer did not confirm, and their pads; every peer is told until it
        acknowledges, as it may have accepted them.

        Its relation is given nothing ahead of need for a while: that would be burnt too. ``ended_on``: the peer of
        this link has ended a block of it, from which nothing can be agreed on any more, so they end here.
        """
        with self._database.write() as transaction:
            doomed = [*offer.key_ids, *(pad_id for pads in offer.pads for pad_id in pads.pad_ids)]
            rows = rows_of(transaction.connection, doomed)
            for relation, size in {(row.relation, row.size) for row in rows}:
                give_none(transaction, relation, size)
            waiting = [row for row in rows if row.state == KeyState.ASSIGNING]
            void_rows(transaction, rows, entry)
            if ended_on:  # an offer that was given up meanwhile may be void at the peer for that reason alone
                _end_blocks(transaction, ended_on, waiting, entry)

    def thirsty(self, peer: str, now: float) -> list[tuple[Relation, int]]:
        """Relations with slaves at ``peer`` that draw often and have few keys left ahead, and the size they draw."""
        with self._database.read() as connection:
            return thirsty(connection, peer, int(now))


def _end_blocks(transaction: Transaction, link_id: str, rows: Sequence[KeyRow], entry: Entry) -> None:
    names = [
        block_id
        for block_pk in sorted({place[0] for row in rows for place in row.places})
        for (block_id,) in transaction.execute(
            "SELECT block_id FROM block WHERE block_pk = ? AND link_id = ?", (block_pk, link_id)
        ).fetchall()
    ]
    revoke(transaction, link_id, names, Entry("block.revoke", entry.actor, {"reason": "the peer has ended it"}))


def _drawn(transaction: Transaction, demands: Sequence[Demand]) -> list[list[SealedKey] | None]:
    """For each of ``demands`` the oldest agreed keys of its relation; None for those for which they are not enough."""
    wanted: Counter[tuple[Relation, int]] = Counter()
    for demand in demands:
        wanted[demand.relation, demand.size] += len(demand.key_ids)
    away = frozenset[int]().union(*(demand.away for demand in demands))
    sources = {kind: _drawable(transaction, *kind, away, count) for kind, count in wanted.items()}
    drawn: list[list[SealedKey] | None] = []
    for demand in demands:
        keys, count = sources[demand.relation, demand.size], len(demand.key_ids)
        drawn.append([keys.popleft() for _ in range(count)] if len(keys) >= count else None)
    return drawn


def _drawable(
    transaction: Transaction, relation: Relation, size: int, away: frozenset[int], wanted: int
) -> deque[SealedKey]:
    """Up to ``wanted`` of the oldest agreed keys of the relation whose block and link nothing is wrong with.

    ``away``: see `Demand`."""
    good = _good(transaction, relation, size, away, wanted)
    if len(good) < wanted:
        good = _good(transaction, relation, size, away, wanted + 2 * DEPTH_MOST)[:wanted]
    return deque(_sealed(transaction, good))


def _good(
    transaction: Transaction, relation: Relation, size: int, away: frozenset[int], limit: int
) -> list[KeyRow]:
    """Those of the ``limit`` oldest."""
    values = (relation.master, relation.packed, size, limit)
    rows = rows_where(transaction.connection, _OLDEST, values)
    blocks = {place[0] for row in rows for place in row.places}
    barred = {block_pk for block_pk in blocks if transaction.execute(_WRONG, (block_pk,)).fetchone()}
    if away:
        barred |= {pk for pk in blocks if transaction.execute(_OUT_OF_REACH, (pk, packed(away))).fetchone()}
    return [row for row in rows if not any(place[0] in barred for place in row.places)]


def _sealed(transaction: Transaction, rows: Sequence[KeyRow]) -> list[SealedKey]:
    runs = runs_of(transaction.connection, [place for row in rows for place in row.places])
    return [SealedKey(row.key_id, row.size, parts_of(row, runs)) for row in rows]


def _delivered(transaction: Transaction, delivered: Sequence[tuple[Claim, Sequence[SealedKey]]]) -> None:
    key_ids = [key.key_id for _, keys in delivered for key in keys]
    if update_rows(transaction, _DELIVER, key_ids, transaction.now()) != len(key_ids):
        raise KeyNotHeld("a key that was agreed ended a moment ago")
    for draw, keys in delivered:
        if draw.retry is not None:
            remember(transaction, draw.retry, [key.key_id for key in keys])
    transaction.append_all([claim_entry(draw.entry, draw.demand, keys) for draw, keys in delivered])
