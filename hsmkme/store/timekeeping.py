"""The time of day as the store knows it: the latest that was seen, and whether the machine's clock is to be believed.

Lifetimes, locks, approvals, seals and the order of key_IDs rest on it. By a clock that is behind the latest time seen
nothing is delivered. One that went on otherwise than the machine's steady clock did was set: that is an alarm, and
until it is right again, or an officer accepts it, nothing ends because of its age and no lock opens.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from typing import Final, NamedTuple

from hsmkme.errors import ClockSetBack, StoreTampered
from hsmkme.model import Entry
from hsmkme.store.database import Database, Transaction

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""How often upkeep looks at the clock."""

TOLERANCE_SECONDS: Final = 30
"""By how much the clock may be off what is expected; more than it goes on between two looks."""

AWAY_SECONDS: Final = 7 * 86400
"""For how long the machine may have been off: with a time so much later it is believed when it starts again."""


@dataclass(frozen=True, slots=True)
class Steady:
    """A clock that nobody sets: seconds since the machine's ``boot``, which has a name."""

    boot: str
    seconds: float


class ClockState(NamedTuple):
    """What is known of the time: the ``latest`` seen, and what the clock shows ``now``; seconds since the epoch.

    ``ahead``: the clock less the steady one of ``boot``. ``doubted``: it was set, and nobody has said that it is right.
    """

    latest: int
    boot: str
    ahead: int
    doubted: bool
    now: int

    @property
    def is_back(self) -> bool:
        """Whether the clock was set back: nothing is delivered."""
        return self.now < self.latest - TOLERANCE_SECONDS

    @property
    def is_believed(self) -> bool:
        """Whether nothing is known against the clock."""
        return not self.doubted and not self.is_back

    @property
    def vouched(self) -> int:
        """The time, if somebody looked at the clock a moment ago and believed it; else 0."""
        return self.now if not self.doubted and abs(self.now - self.latest) <= TOLERANCE_SECONDS else 0

    def is_right(self, steady: Steady) -> bool:
        """Whether the clock is to be believed, as far as the ``steady`` one tells."""
        if self.boot == steady.boot:
            return abs(self.now - steady.seconds - self.ahead) <= TOLERANCE_SECONDS
        return not self.latest or -TOLERANCE_SECONDS <= self.now - self.latest <= AWAY_SECONDS


class Timekeeping:
    """The clock of this KME, and the locks that open by it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self) -> ClockState:
        """What is known of the time now."""
        with self._database.read() as connection:
            return clock_of(connection, self._database.clock())

    def look(self, steady: Steady, actor: str) -> bool:
        """Compare the clock with the ``steady`` one, and note the time if it is right; returns whether it is.

        Writes, in one commit: the time; an audit row when the clock stops being right, and when it is again.
        """
        with self._database.write(logged=False) as transaction:
            state = clock_of(transaction.connection, transaction.now())
            if state.is_right(steady):
                _note(transaction, state, steady)
                if state.doubted:
                    transaction.append(Entry("clock.right", actor, _facts(state)))
                return True
            if not state.doubted:
                transaction.execute("UPDATE clock SET doubted = 1")
                transaction.append(Entry("alarm.clock", actor, _facts(state)))
        if not state.doubted:
            log.error("ALARM the clock was set by %+d s: see `hsmkme clock show`", _facts(state)["seconds"])
        return False

    def accept(self, steady: Steady, entry: Entry) -> ClockState:
        """Take the clock for right from now on, whatever it was; returns what was known before."""
        with self._database.write() as transaction:
            state = clock_of(transaction.connection, transaction.now())
            _note(transaction, state, steady)
            transaction.append(entry.knowing(**_facts(state)))
            return state


def clock_of(connection: sqlite3.Connection, now: float) -> ClockState:
    """What is known of the time, which the clock says is ``now``."""
    row = connection.execute("SELECT latest, boot, ahead, doubted FROM clock").fetchone()
    if row is None:
        raise StoreTampered("the store does not say which time it saw last")
    latest, boot, ahead, doubted = row
    return ClockState(latest, boot, ahead, bool(doubted), int(now))


def require_time(transaction: Transaction) -> ClockState:
    """Raises `ClockSetBack` if the clock is behind the latest time seen; notes the time if it went on from there.

    A clock that is far ahead is noted by `Timekeeping.look` alone, which can tell whether it was set.
    """
    state = clock_of(transaction.connection, transaction.now())
    if state.is_back:
        raise ClockSetBack(state.latest - state.now)
    if state.vouched > state.latest:
        transaction.execute("UPDATE clock SET latest = ?", (state.now,))
    return state


def _note(transaction: Transaction, state: ClockState, steady: Steady) -> None:
    values = (state.now, steady.boot, int(state.now - steady.seconds))
    transaction.execute("UPDATE clock SET latest = ?, boot = ?, ahead = ?, doubted = 0", values)


def _facts(state: ClockState) -> dict[str, int]:
    return {"latest": state.latest, "seconds": state.now - state.latest}
