"""The only working module that holds the token and the store.

Every way in which a key comes into being, leaves or ends is a method here, and each lists the order of
its durable writes. Rule of order: a key is handed out only after the commit that says so, and the audit
record is in that commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from hsmkme.admission import Admission
from hsmkme.batches import Batches
from hsmkme.burning import burn, quarantine
from hsmkme.epochs import Epochs
from hsmkme.errors import HsmkmeError, RecordFault, TokenError
from hsmkme.hsm.tokens import Tokens
from hsmkme.logbook import Logbook
from hsmkme.messages.bodies import Body, Carry, KeyReport
from hsmkme.model import (
    BlockName,
    Clock,
    Demand,
    Entry,
    HeldKey,
    OpenKey,
    RawBlock,
    Retry,
    SealedBlock,
    SealedKey,
)
from hsmkme.states import BlockState
from hsmkme.store import Claim, Collection, Draft, NewIds, Offer, Outcome, Pads, Receipt, Store, carried_name

log = logging.getLogger(__name__)

Opened = list[OpenKey] | HsmkmeError
"""What a request gets: its keys, or what was met when they were to be opened."""


class Custody:
    """Tokens and store of one KME. Raises `OperatorFault` if the master keys of no token are the store's."""

    def __init__(self, tokens: Tokens, store: Store, clock: Clock) -> None:
        self._tokens = tokens
        self._store = store
        self.logbook = Logbook(tokens, store, clock)
        self._sound = store.examining.sound
        self._epochs = Epochs(tokens, store, clock)
        self._releases = Batches(self._release)
        self._deliveries = Batches(self._deliver)
        self._collections = Batches(self._collect)
        self._admission = Admission(tokens, store, self._epochs)

    def deposit(
        self,
        blocks: Sequence[RawBlock],
        state: BlockState,
        limit: int,
        actor: str,
        *,
        theirs: Container[BlockName] = (),
    ) -> list[Outcome]:
        """Seal blocks in the token and store them; those that wait for the peer get their confirmation tags too.

        ``theirs`` are those that the peer owns. Durable writes: one commit with blocks, segments and audit rows. A
        crash before it leaves nothing: the device still has the blocks. Raises what `store.Blocks.deposit` refuses;
        ``limit`` is in keys.
        """
        entry = Entry("block.deposit", actor)
        waits = state is BlockState.DEPOSITED
        tags = [self._epochs.tag(block) if waits else None for block in blocks]

        def keep(sealed: Sequence[SealedBlock]) -> list[Outcome]:
            told = [
                replace(made, tag=tag, mine=made.seal.name not in theirs, not_before=block.not_before)
                for made, tag, block in zip(sealed, tags, blocks, strict=True)
            ]
            return self._store.blocks.deposit(told, state, limit, entry)

        return self._sound(lambda: self._epochs.seal(blocks, keep))

    def _away(self) -> frozenset[int]:
        """Epochs whose token fails, which is known before anything is claimed that only it opens."""
        self._admission.require_latest()
        self._sound(self._epochs.look)
        return self._epochs.away()

    def release(self, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey]:
        """Claim keys for a relation and open them for its master.

        Durable writes: 1. one commit with cursors, key rows and audit row; the keys count as delivered from
        then on. 2. only if they cannot be opened: one commit that voids them. A crash between burns keys.
        The token answers before anything is claimed, so that a failing token burns none.
        """
        return _given(self._releases.do(Claim(demand, Entry("key.deliver", actor), retry)))

    def _release(self, claims_now: Callable[[], Sequence[Claim]]) -> list[Opened]:
        away = self._away()
        return self._opened(self._sound(lambda: self._store.blocks.claim(lambda: _in_reach(claims_now(), away))))

    def deliver(self, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey] | None:
        """Open keys that were agreed with the peer before; None when they are not enough.

        Durable writes: as for `release`, but that the peer is told of keys that do not open.
        """
        opened = self._deliveries.do(Claim(demand, Entry("key.deliver", actor), retry))
        return None if opened is None else _given(opened)

    def _deliver(self, draws_now: Callable[[], Sequence[Claim]]) -> list[Opened | None]:
        away = self._away()
        drawn = self._sound(lambda: self._store.agreed.deliver(lambda: _in_reach(draws_now(), away)))
        opened = iter(self._opened([keys for keys in drawn if keys is not None]))
        return [None if keys is None else next(opened) for keys in drawn]

    def _opened(self, claimed: Sequence[Sequence[SealedKey]]) -> list[Opened]:
        """Open keys that count as delivered since the last commit, all together if that can be done; void those that
        do not open."""
        if len(claimed) > 1:
            with suppress(HsmkmeError):  # whose keys it met is found by opening each claim's alone
                return [*self._together(claimed)]
        return [self._open_or_burn(keys) for keys in claimed]

    def _together(self, wanted: Sequence[Sequence[SealedKey]]) -> list[list[OpenKey]]:
        opened = iter(self._epochs.open([key for keys in wanted for key in keys]))
        return [[next(opened) for _ in keys] for keys in wanted]

    def _open_or_burn(self, keys: Sequence[SealedKey]) -> Opened:
        try:
            return self._epochs.open(keys)
        except HsmkmeError as error:
            burn(self._store, keys, error)
            return error

    def is_agreeing(self, demand: Demand) -> bool:
        """Whether another request, of any process, agrees on keys of this relation now."""
        return self._store.agreed.is_agreeing(demand)

    def offer(self, demand: Demand, new_ids: NewIds, actor: str) -> Offer:
        """Claim keys that the peer is to confirm, and pads for them if there are further peers.

        Durable writes: one commit with cursors, key rows, the number of the message and audit rows. A crash after it
        burns the keys: upkeep voids what was not confirmed in time.
        """
        away = self._away()
        demand = replace(demand, away=away) if away else demand
        return self._sound(lambda: self._store.agreed.offer(demand, new_ids, Entry("key.claim", actor)))

    def carry(self, offer: Offer) -> list[Draft]:
        """Mask the keys of an offer by their pads: a message to each further KME that serves a slave.

        The keys and pads are in memory meanwhile, as at delivery. Durable writes: the number of each message; if keys
        or pads do not open, one commit that withdraws the offer instead.
        """
        try:
            return [self._carry(offer, pads) for pads in offer.pads]
        except TokenError as error:
            if isinstance(error, RecordFault):
                quarantine(self._store, error, "kme")
            self.withdraw(offer, type(error).__name__, "kme")
            raise

    def _carry(self, offer: Offer, pads: Pads) -> Draft:
        carry = Carry(pads=pads.assign, masked=self._epochs.mask(offer.wanted, pads.pads))
        return self._store.outbox.number(pads.link_id, "keys/carry", carry)

    def take_over(self, receipt: Receipt, carry: Carry, due: int, entry: Entry) -> bytes:
        """Accept keys that a peer carried here: unmasked and sealed in the token, then kept; gives the answer.

        ``due``: bits of the slaves that this KME serves. Durable writes: one commit with block, segments, key rows,
        erased pads and audit row. A crash before it leaves nothing: the peer says it again, or voids the keys.
        """

        def keep(block: SealedBlock | None) -> bytes:
            return self._store.carried.accept(receipt, carry.pads, due, block, entry)

        pads = self._store.carried.pads(receipt.link_id, carry.pads)
        if pads is None:
            return keep(None)
        try:
            return self._epochs.unmask(carry.masked, pads, carried_name(receipt.link_id, receipt.txid), keep)
        except RecordFault as fault:
            quarantine(self._store, fault, entry.actor)
            return keep(None)  # the answer is that these keys are void

    def settle(self, offer: Offer, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey]:
        """Open keys of an offer that every peer confirmed.

        Durable writes: one commit in which they are agreed and those wanted delivered, and their pads erased, with
        audit rows; then as for `release`.
        """
        event = "key.deliver" if offer.wanted else "key.agree"
        return _given(self._open_or_burn(self._store.agreed.settle(offer, demand, Entry(event, actor), retry)))

    def withdraw(self, offer: Offer, reason: str, actor: str, *, ended_on: str = "") -> None:
        """Void an offer, and its blocks of one link if the peer ended those.

        Durable writes: one commit with key rows, blocks, the message to each peer and audit rows.
        """
        self._store.agreed.withdraw(offer, Entry("key.void", actor, {"reason": reason}), ended_on=ended_on)

    def closed_links(self, peer: str) -> list[str]:
        """The links to ``peer`` that are not open."""
        return self._store.links.closed(peer)

    def question(self, link_id: str, call: str, body: Body) -> Draft:
        """A message that asks and is not repeated. Durable writes: its number."""
        return self._store.outbox.number(link_id, call, body)

    def learn(self, link_id: str, kme_id: str, reports: Sequence[KeyReport]) -> None:
        """Take over keys that a peer assigned to slaves of ``kme_id``, which is this one, and that were forgotten here.

        Durable writes: one commit with key rows and audit row.
        """
        self._store.reconciling.learn(link_id, kme_id, reports, Entry("link.learn", "kme"))

    def alarm_of_peer(self, link_id: str, reason: str) -> None:
        """Record that the other end of a link said what it should never say. Durable writes: one commit."""
        log.error("ALARM link %s: %s", link_id, reason)
        self._store.log.append(Entry("alarm.peer-answer", "kme", {"link": link_id, "reason": reason}))

    def link_mac(self, link_id: str, data: bytes) -> bytes:
        """What proves to the other end of a link that ``data`` comes from this one, 32 bytes."""
        return self._tokens.first(self._tokens.of_link(link_id), lambda token: token.link_mac(link_id, data))

    def held(self, key_ids: Sequence[UUID]) -> dict[UUID, HeldKey]:
        """What is known of claimed keys."""
        return self._sound(lambda: self._store.keys.held(key_ids), key_ids)

    def collect(
        self, slave: str, keys: Sequence[HeldKey], actor: str, retry: Retry | None = None, keep_seconds: int = 0
    ) -> list[OpenKey]:
        """Open keys for one slave of their relation.

        The token opens them first, so that a failing token costs the slave nothing; they are handed out
        only after the commit. Durable writes: one commit with key rows, erased segments and audit row.
        Raises `KeyNotHeld` if another request collected one meanwhile: nothing is handed out then.
        """
        return self._collections.do(Collection(slave, keys, Entry("key.collect", actor), retry, keep_seconds))

    def _collect(self, collections_now: Callable[[], Sequence[Collection]]) -> list[list[OpenKey]]:
        self._sound(self._epochs.look)
        collections = collections_now()
        try:
            opened = self._together([[held.key for held in each.keys] for each in collections])
        except RecordFault as fault:
            if len(collections) == 1:
                quarantine(self._store, fault, collections[0].entry.actor)
            raise
        key_ids = [held.key.key_id for each in collections for held in each.keys]
        self._sound(lambda: self._store.keys.collect(collections), key_ids)
        return opened

    def repeat(self, keys: Sequence[SealedKey], actor: str) -> list[OpenKey]:
        """Open keys for a request that was answered with them before.

        Durable writes: one commit with the audit row, before they are handed out. No key changes its state.
        """
        self._sound(self._epochs.look)
        opened = self._epochs.open(keys)
        self._store.keys.repeat([key.key_id for key in keys], Entry("key.repeat", actor))
        return opened

    def block_id_of(self, block: RawBlock) -> str:
        """A block id for bytes that came without one: the same bytes get the same id, at this KME only."""
        return self._tokens.any(lambda token: token.digest(block))[:16].hex()


def _given(opened: Opened) -> list[OpenKey]:
    if isinstance(opened, HsmkmeError):
        raise opened
    return opened


def _in_reach(claims: Sequence[Claim], away: frozenset[int]) -> Sequence[Claim]:
    """The same of what can be opened now."""
    return [one._replace(demand=replace(one.demand, away=away)) for one in claims] if away else claims
