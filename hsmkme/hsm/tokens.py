"""The tokens of one KME: each is opened when it is there, and done without while another can.

A token that is away when the process starts is opened when it comes. Until then, and while it fails, it is
`TokenUnavailable`; one that a person must look at stays `OperatorFault` for this process, and others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar
from uuid import UUID

from hsmkme.errors import ObjectMissing, OperatorFault, RecordFault, TokenError, TokenUnavailable
from hsmkme.hsm import masking
from hsmkme.hsm.breaker import Breaker
from hsmkme.hsm.token import Token
from hsmkme.model import BlockName, BlockSeal, KeyMaterial, OpenKey, Part, RawBlock, SealedKey

log = logging.getLogger(__name__)

Result = TypeVar("Result")

Holder = Callable[[BlockSeal], str]
"""Names the token that has the master key of a seal's epoch; raises `RecordFault` if there is none."""

_NO_ID: Final = UUID(int=0)
FAILING: Final = (TokenUnavailable, OperatorFault)
"""What is the matter with a token, not with what it was asked to open."""


class _Seat:
    """A place for a token, which is opened by the first caller who finds it there."""

    def __init__(self, opening: Callable[[], Token], clock: Callable[[], float]) -> None:
        self.token: Token | None = None
        self._opening = opening
        self._admitted = False
        self._breaker = Breaker(clock)
        self._turn = threading.Lock()
        self._stopped: str | None = None
        self._why = "opening the token"

    def taken(self, admit: Callable[[Token], None]) -> Token:
        """The token, which ``admit`` sees before anybody else."""
        if self._admitted and self.token is not None:
            return self.token
        if self._stopped is not None:
            raise OperatorFault(self._stopped)
        if not self._turn.acquire(blocking=False):  # who waited here could be of the thread that it waits for
            raise TokenUnavailable("the token is being opened", retry_after=1)
        try:
            return self._opened(admit)
        finally:
            self._turn.release()

    def _opened(self, admit: Callable[[Token], None]) -> Token:
        probing = self._breaker.admit(self._why)
        try:
            self.token = self.token or self._opening()
            admit(self.token)
        except TokenUnavailable as fault:
            log.warning("a token is away: %s", fault)
            self._why = str(fault)
            fault.retry_after = self._breaker.failed(probing=probing)
            raise
        except ObjectMissing:  # the module may have listed the objects while the token was away
            self._breaker.failed(probing=probing)
            raise
        except OperatorFault as fault:
            log.error("a token is not used by this process: %s", fault)
            self._stopped = str(fault)  # a login is never tried twice with a PIN the token refused
            raise
        self._admitted = True
        return self.token


class Tokens:
    """The tokens that ``openings`` open, by their names; the first named is asked first where any will do.

    ``links``: on which tokens the keys of a link are, the first of all for one that is not named.
    """

    def __init__(
        self,
        openings: Mapping[str, Callable[[], Token]],
        links: Mapping[str, Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seats = {name: _Seat(opening, clock) for name, opening in openings.items()}
        self._links = links
        self._admit: Callable[[Token], None] = lambda _: None
        self.names = tuple(openings)

    def admit_by(self, admit: Callable[[Token], None]) -> None:
        """Open those that are there; ``admit`` sees each before anybody uses it, now or when it comes.

        Raises what the first of them met if none can be used.
        """
        self._admit = admit
        self.each(lambda _: None)

    def __getitem__(self, name: str) -> Token:
        """One of them, opened; raises `TokenUnavailable` while it is away."""
        return self._seats[name].taken(self._admit)

    def close(self) -> None:
        """Log out of all."""
        for seat in self._seats.values():
            if seat.token is not None:
                seat.token.close()

    def of_link(self, link_id: str) -> Sequence[str]:
        """The names of the tokens that a link is placed on, the preferred one first."""
        return self._links.get(link_id) or self.names[:1]

    def first(self, names: Sequence[str], act: Callable[[Token], Result]) -> Result:
        """What ``act`` gives of the first of these tokens that can; raises what the last one met."""
        for name in names[:-1]:
            try:
                return act(self[name])
            except FAILING:
                continue
        return act(self[names[-1]])

    def any(self, act: Callable[[Token], Result]) -> Result:
        """`first` of all, for what every token does alike."""
        return self.first(self.names, act)

    def each(self, act: Callable[[Token], object]) -> dict[str, TokenError]:
        """Let each token do ``act``; gives what those met that could not. Raises that of the first if none could."""
        faults: dict[str, TokenError] = {}
        for name in self.names:
            try:
                act(self[name])
            except FAILING as fault:
                faults[name] = fault
        if len(faults) == len(self.names):
            raise faults[self.names[0]]
        return faults

    # Opening ----------------------------------------------------------------------------------------

    def open(self, keys: Sequence[SealedKey], holder: Holder) -> list[OpenKey]:
        """The plaintext of ``keys``, in their order, each part by the token that ``holder`` names.

        Raises what the first token met that did not open all of its own, with its name.
        """
        if len(self.names) == 1:
            return self._asked(self.names[0], keys)
        parts = [part for key in keys for part in key.parts]
        opened = self._parts(parts, [holder(part.block) for part in parts])
        return [_joined(key, [next(opened) for _ in key.parts]) for key in keys]

    def mask(self, keys: Sequence[SealedKey], pads: Sequence[SealedKey], holder: Holder) -> list[bytes]:
        """Each key XOR its pad, which must be as long and mask nothing else, ever: nobody learns anything without it.

        Raises as `open` does, of both.
        """
        opened = [one.material for one in self.open([*keys, *pads], holder)]
        pairs = zip(opened[: len(keys)], opened[len(keys) :], strict=True)
        return [masking.masked(key.reveal(), pad) for key, pad in pairs]

    def unmask(
        self, values: Sequence[bytes], pads: Sequence[SealedKey], name: BlockName, holder: Holder
    ) -> RawBlock:
        """What `mask` made elsewhere, as a block of this end's own, to be sealed at once.

        Raises as `open` does, of the pads.
        """
        pairs = zip(values, self.open(pads, holder), strict=True)
        return masking.block_of(name, [masking.masked(value, pad.material) for value, pad in pairs])

    def _parts(self, parts: Sequence[Part], names: Sequence[str]) -> Iterator[KeyMaterial]:
        """Each part opened, in their order."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(names):
            places[name].append(place)
        found: dict[int, KeyMaterial] = {}
        for name, own in places.items():
            opened = self._asked(name, [_alone(parts[place]) for place in own])
            found |= zip(own, (one.material for one in opened), strict=True)
        return (found[place] for place in range(len(parts)))

    def _asked(self, name: str, keys: Sequence[SealedKey]) -> list[OpenKey]:
        try:
            return self[name].open(keys)
        except TokenError as fault:
            fault.token = name
            raise


def sole(token: Token) -> Tokens:
    """A token that is the only one, and open."""
    return Tokens({token.name: lambda: token}, {})


def _alone(part: Part) -> SealedKey:
    """A part as if it were a key."""
    return SealedKey(_NO_ID, part.count * part.block.key_bits, (part,))


def _joined(key: SealedKey, parts: Sequence[KeyMaterial]) -> OpenKey:
    plain = b"".join(part.reveal() for part in parts)
    if len(plain) * 8 < key.size:
        raise RecordFault(key.parts[0].block.name.link_id, key.parts[0].block.name.block_id)
    return OpenKey(key.key_id, KeyMaterial(plain[: key.size // 8]))
