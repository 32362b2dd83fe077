"""Fills a store with many keys quickly, to see what depends on how many there are.

    python -m tests.filler STORE KEYS [LINK]

The rows are those that deposits, claims and collections leave. Only the sealed bytes are zeros, which no token opens,
and no row has a seal: keys are claimed from older blocks first, and theirs do open.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmkme.audit import AuditChain
from hsmkme.model import Entry, segment_bytes
from hsmkme.store.database import connect, head_of

BLOCK: Final = 128
BITS: Final = 256
KEYS_OF_A_ROW: Final = 16
"""For how many keys there is one row of the log."""

STATES: Final = ("retired", "retired", "exhausted", "exhausted", "deposited", "ready", "ready", "ready")
"""Of each eighth of the blocks, the oldest first: keys were consumed, are claimed, wait, can be claimed."""

_BLOCK: Final = (
    "INSERT INTO block (link_id, block_id, state, epoch, key_bits, key_count, next_index, live, wrapped, digest,"
    " deposited_at, tag, mine) VALUES (?, ?, ?, 1, ?, ?, ?, ?, zeroblob(47), ?, ?, ?, ?)"
)
_KEY: Final = (
    "INSERT INTO key (key_id, relation_id, state, size, parts, served, claimed_at, mine, due)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def fill(path: Path, keys: int, link_id: str, now: int) -> None:
    """Add ``keys`` keys of a link to the store at ``path``, in all states, and rows to its log; at the time ``now``."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        (shared,) = connection.execute("SELECT peer <> 'kme-1' FROM link WHERE link_id = ?", (link_id,)).fetchone()
        connection.execute("INSERT INTO relation (master, slaves) VALUES ('filled', ?)", (f'["{link_id}"]',))
        (relation,) = connection.execute("SELECT max(relation_id) FROM relation").fetchone()
        for start in range(0, keys // BLOCK, 1000):
            connection.execute("BEGIN IMMEDIATE")
            for number in range(start, min(start + 1000, keys // BLOCK)):
                state = STATES[number * len(STATES) // (keys // BLOCK)]
                _fill_block(connection, Filled(link_id, number, state, bool(shared)), relation, now)
            _fill_log(connection, now, 1000 * BLOCK // KEYS_OF_A_ROW if keys >= 1000 * BLOCK else keys // KEYS_OF_A_ROW)
            connection.execute("COMMIT")


@dataclass(frozen=True, slots=True)
class Filled:
    """A block of a link; ``shared`` with a peer, which owns every second one."""

    link_id: str
    number: int
    state: str
    shared: bool

    @property
    def mine(self) -> bool:
        return not self.shared or self.number % 2 == 0

    def row(self, now: int) -> tuple[Any, ...]:
        name = f"{self.state}-{self.number:08}"
        state = self.state if self.shared or self.state != "deposited" else "ready"
        used, live = BLOCK if state in ("exhausted", "retired") else 0, 0 if state == "retired" else BLOCK
        digest = hashlib.sha256(f"{self.link_id}/{name}".encode()).digest()
        tag = bytes(16) if self.shared else None
        return (self.link_id, name, state, BITS, BLOCK, used, live, digest, now - 1, tag, self.mine)

    def keys(self, block_pk: int, relation: int, now: int) -> Iterator[tuple[Any, ...]]:
        state, served = ("consumed", 1) if self.state == "retired" else ("delivered", 0)
        for index in range(BLOCK):
            place = f"[[{block_pk},{index},1]]"
            side = (self.mine, 1 if self.shared else -1)
            yield (struct.pack(">QQ", block_pk, index), relation, state, BITS, place, served, now, *side)


def _fill_block(connection: sqlite3.Connection, block: Filled, relation: int, now: int) -> None:
    block_pk = int(connection.execute(_BLOCK, block.row(now)).lastrowid or 0)
    if block.state != "retired":
        connection.execute("INSERT INTO segments VALUES (?, zeroblob(?))", (block_pk, BLOCK * segment_bytes(BITS)))
    if block.state in ("exhausted", "retired"):
        rows = list(block.keys(block_pk, relation, now))
        connection.executemany(_KEY, rows)
        if block.shared:
            connection.executemany("INSERT INTO key_of_block VALUES (?, ?)", [(block_pk, row[0]) for row in rows])


def _fill_log(connection: sqlite3.Connection, now: int, rows: int) -> None:
    chain, (seq, digest) = AuditChain(), head_of(connection)
    for _ in range(rows):
        row = chain.extend(digest, seq + 1, now, Entry("filled", "filler", {"keys": KEYS_OF_A_ROW}))
        connection.execute("INSERT INTO log VALUES (?, ?, ?)", (row.seq, row.text, row.hash))
        seq, digest = row.seq, row.hash
    connection.execute("UPDATE log_head SET seq = ?, hash = ?", (seq, digest))


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "local", int(time.time()))
