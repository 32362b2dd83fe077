"""Independent, idempotent duties on a clock. Each survives kill -9 at any line: it is simply done again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hsmkme.config import Config
from hsmkme.custody import Custody
from hsmkme.errors import HsmkmeError, StoreTampered
from hsmkme.model import Clock, Entry, Lineage
from hsmkme.store import Store

log = logging.getLogger(__name__)

ABANDON_SECONDS: Final = 15
"""An offer that is so old is given up: no request waits so long for a peer."""

RETIRE_SECONDS: Final = 2
"""How long a key that went to its master is kept: longer than opening it takes."""


@dataclass(slots=True)
class Duty:
    """Something to do every ``seconds``."""

    name: str
    seconds: float
    act: Callable[[], object]
    due: float = field(default=0.0)


class Upkeep:
    """The duties of one KME; ``clock`` is in seconds."""

    def __init__(
        self, config: Config, custody: Custody, store: Store, clock: Clock, drop_anchor: Callable[[Lineage], None]
    ) -> None:
        self._config = config
        self._custody = custody
        self._store = store
        self._clock = clock
        self._sealed_at = clock()
        self._began = int(clock())
        self._lapsed: dict[int, int] = {}
        """By relation: what was claimed until then was looked at."""
        self._drop_anchor = drop_anchor
        self._anchored: Lineage | None = None
        self.duties = [
            Duty("seal", 1.0, self.seal),
            Duty("anchor", float(config.audit.seal_seconds), self.anchor),
            Duty("expire", 60.0, self.expire),
            Duty("age", 10.0, self.age),
            Duty("lapse", 10.0, self.lapse),
            Duty("unlock", 1.0, lambda: store.ageing.unlock("upkeep")),
            Duty("abandon", 2.0, self.abandon),
            Duty("retire", 1.0, self.retire),
            Duty("erase", 1.0, self.erase),
            Duty("scrub", 60.0, store.checkpoint),
        ]

    def tick(self) -> None:
        """Do what is due. A duty that fails is logged and done again at its next time; the others go on."""
        now = self._clock()
        for duty in self.duties:
            if now < duty.due <= now + duty.seconds:  # one that is later: the clock was set back
                continue
            duty.due = now + duty.seconds
            try:
                self._do(duty)
            except (HsmkmeError, OSError) as error:
                log.error("duty %s failed, it will be tried again: %s", duty.name, error)

    def _do(self, duty: Duty) -> None:
        try:
            duty.act()
        except StoreTampered as tampered:  # it would meet the same row every time
            self._store.examining.examine("upkeep", (), tampered.blocks)
            duty.act()

    def seal(self) -> None:
        """Seal the log when enough rows or seconds went by since the last seal."""
        last = self._store.log.last_seal()
        unsealed = self._store.log.head()[0] - (last.seq if last else 0)
        due = not 0 <= self._clock() - self._sealed_at < self._config.audit.seal_seconds
        if unsealed >= self._config.audit.seal_rows or (unsealed and due):
            self._custody.logbook.seal()
            self._sealed_at = self._clock()

    def anchor(self) -> None:
        """Let the token remember how long the log is, if it grew: an old copy of the store is then known as one."""
        lineage = self._store.lineage.now()
        if lineage != self._anchored:
            self._drop_anchor(lineage)
            self._anchored = lineage

    def erase(self) -> None:
        """Erase consumed keys that were kept for requests that might be repeated."""
        while self._store.keys.erase_due(Entry("key.erase", "upkeep")):
            pass

    def abandon(self) -> None:
        """Void keys that were offered to a peer and not confirmed: whoever waited for them does so no more.

        The peer is not told of those that were offered before this process began: this store may be an old copy,
        and a younger one may have delivered them.
        """
        before = int(self._clock()) - ABANDON_SECONDS
        older = min(before, self._began)
        while self._store.keys.abandon(older, Entry("key.void", "upkeep", {"reason": "not confirmed"}), tell=False):
            pass
        while self._store.keys.abandon(before, Entry("key.void", "upkeep", {"reason": "not confirmed"})):
            pass

    def retire(self) -> None:
        """Erase keys that their master has and that no slave collects here."""
        before = int(self._clock()) - max(RETIRE_SECONDS, self._config.keys.idempotency_seconds)
        while self._store.keys.retire(before, Entry("key.retire", "upkeep")):
            pass

    def expire(self) -> None:
        """Void keys that their slaves never collected, and blocks and keys that a peer waits for in vain.

        Keys that were agreed and not drawn end in half that time: the peer must keep them longer than this end.
        Nothing ends by a clock that is doubted.
        """
        if not self._store.timekeeping.state().is_believed:
            return
        before = int(self._clock()) - self._config.keys.uncollected_seconds
        drawn_before = int(self._clock()) - self._config.keys.uncollected_seconds // 2
        while self._store.keys.expire_agreed(drawn_before, Entry("key.expire", "upkeep", {"reason": "not drawn"})):
            pass
        while self._store.sharing.expire(before, Entry("block.expire", "upkeep", {"reason": "not confirmed"})):
            pass
        while self._store.keys.expire(before, Entry("key.expire", "upkeep", {"reason": "uncollected"})):
            pass

    def age(self) -> None:
        """End what nobody claimed of blocks that are older than their link allows; none by a clock that is doubted."""
        if not self._store.timekeeping.state().is_believed:
            return
        for link in self._config.link:
            before = int(self._clock()) - link.ttl_seconds
            entry = Entry("block.expire", "upkeep", {"reason": "too old", "link": link.id})
            while link.ttl_seconds and self._store.ageing.expire(link.id, before, entry):
                pass

    def lapse(self) -> None:
        """Void keys of relations whose pairs limit how long a key lives; none by a clock that is doubted."""
        if not self._store.timekeeping.state().is_believed:
            return
        entry = Entry("key.expire", "upkeep", {"reason": "its relation's time is over"})
        for relation_id, ttl in self._store.registry.short_lived():
            before = int(self._clock()) - ttl
            while self._store.keys.lapse(relation_id, self._lapsed.get(relation_id, 0), before, entry):
                pass
            self._lapsed[relation_id] = before
