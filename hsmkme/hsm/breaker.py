"""When a failed device is tried again: not at once, by one caller, and each time later.

closed      everybody goes on; the first failure opens the breaker
open        everybody is told to come back, for a pause that doubles with every probe that failed
half-open   the pause is over: one caller probes the device, the others are told to come back
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable
from typing import Final

from hsmkme.errors import TokenUnavailable

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 15.0
PROBE_SECONDS: Final = 30.0
"""How long a probe may take; when it does not come back, another caller probes."""

LATELY_SECONDS: Final = 1.0
"""For how long a token that answered needs no proof that it works."""


def _thrown() -> float:
    return secrets.randbelow(1000) / 1000


class Breaker:
    """Between callers and a device; ``clock`` in seconds, ``dice`` throws a number from 0 to 1.

    The dice shorten each pause by up to a half, so that processes which failed together come back one by one.
    """

    def __init__(self, clock: Callable[[], float], dice: Callable[[], float] = _thrown) -> None:
        self._clock = clock
        self._dice = dice
        self._turn = threading.Lock()
        self._pause = FIRST_PAUSE_SECONDS
        self._until: float | None = None
        self._answered_at: float | None = None

    @property
    def answered_lately(self) -> bool:
        """Whether the device did something within the last second, and nothing failed since."""
        return self._answered_at is not None and self._clock() - self._answered_at <= LATELY_SECONDS

    def admit(self, doing: str) -> bool:
        """Whether the caller shall probe the device before it goes on; raises `TokenUnavailable` in a pause."""
        if self._until is None:
            return False
        with self._turn:
            if self._until is None:
                return False
            now = self._clock()
            if now < self._until:
                raise TokenUnavailable(f"{doing}: the token failed a moment ago", self._seconds_left(now))
            self._until = now + PROBE_SECONDS
            return True

    def failed(self, *, probing: bool) -> int:
        """The device failed; gives the whole seconds after which it is worth asking again."""
        with self._turn:
            now = self._clock()
            self._answered_at = None
            if probing or self._until is None:  # else the caller began before the first failure, and adds nothing
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if probing else FIRST_PAUSE_SECONDS
                self._until = now + self._pause * (1 - self._dice() / 2)
            return self._seconds_left(now)

    def answered(self, *, probing: bool) -> None:
        """The device did something. Only a probe ends a pause: other callers may have begun before it."""
        if probing:
            self._until = None
        if self._until is None:
            self._answered_at = self._clock()

    def _seconds_left(self, now: float) -> int:
        return max(1, math.ceil((self._until or now) - now))
