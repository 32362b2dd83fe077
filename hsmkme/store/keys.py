"""Claimed keys: looking them up, collecting, voiding. Each verb is one transaction."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, compress
from typing import Final, NamedTuple
from uuid import UUID

from hsmkme.errors import KeyNotHeld
from hsmkme.model import Entry, HeldKey, Retry, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.answers import remember
from hsmkme.store.batches import Batches
from hsmkme.store.database import Database, Transaction
from hsmkme.store.rows import BARRED, CHUNK, KeyRow, parts_of, rows_of, rows_where, update_rows, void_rows
from hsmkme.store.segments import Run, erase, runs_of
from hsmkme.store.timekeeping import require_time

_UNDELIVERED: Final = """
key_id IN (SELECT key_id FROM (SELECT key_id, parts, mine FROM key WHERE state = 'assigning'
    UNION ALL SELECT key_id, parts, mine FROM key WHERE state = 'assigned' AND mine = 1)
WHERE mine = 1 AND (:link IS NULL OR :link = (SELECT link_id FROM block WHERE block_pk = parts ->> '$[0][0]'))
LIMIT :most)
"""
"""In two halves, each of which has an index: delivered keys are many."""

_COLLECT: Final = (
    "UPDATE key SET served = served | ?, state = ? WHERE served & ? = 0"
    " AND (state = 'delivered' OR (state = 'assigned' AND mine = 0))"
)


class _Collection(NamedTuple):
    slave: str
    key_ids: Sequence[UUID]
    entry: Entry
    retry: Retry | None
    keep_seconds: int


class Keys:
    """The keys that were claimed, and the tombstones of those that ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looks = Batches(self._held)
        self._collections = Batches(self._collect)

    def held(self, key_ids: Sequence[UUID]) -> dict[UUID, HeldKey]:
        """Those of ``key_ids`` that exist, with their sealed parts while they have any. Reads only."""
        return self._looks.do(key_ids)

    def _held(self, looks_now: Callable[[], Sequence[Sequence[UUID]]]) -> list[dict[UUID, HeldKey]]:
        with self._database.read() as connection:
            looks = looks_now()
            rows = rows_of(connection, list(dict.fromkeys(chain.from_iterable(looks))))
            live = [row.collectable or _is_kept(connection, row) for row in rows]
            runs = runs_of(connection, [place for row in compress(rows, live) for place in row.places])
        held = {row.key_id: _held(row, runs if is_live else {}) for row, is_live in zip(rows, live, strict=True)}
        return [{key_id: held[key_id] for key_id in key_ids if key_id in held} for key_ids in looks]

    def collect(
        self, slave: str, key_ids: Sequence[UUID], entry: Entry, retry: Retry | None = None, keep_seconds: int = 0
    ) -> None:
        """Mark keys collected by ``slave``; those that every slave now has are consumed, and erased.

        With ``keep_seconds`` they are erased that much later, for requests that are repeated. Writes, in one
        commit: the keys' rows, zeros over consumed segments, the answer if there may be a ``retry``, audit
        row. All or none: raises `KeyNotHeld` if any was collected by this slave, or ended, or its block
        frozen, since it was looked up, or is not for this slave.
        """
        self._collections.do(_Collection(slave, key_ids, entry, retry, keep_seconds))

    def _collect(self, collections_now: Callable[[], Sequence[_Collection]]) -> list[None]:
        with self._database.write() as transaction:
            require_time(transaction)
            collections = collections_now()
            key_ids = [key_id for each in collections for key_id in each.key_ids]
            rows = {row.key_id: row for row in rows_of(transaction.connection, key_ids)}
            if len(rows) != len(key_ids):
                raise KeyNotHeld("a key is not there, or is asked for twice at the same time")
            _refuse_barred(transaction, rows.values())
            consumed = _mark_collected(transaction, collections, rows)
            for each in collections:
                if each.retry is not None:
                    remember(transaction, each.retry, each.key_ids)
            transaction.append_all([_collected_entry(each, consumed) for each in collections])
            return [None] * len(collections)

    def repeat(self, key_ids: Sequence[UUID], entry: Entry) -> None:
        """Note that keys are handed out once more to who had them. No key changes its state. Writes: audit row."""
        with self._database.write() as transaction:
            require_time(transaction)
            transaction.append(entry.knowing(key_IDs=[str(key_id) for key_id in key_ids]))

    def void(self, key_ids: Sequence[UUID], entry: Entry) -> list[UUID]:
        """Void those of ``key_ids`` that are not ended and erase their segments; returns those voided.

        Writes, in one commit: the keys' rows, zeros over their segments, audit row.
        """
        with self._database.write() as transaction:
            return void_rows(transaction, rows_of(transaction.connection, key_ids), entry)

    def void_undelivered(self, entry: Entry, limit: int = CHUNK, link_id: str | None = None) -> int:
        """End up to ``limit`` keys that this end assigned and did not deliver, of one link if it is named.

        For the start of the service, and before a reconciliation: a younger copy of this store may have delivered
        them. So the peer is not told, its slave may have such a key; and one that a slave may collect here counts as
        delivered. Returns how many. Writes, in one commit: the keys' rows, zeros over segments of those that are
        void, audit rows.
        """
        with self._database.write() as transaction:
            rows = rows_where(transaction.connection, _UNDELIVERED, {"link": link_id, "most": limit})
            void_rows(transaction, [row for row in rows if row.due == 0], entry, tell=False)
            presumed = [row for row in rows if row.due != 0]
            for state in ("assigned", "delivered"):
                statement = "UPDATE key SET state = ? WHERE key_id = ? AND state <> 'delivered'"
                transaction.executemany(statement, [(state, row.key_id.bytes) for row in presumed])
            if presumed:
                named = {"key_IDs": [str(row.key_id) for row in presumed]}
                transaction.append(Entry("key.presume-delivered", entry.actor, {**entry.facts, **named}))
            return len(rows)

    def retire(self, delivered_before: int, entry: Entry, limit: int = CHUNK) -> int:
        """Erase up to ``limit`` keys that went to their master before that time and are collected elsewhere.

        Writes, in one commit: the keys' rows, zeros over their segments, audit row. Returns how many.
        """
        with self._database.write() as transaction:
            condition = "state = 'delivered' AND due = 0 AND claimed_at < ? LIMIT ?"
            rows = rows_where(transaction.connection, condition, (delivered_before, limit))
            if not rows:
                return 0
            statement = "UPDATE key SET state = 'consumed' WHERE state = 'delivered'"
            update_rows(transaction, statement, [row.key_id for row in rows])
            erase(transaction, [place for row in rows for place in row.places])
            transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in rows]))
            return len(rows)

    def expire(self, claimed_before: int, entry: Entry, limit: int = CHUNK) -> int:
        """Void up to ``limit`` keys claimed before that time and never fully collected; returns how many.

        A peer is not told: its slaves may have theirs, and its own clock ends what they did not collect.
        """
        condition = "state IN ('assigning', 'assigned', 'delivered') AND claimed_at < ? ORDER BY claimed_at LIMIT ?"
        return self._void_where(condition, (claimed_before, limit), entry, tell=False)

    def abandon(self, claimed_before: int, entry: Entry, limit: int = CHUNK, *, tell: bool = True) -> int:
        """Void keys that were claimed before that time and that the peer never confirmed; returns how many."""
        condition = "state = 'assigning' AND claimed_at < ? LIMIT ?"
        return self._void_where(condition, (claimed_before, limit), entry, tell=tell)

    def expire_agreed(self, claimed_before: int, entry: Entry, limit: int = CHUNK) -> int:
        """Void keys that were agreed before that time and not drawn; the peer keeps them longer. Returns how many."""
        condition = "state = 'assigned' AND mine = 1 AND claimed_at < ? LIMIT ?"
        return self._void_where(condition, (claimed_before, limit), entry, tell=True)

    def lapse(self, relation_id: int, since: int, before: int, entry: Entry, limit: int = CHUNK) -> int:
        """Void keys of a relation that were claimed from ``since`` on and ``before``; returns how many.

        A peer is not told: its own clock ends them.
        """
        condition = (
            "state IN ('assigning', 'assigned', 'delivered') AND claimed_at >= ? AND claimed_at < ?"
            " AND relation_id = ? ORDER BY claimed_at LIMIT ?"
        )
        return self._void_where(condition, (since, before, relation_id, limit), entry, tell=False)

    def _void_where(self, condition: str, values: Sequence[int], entry: Entry, *, tell: bool) -> int:
        with self._database.write() as transaction:
            return len(void_rows(transaction, rows_where(transaction.connection, condition, values), entry, tell=tell))

    def erase_due(self, entry: Entry, limit: int = CHUNK) -> int:
        """Erase up to ``limit`` consumed keys whose time to be asked for again is over; returns how many.

        Writes, in one commit: zeros over their segments, audit row.
        """
        with self._database.write() as transaction:
            due = transaction.execute(
                "DELETE FROM erase_later WHERE key_id IN (SELECT key_id FROM erase_later WHERE due <= ? LIMIT ?)"
                " RETURNING key_id",
                (transaction.now(), limit),
            ).fetchall()
            if not due:
                return 0
            rows = rows_of(transaction.connection, [UUID(bytes=key_id) for (key_id,) in due])
            erase(transaction, [place for row in rows for place in row.places])
            transaction.append(entry.knowing(key_IDs=[str(row.key_id) for row in rows]))
            return len(rows)


