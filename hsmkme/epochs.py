"""The tokens in the epochs that they are: the active master keys to seal under, each block's present one to open with.

An epoch may end at any moment, by another process, and a token may fail. What was begun is then done again under the
next epoch, or by another token that has a copy of the block's key; no request fails for it. Only a record that does not
open in a token that works is never tried in another: it was altered, and nobody can say what else was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from hsmkme.errors import IllegalTransition, ObjectMissing, OperatorFault, RecordFault, TokenError
from hsmkme.hsm.crossing import cross
from hsmkme.hsm.token import Token
from hsmkme.hsm.tokens import FAILING, Tokens
from hsmkme.model import BlockName, BlockSeal, Clock, OpenKey, RawBlock, SealedBlock, SealedKey
from hsmkme.states import EpochState
from hsmkme.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How soon a process that opens keys drops what it holds of an epoch that was destroyed."""

Result = TypeVar("Result")
Active = Mapping[str, int]
"""The active epoch of each token."""


class Epochs:
    """Tokens and store of one KME."""

    def __init__(self, tokens: Tokens, store: Store, clock: Clock) -> None:
        self._tokens = tokens
        self._store = store
        self._clock = clock
        self._looked_at = clock()
        self._usable = store.epochs.usable()
        self._tokens_of: dict[int, str] = {}

    def require_known_tokens(self) -> None:
        """Raise `OperatorFault` if blocks are under master keys of a token that is not configured."""
        known = ("", *self._tokens.names)
        for epoch in self._store.epochs.all():
            if epoch.state is not EpochState.DESTROYED and epoch.token not in known and self._live(epoch.number):
                raise OperatorFault(
                    f"blocks are under epoch {epoch.number}, of the token {epoch.token!r}, which is not configured: "
                    "configure it, even if it is lost, until nothing is under it (ops/tokens.md)"
                )

    def _live(self, epoch: int) -> bool:
        return bool(self._store.epochs.under(epoch, 0, 1))

    def check(self, token: Token) -> None:
        """Compare the check value of every epoch of a token that is not destroyed; raises `OperatorFault`.

        Epochs of before there were several are of the token that is configured first. Durable, if there are: whose
        they are.
        """
        own = (token.name, "") if token.name == self._tokens.names[0] else (token.name,)
        self._store.epochs.active()
        for epoch in self._store.epochs.all():
            if epoch.state is EpochState.DESTROYED or epoch.token not in own:
                continue
            try:
                found = token.check_value(epoch.number)
            except ObjectMissing:
                if epoch.number in self._store.epochs.usable():
                    raise
            else:
                if found != epoch.check_value:
                    label = f"master/{epoch.number}"
                    raise OperatorFault(f"{label} of this token is not the key that this store was sealed under")
        if "" in own:
            self._store.epochs.adopt(token.name)

    # Sealing ----------------------------------------------------------------------------------------

    def under_active(self, act: Callable[[Active], Result]) -> Result:
        """Do ``act`` under the active epochs; again if another one became active before it was done."""
        while True:
            active = self._store.epochs.active()
            try:
                return act(active)
            except (IllegalTransition, ObjectMissing):
                if self._store.epochs.active() == active:
                    raise

    def seal(self, blocks: Sequence[RawBlock], keep: Callable[[Sequence[SealedBlock]], Result]) -> Result:
        """Seal blocks in the tokens of their links and ``keep`` them, which the store refuses unless all is active.

        A block's key is copied to each of these tokens that answers; upkeep makes the copies that are missing.
        """
        return self.under_active(lambda active: keep([self._sealed(block, active, Token.seal) for block in blocks]))

    def tag(self, block: RawBlock) -> bytes:
        """16 bytes by the key of the block's link: see `Token.confirmation_tag`."""
        return self._tokens.first(self._tokens.of_link(block.name.link_id), lambda token: token.confirmation_tag(block))

    def _sealed(
        self, block: RawBlock, active: Active, seal: Callable[[Token, RawBlock, int], SealedBlock]
    ) -> SealedBlock:
        link_id = block.name.link_id
        names = [name for name in self._tokens.of_link(link_id) if name in active]
        if not names:
            raise OperatorFault(f"no token of the link {link_id} has a master key yet: upkeep makes it")
        sealed = self._tokens.first(names, lambda token: seal(token, block, active[token.name]))
        if len(names) == 1:
            return sealed
        source = next(name for name in names if active[name] == sealed.seal.epoch)
        others = [name for name in names if name != source]
        copies = [self._copied(sealed.seal, source, name, active[name]) for name in others]
        return replace(sealed, copies=tuple(copy for copy in copies if copy is not None))

    def _copied(self, seal: BlockSeal, source: str, target: str, epoch: int) -> BlockSeal | None:
        """A block key that was sealed just now, in another token too; None if that token fails."""
        try:
            done = cross([seal], self._tokens[source], self._tokens[target], epoch).done
        except FAILING as fault:
            log.info("a block key was not copied to the token %s, upkeep will do it: %s", target, fault)
            return None
        return seal._replace(epoch=epoch, wrapped=done[0][1]) if done else None

    # Opening ----------------------------------------------------------------------------------------

    def away(self) -> frozenset[int]:
        """The epochs of tokens that do not answer; raises what the first met if none answers.

        A token opens a known answer, unless it did something a moment ago.
        """
        faults = self._tokens.each(self._prove_if_idle)
        if not faults:
            return frozenset()
        return frozenset(epoch for epoch in self._store.epochs.usable() if self._token_of(epoch) in faults)

    def _prove_if_idle(self, token: Token) -> None:
        if not token.answered_lately:
            self.under_active(lambda active: token.prove(active[token.name]) if token.name in active else None)

    def open(self, keys: Sequence[SealedKey]) -> list[OpenKey]:
        """The plaintext of ``keys``, in their order; raises `RecordFault` for the first that does not open."""
        return self._renewing(lambda now: self._tokens.open(now, self._holder), keys)

    def mask(self, keys: Sequence[SealedKey], pads: Sequence[SealedKey]) -> list[bytes]:
        """Each key XOR its pad; raises `RecordFault` for the first of both that does not open."""
        count = len(keys)
        return self._renewing(
            lambda both: self._tokens.mask(both[:count], both[count:], self._holder), [*keys, *pads]
        )

    def unmask(
        self, values: Sequence[bytes], pads: Sequence[SealedKey], name: BlockName, keep: Callable[[SealedBlock], Result]
    ) -> Result:
        """What `mask` made elsewhere, sealed as a block under the active epochs, and kept by ``keep``."""
        block = self._renewing(lambda now: self._tokens.unmask(values, now, name, self._holder), pads)
        return self.under_active(lambda active: keep(self._sealed(block, active, Token.seal_carried)))

    def _renewing(self, verb: Callable[[Sequence[SealedKey]], Result], keys: Sequence[SealedKey]) -> Result:
        """Do ``verb``; again if a block was rewrapped since its row was read, whose old master key may be gone, or if
        the token fails that should open it and another has a copy of its key."""
        failed: set[str] = set()
        while True:
            try:
                return verb(keys)
            except (RecordFault, *FAILING) as fault:
                if not isinstance(fault, RecordFault) and fault.token is not None:
                    failed.add(fault.token)
                renewed = self._store.epochs.renewed(keys, self._epochs_of(failed))
                if renewed == list(keys):
                    self._refuse_strangers(keys, fault)
                    raise
                keys = renewed

    def _refuse_strangers(self, keys: Sequence[SealedKey], fault: TokenError) -> None:
        """A row that says its block is under an epoch that there is not was tampered with: no token opens it."""
        if not isinstance(fault, RecordFault | ObjectMissing):
            return
        usable = self._store.epochs.usable()
        for seal in (part.block for key in keys for part in key.parts):
            if seal.epoch not in usable:
                raise RecordFault(seal.name.link_id, seal.name.block_id)

    def _holder(self, seal: BlockSeal) -> str:
        """The token that has the master key which wrapped a block's key."""
        name = self._token_of(seal.epoch)
        if name not in self._tokens.names:
            raise RecordFault(seal.name.link_id, seal.name.block_id)
        return name

    def _token_of(self, epoch: int) -> str | None:
        if epoch not in self._tokens_of:
            self._tokens_of = {one.number: one.token for one in self._store.epochs.all()}
        return self._tokens_of.get(epoch)

    def _epochs_of(self, tokens: Collection[str]) -> frozenset[int]:
        return frozenset(epoch for epoch, token in self._tokens_of.items() if token in tokens)

    def look(self) -> None:
        """Keep no block key that a destroyed master key unwrapped, and no handle of one; looked at once a second.

        Raises `StoreTampered` if the row of an epoch is not what was sealed: before anything is claimed or opened."""
        now = self._clock()
        if abs(now - self._looked_at) < LOOK_SECONDS:
            return
        usable = self._store.epochs.usable()
        gone, self._usable, self._looked_at = self._usable - usable, usable, now
        for name in {self._token_of(epoch) for epoch in gone}:
            with suppress(*FAILING):  # a token that is away holds nothing
                self._tokens[str(name)].forget()
