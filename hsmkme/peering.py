"""The receiving side of kme-peer/1: who says it, whether it is new, what to do, and the signed answer."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hsmkme.custody import Custody
from hsmkme.errors import PeerRefused
from hsmkme.messages.bodies import (
    Announce,
    Assign,
    Carry,
    Grant,
    Hello,
    Missing,
    Query,
    Refusal,
    Revoke,
    Void,
    parsed,
)
from hsmkme.messages.signing import (
    LIFE_SECONDS,
    SKEW_SECONDS,
    VERSION,
    Message,
    answer_covered,
    answer_parameters,
    content_digest,
    received,
    signature_header,
)
from hsmkme.model import Clock, Entry, Link, Relation, due_bits
from hsmkme.store import Receipt, Store
from hsmkme.store.links import GIVEN_UP, RESTORED
from hsmkme.store.reconciling import give_up_missing
from hsmkme.store.revoking import end_told

log = logging.getLogger(__name__)

ALARM_SECONDS: Final = 60
"""How often one kind of refusal of one link is written to the audit log."""

REFUSED: Final = 409


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Peering:
    """Answers the peers of the KME ``kme_id``; ``clock`` is the time of day."""

    def __init__(self, kme_id: str, links: Sequence[Link], custody: Custody, store: Store, clock: Clock) -> None:
        self._kme_id = kme_id
        self._links = {link.link_id: link for link in links}
        self._custody = custody
        self._store = store
        self._clock = clock
        self._alarmed: dict[tuple[str, str], float] = {}
        self._calls: dict[str, Callable[[Receipt, Entry], bytes]] = {
            "hello": self._hello,
            "blocks/announce": self._announce,
            "blocks/grant": self._grant,
            "blocks/missing": self._missing,
            "blocks/revoke": self._revoke,
            "keys/assign": self._assign,
            "keys/carry": self._carry,
            "keys/void": self._void,
            "keys/query": self._query,
        }

    @property
    def calls(self) -> frozenset[str]:
        """The calls that there are, as their paths end."""
        return frozenset(self._calls)

    def answer(self, peer: str, call: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Act upon a message that came from ``peer``, who is known by its certificate.

        Raises `PeerRefused` for one that is not signed by the key of its link: nothing is said to such a sender.
        """
        try:
            message, signature = received(call, headers, body)
        except PeerRefused as refusal:
            self._alarm(peer, "", refusal)
            raise
        link_id = message.envelope.link_id
        try:
            self._check_sender(peer, message, signature)
        except PeerRefused as refusal:
            self._alarm(peer, link_id, refusal)
            raise
        try:
            self._check_time(message)
            status, content = 200, self._act(peer, message)
        except PeerRefused as refusal:
            self._alarm(peer, link_id, refusal)
            status, content = REFUSED, Refusal(message=str(refusal)).encoded()
        return self._signed(link_id, status, content, signature)

    def _check_sender(self, peer: str, message: Message, signature: bytes) -> None:
        envelope = message.envelope
        link = self._links.get(envelope.link_id)
        if link is None or link.peer != peer or envelope.sender != peer:
            raise PeerRefused(f"{peer} is not at the other end of link {envelope.link_id}", alarm=True)
        due = self._custody.link_mac(envelope.link_id, message.covered())
        if not hmac.compare_digest(due, signature):
            raise PeerRefused(f"the message is not signed by the key of link {envelope.link_id}", alarm=True)

    def _check_time(self, message: Message) -> None:
        left = message.envelope.expires - self._clock()
        if not -SKEW_SECONDS <= left <= LIFE_SECONDS + SKEW_SECONDS:
            raise PeerRefused(f"the message expires in {left:.0f} s: the clocks differ, or it is old", alarm=True)

    def _act(self, peer: str, message: Message) -> bytes:
        envelope = message.envelope
        receipt = Receipt(envelope.link_id, envelope.txid, envelope.seq, envelope.incarnation, message.body)
        answered = self._store.inbox.answered(receipt)
        if answered is not None:
            return answered
        call, entry = self._calls[message.call], Entry(_EVENTS[message.call], f"peer:{peer}")
        return self._store.examining.sound(lambda: call(receipt, entry))

    def _signed(self, link_id: str, status: int, body: bytes, request_signature: bytes) -> Answer:
        mac = self._custody.link_mac(link_id, answer_covered(link_id, status, body, request_signature))
        headers = {
            "Content-Digest": content_digest(body),
            "Signature-Input": "kme=" + answer_parameters(link_id),
            "Signature": signature_header(mac),
        }
        return Answer(status, headers, body)

    def _alarm(self, peer: str, link_id: str, refusal: PeerRefused) -> None:
        """Write a refusal to the log, not more often than one can read."""
        log.warning("refused a message of %s on link %s: %s", peer, link_id, refusal)
        kind = (peer, str(refusal)[:32])
        now = self._clock()
        if refusal.alarm and now - self._alarmed.get(kind, 0.0) >= ALARM_SECONDS:
            self._alarmed[kind] = now
            facts = {"link": link_id, "reason": str(refusal)}
            self._store.log.append(Entry("alarm.peer-message", f"peer:{peer}", facts))

    # Calls ------------------------------------------------------------------------------------------

    def _hello(self, receipt: Receipt, entry: Entry) -> bytes:
        hello = parsed(Hello, receipt.body)
        if VERSION not in hello.versions:
            raise PeerRefused(f"this KME speaks {VERSION} alone", alarm=False)
        return self._store.inbox.hello(receipt, hello, entry)

    def _announce(self, receipt: Receipt, entry: Entry) -> bytes:
        return self._store.inbox.announce(receipt, parsed(Announce, receipt.body), entry)

    def _assign(self, receipt: Receipt, entry: Entry) -> bytes:
        assign = parsed(Assign, receipt.body)
        return self._store.inbox.assign(receipt, assign, self._due(receipt.link_id, assign), entry)

    def _carry(self, receipt: Receipt, entry: Entry) -> bytes:
        carry = parsed(Carry, receipt.body)
        return self._custody.take_over(receipt, carry, self._due(receipt.link_id, carry.pads), entry)

    def _due(self, link_id: str, assign: Assign) -> int:
        """The bits of the slaves that this KME serves; 0 if one of them could not collect, or is not known at all.

        Where the registries of the two ends disagree, a master would have a key that some slave can never have.
        """
        relation = Relation.of(assign.master, assign.slaves)
        known = self._store.registry.known()
        here = [sae for sae in relation.slaves if sae in known.saes and known.saes[sae].kme_id == self._kme_id]
        fit = known.saes.keys() >= {relation.master, *relation.slaves}
        fit = fit and known.saes[relation.master].kme_id == self._links[link_id].peer
        fit = fit and len(known.allowed(relation.master, here)) == len(here)
        fit = fit and not any(known.saes[sae].revoked for sae in here)
        return due_bits(relation, set(relation.slaves) - set(here)) if fit else 0

    def _void(self, receipt: Receipt, entry: Entry) -> bytes:
        return self._store.inbox.void(receipt, parsed(Void, receipt.body), entry)

    def _grant(self, receipt: Receipt, entry: Entry) -> bytes:
        return self._store.inbox.grant(receipt, parsed(Grant, receipt.body), entry)

    def _missing(self, receipt: Receipt, entry: Entry) -> bytes:
        return self._store.inbox.give_up(receipt, parsed(Missing, receipt.body).block_ids, entry, give_up_missing)

    def _revoke(self, receipt: Receipt, entry: Entry) -> bytes:
        revoke = parsed(Revoke, receipt.body)
        return self._store.inbox.give_up(receipt, revoke.block_ids, entry.knowing(reason=revoke.reason), end_told)

    def _query(self, receipt: Receipt, _: Entry) -> bytes:
        if self._store.links.state(receipt.link_id).why in (RESTORED, GIVEN_UP):
            command = f"`hsmkme link give-up {receipt.link_id}`"
            raise PeerRefused(f"this store is an old copy itself: give up the keys of both, by {command}", alarm=True)
        return self._store.reconciling.report(receipt.link_id, parsed(Query, receipt.body)).encoded()


_EVENTS: Final = {
    "hello": "link.hello",
    "blocks/announce": "block.confirm",
    "blocks/grant": "block.take-over",
    "blocks/missing": "block.revoke",
    "blocks/revoke": "block.revoke",
    "keys/assign": "key.assign",
    "keys/carry": "key.carry",
    "keys/void": "key.void",
    "keys/query": "link.query",
}
"""What a call is in the audit log."""
