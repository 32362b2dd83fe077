"""New key_IDs: UUID version 7 (RFC 9562 §5.7), time first, so that rows of one time lie together on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final
from uuid import UUID

from hsmkme.model import Clock

Randomness = Callable[[int], bytes]

_TAIL: Final = 10
"""How many bytes follow the time."""

_VERSION_7: Final = 0x7 << 76 | 0x2 << 62
"""The bits of version and variant."""

_RANDOM: Final = ~(0xF << 76 | 0x3 << 62) & (1 << 8 * _TAIL) - 1
"""The bits of the tail that are random."""


class KeyIds:
    """Makes key_IDs; ``clock`` in seconds since the epoch."""

    def __init__(self, clock: Clock, randomness: Randomness = os.urandom) -> None:
        self._clock = clock
        self._randomness = randomness

    def __call__(self, number: int) -> tuple[UUID, ...]:
        """So many that were never used, in order: keys that are claimed together stay together by key_ID too."""
        milliseconds, tails = int(self._clock() * 1000), self._randomness(_TAIL * number)
        fixed = (milliseconds & (1 << 48) - 1) << 80 | _VERSION_7
        ends = (int.from_bytes(tails[at : at + _TAIL], "big") & _RANDOM for at in range(0, len(tails), _TAIL))
        return tuple([UUID(int=fixed | end) for end in sorted(ends)])


def made_at(key_id: UUID) -> float:
    """When a key_ID was made, wherever; seconds since the epoch."""
    return (key_id.int >> 80) / 1000
