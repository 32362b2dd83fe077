"""Blocks that are not released before a time: until then they stay deposited, at both ends. Inside a transaction.

One of a local link is ready when somebody claims, or upkeep looks, after that time. One that is shared with a peer is
not announced before, and not confirmed. By a clock that nobody vouches for no lock opens.
"""

from __future__ import annotations

from typing import Final

from hsmkme.model import Entry
from hsmkme.store.database import Transaction
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.timekeeping import ClockState

_DUE: Final = f"state = 'deposited' AND not_before > 0 AND not_before <= ? AND tag IS NULL AND {BLOCK_IS_SOUND}"
_IS_DUE: Final = f"SELECT 1 FROM block WHERE {_DUE} LIMIT 1"  # noqa: S608 - a constant
_UNLOCK: Final = f"UPDATE block SET state = 'ready' WHERE {_DUE} RETURNING link_id, block_id"  # noqa: S608
"""Apart: an update costs twice as much, though it finds nothing."""


def unlock(transaction: Transaction, clock: ClockState, actor: str) -> int:
    """Let keys be claimed of local blocks whose time has come; returns how many blocks. With an audit row."""
    if transaction.execute(_IS_DUE, (clock.vouched,)).fetchone() is None:
        return 0
    opened = transaction.execute(_UNLOCK, (clock.vouched,)).fetchall()
    names = [f"{link_id}/{block_id}" for link_id, block_id in opened]
    transaction.append(Entry("block.unlock", actor, {"blocks": names}))
    return len(opened)
