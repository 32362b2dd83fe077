"""Accepting keys that the peer assigns: all of a message or none, no segment twice. Inside a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import PeerRefused
from hsmkme.messages.bodies import Assign, AssignResult
from hsmkme.model import Entry, Relation
from hsmkme.states import BlockState, KeyState
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import OPEN
from hsmkme.store.rows import Batch, KeyRow, insert_rows, rows_of
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.segments import Places, joined, shares

_TAKE: Final = """
INSERT INTO assigned_segment WITH RECURSIVE
    run(segment) AS (VALUES (:first) UNION ALL SELECT segment + 1 FROM run WHERE segment + 1 < :first + :count)
SELECT :pk, segment FROM run WHERE true ON CONFLICT DO NOTHING
"""
_USE: Final = """
UPDATE block SET next_index = next_index + :count, state = CASE WHEN state = 'ready'
    AND next_index + :count = key_count THEN 'exhausted' ELSE state END WHERE block_pk = :pk
"""

Told = list[tuple[str, int, int]]
"""Where a peer says that a key is: block, first segment and count of each part."""

Insertion = Callable[[Transaction, str, Relation, Assign, int], None]
"""Makes the rows of keys that are accepted on a link for a relation; the number is the bits of slaves served here."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A block of a key that is being assigned."""

    block_pk: int
    key_count: int
    key_bits: int
    state: str


class NotAssignedError(PeerRefused):
    """Why an assign is not accepted."""

    def __init__(self, result: AssignResult) -> None:
        super().__init__(f"keys are not accepted: {result}", alarm=result in ("conflict", "not_owner"))
        self.result: AssignResult = result


def accept(
    transaction: Transaction, link_id: str, assign: Assign, due: int, entry: Entry, insert: Insertion
) -> AssignResult:
    """Accept all the keys or none, and say which; ``due`` are the bits of the slaves that this KME serves."""
    transaction.execute("SAVEPOINT assign")
    try:
        result = _accepted(transaction, link_id, assign, due, entry, insert)
    except NotAssignedError as refusal:
        transaction.execute("ROLLBACK TO assign")
        result = refusal.result
    transaction.execute("RELEASE assign")
    return result


def _accepted(
    transaction: Transaction, link_id: str, assign: Assign, due: int, entry: Entry, insert: Insertion
) -> AssignResult:
    (why,) = transaction.execute("SELECT why FROM link WHERE link_id = ?", (link_id,)).fetchone()
    if why != OPEN:
        raise NotAssignedError("frozen")
    relation = Relation.of(assign.master, assign.slaves)
    known = rows_of(transaction.connection, assign.named)
    if known:
        return _known_before(transaction, link_id, known, assign)
    if due == 0 or relation.slaves != tuple(assign.slaves):
        raise NotAssignedError("conflict")
    insert(transaction, link_id, relation, assign, due)
    transaction.append(
        entry.knowing(
            link=link_id,
            master=relation.master,
            slaves=list(relation.slaves),
            size=assign.size,
            key_IDs=[str(key_id) for key_id in assign.named],
            blocks=sorted({f"{link_id}/{place.block_id}" for place in assign.places}),
            segments=joined((f"{link_id}/{place.block_id}", place.first, place.count) for place in assign.places),
        )
    )
    return "assigned"


def _known_before(transaction: Transaction, link_id: str, known: list[KeyRow], assign: Assign) -> AssignResult:
    relation = Relation.of(assign.master, assign.slaves)
    same = len(known) == assign.count and all(
        row.relation == relation and row.size == assign.size and _is_of(transaction, link_id, row, parts)
        for row, parts in zip(known, told(assign), strict=True)
    )
    if not same:
        raise NotAssignedError("conflict")
    if any(row.state == KeyState.VOID for row in known):
        raise NotAssignedError("void")
    return "already"


def told(assign: Assign) -> Iterator[Told]:
    """Where each key of a message is."""
    return shares(((place.block_id, place.first, place.count) for place in assign.places), assign.per_key)


def _is_of(transaction: Transaction, link_id: str, row: KeyRow, parts: Told) -> bool:
    """Whether a key is what the peer says of it, to the last segment; of one that was carried only its link tells."""
    statement = "SELECT link_id, block_id, tag IS NULL FROM block WHERE block_pk = ?"
    names = [transaction.execute(statement, (block_pk,)).fetchone() for block_pk, _, _ in row.places]
    exact = parts == [(name[1], first, count) for name, (_, first, count) in zip(names, row.places, strict=True)]
    return not row.mine and all(name[0] == link_id and (exact or name[2]) for name in names)


def given(transaction: Transaction, link_id: str, key_ids: Sequence[UUID]) -> list[KeyRow]:
    """Those of ``key_ids`` that the other end of this link gave: it has no say about those of another peer."""
    statement = "SELECT 1 FROM block WHERE block_pk = ? AND link_id = ?"
    return [
        row
        for row in rows_of(transaction.connection, key_ids)
        if not row.mine and transaction.execute(statement, (row.places[0][0], link_id)).fetchone() is not None
    ]


def insert_assigned(
    transaction: Transaction, link_id: str, relation: Relation, assign: Assign, due: int, *, of_any_owner: bool = False
) -> None:
    """Rows of keys that the peer assigned, and their segments taken for good.

    ``of_any_owner``: a reconciliation repeats what was agreed when the owners may have been others.
    """
    places = taken(transaction, link_id, assign, of_any_owner=of_any_owner)
    insert_keys(transaction, relation, assign, places, due)


def taken(transaction: Transaction, link_id: str, assign: Assign, *, of_any_owner: bool = False) -> list[Places]:
    """Take the segments of the keys, each for the first and only time; raises `NotAssignedError`."""
    runs = []
    for place in assign.places:
        block = _block(transaction, link_id, place.block_id, None if of_any_owner else place.own_epoch)
        if place.first + place.count > block.key_count or assign.per_key * block.key_bits < assign.size:
            raise NotAssignedError("conflict")
        runs.append((block.block_pk, place.first, place.count))
    for block_pk, first, count in joined(runs):
        run = {"pk": block_pk, "first": first, "count": count}
        if transaction.execute(_TAKE, run).rowcount != count:
            raise NotAssignedError("conflict")
        transaction.execute(_USE, run)
    return list(shares(runs, assign.per_key))


def insert_keys(
    transaction: Transaction, relation: Relation, assign: Assign, places: Sequence[Places], due: int
) -> None:
    """Rows of keys that a peer gave to a relation."""
    batch = Batch(relation, assign.size, KeyState.ASSIGNED, mine=False, due=due)
    insert_rows(transaction, batch, assign.named, places)


def _block(transaction: Transaction, link_id: str, block_id: str, own_epoch: int | None) -> _Found:
    row = transaction.execute(
        "SELECT block_pk, key_count, key_bits, state, mine, own_epoch FROM block"  # noqa: S608 - ours alone
        f" WHERE link_id = ? AND block_id = ? AND {BLOCK_IS_SOUND}",
        (link_id, block_id),
    ).fetchone()
    if row is None or (row[3] == BlockState.DEPOSITED and own_epoch is not None):
        raise NotAssignedError("unknown")
    if row[3] not in (BlockState.DEPOSITED, BlockState.READY, BlockState.EXHAUSTED):
        raise NotAssignedError("void")
    if own_epoch is not None and (row[4] or row[5] != own_epoch):
        raise NotAssignedError("not_owner")
    return _Found(*row[:4])
