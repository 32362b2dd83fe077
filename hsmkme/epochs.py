"""The token in the epoch that it is: the active master key to seal under, each block's present one to open with.

An epoch may end at any moment, by another process. What was begun under it is then done again under the next one; no
request fails for it, and no row is suspected for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from hsmkme.errors import IllegalTransition, ObjectMissing, OperatorFault, RecordFault
from hsmkme.hsm.token import Token
from hsmkme.model import BlockName, Clock, OpenKey, RawBlock, SealedBlock, SealedKey
from hsmkme.states import EpochState
from hsmkme.store import Store

LOOK_SECONDS: Final = 1.0
"""How soon a process that opens keys drops what it holds of an epoch that was destroyed."""

Result = TypeVar("Result")


class Epochs:
    """Token and store of one KME. Raises `OperatorFault` if the token's master keys are not the store's."""

    def __init__(self, token: Token, store: Store, clock: Clock) -> None:
        self._token = token
        self._store = store
        self._clock = clock
        self._looked_at = clock()
        self._usable = store.epochs.usable()
        self._check()

    def _check(self) -> None:
        """Compare the check value of every epoch that is not destroyed with the token's."""
        epochs = self._store.epochs.all()
        self._store.epochs.active()
        for epoch in epochs:
            if epoch.state is EpochState.DESTROYED:
                continue
            try:
                found = self._token.check_value(epoch.number)
            except ObjectMissing:
                if epoch.number in self._store.epochs.usable():
                    raise
            else:
                if found != epoch.check_value:
                    label = f"master/{epoch.number}"
                    raise OperatorFault(f"{label} of this token is not the key that this store was sealed under")

    def under_active(self, act: Callable[[int], Result]) -> Result:
        """Do ``act`` under the active epoch; again if another one became active before it was done."""
        while True:
            epoch = self._store.epochs.active()
            try:
                return act(epoch)
            except (IllegalTransition, ObjectMissing):
                if self._store.epochs.active() == epoch:
                    raise

    def seal(self, blocks: Sequence[RawBlock], keep: Callable[[Sequence[SealedBlock]], Result]) -> Result:
        """Seal blocks under the active epoch and ``keep`` them, which the store refuses under any other."""
        return self.under_active(lambda epoch: keep([self._token.seal(block, epoch) for block in blocks]))

    def prove_if_idle(self) -> None:
        """Let the token open a known answer, unless it did something a moment ago."""
        if not self._token.answered_lately:
            self.under_active(self._token.prove)

    def open(self, keys: Sequence[SealedKey]) -> list[OpenKey]:
        """The plaintext of ``keys``, in their order; raises `RecordFault` for the first that does not open."""
        self._forget_destroyed()
        return self._renewing(self._token.open, keys)

    def mask(self, keys: Sequence[SealedKey], pads: Sequence[SealedKey]) -> list[bytes]:
        """Each key XOR its pad; raises `RecordFault` for the first of both that does not open."""
        count = len(keys)
        return self._renewing(lambda both: self._token.mask(both[:count], both[count:]), [*keys, *pads])

    def unmask(
        self, values: Sequence[bytes], pads: Sequence[SealedKey], name: BlockName, keep: Callable[[SealedBlock], Result]
    ) -> Result:
        """What `mask` made elsewhere, sealed as a block under the active epoch, and kept by ``keep``."""
        return self._renewing(
            lambda now: self.under_active(lambda epoch: keep(self._token.unmask(values, now, name, epoch))), pads
        )

    def _renewing(self, verb: Callable[[Sequence[SealedKey]], Result], keys: Sequence[SealedKey]) -> Result:
        """Do ``verb``; again if a block was rewrapped since its row was read, whose old master key may be gone."""
        while True:
            try:
                return verb(keys)
            except (RecordFault, ObjectMissing):
                renewed = self._store.epochs.renewed(keys)
                if renewed == list(keys):
                    self._refuse_strangers(keys)
                    raise
                keys = renewed

    def _refuse_strangers(self, keys: Sequence[SealedKey]) -> None:
        """A row that says its block is under an epoch that there is not was tampered with: no token opens it."""
        usable = self._store.epochs.usable()
        for seal in (part.block for key in keys for part in key.parts):
            if seal.epoch not in usable:
                raise RecordFault(seal.name.link_id, seal.name.block_id)

    def _forget_destroyed(self) -> None:
        """Keep no block key that a destroyed master key unwrapped, and no handle of one."""
        now = self._clock()
        if abs(now - self._looked_at) < LOOK_SECONDS:
            return
        self._looked_at, usable = now, self._store.epochs.usable()
        if self._usable - usable:
            self._token.forget()
        self._usable = usable
