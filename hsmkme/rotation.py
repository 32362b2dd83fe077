"""The master key over time: a new epoch is opened, block keys move to it, the old one is destroyed and that is proved.

For officers and upkeep alone: what serves never imports this module, and its sessions could do nothing of it. Every
verb may be killed at any line and is simply done again; the order of what is durable is in each docstring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from hsmkme.burning import quarantine
from hsmkme.config import EpochsSection
from hsmkme.errors import OperatorFault, StoreError, StoreUnavailable
from hsmkme.hsm.masters import MasterKeys
from hsmkme.hsm.rewrapping import Rewrapping
from hsmkme.hsm.token import Token
from hsmkme.model import Clock, Entry
from hsmkme.states import EpochState
from hsmkme.store import Epoch, Store

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Blocks that are rewrapped in one turn of the token and one commit."""

_ROTATE: Final = "`hsmkme epoch rotate` opens one"
_DRAINED: Final = (EpochState.COMPROMISED, EpochState.DEACTIVATED)
"""States of epochs whose blocks move away, the most urgent first."""

Moved = Callable[[int], object]
"""Called with how many blocks were looked at since it was called last."""


class Rotation:
    """Makes, drains and destroys the epochs of one token of a KME; ``actor`` is who does so, for the log."""

    def __init__(self, token: Token, store: Store, clock: Clock, actor: str) -> None:
        self._token = token
        self._masters = MasterKeys(token.runner)
        self._rewrapping = Rewrapping(token.runner)
        self._store = store
        self._clock = clock
        self._actor = actor
        self._after: dict[int, int] = {}

    def rotate(self, *, because: str, before: EpochState = EpochState.DEACTIVATED) -> int:
        """Open the next epoch: what is deposited from now on goes under it. Returns its number.

        Order of what is durable: master key in the token; its row; one commit in which it becomes active and the one
        before becomes what ``before`` says. One that an interrupted rotation left prepared is the next.
        """
        with self._store.epochs.turn():
            return self._rotate(because, before)

    def _rotate(self, because: str, before: EpochState = EpochState.DEACTIVATED) -> int:
        epoch = self._prepared()
        self._token.prove(epoch)
        self._store.epochs.activate(epoch, self._entry("epoch.activate", because=because), before=before)
        return epoch

    def compromise(self, epoch: int, *, because: str) -> None:
        """Somebody may have the master key of ``epoch``: nothing goes under it any more, and it ends before others."""
        match self._store.epochs.one(epoch).state:
            case EpochState.ACTIVE:
                self.rotate(because=because, before=EpochState.COMPROMISED)
            case EpochState.DESTROYED | EpochState.COMPROMISED:
                pass
            case _:
                self._store.epochs.compromise(epoch, self._entry("epoch.compromise", reason=because))

    def _prepared(self) -> int:
        number = self.upcoming()
        for epoch in self._store.epochs.all():
            if epoch.number == number:
                if self._token.check_value(number) != epoch.check_value:
                    raise OperatorFault(f"master/{number} of this token is not the key that was prepared")
                return number
        self._store.epochs.prepare(number, self._masters.make(number), self._token.name, self._entry("epoch.make"))
        return number

    def upcoming(self) -> int:
        """The number of the next epoch of this token: of one that is prepared, or none has yet."""
        epochs = self._store.epochs.all()
        prepared = [one.number for one in self._own(epochs) if one.state is EpochState.PREACTIVATION]
        return prepared[0] if prepared else max(epoch.number for epoch in epochs) + 1

    def _own(self, epochs: Sequence[Epoch]) -> list[Epoch]:
        return [epoch for epoch in epochs if epoch.token == self._token.name]

    def _active(self) -> int:
        """The active epoch of this token; raises `StoreError` if it has none."""
        try:
            return self._store.epochs.active()[self._token.name]
        except KeyError:
            raise StoreError(f"no epoch of the token {self._token.name} is active: {_ROTATE}") from None

    def rewrap(self, epoch: int, moved: Moved = lambda _: None) -> None:
        """Move every live block of ``epoch`` to the active one. Each batch is a commit; what moved stays moved."""
        self._draining(epoch)
        self._after.pop(epoch, None)
        while found := self.rewrap_some(epoch, BATCH):
            moved(found)

    def rewrap_some(self, epoch: int, limit: int) -> int:
        """Move some live blocks of ``epoch``, going on where the last call ended; returns how many were looked at.

        0: it came to the end, and begins anew with the next call. Durable: one commit with the blocks' rows and an
        audit row; an alarm for each block whose key does not unwrap, which is quarantined and stays.
        """
        blocks = self._store.epochs.under(epoch, self._after.get(epoch, 0), limit)
        if not blocks:
            self._after.pop(epoch, None)
            return 0
        active = self._active()
        result = self._rewrapping.rewrap([seal for _, seal in blocks], active)
        if result.done:
            self._store.epochs.rewrapped(result.done, active, self._entry("block.rewrap"))
        if result.bad:
            self._token.prove(epoch)  # raises if it is the device that fails
            for seal in result.bad:
                quarantine(self._store, seal.name, self._actor)
        self._after[epoch] = blocks[-1][0]
        return len(blocks)

    def shred(self, epoch: int) -> bool:
        """Destroy the master key of ``epoch``, under which nothing is any more, and prove it; False if it was before.

        Order of what is durable: one commit by which the store gives the epoch up, and refuses to while a live block is
        under it, with a key that the master key wrapped, in the log; the master key in the token; one commit that says
        what was proved by that key, of which blocks.
        """
        with self._store.epochs.turn():
            return self._shred(epoch)

    def _shred(self, epoch: int) -> bool:
        found = self._draining(epoch)
        if found.proved:
            return False
        if found.state is not EpochState.DESTROYED:
            self._require_empty(epoch)
            wrapped = {"check_value": self._token.check_value(epoch), "witness": self._masters.witness(epoch).hex()}
            self._store.epochs.destroy(epoch, self._entry("epoch.give-up", **wrapped))
        given_up = self._store.epochs.given_up(epoch)
        self._masters.destroy(epoch)
        others = self._masters.prove_destroyed(epoch, bytes.fromhex(given_up["witness"]))
        self._token.prove(self._active())  # what was not found was looked for in a token that works
        known = {name: given_up[name] for name in ("check_value", "witness")}
        entry = self._entry("epoch.destroy", **known, sessions="object gone", other_masters_refuse=others)
        self._store.epochs.prove(epoch, given_up["seq"], entry)
        self._scrub()
        return True

    def keep(self, settings: EpochsSection) -> None:
        """A second's worth of what is due, for upkeep: rotate by time or number, rewrap some, shred what is empty.

        Nothing while an officer does such a thing.
        """
        with self._store.epochs.turn(wait=False) as taken:
            if taken:
                self._keep(settings)

    def _keep(self, settings: EpochsSection) -> None:
        epochs = self._own(self._store.epochs.all())
        if not epochs and (settings.rotate_seconds or settings.rotate_blocks):
            self._rotate("first of this token")
            return
        active = self._store.epochs.one(self._active())
        old = settings.rotate_seconds and not 0 <= self._clock() - active.since < settings.rotate_seconds
        if old or 0 < settings.rotate_blocks <= active.wraps:
            self._rotate("schedule")
            return
        for epoch in _in_order(epochs):
            if epoch.state in _DRAINED and self._store.epochs.under(epoch.number, 0, 1):
                left = settings.rewrap_per_second
                while left > 0 and (found := self.rewrap_some(epoch.number, min(left, BATCH))):
                    left -= found
            else:
                self._shred(epoch.number)

    def _draining(self, number: int) -> Epoch:
        """An epoch that is on its way out; raises `StoreError` for another."""
        epoch = self._store.epochs.one(number)
        if epoch.token != self._token.name:
            raise StoreError(f"epoch {number} is of the token {epoch.token}, not of {self._token.name}")
        if epoch.state not in (*_DRAINED, EpochState.DESTROYED):
            raise StoreError(f"epoch {number} is {epoch.state}: `hsmkme epoch rotate` opens the one after it first")
        return epoch

    def _require_empty(self, epoch: int) -> None:
        live = self._store.epochs.live(epoch)
        if not live:
            return
        frozen = live.pop("frozen", 0)
        if live:
            raise StoreError(f"{sum(live.values())} live blocks are under epoch {epoch}: `hsmkme epoch rewrap {epoch}`")
        raise StoreError(
            f"{frozen} blocks in quarantine are under epoch {epoch} and do not unwrap: find out who altered them, then "
            "give them up by `hsmkme revoke --block`"
        )

    def _entry(self, event: str, **facts: object) -> Entry:
        return Entry(event, self._actor, facts)

    def _scrub(self) -> None:
        """Empty the WAL, where old wrapped keys may be; upkeep does it again if somebody reads just now."""
        try:
            self._store.checkpoint()
        except StoreUnavailable as error:
            log.info("%s", error)


def _in_order(epochs: list[Epoch]) -> list[Epoch]:
    """Epochs that are on their way out and not proved to be gone: compromised ones first, then the oldest."""
    leaving = (e for e in epochs if e.state in _DRAINED or (e.state is EpochState.DESTROYED and not e.proved))
    return sorted(leaving, key=lambda epoch: (epoch.state is not EpochState.COMPROMISED, epoch.number))
