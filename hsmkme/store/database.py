"""The SQLite file: one connection for each thread, one writer at a time, errors in the product's words.

A write that changes rows without writing to the audit log is undone: no caller can forget the record. Writers of one
process that come at the same time share a transaction and its commit (`Writers`). Processes take turns by a lock file,
because SQLite alone lets losers starve; one that dies releases it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hsmkme.errors import AuditBroken, IllegalTransition, StoreError, StoreTampered, StoreUnavailable
from hsmkme.model import Clock, Entry, LogRow
from hsmkme.store import schema
from hsmkme.store.writers import Group, Writers, is_no_text

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA recursive_triggers = ON",  # otherwise REPLACE deletes without asking the triggers
    "PRAGMA busy_timeout = 1000",
    "PRAGMA cache_size = -16384",  # KiB: the inner pages of every table of a store of ten million keys
)


class Chain(Protocol):
    """What makes a log row of an entry; ``audit.AuditChain`` in the product."""

    def extend(self, previous: bytes, seq: int, now: float, entry: Entry) -> LogRow:
        """Row ``seq``, chained to the row whose hash is ``previous``."""
        ...


class RowSeal:
    """Seals what rows say (``store/seals.py``) under a key that is in no file; who has none believes any row."""

    def __init__(self) -> None:
        self._keyed = hashlib.blake2b(digest_size=16)
        self._has_key = False

    def use(self, key: bytes) -> None:
        """Seal under ``key`` from now on, at most 64 bytes, and believe no other."""
        self._keyed = hashlib.blake2b(key=key, digest_size=16)
        self._has_key = bool(key)

    def seal(self, *values: object) -> bytes | None:
        """16 bytes, which nobody can make for other ``values`` who has the file alone."""
        if not self._has_key:
            return None
        begun = self._keyed.copy()  # every row read and every row made comes here: the key is taken in once
        begun.update(repr(values).encode())
        return begun.digest()

    def is_sealed(self, seal: object, *values: object) -> bool:
        """Whether ``seal`` is of these values."""
        return not self._has_key or seal == self.seal(*values)

    def require_sealed(self, seal: object, *values: object) -> bool:
        """True; raises `StoreTampered` if ``seal`` is not of these values."""
        if not self.is_sealed(seal, *values):
            raise StoreTampered("a row is not what was sealed")
        return True


class Transaction:
    """An open write transaction: a part in one that others may have parts in, too."""

    def __init__(self, group: Group, chain: Chain, clock: Clock) -> None:
        self.connection = group.connection
        self.execute = group.connection.execute
        self.executemany = group.connection.executemany
        self.logged = False
        self._group = group
        self._chain = chain
        self._clock = clock

    def now(self) -> int:
        """Whole seconds since the epoch."""
        return int(self._clock())

    def head(self) -> tuple[int, bytes]:
        """Number and hash of the log's last row, as this transaction has it; raises `AuditBroken`."""
        return self._group.tail or head_of(self.connection)

    def append(self, entry: Entry) -> LogRow:
        """Write ``entry`` as the next row of the audit log."""
        return self.append_all([entry])[0]

    def append_all(self, entries: Sequence[Entry]) -> list[LogRow]:
        """Write ``entries`` as the next rows of the audit log."""
        seq, previous = self.head()
        now, rows = self._clock(), []
        for entry in entries:
            row = self._chain.extend(previous, seq + 1, now, entry)
            seq, previous = row.seq, row.hash
            rows.append(row)
        self.executemany("INSERT INTO log VALUES (?, ?, ?)", [(row.seq, row.text, row.hash) for row in rows])
        self._group.tail = (seq, previous)
        self.logged = True
        return rows


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
        self.chain = chain
        self.clock = clock
        self.rows = RowSeal()
        self.writers = Writers(path, self._connected)
        self._local = threading.local()

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
        connection.create_function("row_seal", -1, self.rows.seal)
        connection.create_function("is_sealed", -1, self.rows.is_sealed)
        connection.create_function("require_sealed", -1, self.rows.require_sealed)
        return connection

    def close(self) -> None:
        """Close this thread's connection, and the one that writes."""
        self.close_reader()
        self.writers.close()

    def close_reader(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            self._local.connection = None

    def ask(self, question: str) -> tuple[Any, ...] | None:
        """The first row of what ``question`` selects: by one statement, so without a transaction around it."""
        try:
            row: tuple[Any, ...] | None = self.connection.execute(question).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self.failed_to_read(error) from error
        return row

    def failed_to_read(self, error: Exception) -> StoreError:
        """The product's error for one that a reader met; its connection is given up if it may be to blame."""
        if isinstance(error, sqlite3.OperationalError):
            self.close_reader()
        return in_our_words(error)

    def read(self) -> Read:
        """One consistent view of the database, as it was last committed."""
        return Read(self)

    def write(self, *, logged: bool = True) -> Write:
        """A write, durable when the block has ended without an exception; with one, nothing is changed.

        With ``logged`` (always, but for the log's own seals) a change without an audit row is refused.
        """
        return Write(self, logged)

    def checkpoint(self) -> None:
        """Move the WAL into the file and empty it: ``secure_delete`` does not reach into the WAL."""
        with spoken(), self.writers.alone() as connection:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreUnavailable("the WAL cannot be emptied while somebody reads: it will be tried again")


class Read:
    """A reading transaction; a connection on which it failed is given up."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection = self._database.connection
            self._connection.execute("BEGIN")
        except (sqlite3.Error, OSError) as error:
            raise self._database.failed_to_read(error) from error
        return self._connection

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, (sqlite3.Error, OSError)):
            raise self._database.failed_to_read(error) from error


class Write:
    """A part in a transaction: see `Database.write`. No generator: its context would cost more than the part."""

    __slots__ = ("_before", "_database", "_group", "_logged", "_transaction")

    def __init__(self, database: Database, logged: bool) -> None:
        self._database = database
        self._logged = logged

    def __enter__(self) -> Transaction:
        database = self._database
        try:
            self._group = database.writers.enter()
        except (sqlite3.Error, OSError) as error:
            raise in_our_words(error) from error
        self._before = self._group.connection.total_changes
        self._transaction = Transaction(self._group, database.chain, database.clock)
        return self._transaction

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        refused = error is None and self._unrecorded()
        if refused:
            error = StoreError("a change without an audit record was refused")
        try:
            self._database.writers.leave(self._group, error)
        except (sqlite3.Error, OSError) as failure:
            raise in_our_words(failure) from failure
        if isinstance(error, (sqlite3.Error, OSError)):
            raise in_our_words(error) from error
        if refused and error is not None:
            raise error

    def _unrecorded(self) -> bool:
        changed = self._group.connection.total_changes != self._before
        return self._logged and changed and not self._transaction.logged


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
    except (sqlite3.Error, OSError) as error:
        raise in_our_words(error) from error


def in_our_words(error: Exception) -> StoreError:
    """The product's error for one of SQLite or the system."""
    if is_no_text(error):
        return StoreTampered("the store has a row that is no text, or not what was sealed")
    if not isinstance(error, sqlite3.IntegrityError):
        return StoreUnavailable(f"the store cannot be used now: {error}")
    if "illegal transition" in str(error) or "append-only" in str(error):
        return IllegalTransition(str(error))
    refusal = StoreTampered if "CHECK" in str(error) else StoreError  # this code writes nothing that breaks a rule
    return refusal(f"the store refused a row: {error}")
