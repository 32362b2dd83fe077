"""Keeps the links to peers: greets, compares blocks, repeats messages, shares surplus, reconciles after a restore.

Each round of a link is independent and idempotent: what was not done is done in the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from hsmkme.agreement import Agreement, Sender
from hsmkme.errors import HsmkmeError, PeerError, PeerRefused, PeerUnavailable, PoolShort, StoreError
from hsmkme.messages.bodies import (
    Announce,
    Announced,
    Body,
    Done,
    Granted,
    Kind,
    Missing,
    Query,
    Report,
    Standing,
    Voided,
    parsed,
)
from hsmkme.messages.signing import VERSION
from hsmkme.model import Clock, Demand, Entry, Link, Relation
from hsmkme.store import Draft, LinkState, Store
from hsmkme.store.links import GIVEN_UP, OPERATOR, RESTORED, STARTING
from hsmkme.store.reconciling import LIST, PAGE

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 2.0
ROUND_SECONDS: Final = 0.2
ANNOUNCE_SECONDS: Final = 1.0
OUTBOX_MOST: Final = 16
"""Messages repeated in one round."""

SHARE_BLOCKS: Final = 4
"""How many blocks more than the peer this end must have before it gives some away."""

ACTOR: Final = "liaison"
ElsewhereOf = Callable[[Relation], frozenset[str]]
"""The slaves of a relation that are not served here."""

Told = Callable[[int, int], None]
"""Is told how many blocks of how many were asked for."""


class Liaison:
    """The links of ``kme_id`` to its peers; ``clock`` in seconds."""

    def __init__(
        self,
        kme_id: str,
        links: Iterable[Link],
        store: Store,
        sender: Sender,
        agreement: Agreement,
        elsewhere: ElsewhereOf,
        clock: Clock,
    ) -> None:
        self._kme_id = kme_id
        self._links = [link for link in links if link.peer != kme_id]
        self._store = store
        self._sender = sender
        self._agreement = agreement
        self._elsewhere = elsewhere
        self._clock = clock
        self._greeted: dict[str, float] = {}
        self._announced: dict[str, float] = {}
        self._said: dict[str, str] = {}

    def round(self) -> None:
        """Do for every link what is due. A link that fails is looked after again in the next round."""
        for link in self._links:
            try:
                with self._store.links.turn(link.link_id, wait=False) as taken:
                    if taken:
                        self._store.examining.sound(partial(self._attend, link))
                self._say(link, "")
            except HsmkmeError as error:
                if isinstance(error, PeerUnavailable) and not error.asked:
                    continue  # said when it was asked
                if isinstance(error, PeerRefused) and error.alarm and self._said.get(link.link_id) != str(error):
                    facts = {"link": link.link_id, "reason": str(error)}
                    self._store.log.append(Entry("alarm.peer-answer", ACTOR, facts))
                self._say(link, str(error))

    def probe(self, link: Link) -> Standing:
        """Greet the peer of one link now; raises `PeerError`."""
        with self._store.links.turn(link.link_id):
            return self._greet(link)

    def _say(self, link: Link, trouble: str) -> None:
        """Log what changed, once."""
        if self._said.get(link.link_id, "") != trouble:
            log.warning("link %s: %s", link.link_id, trouble or "well again")
            self._said[link.link_id] = trouble

    def _attend(self, link: Link) -> None:
        state = self._store.links.state(link.link_id)
        if state.why == RESTORED:
            self._reconcile(link, _silent)
            return
        due = not 0 <= self._clock() - self._greeted.get(link.link_id, 0.0) < HELLO_SECONDS
        if state.why == GIVEN_UP:
            if due:
                self._rejoin(link)
            return
        if due or not state.is_open:
            standing = self._greet(link)
            if standing.verdict == "behind" and state.why != OPERATOR:
                self._store.links.freeze(link.link_id, RESTORED, Entry("alarm.store-restored", ACTOR))
                return
            if standing.verdict == "good" and state.why == STARTING and standing.why != RESTORED:
                self._store.links.open(link.link_id, STARTING, Entry("link.open", ACTOR))
            if state.is_open:
                self._share(link, state, standing)
        if state.is_open:
            self._announce(link)
            self._repeat(link)
            self._stock(link)

    def _greet(self, link: Link, *, reconciled: bool = False) -> Standing:
        hello = self._store.links.hello(link.link_id, [VERSION], reconciled=reconciled)
        standing = parsed(Standing, self._sender.send(self._store.outbox.greeting(link.link_id, hello)))
        self._store.links.heard(link.link_id, standing)
        self._greeted[link.link_id] = self._clock()
        return standing

    def _ask(self, link: Link, call: str, body: Body, answer: type[Kind]) -> Kind:
        """Send a message that this end repeats by itself, and read the answer."""
        return parsed(answer, self._sender.send(self._store.outbox.number(link.link_id, call, body)))

    def _announce(self, link: Link) -> None:
        if 0 <= self._clock() - self._announced.get(link.link_id, 0.0) < ANNOUNCE_SECONDS:
            return
        self._announced[link.link_id] = self._clock()
        after = ""
        while blocks := self._store.sharing.unconfirmed(link.link_id, after):
            results = self._ask(link, "blocks/announce", Announce(blocks=blocks), Announced).results
            after = blocks[-1].block_id
            if any(result != "unknown" for result in results.values()):
                self._store.sharing.compared(link.link_id, results, Entry("block.confirm", ACTOR))

    def _repeat(self, link: Link) -> None:
        for draft in self._store.outbox.waiting(link.link_id, OUTBOX_MOST):
            answer = self._sender.send(draft)
            self._store.outbox.acknowledged(draft, self._acknowledgement(link, draft, answer))

    def _acknowledgement(self, link: Link, draft: Draft, answer: bytes) -> Entry:
        """What the log says of a message that was acted upon, and what follows from the answer."""
        if draft.call == "keys/void":
            late = [key for key, result in parsed(Voided, answer).results.items() if result == "already_delivered"]
            if late:
                return Entry("alarm.void-too-late", ACTOR, {"key_IDs": late})
        elif draft.call == "blocks/grant":
            stale = [block for block, result in parsed(Granted, answer).results.items() if result == "stale"]
            if stale:
                reason = {"reason": "the peer did not take them over"}
                self._store.sharing.revoke(link.link_id, stale, Entry("block.revoke", ACTOR, reason))
        return Entry("peer.acknowledge", ACTOR)

    def _share(self, link: Link, state: LinkState, standing: Standing) -> None:
        """Give away blocks when this end has many more keys to assign than the other."""
        for bits, ours in state.ready.items():
            theirs = standing.ready.get(bits, 0)
            size = self._store.links.block_size(link.link_id, int(bits))
            surplus = (ours - theirs) // (2 * size)
            if theirs < ours / 4 and surplus >= SHARE_BLOCKS:
                self._store.sharing.grant(link.link_id, int(bits), surplus, Entry("block.grant", ACTOR))

    def _stock(self, link: Link) -> None:
        """Agree on keys for relations that draw often, before they need them."""
        for relation, size in self._store.agreed.thirsty(link.peer, self._clock()):
            try:
                self._agreement.stock(Demand(relation, link.peer, size, (), self._elsewhere(relation)))
            except PoolShort:
                log.debug("no keys to agree on for %s", relation)

    # After a restore --------------------------------------------------------------------------------

    def reconcile(self, link: Link, entry: Entry, told: Told) -> int:
        """Take this store for an old copy, whatever it is, and reconcile the link; returns the number of its blocks.

        Keys that were agreed and not delivered end first. ``entry`` says who wants it. Raises `PeerError`: then the
        link stays frozen, and the next round tries again.
        """
        with self._store.links.turn(link.link_id):
            self._store.links.freeze(link.link_id, RESTORED, entry)
            reason = Entry("key.void", entry.actor, {"reason": "the link is reconciled"})
            while self._store.keys.void_undelivered(reason, link_id=link.link_id):
                pass
            return self._reconcile(link, told)

    def _reconcile(self, link: Link, told: Told) -> int:
        """Learn from the peer what this end, whose store is an old copy, forgot; returns how many blocks it asked for.

        Nothing is claimed from the link until it is done. Interrupted, it begins anew: each step can be repeated.
        """
        known = self._known(link)
        for start in range(0, len(known), PAGE):
            told(start, len(known))
            asked = list(known[start : start + PAGE])
            report = self._ask(link, "keys/query", Query(blocks=asked), Report)
            self._store.reconciling.apply(
                link.link_id, self._kme_id, asked, report.blocks, Entry("link.reconcile", ACTOR)
            )
        told(len(known), len(known))
        self._give_up_missing(link, frozenset(known))
        self._store.links.renew(link.link_id, Entry("link.renew", ACTOR))
        self._greet_anew(link)
        self._store.links.open(link.link_id, RESTORED, Entry("link.open", ACTOR))
        return len(known)

    def _greet_anew(self, link: Link) -> Standing:
        """The first greeting of a new incarnation; raises `PeerError` unless it is taken for one."""
        standing = self._greet(link, reconciled=True)
        if standing.verdict != "good":
            raise PeerError(f"{link.peer} does not take link {link.link_id} for reconciled: look at its log")
        return standing

    def give_up(self, link: Link, entry: Entry) -> int:
        """Give up the keys of a link of which this store is an old copy, and the peer's too; returns the number of
        blocks.

        Order of what is durable: keys that were agreed and not delivered end; blocks, page by page; the new
        incarnation; the reason. The link opens when the peer has done the same. Interrupted, it is given again. Raises
        `PeerError`, and `StoreError` if the peer's store is no old copy: then nothing was given up.
        """
        with self._store.links.turn(link.link_id):
            if self._greet(link).why not in (RESTORED, GIVEN_UP):
                raise StoreError(
                    f"the store of {link.peer} is no old copy: learn from it by `hsmkme link reconcile {link.link_id}`"
                )
            reason = Entry("key.void", entry.actor, {"reason": "the link is given up"})
            while self._store.keys.void_undelivered(reason, link_id=link.link_id):
                pass
            known = self._known(link)
            for start in range(0, len(known), PAGE):
                self._store.reconciling.give_up(link.link_id, known[start : start + PAGE], entry)
            self._store.links.renew(link.link_id, entry)
            self._store.links.freeze(link.link_id, GIVEN_UP, entry)
            self._rejoin(link)
            return len(known)

    def _rejoin(self, link: Link) -> None:
        """Greet the peer after the keys of this end were given up; open the link if those of the peer were too."""
        if self._greet_anew(link).why != RESTORED:
            self._store.links.open(link.link_id, GIVEN_UP, Entry("link.open", ACTOR))

    def _known(self, link: Link) -> Sequence[str]:
        known: list[str] = []
        while page := self._store.reconciling.live(link.link_id, known[-1] if known else ""):
            known += page
        return known

    def _give_up_missing(self, link: Link, known: frozenset[str]) -> None:
        """Tell the peer which of its live blocks are not here any more."""
        after, more = "", True
        while more:
            report = self._ask(link, "keys/query", Query(after=after), Report)
            missing = [block_id for block_id in report.live if block_id not in known]
            missing = [block_id for block_id in missing if not self._store.reconciling.holds(link.link_id, block_id)]
            for start in range(0, len(missing), LIST):
                self._ask(link, "blocks/missing", Missing(block_ids=missing[start : start + LIST]), Done)
            after, more = report.live[-1] if report.live else "", report.more


def _silent(_done: int, _of: int) -> None:
    """Nobody wants to know."""
