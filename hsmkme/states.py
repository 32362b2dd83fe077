"""States of epochs, blocks and keys (NIST SP 800-57 part 1 §7) and the transitions allowed between them.

The database enforces the same tables with triggers (``store/schema.py``); a test compares the two.
States only move right: nothing here leads back. What is ``frozen`` is kept apart until an officer revokes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class EpochState(StrEnum):
    """One generation of the master key."""

    PREACTIVATION = "preactivation"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


class BlockState(StrEnum):
    """A deposited block; keys are claimed only from ``ready`` ones."""

    DEPOSITED = "deposited"
    READY = "ready"
    FROZEN = "frozen"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RETIRED = "retired"


class KeyState(StrEnum):
    """A key that was claimed for a relation; ``consumed`` and ``void`` are tombstones."""

    ASSIGNING = "assigning"
    ASSIGNED = "assigned"
    DELIVERED = "delivered"
    CONSUMED = "consumed"
    VOID = "void"


EPOCH_MOVES: Final[Mapping[EpochState, frozenset[EpochState]]] = {
    EpochState.PREACTIVATION: frozenset({EpochState.ACTIVE, EpochState.COMPROMISED, EpochState.DESTROYED}),
    EpochState.ACTIVE: frozenset({EpochState.DEACTIVATED, EpochState.COMPROMISED}),
    EpochState.DEACTIVATED: frozenset({EpochState.COMPROMISED, EpochState.DESTROYED}),
    EpochState.COMPROMISED: frozenset({EpochState.DESTROYED}),
    EpochState.DESTROYED: frozenset(),
}

_ENDED: Final = frozenset({BlockState.EXPIRED, BlockState.REVOKED})

BLOCK_MOVES: Final[Mapping[BlockState, frozenset[BlockState]]] = {
    BlockState.DEPOSITED: frozenset({BlockState.READY, BlockState.FROZEN}) | _ENDED,
    BlockState.READY: frozenset({BlockState.FROZEN, BlockState.EXHAUSTED}) | _ENDED,
    BlockState.FROZEN: frozenset({BlockState.REVOKED}),
    BlockState.EXHAUSTED: frozenset({BlockState.FROZEN, BlockState.REVOKED, BlockState.RETIRED}),
    BlockState.EXPIRED: frozenset({BlockState.FROZEN, BlockState.RETIRED}),
    BlockState.REVOKED: frozenset({BlockState.RETIRED}),
    BlockState.RETIRED: frozenset(),
}

KEY_MOVES: Final[Mapping[KeyState, frozenset[KeyState]]] = {
    KeyState.ASSIGNING: frozenset({KeyState.ASSIGNED, KeyState.VOID}),
    KeyState.ASSIGNED: frozenset({KeyState.DELIVERED, KeyState.CONSUMED, KeyState.VOID}),
    KeyState.DELIVERED: frozenset({KeyState.CONSUMED, KeyState.VOID}),
    KeyState.CONSUMED: frozenset(),
    KeyState.VOID: frozenset(),
}
