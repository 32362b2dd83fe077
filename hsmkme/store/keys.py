"""Claimed keys: looking them up, collecting, voiding. Each verb is one transaction."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from typing import Final, NamedTuple
from uuid import UUID

from hsmkme.batches import Batches
from hsmkme.errors import KeyNotHeld
from hsmkme.model import Entry, HeldKey, Retry, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.answers import remember
from hsmkme.store.database import Database, Transaction
from hsmkme.store.rows import (
    BARRED,
    CHUNK,
    KeyRow,
    change_states,
    parts_of,
    rows_of,
    rows_where,
    update_rows,
    void_rows,
)
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
    "UPDATE key SET served = served | ?1, state = iif(served | ?1 = ?2, 'consumed', 'delivered')"
    " WHERE served & ?1 = 0 AND (state = 'delivered' OR (state = 'assigned' AND mine = 0))"
)
"""Marks a slave, by its bit; the key is consumed once all who are due have it. What a row says else never changes."""


class Collection(NamedTuple):
    """Keys that ``slave`` collects. With ``keep_seconds`` those that every slave then has are erased that much later,
    for requests that are repeated."""

    slave: str
    keys: Sequence[HeldKey]
    entry: Entry
    retry: Retry | None = None
    keep_seconds: int = 0


class Keys:
    """The keys that were claimed, and the tombstones of those that ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looks = Batches(self._held)

    def held(self, key_ids: Sequence[UUID]) -> dict[UUID, HeldKey]:
        """Those of ``key_ids`` that exist, in their order, with their sealed parts while they have any. Reads only."""
        return self._looks.do(key_ids)

    def _held(self, looks_now: Callable[[], Sequence[Sequence[UUID]]]) -> list[dict[UUID, HeldKey]]:
        with self._database.read() as connection:
            looks = looks_now()
            rows = rows_of(connection, list(dict.fromkeys(chain.from_iterable(looks))))
            live = [row.collectable or _is_kept(connection, row) for row in rows]
            runs = runs_of(connection, [place for row in compress(rows, live) for place in row.places])
        held = {row.key_id: _held(row, runs if is_live else {}) for row, is_live in zip(rows, live, strict=True)}
        return [{key_id: key for key_id in key_ids if (key := held.get(key_id)) is not None} for key_ids in looks]

    def collect(self, collections: Sequence[Collection]) -> None:
        """Mark keys collected; those that every slave now has are consumed, and erased.

        Writes, in one commit: the keys' rows, zeros over consumed segments, the answers to requests that may be
        repeated, audit rows. All or none: raises `KeyNotHeld` if any was collected by its slave, or ended, or its
        block frozen, since it was looked up, or is not for its slave.
        """
        with self._database.write() as transaction:
            require_time(transaction)
            _refuse_barred(transaction, collections)
            consumed = _mark_collected(transaction, collections)
            _end(transaction, collections, consumed)
            for each in collections:
                if each.retry is not None:
                    remember(transaction, each.retry, [one.key.key_id for one in each.keys])
            transaction.append_all([_collected_entry(each, consumed) for each in collections])

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
    return HeldKey(key, row.relation, state, collected, row.collectable, row.due, row.places)


def _refuse_barred(transaction: Transaction, collections: Iterable[Collection]) -> None:
    for block_pk in {place[0] for each in collections for key in each.keys for place in key.places}:
        row = transaction.execute("SELECT state FROM block WHERE block_pk = ?", (block_pk,)).fetchone()
        if row is None or row[0] in BARRED:
            raise KeyNotHeld("a key is of a block that is frozen or revoked")


def _mark_collected(transaction: Transaction, collections: Iterable[Collection]) -> set[bytes]:
    """Note who has the keys now; gives those that everybody has now who is due."""
    marked: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for each in collections:
        for one in each.keys:
            marked[_bits(one, each.slave)].append(one.key.key_id.bytes)
    states: dict[bytes, str] = {}
    for bits, key_ids in marked.items():
        states |= change_states(transaction, _COLLECT, key_ids, *bits)
    if len(states) != sum(map(len, marked.values())):
        raise KeyNotHeld("a key was collected or ended a moment ago, or is asked for twice at the same time")
    return {key_id for key_id, state in states.items() if state == KeyState.CONSUMED}


def _bits(held: HeldKey, slave: str) -> tuple[int, int]:
    """The bit of ``slave`` in the key's relation, and those of all who are due."""
    slaves = held.relation.slaves
    if slave not in slaves:
        raise KeyNotHeld("a key is not for this SAE")
    bit, everyone = 1 << slaves.index(slave), (1 << len(slaves)) - 1 & held.due
    if not bit & everyone:
        raise KeyNotHeld("a key is collected at another KME by this SAE")
    return bit, everyone


def _end(transaction: Transaction, collections: Iterable[Collection], consumed: set[bytes]) -> None:
    """Erase keys that were consumed, now or later."""
    places, later = [], []
    for each in collections:
        ended = [one for one in each.keys if one.key.key_id.bytes in consumed]
        if each.keep_seconds:
            due = transaction.now() + each.keep_seconds
            later += [(one.key.key_id.bytes, due) for one in ended]
        else:
            places += [place for one in ended for place in one.places]
    erase(transaction, places)
    transaction.executemany("INSERT INTO erase_later VALUES (?, ?)", later)


def _collected_entry(collection: Collection, consumed: set[bytes]) -> Entry:
    """What the log says of it; ``consumed`` is true when all of its keys are."""
    key_ids = [one.key.key_id for one in collection.keys]
    ended = [str(key_id) for key_id in key_ids if key_id.bytes in consumed]
    return collection.entry.knowing(
        key_IDs=[str(key_id) for key_id in key_ids], consumed=len(ended) == len(key_ids) or ended
    )
