"""New key_IDs: UUID version 7 (RFC 9562 §5.7), time first, so that rows of one time lie together on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from uuid import UUID

from hsmkme.model import Clock

Randomness = Callable[[int], bytes]


class KeyIds:
    """Makes key_IDs; ``clock`` in seconds since the epoch."""

    def __init__(self, clock: Clock, randomness: Randomness = os.urandom) -> None:
        self._clock = clock
        self._randomness = randomness

    def __call__(self, number: int) -> tuple[UUID, ...]:
        """So many that were never used."""
        return tuple(self._new() for _ in range(number))

    def _new(self) -> UUID:
        milliseconds = int(self._clock() * 1000)
        tail = int.from_bytes(self._randomness(10), "big")
        value = (milliseconds & (1 << 48) - 1) << 80 | tail
        value = value & ~(0xF << 76) | 0x7 << 76
        return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
