"""The only working module that holds the token and the store.

Every way in which a key comes into being, leaves or ends is a method here, and each lists the order of
its durable writes. Rule of order: a key is handed out only after the commit that says so, and the audit
record is in that commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from uuid import UUID

from hsmkme.epochs import Epochs
from hsmkme.errors import OperatorFault, RecordFault, StoreError, StoreTampered, TokenError
from hsmkme.hsm.token import Token
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
from hsmkme.restoring import require_latest
from hsmkme.states import BlockState
from hsmkme.store import Draft, NewIds, Offer, Outcome, Pads, Receipt, Store, carried_name

log = logging.getLogger(__name__)


class Custody:
    """Tokens and store of one KME. Raises `OperatorFault` if the master keys of no token are the store's."""

    def __init__(self, tokens: Tokens, store: Store, clock: Clock) -> None:
        self._tokens = tokens
        self._store = store
        self.logbook = Logbook(tokens, store, clock)
        self._sound = store.examining.sound
        self._epochs = Epochs(tokens, store, clock)
        self._old_copy: OperatorFault | None = None
        with self._alarmed():
            self._epochs.require_known_tokens()
        tokens.admit_by(self._admit)
        self._require_latest()

    def _admit(self, token: Token) -> None:
        """Look at a token before anything is asked of it: is it this store's, and the store not an old copy?

        Durable, if there is something: what ceremonies did on it, and what `require_latest` gives up.
        """
        self._store.lineage.seal_rows(token.row_key())
        for note in token.notes():  # the first one begins epoch 1
            self._store.ceremonies.admit(note, token.name, Entry("ceremony.held", "custody"))
        with self._alarmed(token):
            self._epochs.check(token)
        try:
            require_latest(token, self._store)
        except OperatorFault as fault:
            self._old_copy = fault
            raise

    @contextmanager
    def _alarmed(self, *tokens: Token) -> Iterator[None]:
        """Record that the store's epochs are not those of the tokens, once however often somebody starts, unless they
        lost sight of everything."""
        try:
            yield
        except (OperatorFault, StoreTampered) as fault:
            with suppress(TokenError):
                for token in tokens:
                    token.anchored()
                self._store.log.alarm_once(Entry("alarm.epochs-differ", "custody", {"reason": str(fault)}))
            raise

    def deposit(
        self,
        blocks: Sequence[RawBlock],
        state: BlockState,
        limit: int,
        actor: str,
        *,
        theirs: Collection[BlockName] = (),
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

    def _require_latest(self) -> None:
        """Raise what the token met that remembers more than this store does, though the others remember less."""
        if self._old_copy is not None:
            raise self._old_copy

    def _in_reach(self, demand: Demand) -> Demand:
        """``demand`` for what can be opened now: a token that fails is known before anything is claimed of it."""
        self._require_latest()
        self._sound(self._epochs.look)
        away = self._epochs.away()
        return replace(demand, away=away) if away else demand

    def release(self, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey]:
        """Claim keys for a relation and open them for its master.

        Durable writes: 1. one commit with cursors, key rows and audit row; the keys count as delivered from
        then on. 2. only if they cannot be opened: one commit that voids them. A crash between burns keys.
        The token answers before anything is claimed, so that a failing token burns none.
        """
        demand = self._in_reach(demand)
        entry = Entry("key.deliver", actor)
        return self._open_or_burn(self._sound(lambda: self._store.blocks.claim(demand, entry, retry)))

    def deliver(self, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey] | None:
        """Open keys that were agreed with the peer before; None when they are not enough.

        Durable writes: as for `release`, but that the peer is told of keys that do not open.
        """
        demand = self._in_reach(demand)
        entry = Entry("key.deliver", actor)
        keys = self._sound(lambda: self._store.agreed.deliver(demand, entry, retry))
        return None if keys is None else self._open_or_burn(keys)

    def is_agreeing(self, demand: Demand) -> bool:
        """Whether another request, of any process, agrees on keys of this relation now."""
        return self._store.agreed.is_agreeing(demand)

    def offer(self, demand: Demand, new_ids: NewIds, actor: str) -> Offer:
        """Claim keys that the peer is to confirm, and pads for them if there are further peers.

        Durable writes: one commit with cursors, key rows, the number of the message and audit rows. A crash after it
        burns the keys: upkeep voids what was not confirmed in time.
        """
        demand = self._in_reach(demand)
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
                self._quarantine(error, "kme")
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
            self._quarantine(fault, entry.actor)
            return keep(None)  # the answer is that these keys are void

    def settle(self, offer: Offer, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey]:
        """Open keys of an offer that every peer confirmed.

        Durable writes: one commit in which they are agreed and those wanted delivered, and their pads erased, with
        audit rows; then as for `release`.
        """
        event = "key.deliver" if offer.wanted else "key.agree"
        return self._open_or_burn(self._store.agreed.settle(offer, demand, Entry(event, actor), retry))

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

    def _open_or_burn(self, keys: Sequence[SealedKey]) -> list[OpenKey]:
        """Open keys that count as delivered since the last commit; void them if that fails."""
        try:
            return self._epochs.open(keys)
        except TokenError as error:
            self._burn(keys, error)
            raise

    def held(self, key_ids: Sequence[UUID]) -> dict[UUID, HeldKey]:
        """What is known of claimed keys."""
        return self._sound(lambda: self._store.keys.held(key_ids), key_ids)

    def collect(
        self, slave: str, keys: Sequence[SealedKey], actor: str, retry: Retry | None = None, keep_seconds: int = 0
    ) -> list[OpenKey]:
        """Open keys for one slave of their relation.

        The token opens them first, so that a failing token costs the slave nothing; they are handed out
        only after the commit. Durable writes: one commit with key rows, erased segments and audit row.
        Raises `KeyNotHeld` if another request collected one meanwhile: nothing is handed out then.
        """
        self._sound(self._epochs.look)
        try:
            opened = self._epochs.open(keys)
        except RecordFault as fault:
            self._quarantine(fault, actor)
            raise
        entry, key_ids = Entry("key.collect", actor), [key.key_id for key in keys]
        self._sound(lambda: self._store.keys.collect(slave, key_ids, entry, retry, keep_seconds))
        return opened

    def repeat(self, keys: Sequence[SealedKey], actor: str) -> list[OpenKey]:
        """Open keys for a request that was answered with them before.

        Durable writes: one commit with the audit row, before they are handed out. No key changes its state.
        """
        self._sound(self._epochs.look)
        opened = self._epochs.open(keys)
        self._store.keys.repeat([key.key_id for key in keys], Entry("key.repeat", actor))
        return opened

    def _burn(self, keys: Sequence[SealedKey], error: TokenError) -> None:
        """Void keys that were claimed and cannot be opened; freeze the block if it is to blame."""
        if isinstance(error, RecordFault):
            self._quarantine(error, "kme")
        try:
            self._store.keys.void(
                [key.key_id for key in keys], Entry("key.void", "kme", {"reason": type(error).__name__})
            )
        except StoreError:
            log.exception("claimed keys could not be voided; they expire uncollected")

    def _quarantine(self, fault: RecordFault, actor: str) -> None:
        log.error("ALARM %s: quarantined", fault)
        try:
            self._store.blocks.freeze(BlockName(fault.link_id, fault.block_id), Entry("alarm.block-tampered", actor))
        except StoreError:  # the row breaks rules of its table too
            self._store.examining.examine(actor)

    def block_id_of(self, block: RawBlock) -> str:
        """A block id for bytes that came without one: the same bytes get the same id, at this KME only."""
        return self._tokens.any(lambda token: token.digest(block))[:16].hex()
