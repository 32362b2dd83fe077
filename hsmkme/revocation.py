"""A compromise: what may be known to others is never delivered, and who has some of it is told.

Blocks end first, in every process and at the peer; then what was claimed of them and not delivered is burnt; then what
is left of them is erased. A revocation that was killed is given again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from hsmkme.errors import StoreError
from hsmkme.model import Entry, Relation
from hsmkme.rotation import Rotation
from hsmkme.states import EpochState
from hsmkme.store import Scope, Store

Ended = Callable[[int], object]
"""Called with the number of blocks that were ended since it was called last."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many blocks were ended, how many claimed keys burnt, and the keys that parties have, by relation.

    The numbers are of this run. The keys are all of them, whichever run of a revocation that was killed noted them.
    """

    blocks: int
    burnt: int
    delivered: dict[Relation, list[UUID]]


class Revocation:
    """The verbs of an officer, ``actor``, who gives a ``reason``."""

    def __init__(self, store: Store, actor: str, reason: str) -> None:
        self._store = store
        self._actor = actor
        self._reason = reason

    def blocks(self, scope: Scope, ended: Ended = lambda _: None) -> Outcome:
        """Revoke the blocks that are meant; raises `StoreError` if there are none.

        Order of what is durable: blocks ended and their peers told; claimed keys void and erased; blocks erased.
        """
        meant = self._store.revoking.blocks(scope)
        if not meant:
            raise StoreError("no block is meant by that: nothing was revoked")
        entry, count = self._entry("block.revoke"), 0
        while found := self._store.revoking.end(scope, entry):
            count += found
            ended(found)
        key_ids = self._store.revoking.keys_of_blocks(scope)
        burnt = self._store.revoking.burn(key_ids, entry, tell=False)
        self._store.revoking.wipe(scope)
        return Outcome(count, burnt, self._store.revoking.noted(key_ids))

    def sae(self, sae_id: str) -> Outcome:
        """Refuse every later request of an SAE, and burn what was not delivered to everyone in its relations."""
        entry = self._entry("sae.revoke")
        self._store.registry.revoke_sae(sae_id, entry)
        key_ids = self._store.revoking.keys_of_sae(sae_id)
        burnt = self._store.revoking.burn(key_ids, entry, tell=True)
        return Outcome(0, burnt, self._store.revoking.noted(key_ids))

    def epoch(self, number: int, rotation: Rotation, ended: Ended = lambda _: None) -> Outcome:
        """Revoke every block whose key was ever wrapped under an epoch, and destroy its master key.

        Order of what is durable: the epoch compromised, another one active if need be; then as for blocks and `shred`.
        """
        rotation.compromise(number, because=self._reason)
        return self._end_epoch(number, self._store.revoking.ever_under(number), rotation, ended)

    def shred(self, number: int, rotation: Rotation, ended: Ended = lambda _: None) -> Outcome:
        """Revoke every live block that is under an epoch, and destroy its master key, before what is there is moved.

        Order of what is durable: another epoch active if need be; then as for blocks and `Rotation.shred`.
        """
        if self._store.epochs.one(number).state is EpochState.ACTIVE:
            rotation.rotate(because=self._reason)
        return self._end_epoch(number, Scope(under=number), rotation, ended)

    def _end_epoch(self, number: int, scope: Scope, rotation: Rotation, ended: Ended) -> Outcome:
        outcome = self.blocks(scope, ended) if self._store.revoking.blocks(scope) else Outcome(0, 0, {})
        rotation.shred(number)
        return outcome

    def _entry(self, event: str) -> Entry:
        return Entry(event, self._actor, {"reason": self._reason})
