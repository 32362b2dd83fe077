"""Rows of claimed keys: making and reading them, and how they end. For verbs inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from hsmkme.errors import StoreTampered
from hsmkme.model import Entry, Part, Relation
from hsmkme.states import BlockState, KeyState
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import post_voids
from hsmkme.store.seals import is_sealed, seal_of
from hsmkme.store.segments import Places, Run, erase

_STATES: Final = frozenset(str(state) for state in KeyState)
CHUNK: Final = 500
"""SQL parameters used at once; SQLite allows at least 999."""

BARRED: Final = frozenset({BlockState.FROZEN, BlockState.REVOKED})
"""Nothing is collected from a block in these states."""

_SELECT: Final = (
    f"SELECT {is_sealed('key')}, key_id, master, slaves, state, size,"  # noqa: S608 - ours alone
    " served, mine, due, parts FROM key LEFT JOIN relation USING (relation_id)"
    " WHERE"
)
_ALIKE: Final = ("master", "slaves", "size", "mine", "due")
"""What is the same for keys that get their rows together."""

_KEY_ID: Final = "substr(:key_ids, 16 * key + 1, 16)"
_SEAL: Final = seal_of(
    "key", key_id=_KEY_ID, parts="value", claimed_at=":now", **{name: f":{name}" for name in _ALIKE}
)
_INSERT: Final = f"""
INSERT INTO key (key_id, relation_id, state, size, parts, claimed_at, mine, due, seal)
SELECT {_KEY_ID}, :relation, :state, :size, value, :now, :mine, :due, {_SEAL} FROM json_each(:places)
"""  # noqa: S608 - ours alone
_NOTE: Final = """
INSERT INTO key_of_block SELECT DISTINCT part.value ->> '$[0]', substr(:key_ids, 16 * one.key + 1, 16)
FROM json_each(:places) AS one, json_each(one.value) AS part
"""
"""Not a trigger: the store allows no schema to call functions that look into JSON."""


class KeyRow(NamedTuple):
    """A key as it is in the store: 128 of them are read at once."""

    key_id: UUID
    relation: Relation
    state: str
    size: int
    served: int
    mine: bool
    due: int
    places: Places

    @property
    def collectable(self) -> bool:
        """Whether a slave may have it: the master has it, or a peer that assigned it may have given it to one."""
        return self.state == KeyState.DELIVERED or (self.state == KeyState.ASSIGNED and not self.mine)


def rows_of(connection: sqlite3.Connection, key_ids: Sequence[UUID]) -> list[KeyRow]:
    """The rows of ``key_ids`` that exist, in the order given."""
    named = {key_id.bytes: key_id for key_id in key_ids}
    found: dict[bytes, KeyRow] = {}
    for condition, wanted in _chunks(list(named)):
        found |= _rows(connection, condition, wanted, named)
    return [found[key_id] for key_id in named if key_id in found]


def rows_where(
    connection: sqlite3.Connection, condition: str, values: Sequence[object] | Mapping[str, object]
) -> list[KeyRow]:
    """The rows of keys that meet a condition, which may set their order and how many they are at most."""
    return list(_rows(connection, condition, values, {}).values())


def _rows(
    connection: sqlite3.Connection,
    condition: str,
    values: Sequence[object] | Mapping[str, object],
    named: Mapping[bytes, UUID],
) -> dict[bytes, KeyRow]:
    """By the bytes of their key_IDs, of which ``named`` are made already; a UUID is slow to hash."""
    rows = connection.execute(f"{_SELECT} {condition}", values).fetchall()
    found = {}
    for row, places in zip(rows, _places([row[-1] for row in rows]), strict=True):
        good, key_id, master, slaves, state, size, served, mine, due, _ = row
        relation = _relation(master or "", slaves or "[]")
        if state != KeyState.VOID and not (good and can_be_served(state, served, due, len(relation.slaves))):
            raise StoreTampered("the row of a claimed key was tampered with")
        name = named.get(key_id) or UUID(bytes=key_id)
        found[key_id] = KeyRow(name, relation, state, size, served, bool(mine), due, places)
    return found


def can_be_served(state: str, served: int, due: int, slaves: int) -> bool:
    """Whether a key in ``state`` can have gone to just these slaves: one that went to all who are due is consumed."""
    everyone = (1 << slaves) - 1 & due
    is_over = bool(everyone) and served == everyone
    return state in _STATES and not served & ~everyone and not (is_over and state == KeyState.DELIVERED)


def update_rows(transaction: Transaction, statement: str, key_ids: Sequence[UUID], *values: object) -> int:
    """Run an UPDATE, which ends with a condition on ``values``, for these keys alone; returns how many it changed."""
    return len(change_states(transaction, statement, [key_id.bytes for key_id in key_ids], *values))


def change_states(
    transaction: Transaction, statement: str, key_ids: Sequence[bytes], *values: object
) -> dict[bytes, str]:
    """As `update_rows`; gives the state that each key has now that it changed."""
    changed: dict[bytes, str] = {}
    for condition, wanted in _chunks(key_ids):
        found = transaction.execute(f"{statement} AND {condition} RETURNING key_id, state", (*values, *wanted))
        changed.update(found.fetchall())
    return changed


def _chunks(key_ids: Sequence[bytes]) -> Iterator[tuple[str, Sequence[bytes]]]:
    """The condition that picks these keys, and its parameters; only question marks are inserted."""
    for start in range(0, len(key_ids), CHUNK):
        wanted = key_ids[start : start + CHUNK]
        yield f"key_id IN ({','.join('?' * len(wanted))})", wanted


def _places(parts: Sequence[str]) -> list[Places]:
    """Where keys are, of their rows' ``parts``; read together, which costs a third of one after the other."""
    try:
        found = [[(pk, first, count) for pk, first, count in one] for one in json.loads(f"[{','.join(parts)}]")]
    except (ValueError, TypeError):
        found = []
    if len(found) != len(parts):
        raise StoreTampered("the row of a claimed key was tampered with: it does not say where the key is")
    return found


