"""The audit log's rows and seals."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

from hsmkme.errors import StoreError
from hsmkme.model import Entry, LogRow, Seal
from hsmkme.store.database import Database, Transaction, head_of

_LAST_ALARM: Final = "SELECT text FROM log WHERE substr(text ->> '$.event', 1, 6) = 'alarm.' ORDER BY seq DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The log at one moment: number and hash of its last row, its seals, its rows."""

    seq: int
    hash: bytes
    seals: list[Seal]
    rows: Iterator[LogRow]


@dataclass(frozen=True, slots=True)
class Span:
    """Texts of consecutive rows, the hash of the row before them, and the seal of the last one."""

    before: bytes
    rows: list[str]
    seal: Seal


class Log:
    """Reading the log, and adding to it what is not part of another transition."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entry: Entry) -> LogRow:
        """Write one row by itself: refusals, alarms, starts."""
        with self._database.write() as transaction:
            return transaction.append(entry)

    def alarm_once(self, entry: Entry) -> None:
        """An alarm with a ``reason``, by itself, unless the last one says the same."""
        with self._database.write() as transaction:
            alarm_once(transaction, entry)

    def head(self) -> tuple[int, bytes]:
        """Number and hash of the last row; 0 and zeros when there is none."""
        with self._database.read() as connection:
            return head_of(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The whole log as it is now, whatever is appended meanwhile. Rows are read as they are asked for."""
        with self._database.read() as connection:
            seq, digest = head_of(connection)
            seals = connection.execute("SELECT seq, hash, at, signature FROM log_seal ORDER BY seq").fetchall()
            # Closed whether read to its end or not: a statement that is not would keep the WAL from being emptied.
            with closing(connection.execute("SELECT seq, CAST(text AS BLOB), hash FROM log ORDER BY seq")) as rows:
                # What is not UTF-8 was tampered with: it is passed on for `verify` to find, with the row's number.
                found = (LogRow(row, text.decode(errors="surrogateescape"), digest) for row, text, digest in rows)
                yield Snapshot(seq, digest, [Seal(*seal) for seal in seals], found)

    def spans(self, numbers: Iterable[int]) -> list[Span]:
        """What binds each of these rows to a seal: all rows up to it. Raises `StoreError` if there is none."""
        spans: list[Span] = []
        with self._database.read() as connection:
            for seq in sorted(numbers):
                if not spans or spans[-1].seal.seq < seq:
                    spans.append(_span(connection, seq))
        return spans

    def latest(self, count: int, event_prefix: str = "") -> list[LogRow]:
        """The last ``count`` rows whose event begins with ``event_prefix``, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT seq, text, hash FROM log WHERE substr(text ->> '$.event', 1, ?) = ? ORDER BY seq DESC LIMIT ?",
                (len(event_prefix), event_prefix, count),
            ).fetchall()
            return [LogRow(*row) for row in reversed(rows)]

    def last_seal(self) -> Seal | None:
        """The newest seal."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT seq, hash, at, signature FROM log_seal ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            return None if row is None else Seal(*row)

    def add_seal(self, seal: Seal) -> None:
        """Keep a seal; sealing the same row again changes nothing."""
        with self._database.write(logged=False) as transaction:
            transaction.execute(
                "INSERT INTO log_seal VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (seal.seq, seal.hash, seal.at, seal.signature),
            )


def alarm_once(transaction: Transaction, entry: Entry) -> None:
    """An alarm, unless the last one says the same: who meets something again and again tells of it once."""
    row = transaction.execute(_LAST_ALARM).fetchone()
    last = {} if row is None else json.loads(row[0])
    if (last.get("event"), last.get("reason")) != (entry.event, entry.facts["reason"]):
        transaction.append(entry)


def _span(connection: sqlite3.Connection, seq: int) -> Span:
    seal = connection.execute(
        "SELECT seq, hash, at, signature FROM log_seal WHERE seq >= ? ORDER BY seq LIMIT 1", (seq,)
    ).fetchone()
    if seal is None:
        raise StoreError(f"row {seq} of the log is not sealed yet: try again in a moment")
    rows = connection.execute("SELECT text FROM log WHERE seq BETWEEN ? AND ? ORDER BY seq", (seq, seal[0])).fetchall()
    before = connection.execute("SELECT hash FROM log WHERE seq = ?", (seq - 1,)).fetchone()
    return Span(before[0] if before else bytes(32), [text for (text,) in rows], Seal(*seal))
