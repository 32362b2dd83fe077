"""Keys whose slaves are served by peers: none reaches a master before every such peer has durably accepted it.

Agreed ahead of need where a relation draws often; else the request waits for the peer. Where slaves are at several
peers, the keys are of a link to one of them and are carried to each other one under one-time pads of a link to it:
that hop rests on QKD key alone, and on the link key for who says it; these KMEs see the keys, as trusted nodes. No lock
is held and no transaction is open while a message is under way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from hsmkme.custody import Custody
from hsmkme.errors import KeyNotHeld, LinkFrozen, PeerError, PeerRefused, PeerUnavailable
from hsmkme.messages.bodies import Assigned, Query, Report, parsed
from hsmkme.model import Demand, OpenKey, Relation, Retry
from hsmkme.store import Draft, NewIds, Offer
from hsmkme.waiting import Places, sleep

log = logging.getLogger(__name__)

AGREE_SECONDS: Final = 6.0
"""How long a request waits for a peer; further ones are asked in what is left of that time, and once in any case.
Upkeep voids an offer only when it is older."""

WAITING_MOST: Final = 4
"""How many requests of one process wait for one peer at a time."""

SEVERAL_MOST: Final = 2
"""How many of them wait for more than one peer."""

QUEUE_SECONDS: Final = 0.25
"""How long another waits to be one of them, before it claims anything."""

LOOKS: Final = 5
LOOK_SECONDS: Final = 0.05
"""How many times, and how far apart, it is looked whether another request has agreed on keys."""

AGAIN_SECONDS: Final = 0.6
"""How long an offer rests before it is made again."""


class Sender(Protocol):
    """Sends messages to peers."""

    def send(self, draft: Draft) -> bytes:
        """Send a message; gives the body of the peer's answer, whose signature was checked.

        Raises `PeerUnavailable` when nothing is known of what became of it, `PeerRefused` when it was refused.
        """
        ...


class Agreement:
    """Agrees with peers on keys. ``clock`` in seconds, from any beginning."""

    def __init__(
        self,
        kme_id: str,
        custody: Custody,
        sender: Sender,
        new_ids: NewIds,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._kme_id = kme_id
        self._waiting: dict[str, Places] = {}
        self._relations: WeakValueDictionary[tuple[Relation, int], Places] = WeakValueDictionary()
        self._custody = custody
        self._sender = sender
        self._new_ids = new_ids
        self._clock = clock
        self._sleep = sleep

    def release(self, demand: Demand, actor: str, retry: Retry | None = None) -> list[OpenKey]:
        """Keys for the master of ``demand``: agreed before, or, always where some must be carried or be fresh, now.

        Raises `PoolShort`, `LinkFrozen`, or another `PeerError`; then nothing was delivered.
        """
        made_now = demand.further or demand.fresh
        keys = None if made_now else self._custody.deliver(demand, actor, retry)
        if keys is not None:
            return keys
        with self._relation(demand), self._turns(demand):
            keys = None if made_now else self._agreed_meanwhile(demand, actor, retry)
            return keys or self._agreed_now(demand, actor, retry)

    def _agreed_meanwhile(self, demand: Demand, actor: str, retry: Retry | None) -> list[OpenKey] | None:
        """Keys that others agreed on ahead of need: while one does, this request waits for them a moment."""
        keys = self._custody.deliver(demand, actor, retry)
        for _ in range(LOOKS):
            if keys is not None or not self._custody.is_agreeing(demand):
                break
            self._sleep(LOOK_SECONDS)
            keys = self._custody.deliver(demand, actor, retry)
        return keys

    def _agreed_now(self, demand: Demand, actor: str, retry: Retry | None) -> list[OpenKey]:
        offer = self._custody.offer(demand, self._new_ids, actor)
        offer = self._agree(offer, self._custody.carry(offer))
        try:
            return self._custody.settle(offer, demand, actor, retry)
        except (KeyNotHeld, LinkFrozen) as error:
            self._custody.withdraw(offer, "the link or the offer ended meanwhile", "kme")
            raise PeerUnavailable(f"agreed too late: {error}") from error

    def pull(self, peer: str, key_ids: Sequence[UUID]) -> None:
        """Ask ``peer`` for keys that it assigned and this end does not know: it may have been restored from a copy.

        Only while a link to the peer is not open; on an open one this end knows every key. Raises `PeerError`.
        """
        for link_id in self._custody.closed_links(peer):
            draft = self._custody.question(link_id, "keys/query", Query(key_ids=list(key_ids)))
            reports = [key for key in parsed(Report, self._sender.send(draft)).keys if key.mine]
            self._custody.learn(link_id, self._kme_id, reports)

    def stock(self, demand: Demand) -> None:
        """Agree on keys ahead of need; ``demand`` wants none now."""
        offer = self._custody.offer(demand, self._new_ids, "upkeep")
        if offer.key_ids:
            offer = self._agree(offer)
            self._custody.settle(offer, demand, "upkeep")

    @contextmanager
    def _relation(self, demand: Demand) -> Iterator[None]:
        """Let another request of the relation that agrees on keys ahead of need be first: they may be for this one."""
        if demand.further or demand.fresh:  # nobody agrees on any for others
            yield
            return
        first = self._relations.setdefault((demand.relation, demand.size), Places(1))
        alone = first.take(QUEUE_SECONDS)
        try:
            yield
        finally:
            if alone:
                first.give_back()

    @contextmanager
    def _turns(self, demand: Demand) -> Iterator[None]:
        """One of a few who may wait for each peer at a time: one that is slow must not take every thread.

        Of those who wait for several there are fewer still: a peer that is slow must not keep others from the rest.
        """
        with ExitStack() as turns:
            if demand.further:
                turns.enter_context(self._turn("several peers", SEVERAL_MOST))
            for peer in (demand.peer, *demand.further):
                turns.enter_context(self._turn(peer, WAITING_MOST))
            yield

    @contextmanager
    def _turn(self, awaited: str, most: int) -> Iterator[None]:
        places = self._waiting.setdefault(awaited, Places(most))
        if not places.take(QUEUE_SECONDS):
            raise PeerUnavailable(f"{most} requests wait for {awaited} already", asked=False)
        try:
            yield
        finally:
            places.give_back()

    def _agree(self, offer: Offer, carried: Sequence[Draft] = ()) -> Offer:
        """The offer when every peer has accepted every key of it; else void them and raise why."""
        last_try = self._clock() + AGREE_SECONDS / 3
        drafts = (offer.draft, *carried)
        return replace(offer, far_rows={draft.link_id: self._confirm(offer, draft, last_try) for draft in drafts})

    def _confirm(self, offer: Offer, draft: Draft, last_try: float) -> int:
        """How many rows the log of the peer has when it has accepted."""
        try:
            answer = self._outcome(draft, last_try)
            result = answer.result
        except PeerError as error:
            self._custody.withdraw(offer, type(error).__name__, "kme")
            if isinstance(error, PeerRefused) and error.alarm:
                self._custody.alarm_of_peer(draft.link_id, str(error))
            raise
        if result in ("assigned", "already"):
            return answer.log_rows
        ended_on = draft.link_id if result == "void" else ""
        self._custody.withdraw(offer, f"the peer answers {result}", "kme", ended_on=ended_on)
        if result in ("conflict", "not_owner"):
            self._custody.alarm_of_peer(draft.link_id, f"the peer answers {result} to {draft.call}")
        if result == "frozen":
            raise LinkFrozen(f"link {draft.link_id} is frozen at the peer")
        raise PeerRefused(f"the peer does not accept the keys: {result}", alarm=result in ("conflict", "not_owner"))

    def _outcome(self, draft: Draft, last_try: float) -> Assigned:
        """What the peer says; asked again while there is time, the same message if nothing is known of the first."""
        asked_twice = False
        while True:
            try:
                answer = parsed(Assigned, self._sender.send(draft))
                if answer.result != "unknown" or self._clock() > last_try:
                    return answer
                draft = replace(draft, txid=uuid4())  # the block may be on its way to being ready there
            except PeerUnavailable as error:
                if asked_twice or not error.asked or self._clock() > last_try:
                    raise
                asked_twice = True
            self._sleep(AGAIN_SECONDS)
