"""Counters that all workers of a KME share, as a storage for the ``limits`` library.

A file of their own beside the store: they are written on every request and never waited for by the disk.
After a power cut they begin anew, which costs nobody a key.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Final

from limits.storage import Storage

from hsmkme.model import Clock

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS counter (key TEXT PRIMARY KEY, value INTEGER NOT NULL, until REAL NOT NULL)"
    " STRICT, WITHOUT ROWID"
)
_COUNT: Final = """
INSERT INTO counter VALUES (:key, :amount, :until) ON CONFLICT (key) DO UPDATE SET
    value = CASE WHEN until <= :now THEN excluded.value ELSE value + excluded.value END,
    until = CASE WHEN until <= :now THEN excluded.until ELSE until END
RETURNING value
"""


class Counters(Storage):
    """The counters in the file at ``path``; ``clock`` in seconds since the epoch."""

    STORAGE_SCHEME = None

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__()
        self._path = path
        self._clock = clock
        self._local = threading.local()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the library may wrap."""
        return sqlite3.Error

    @property
    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_TABLE)
            self._local.connection = connection
        return connection

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a counter that lasts ``expiry`` seconds from its first count; its new value."""
        now = self._clock()
        values = {"key": key, "amount": amount, "now": now, "until": now + expiry}
        (value,) = self._connection.execute(_COUNT, values).fetchone()
        return int(value)

    def get(self, key: str) -> int:
        """A counter's value; 0 when its time is over."""
        row = self._connection.execute(
            "SELECT value FROM counter WHERE key = ? AND until > ?", (key, self._clock())
        ).fetchone()
        return int(row[0]) if row else 0

    def get_expiry(self, key: str) -> float:
        """When a counter's time is over, in seconds since the epoch."""
        row = self._connection.execute("SELECT until FROM counter WHERE key = ?", (key,)).fetchone()
        return float(row[0]) if row else self._clock()

    def check(self) -> bool:
        """Whether the file can be used."""
        return bool(self._connection.execute("SELECT 1").fetchone())

    def reset(self) -> int:
        """Forget every counter; how many there were."""
        return self._connection.execute("DELETE FROM counter").rowcount

    def clear(self, key: str) -> None:
        """Forget one counter."""
        self._connection.execute("DELETE FROM counter WHERE key = ?", (key,))
