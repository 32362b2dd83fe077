"""How a verb of the token is run: in a lane, with one fresh start when handles were lost, and with patience.

A device that failed is left alone for a moment and then opened anew; meanwhile callers get
`TokenUnavailable` at once. A token that needs a person is not tried again by this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import pkcs11

from hsmkme.errors import ObjectMissing, OperatorFault, TokenError, TokenUnavailable
from hsmkme.hsm.cryptoki import Cryptoki, CryptokiError
from hsmkme.hsm.faults import Fault, fault_of, outward
from hsmkme.hsm.session import Lane, Sessions

Result = TypeVar("Result")

PAUSE_SECONDS: Final = 1.0
"""How long a failed device is left alone before it is tried again."""


class Runner:
    """Runs verbs in the lanes of ``sessions``; ``clock`` in seconds, from any beginning."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float]) -> None:
        self._sessions = sessions
        self._clock = clock
        self._down_until: float | None = None
        self._stopped: str | None = None
        self._answered_at: float | None = None
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
        return self._answered_at is not None and self._clock() - self._answered_at <= PAUSE_SECONDS

    def run(self, doing: str, verb: Callable[[Lane], Result]) -> Result:
        """Run ``verb`` in a lane; lost handles are found again once, a failed device is left alone a while."""
        self._recover_if_due(doing)
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
            raise self._device_failed(doing, error) from error

    def _may_list_again(self) -> bool:
        """A module lists the objects when it is initialised, none if the token was away just then: once a pause."""
        last, now = self._listed_at, self._clock()
        self._listed_at = now if last is None or now - last > PAUSE_SECONDS else last
        return self._listed_at != last

    def _attempt(self, doing: str, verb: Callable[[Lane], Result]) -> Result:
        try:
            with self._sessions.lane() as lane:
                result = verb(lane)
            self._answered_at = self._clock()
            return result
        except (pkcs11.PKCS11Error, CryptokiError) as error:
            match fault_of(error):
                case Fault.SESSION:
                    raise _HandlesLostError(str(type(error).__name__)) from error
                case Fault.DEVICE | Fault.RECORD:
                    raise self._device_failed(doing, error) from error
                case _:
                    raise outward(error, doing) from error

    def _leave_alone(self) -> None:
        self._answered_at = None
        self._down_until = self._clock() + PAUSE_SECONDS

    def _device_failed(self, doing: str, error: Exception) -> TokenUnavailable:
        self._leave_alone()
        return TokenUnavailable(f"{doing}: the token fails: {type(error).__name__}", retry_after=2)

    def _recover_if_due(self, doing: str) -> None:
        if self._stopped is not None:
            raise OperatorFault(self._stopped)
        if self._down_until is None:
            return
        if self._clock() < self._down_until:
            raise TokenUnavailable(f"{doing}: the token failed a moment ago", retry_after=2)
        self._reset(self._sessions.generation, hard=True)
        self._down_until = None

    def _reset(self, generation: int, *, hard: bool) -> None:
        try:
            self._sessions.reset(generation, hard=hard)
        except OperatorFault as fault:
            self._stopped = str(fault)  # a login is never tried twice with a PIN the token refused
            raise
        except TokenError:
            self._leave_alone()
            raise


class _HandlesLostError(Exception):
    """Sessions, login or object handles are not valid any more."""