@lru_cache(maxsize=1024)
def _relation(master: str, slaves: str) -> Relation:
    return Relation.unpacked(master, slaves)


def relation_id(transaction: Transaction, relation: Relation) -> int:
    """The number of a relation, which gets one when it has none."""
    values = (relation.master, relation.packed)
    row = transaction.execute("SELECT relation_id FROM relation WHERE master = ? AND slaves = ?", values).fetchone()
    if row is None:
        statement = "INSERT INTO relation (master, slaves) VALUES (?, ?) RETURNING relation_id"
        row = transaction.execute(statement, values).fetchone()
    return int(row[0])


@dataclass(frozen=True, slots=True)
class Batch:
    """What keys that get their rows together have in common; ``due`` and ``mine`` as in their rows."""

    relation: Relation
    size: int
    state: KeyState
    mine: bool = True
    due: int = -1


def insert_rows(transaction: Transaction, batch: Batch, key_ids: Sequence[UUID], places: Sequence[Places]) -> None:
    """Make rows of keys and, if a peer knows of them, notes of which blocks they are: all by one statement each."""
    values = {
        "key_ids": b"".join([key_id.bytes for key_id in key_ids]),
        "places": json.dumps(places),
        "relation": relation_id(transaction, batch.relation),
        "master": batch.relation.master,
        "slaves": batch.relation.packed,
        "state": batch.state.value,
        "size": batch.size,
        "now": transaction.now(),
        "mine": batch.mine,
        "due": batch.due,
    }
    transaction.execute(_INSERT, values)
    if not batch.mine or batch.due != -1:
        transaction.execute(_NOTE, values)


def parts_of(row: KeyRow, runs: dict[int, Run]) -> tuple[Part, ...]:
    """The sealed parts of a key, out of what `segments.runs_of` gave of its blocks."""
    return tuple([runs[block_pk].part(first, count) for block_pk, first, count in row.places])


def void_rows(transaction: Transaction, rows: Sequence[KeyRow], entry: Entry, *, tell: bool = True) -> list[UUID]:
    """Void keys that are not ended and erase them.

    With ``tell`` the peer that accepted them is told. Not of keys that went to their master long ago: a slave there
    may have them, and is entitled to.
    """
    ended = (KeyState.CONSUMED, KeyState.VOID)
    doomed = [row for row in rows if row.state not in ended]
    if not doomed:
        return []
    statement = "UPDATE key SET state = 'void' WHERE state NOT IN ('consumed', 'void')"
    update_rows(transaction, statement, [row.key_id for row in doomed])
    erase(transaction, [place for row in doomed for place in row.places])
    transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in doomed]))
    if tell:
        _tell(transaction, [row for row in doomed if row.mine], str(entry.facts.get("reason", entry.event)))
    return [row.key_id for row in doomed]


def _tell(transaction: Transaction, rows: Sequence[KeyRow], reason: str) -> None:
    """Leave messages to the peers that may have accepted these keys."""
    by_link: dict[str, list[UUID]] = defaultdict(list)
    for row in rows:
        for link_id in _offered_on(transaction, row):
            by_link[link_id].append(row.key_id)
    for link_id, key_ids in by_link.items():
        post_voids(transaction, link_id, key_ids, reason)


def _offered_on(transaction: Transaction, row: KeyRow) -> list[str]:
    """The links over which peers heard of a key: the one it is of, and those it was carried over. Of a pad, none."""
    found = transaction.execute(
        "SELECT link_id FROM block WHERE block_pk = :block AND tag IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM pad WHERE pad_id = :key) UNION SELECT link_id FROM pad WHERE key_id = :key",
        {"block": row.places[0][0] if row.places else None, "key": row.key_id.bytes},
    )
    return [link_id for (link_id,) in found]
