"""The SQLite file: one connection for each thread, one writer at a time, errors in the product's words.

A write transaction that changes rows without writing to the audit log is rolled back: no caller can
forget the record. Writers take turns by a thread lock and a lock file, because SQLite alone lets
losers starve; a process that dies releases both.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hsmkme.errors import AuditBroken, IllegalTransition, StoreError, StoreTampered, StoreUnavailable
from hsmkme.model import Clock, Entry, LogRow
from hsmkme.store import schema

TURN_SECONDS = 10.0
"""How long a thread waits for its turn to write."""

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA recursive_triggers = ON",  # otherwise REPLACE deletes without asking the triggers
    "PRAGMA busy_timeout = 1000",
)


_NO_TEXT = ("Could not decode to UTF-8", "user-defined function raised")


class Chain(Protocol):
    """What makes a log row of an entry; ``audit.AuditChain`` in the product."""

    def extend(self, previous: bytes, seq: int, now: float, entry: Entry) -> LogRow:
        """Row ``seq``, chained to the row whose hash is ``previous``."""
        ...


class RowSeal:
    """Seals what a row says that never changes, under a ``key`` that is in no file; who has no key believes any row."""

    def __init__(self) -> None:
        self.key = b""

    def seal(self, *values: object) -> bytes:
        """16 bytes, which nobody can make for other ``values`` who has the file alone."""
        return hashlib.blake2b(repr(values).encode(), key=self.key, digest_size=16).digest()

    def is_sealed(self, seal: object, *values: object) -> bool:
        """Whether ``seal`` is of these values."""
        return not self.key or seal == self.seal(*values)


class Transaction:
    """An open write transaction."""

    def __init__(self, connection: sqlite3.Connection, chain: Chain, clock: Clock) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.executemany = connection.executemany
        self._chain = chain
        self._clock = clock
        self.logged = 0

    def now(self) -> int:
        """Whole seconds since the epoch."""
        return int(self._clock())

    def append(self, entry: Entry) -> LogRow:
        """Write ``entry`` as the next row of the audit log."""
        seq, previous = head_of(self.connection)
        row = self._chain.extend(previous, seq + 1, self._clock(), entry)
        self.execute("INSERT INTO log VALUES (?, ?, ?)", (row.seq, row.text, row.hash))
        self.execute("UPDATE log_head SET seq = ?, hash = ?", (row.seq, row.hash))
        self.logged += 1
        return row


def head_of(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and hash of the log's last row; raises `AuditBroken` when somebody took that away."""
    row = connection.execute("SELECT seq, hash FROM log_head").fetchone()
    if row is None:
        raise AuditBroken("the log does not say which row is its last", 0)
    return int(row[0]), bytes(row[1])


class Database:
    """The file at ``path``, written through ``chain`` and ``clock``."""

    def __init__(self, path: Path, chain: Chain, clock: Clock) -> None:
        self.path = path
        self._chain = chain
        self._clock = clock
        self.rows = RowSeal()
        self._local = threading.local()
        self._thread_turn = threading.Lock()

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, opened on first use."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self.path)
            schema.require_current(connection)
            connection.create_function("row_seal", -1, self.rows.seal)
            connection.create_function("is_sealed", -1, self.rows.is_sealed)
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            self._local.connection = None

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the database."""
        with spoken(), self._lent() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self, *, logged: bool = True) -> Iterator[Transaction]:
        """A write transaction, durable when the block ends without an exception.

        With ``logged`` (always, but for the log's own seals) a change without an audit row is refused.
        """
        with spoken(), self._turn(), self._lent() as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            try:
                transaction = Transaction(connection, self._chain, self._clock)
                yield transaction
                if logged and connection.total_changes != before and not transaction.logged:
                    raise StoreError("a change without an audit record was refused")
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def checkpoint(self) -> None:
        """Move the WAL into the file and empty it: ``secure_delete`` does not reach into the WAL."""
        with spoken(), self._turn(), self._lent() as connection:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreUnavailable("the WAL cannot be emptied while somebody reads: it will be tried again")

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection. One that failed is given up: SQLite opens what it cannot write at that moment
        for reading only, without saying so, and it would stay so."""
        try:
            yield self.connection
        except sqlite3.OperationalError:
            self.close()
            raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._thread_turn.acquire(timeout=TURN_SECONDS):
            raise StoreUnavailable("another writer does not end")
        try:
            with turn(self.path):
                yield
        finally:
            self._thread_turn.release()


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
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the product's settings, in autocommit: transactions are begun by name."""
    with spoken():
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in _SETTINGS:
            connection.execute(setting)
        return connection


@contextmanager
def spoken() -> Iterator[None]:
    """Raise SQLite's errors in the product's words."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        if "illegal transition" in str(error) or "append-only" in str(error):
            raise IllegalTransition(str(error)) from error
        refusal = StoreTampered if "CHECK" in str(error) else StoreError  # this code writes nothing that breaks a rule
        raise refusal(f"the store refused a row: {error}") from error
    except (sqlite3.Error, OSError) as error:
        if str(error).startswith(_NO_TEXT):
            raise StoreTampered("the store has a row that is no text") from error
        raise StoreUnavailable(f"the store cannot be used now: {error}") from error