def _is_kept(connection: sqlite3.Connection, row: KeyRow) -> bool:
    """Whether a consumed key is not erased yet."""
    statement = "SELECT 1 FROM erase_later WHERE key_id = ?"
    return (
        row.state == KeyState.CONSUMED and connection.execute(statement, (row.key_id.bytes,)).fetchone() is not None
    )


def _held(row: KeyRow, runs: dict[int, Run]) -> HeldKey:
    mine = [runs[block_pk] for block_pk, _, _ in row.places] if runs else []
    state = next((run.state for run in mine if run.state in BARRED), row.state)
    key = SealedKey(row.key_id, row.size, parts_of(row, runs) if runs else ())
    collected = frozenset([slave for place, slave in enumerate(row.relation.slaves) if row.served >> place & 1])
    return HeldKey(key, row.relation, state, collected, row.collectable)


def _refuse_barred(transaction: Transaction, rows: Iterable[KeyRow]) -> None:
    for block_pk in {place[0] for row in rows for place in row.places}:
        row = transaction.execute("SELECT state FROM block WHERE block_pk = ?", (block_pk,)).fetchone()
        if row is None or row[0] in BARRED:
            raise KeyNotHeld("a key is of a block that is frozen or revoked")


def _mark_collected(
    transaction: Transaction, collections: Sequence[_Collection], rows: Mapping[UUID, KeyRow]
) -> set[UUID]:
    """Note who has the keys now; erase those that all have whom they are for, now or later, and give those."""
    moved: dict[tuple[int, KeyState], list[UUID]] = defaultdict(list)
    consumed: set[UUID] = set()
    for each in collections:
        ended = []
        for key_id in each.key_ids:
            bit, state = _collected(rows[key_id], each.slave)
            moved[bit, state].append(key_id)
            if state is KeyState.CONSUMED:
                ended.append(key_id)
        consumed.update(ended)
        if each.keep_seconds:
            due = transaction.now() + each.keep_seconds
            transaction.executemany("INSERT INTO erase_later VALUES (?, ?)", [(one.bytes, due) for one in ended])
    for (bit, state), same in moved.items():
        if update_rows(transaction, _COLLECT, same, bit, state.value, bit) != len(same):
            raise KeyNotHeld("a key was collected or ended a moment ago")
    at_once = [one for each in collections if not each.keep_seconds for one in each.key_ids if one in consumed]
    erase(transaction, [place for key_id in at_once for place in rows[key_id].places])
    return consumed


def _collected_entry(collection: _Collection, consumed: set[UUID]) -> Entry:
    """What the log says of it; ``consumed`` is true when all of its keys are."""
    key_ids = collection.key_ids
    ended = [str(key_id) for key_id in key_ids if key_id in consumed]
    return collection.entry.knowing(
        key_IDs=[str(key_id) for key_id in key_ids], consumed=len(ended) == len(key_ids) or ended
    )


def _collected(row: KeyRow, slave: str) -> tuple[int, KeyState]:
    """The bit of ``slave`` in its relation, and the key's state when it has the key."""
    slaves = row.relation.slaves
    if slave not in slaves:
        raise KeyNotHeld("a key is not for this SAE")
    bit = 1 << slaves.index(slave)
    if not row.due & bit:
        raise KeyNotHeld("a key is collected at another KME by this SAE")
    everyone = (1 << len(slaves)) - 1 & row.due
    return bit, KeyState.CONSUMED if row.served | bit == everyone else KeyState.DELIVERED


