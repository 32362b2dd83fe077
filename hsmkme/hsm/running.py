"""How a verb of the token is run: in a lane, with one fresh start when handles were lost, and with patience.

Callers queue for the token, a bounded number of them. A device that failed is left alone and then probed by one
caller, who opens it anew (`hsm/breaker.py`); meanwhile callers get `TokenUnavailable` at once. A token that needs
a person is not tried again by this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import pkcs11

from hsmkme.errors import ObjectMissing, OperatorFault, TokenError, TokenUnavailable
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.breaker import Breaker
from hsmkme.hsm.cryptoki import Cryptoki, CryptokiError
from hsmkme.hsm.faults import fault_of, outward
from hsmkme.hsm.session import Lane, Sessions
from hsmkme.waiting import all_aside, aside

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUE_MOST: Final = 128
"""How many callers of one process are served by the token or wait for it; who comes on top is told to come back."""

LIST_SECONDS: Final = 1.0
"""How often at most the module is made to list the objects of the token again."""


class Runner:
    """Runs verbs in the lanes of ``sessions``; ``clock`` in seconds, from any beginning."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float]) -> None:
        self._sessions = sessions
        self._clock = clock
        self._queue = threading.BoundedSemaphore(QUEUE_MOST)
        self._breaker = Breaker(clock)
        self._stopped: str | None = None
        self._listed_at: float | None = None

    @property
    def cryptoki(self) -> Cryptoki:
        """The calls that the binding lacks."""
        return self._sessions.cryptoki

    def begin_anew(self) -> None:
        """Forget every handle and every unwrapped block key, and log in again."""
        self._reset(self._sessions.generation, hard=False)

    @property
    def answered_lately(self) -> bool:
        """Whether the token did something within the last second."""
        return self._breaker.answered_lately

    def run(self, doing: str, verb: Callable[[Lane], Result]) -> Result:
        """Run ``verb`` in a lane; lost handles are found again once, a failed device is left alone a while.

        A module that serves several callers at once waits for a device: others of this thread go on meanwhile.
        """
        if self._sessions.serial:
            return self._queued(doing, verb)
        return aside(lambda: self._queued(doing, verb))

    def run_each(self, doing: str, verb: Callable[[Lane, Item], Result], items: Sequence[Item]) -> list[Result]:
        """Run ``verb`` for each of ``items``: one after the other, or in all lanes at the same time."""
        if self._sessions.serial:
            return self._queued(doing, partial(_each, verb, items))
        size = max(-(-len(items) // self._sessions.address.profile.max_sessions), 1)
        parts = [items[at : at + size] for at in range(0, len(items), size)]
        done = all_aside([partial(self._queued, doing, partial(_each, verb, part)) for part in parts])
        return [result for part in done for result in part]

    def _queued(self, doing: str, verb: Callable[[Lane], Result]) -> Result:
        if self._stopped is not None:
            raise OperatorFault(self._stopped)
        if not self._queue.acquire(blocking=False):
            raise TokenUnavailable(f"{doing}: {QUEUE_MOST} callers wait for the token already", retry_after=1)
        try:
            return self._watched(doing, verb, probing=self._breaker.admit(doing))
        finally:
            self._queue.release()

    def _watched(self, doing: str, verb: Callable[[Lane], Result], *, probing: bool) -> Result:
        """Run ``verb`` and let the breaker know whether the device answered."""
        try:
            result = self._run(doing, verb, probing=probing)
        except TokenUnavailable as fault:
            fault.retry_after = self._breaker.failed(probing=probing)
            raise
        except TokenError:  # a record, an object or a login is wrong, and the device said so
            self._breaker.answered(probing=probing)
            raise
        self._breaker.answered(probing=probing)
        return result

    def _run(self, doing: str, verb: Callable[[Lane], Result], *, probing: bool) -> Result:
        if probing:
            self._reset(self._sessions.generation, hard=True)
        generation = self._sessions.generation
        try:
            return self._attempt(doing, verb)
        except _HandlesLostError:
            self._reset(generation, hard=False)
        except ObjectMissing:
            if not self._may_list_again():
                raise
            self._reset(generation, hard=True)
        try:
            return self._attempt(doing, verb)
        except _HandlesLostError as error:
            raise TokenUnavailable(f"{doing}: the token fails: {error}") from error

    def _may_list_again(self) -> bool:
        """A module lists the objects when it is initialised, none if the token was away just then: now and then."""
        last, now = self._listed_at, self._clock()
        self._listed_at = now if last is None or now - last > LIST_SECONDS else last
        return self._listed_at != last

    def _attempt(self, doing: str, verb: Callable[[Lane], Result]) -> Result:
        try:
            with self._sessions.lane() as lane:
                return verb(lane)
        except (pkcs11.PKCS11Error, CryptokiError) as error:
            if fault_of(error) is Fault.SESSION:
                raise _HandlesLostError(type(error).__name__) from error
            raise outward(error, doing) from error

    def _reset(self, generation: int, *, hard: bool) -> None:
        try:
            self._sessions.reset(generation, hard=hard)
        except OperatorFault as fault:
            self._stopped = str(fault)  # a login is never tried twice with a PIN the token refused
            raise


def _each(verb: Callable[[Lane, Item], Result], items: Sequence[Item], lane: Lane) -> list[Result]:
    return [verb(lane, item) for item in items]


class _HandlesLostError(Exception):
    """Sessions, login or object handles are not valid any more."""
