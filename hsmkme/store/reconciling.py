"""After one end was restored from a copy: what the other tells it, and what it makes of that.

The end that was restored never delivers anew what it may have delivered since the copy was made: keys that the
other end has count as delivered here, segments that the other end saw are not claimed again.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from hsmkme.messages.bodies import Assign, BlockReport, KeyReport, Place, Query, Report
from hsmkme.model import Entry, Relation, due_bits
from hsmkme.states import BlockState, KeyState
from hsmkme.store.accepting import insert_assigned
from hsmkme.store.database import Database, Transaction
from hsmkme.store.ending import keys_of, revoke
from hsmkme.store.inbox import make_ready, quarantine, set_owner
from hsmkme.store.rows import Batch, KeyRow, insert_rows, rows_of, void_rows
from hsmkme.store.seals import BLOCK_IS_SOUND
from hsmkme.store.segments import erase, joined

PAGE: Final = 16
"""Blocks in one question: a block may have hundreds of keys."""

LIST: Final = 256
"""Ids of live blocks in one answer."""

_GONE: Final = (BlockState.REVOKED, BlockState.EXPIRED, BlockState.FROZEN)


class Reconciling:
    """Both halves of a reconciliation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live(self, link_id: str, after: str = "", limit: int = LIST) -> list[str]:
        """Ids of live blocks of a link that both ends have, in order, the first of them after ``after``."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT block_id FROM block WHERE link_id = ? AND block_id > ? AND tag IS NOT NULL"
                " AND state IN ('deposited', 'ready', 'frozen', 'exhausted') ORDER BY block_id LIMIT ?",
                (link_id, after, limit),
            )
            return [block_id for (block_id,) in rows]

    def holds(self, link_id: str, block_id: str) -> bool:
        """Whether a block is or was here."""
        with self._database.read() as connection:
            return _pk(connection, link_id, block_id) is not None

    def report(self, link_id: str, query: Query) -> Report:
        """What this end knows of what it is asked for."""
        live = [] if query.after is None else self.live(link_id, query.after, LIST + 1)
        with self._database.read() as connection:
            pks = {b: pk for b in query.blocks if (pk := _pk(connection, link_id, b)) is not None}
            keys = _keys_of(connection, pks.values())
            blocks = [_reported(connection, block_id, pk, keys[pk]) for block_id, pk in pks.items()]
            assigned = [row for row in rows_of(connection, query.key_ids) if row.mine and row.state != KeyState.VOID]
            named = _key_reports(connection, assigned, link_id)
        return Report(blocks=blocks, keys=named, live=live[:LIST], more=len(live) > LIST)

    def learn(self, link_id: str, kme_id: str, reports: Sequence[KeyReport], entry: Entry) -> None:
        """Take over keys that the peer assigned to slaves here and that this end forgot. All that it reports, or none.

        Writes, in one commit: rows of keys, segments taken for good, audit row. Raises `PeerRefused` if a segment of
        one belongs to another key here.
        """
        with self._database.write() as transaction:
            unknown = [report for report in reports if not rows_of(transaction.connection, [report.key_id])]
            for report in unknown:
                _remember(transaction, link_id, kme_id, report)
            if unknown:
                transaction.append(entry.knowing(link=link_id, key_IDs=[str(report.key_id) for report in unknown]))

    def give_up(self, link_id: str, block_ids: Sequence[str], entry: Entry) -> None:
        """Claim nothing of these blocks any more: nobody knows what was delivered of them since the copy was made.

        What slaves may collect here stays. Writes, in one commit: cursors and states of blocks, rows of keys, zeros
        over segments, audit rows.
        """
        with self._database.write() as transaction:
            give_up_missing(transaction, link_id, block_ids, entry)

    def apply(
        self, link_id: str, kme_id: str, asked: Sequence[str], reports: Iterable[BlockReport], entry: Entry
    ) -> None:
        """Make this end, which was restored, agree with what the other reported of the blocks it was asked for.

        Writes, in one commit: owners, cursors and states of blocks, rows of keys that were forgotten, zeros over
        segments that nobody has, audit row.
        """
        known = {report.block_id: report for report in reports}
        with self._database.write() as transaction:
            learnt = [_applied(transaction, link_id, kme_id, report, entry) for report in known.values()]
            pks = {_pk(transaction.connection, link_id, block_id) or 0: block_id for block_id in known}
            given_up = []
            for block_pk, keys in _keys_of(transaction.connection, pks).items():
                name = f"{link_id}/{pks[block_pk]}"
                gap = _skip(transaction, block_pk, known[pks[block_pk]].used, keys)
                given_up += [(name, segment, 1) for segment in gap]
            lost = [block_id for block_id in asked if block_id not in known]
            _revoke_confirmed(transaction, link_id, lost, entry)
            facts = {"link": link_id, "blocks": len(known), "key_IDs": [str(k) for keys in learnt for k in keys]}
            transaction.append(Entry("link.learn", entry.actor, {**facts, "given_up": joined(given_up)}))


def _pk(connection: Any, link_id: str, block_id: str) -> int | None:
    row = connection.execute(
        "SELECT block_pk FROM block WHERE link_id = ? AND block_id = ? AND tag IS NOT NULL", (link_id, block_id)
    ).fetchone()
    return None if row is None else int(row[0])


def _keys_of(connection: Any, block_pks: Iterable[int]) -> dict[int, list[KeyRow]]:
    """Every key that has a part in one of the blocks, whatever became of it, pads too."""
    wanted: dict[int, list[KeyRow]] = {block_pk: [] for block_pk in block_pks}
    for row in keys_of(connection, list(wanted)):
        for block_pk in {place[0] for place in row.places} & wanted.keys():
            wanted[block_pk].append(row)
    return wanted


def _reported(connection: Any, block_id: str, block_pk: int, keys: Sequence[KeyRow]) -> BlockReport:
    tag, state, mine, own_epoch, cursor, key_count, highest = connection.execute(
        "SELECT tag, state, mine, own_epoch, next_index, key_count,"  # noqa: S608 - ours alone
        " (SELECT max(segment) + 1 FROM assigned_segment WHERE assigned_segment.block_pk = block.block_pk)"
        f" FROM block WHERE block_pk = ? AND {BLOCK_IS_SOUND}",
        (block_pk,),
    ).fetchone()
    used = key_count if state == BlockState.RETIRED else cursor if mine else max(highest or 0, cursor)
    rows = [key for key in keys if key.state != KeyState.VOID and not _is_pad(connection, key)]
    return BlockReport(
        block_id=block_id,
        tag=tag.hex(),
        state=state,
        mine=bool(mine),
        own_epoch=own_epoch,
        used=used,
        keys=_key_reports(connection, rows),
    )


def _is_pad(connection: Any, row: KeyRow) -> bool:
    """Whether a key masks another: the other end has no use for it, and sees its segments as used."""
    return connection.execute("SELECT 1 FROM pad WHERE pad_id = ?", (row.key_id.bytes,)).fetchone() is not None


def _key_reports(connection: Any, rows: Sequence[KeyRow], link_id: str | None = None) -> list[KeyReport]:
    """Keys as the other end is told of them; those of other links than ``link_id`` are left out."""
    names: dict[int, tuple[str, int, str]] = {}
    for pk in {place[0] for key in rows for place in key.places}:
        statement = f"SELECT block_id, own_epoch, link_id FROM block WHERE block_pk = ? AND {BLOCK_IS_SOUND}"  # noqa: S608
        names[pk] = connection.execute(statement, (pk,)).fetchone()
    wanted = (key for key in rows if link_id in (None, *(names[place[0]][2] for place in key.places)))
    return [_key_report(key, names) for key in wanted]


def _key_report(row: KeyRow, names: dict[int, tuple[str, int, str]]) -> KeyReport:
    parts = [
        Place(block_id=names[pk][0], first=first, count=count, own_epoch=names[pk][1])
        for pk, first, count in row.places
    ]
    relation = row.relation
    return KeyReport(
        key_id=row.key_id,
        master=relation.master,
        slaves=list(relation.slaves),
        size=row.size,
        parts=parts,
        mine=row.mine,
    )


def _revoke_confirmed(transaction: Transaction, link_id: str, block_ids: Sequence[str], entry: Entry) -> None:
    """What the peer does not have can only wait for it to come there, and only if it was never ready."""
    confirmed = [
        block_id
        for block_id in block_ids
        if transaction.execute(
            "SELECT state FROM block WHERE link_id = ? AND block_id = ?", (link_id, block_id)
        ).fetchone()
        != (BlockState.DEPOSITED,)
    ]
    revoke(transaction, link_id, confirmed, Entry("block.revoke", entry.actor, {"reason": "the peer does not have it"}))


def _applied(transaction: Transaction, link_id: str, kme_id: str, report: BlockReport, entry: Entry) -> list[UUID]:
    """Take over what the peer says of one block; gives the keys that were not known here."""
    block_pk, tag, own_epoch = transaction.execute(
        f"SELECT block_pk, tag, own_epoch FROM block WHERE link_id = ? AND block_id = ? AND {BLOCK_IS_SOUND}",  # noqa: S608
        (link_id, report.block_id),
    ).fetchone()
    if not hmac.compare_digest(tag, bytes.fromhex(report.tag)):
        quarantine(transaction, link_id, report.block_id, entry.actor)
        return []
    if report.state in _GONE:
        reason = {"reason": f"the peer has it {report.state}"}
        revoke(transaction, link_id, [report.block_id], Entry("block.revoke", entry.actor, reason))
        return []
    if report.state != BlockState.DEPOSITED:
        make_ready(transaction, link_id, report.block_id)
    if report.own_epoch > own_epoch:
        set_owner(transaction, block_pk, mine=not report.mine, own_epoch=report.own_epoch)
    unknown = [key for key in report.keys if not rows_of(transaction.connection, [key.key_id])]
    learnt = [key.key_id for key in unknown if _remember(transaction, link_id, kme_id, key)]
    lost = [str(key.key_id) for key in unknown if key.mine and key.key_id not in learnt]
    if lost:
        transaction.append(Entry("alarm.keys-lost", entry.actor, {"link": link_id, "key_IDs": lost}))
    return learnt


def _remember(transaction: Transaction, link_id: str, kme_id: str, key: KeyReport) -> bool:
    """A key that was forgotten: one of this end's counts as delivered, one of the peer's may be collected here.

    False if a block of it was forgotten too: the bytes are not here any more.
    """
    blocks = {place.block_id: _pk(transaction.connection, link_id, place.block_id) for place in key.parts}
    pks = {block_id: block_pk for block_id, block_pk in blocks.items() if block_pk is not None}
    if len(pks) < len(blocks):
        return False
    relation = Relation.of(key.master, key.slaves)
    here = {sae for (sae,) in transaction.execute("SELECT sae_id FROM sae WHERE kme_id = ?", (kme_id,))}
    due = due_bits(relation, set(relation.slaves) - here)
    if key.mine:
        slaves = list(relation.slaves)
        assign = Assign(
            master=key.master, slaves=slaves, size=key.size, key_ids=key.key_id.hex, places=key.parts
        )
        insert_assigned(transaction, link_id, relation, assign, due, of_any_owner=True)
        return True
    places = [(pks[place.block_id], place.first, place.count) for place in key.parts]
    insert_rows(transaction, Batch(relation, key.size, KeyState.DELIVERED, due=due), [key.key_id], [places])
    return True


def give_up_missing(transaction: Transaction, link_id: str, block_ids: Sequence[str], entry: Entry) -> None:
    """The peer lost these blocks: nothing of them is agreed on any more; what slaves may collect here stays.

    An alarm names the keys that went to masters here: slaves at the peer that had not come yet cannot have them.
    """
    pks = {pk: name for name in block_ids if (pk := _pk(transaction.connection, link_id, name)) is not None}
    keys = _keys_of(transaction.connection, pks)
    rows = {row.key_id: row for found in keys.values() for row in found if row.mine}.values()
    waiting = [row for row in rows if row.state in (KeyState.ASSIGNING, KeyState.ASSIGNED)]
    void_rows(transaction, waiting, Entry("key.void", entry.actor, {"reason": "the peer lost its block"}), tell=False)
    lost = [str(row.key_id) for row in rows if row.state in (KeyState.DELIVERED, KeyState.CONSUMED)]
    if lost:
        transaction.append(Entry("alarm.keys-lost", entry.actor, {"link": link_id, "key_IDs": lost}))
    unused = []
    for block_pk, name in pks.items():
        statement = "SELECT key_count, state FROM block WHERE block_pk = ?"
        key_count, state = transaction.execute(statement, (block_pk,)).fetchone()
        if state in (BlockState.READY, BlockState.EXHAUSTED):
            _skip(transaction, block_pk, key_count, keys[block_pk])
            transaction.append(entry.knowing(link=link_id, blocks=[name]))
        else:
            unused.append(name)
    revoke(transaction, link_id, unused, entry)


def _skip(transaction: Transaction, block_pk: int, used: int, keys: Sequence[KeyRow]) -> list[int]:
    """Give up the first ``used`` segments of a block; those that are of no key known here are erased, and returned."""
    mine, cursor, key_count, state = transaction.execute(
        f"SELECT mine, next_index, key_count, state FROM block WHERE block_pk = ? AND {BLOCK_IS_SOUND}",  # noqa: S608
        (block_pk,),
    ).fetchone()
    if state == BlockState.RETIRED:  # nothing of it is left
        return []
    places = [(first, count) for row in keys for pk, first, count in row.places if pk == block_pk]
    taken = {first + offset for first, count in places for offset in range(count)}
    statement = "SELECT segment FROM assigned_segment WHERE block_pk = ?"
    taken |= {segment for (segment,) in transaction.execute(statement, (block_pk,))}
    start = cursor if mine else 0
    gap = [segment for segment in range(start, used) if segment not in taken]
    fresh = [(block_pk, segment) for segment in gap]
    if not mine:
        transaction.executemany("INSERT INTO assigned_segment VALUES (?, ?) ON CONFLICT DO NOTHING", fresh)
    after = max(cursor, used) if mine else cursor + len(gap)
    ends = state == BlockState.READY and after == key_count
    transaction.execute(
        "UPDATE block SET next_index = ?, state = ? WHERE block_pk = ?",
        (after, BlockState.EXHAUSTED.value if ends else state, block_pk),
    )
    if gap:
        erase(transaction, [(pk, segment, 1) for pk, segment in fresh])
    return gap
