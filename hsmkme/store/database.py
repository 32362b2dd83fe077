"""The SQLite file: one connection for each thread, one writer at a time, errors in the product's words.

A write that changes rows without writing to the audit log is undone: no caller can forget the record. Writers of one
process that come at the same time share a transaction and its commit (`Writers`). Processes take turns by a lock file,
because SQLite alone lets losers starve; one that dies releases it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hsmkme.errors import AuditBroken, IllegalTransition, StoreError, StoreUnavailable
from hsmkme.model import Clock, Entry, LogRow
from hsmkme.store import schema
from hsmkme.store.writers import Writers

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA recursive_triggers = ON",  # otherwise REPLACE deletes without asking the triggers
    "PRAGMA busy_timeout = 1000",
)


class Chain(Protocol):
    """What makes a log row of an entry; ``audit.AuditChain`` in the product."""

    def extend(self, previous: bytes, seq: int, now: float, entry: Entry) -> LogRow:
        """Row ``seq``, chained to the row whose hash is ``previous``."""
        ...


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
        self._local = threading.local()
        self._writers = Writers(path, self._connected)

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection for reading, opened on first use."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connected()
        return connection

    def _connected(self) -> sqlite3.Connection:
        connection = connect(self.path)
        schema.require_current(connection)
        return connection

    def close(self) -> None:
        """Close this thread's connection, and the one that writes."""
        self._close_reader()
        self._writers.close()

    def _close_reader(self) -> None:
        if getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            self._local.connection = None

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the database, as it was last committed."""
        with spoken(), self._lent() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self, *, logged: bool = True) -> Iterator[Transaction]:
        """A write, durable when the block has ended without an exception; with one, nothing is changed.

        With ``logged`` (always, but for the log's own seals) a change without an audit row is refused.
        """
        with spoken(), self._writers.part() as connection:
            before = connection.total_changes
            transaction = Transaction(connection, self._chain, self._clock)
            yield transaction
            if logged and connection.total_changes != before and not transaction.logged:
                raise StoreError("a change without an audit record was refused")

    def checkpoint(self) -> None:
        """Move the WAL into the file and empty it: ``secure_delete`` does not reach into the WAL."""
        with spoken(), self._writers.alone() as connection:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreUnavailable("the WAL cannot be emptied while somebody reads: it will be tried again")

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection for reading; one that failed is given up."""
        try:
            yield self.connection
        except sqlite3.OperationalError:
            self._close_reader()
            raise


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
        raise StoreError(f"the store refused a row: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"the store cannot be used now: {error}") from error
