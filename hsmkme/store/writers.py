"""Group commit: writers of one process that come at the same time share a transaction, and its commit.

A commit waits for the disk, and costs more than most of what is committed. So a writer whose part is done leaves the
transaction open if others wait to have a part in it; the last of them commits for all. Each part is a savepoint: one
that fails is undone and fails alone. No writer goes on before its part is durable.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from hsmkme.errors import StoreUnavailable
from hsmkme.waiting import Places, Wait, aside, breathe, new_wait

TURN_SECONDS: Final = 10.0
"""How long a writer waits for its part."""

PARTS_MOST: Final = 64
"""After so many parts a transaction is committed even if others wait: other processes wait too."""

Tail = tuple[int, bytes]
"""Number and hash of the last row of the log."""


class Group:
    """One open transaction on ``connection``, while ``turn`` keeps other processes from writing.

    ``tail`` is where the log ends, once a part has written to it: one row says so for all parts, in the end.
    """

    def __init__(self, connection: sqlite3.Connection, turn: ExitStack) -> None:
        self.connection = connection
        self.tail: Tail | None = None
        self.parts = 0
        self.failure: BaseException | None = None
        self._tail_before: Tail | None = None
        self._turn = turn
        self._waits: list[Wait] = []

    def begin_part(self) -> None:
        """What is changed from here on can be undone by itself."""
        self._tail_before = self.tail
        self.connection.execute("SAVEPOINT part")

    def end_part(self, error: BaseException | None) -> None:
        """Keep a part, or undo it because of ``error``. What SQLite itself cannot do spoils the other parts too."""
        if error is None:
            self.connection.execute("RELEASE part")
            self.parts += 1
            return
        self.tail = self._tail_before
        broken = isinstance(error, sqlite3.OperationalError) and not is_no_text(error)
        if broken or not self.connection.in_transaction:
            self.failure = error
        else:
            self.connection.execute("ROLLBACK TO part")
            self.connection.execute("RELEASE part")

    def end(self) -> None:
        """Commit, or not if it is spoilt, and tell those who wait."""
        try:
            if self.failure is None and self.parts:
                if self.tail is not None:
                    self.connection.execute("UPDATE log_head SET seq = ?, hash = ?", self.tail)
                self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.failure = error
        finally:
            if self.connection.in_transaction:
                self.connection.rollback()
            self._turn.close()
            for wait in self._waits:
                wait.end()

    def wait_for_end(self) -> Wait:
        """A wait for `end`."""
        wait = new_wait()
        self._waits.append(wait)
        return wait


class Writers:
    """The writers of this process to the store at ``path``, over one connection that ``connect`` makes."""

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._places = Places(1)
        self._connection: sqlite3.Connection | None = None
        self._group: Group | None = None

    def enter(self) -> Group:
        """Begin a part of a transaction, alone until `leave`."""
        self._take_place()
        with ExitStack() as undo:
            undo.callback(self._places.give_back)
            undo.callback(self._end_group)
            if self._group is None:
                self._group = self._begun()
            self._group.begin_part()
            undo.pop_all()
        return self._group

    def leave(self, group: Group, error: BaseException | None) -> None:
        """End the part: durable when this returns, or undone because of ``error``.

        A refusal is not told before the transaction has ended either: it may rest on what other parts changed. Raises
        `StoreUnavailable`, and nothing is changed, when the transaction could not be committed.
        """
        wait = None
        try:
            group.end_part(error)
            if not self._ended(group):
                wait = group.wait_for_end()
        finally:
            self._places.give_back()
        if error is not None and not isinstance(error, Exception):  # the process ends, or the request does
            return
        if wait is not None:
            wait.wait()
        if group.failure not in (None, error):
            raise StoreUnavailable(f"the store cannot be used now: {group.failure}") from group.failure

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The connection outside of a transaction, while nobody writes."""
        self._take_place()
        try:
            self._end_group()
            with turn(self._path):
                yield self.connected()
        finally:
            self._places.give_back()

    def close(self) -> None:
        """Close the connection."""
        self._take_place()
        self._end_group()
        self._give_up_connection()
        self._places.give_back()

    def _take_place(self) -> None:
        if not self._places.take(TURN_SECONDS):
            raise StoreUnavailable("another writer does not end")

    def _ended(self, group: Group) -> bool:
        """Commit if nobody waits for a part, or the group is full or spoilt. Whoever can come does so first."""
        if not self._places.awaited:
            breathe()
        if self._places.awaited and group.parts < PARTS_MOST and group.failure is None:
            return False
        self._end_group()
        return True

    def _begun(self) -> Group:
        with ExitStack() as stack:
            stack.enter_context(turn(self._path))
            connection = self.connected()
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error:
                self._give_up_connection()
                raise
            return Group(connection, stack.pop_all())

    def _end_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.end()
            if group.failure is not None:
                self._give_up_connection()

    def connected(self) -> sqlite3.Connection:
        """The connection, opened on first use."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _give_up_connection(self) -> None:
        """SQLite opens what it cannot write at that moment for reading only, without saying so, and it stays so."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def is_no_text(error: BaseException) -> bool:
    """Whether it is a row that is wrong, and not SQLite that fails: for Python both are the same kind of error."""
    return str(error).startswith(("Could not decode to UTF-8", "user-defined function raised"))


@contextmanager
def turn(path: Path, of: str = "turn", *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file beside the store at ``path``: one writer among all processes.

    Gives False, without the lock, when another has it and this one does not ``wait``.
    """
    descriptor = os.open(path.with_name(f"{path.name}.{of}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _locked(descriptor, wait)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            aside(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX))
        return wait
    return True
