"""What this end does when the peer says something: one transaction for each message, its answer kept in it.

A message that comes again gets the same answer and does nothing; one of an older incarnation, or far behind the
newest, is refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from hsmkme.errors import LinkFrozen, PeerRefused
from hsmkme.messages.bodies import (
    Announce,
    Announced,
    Assign,
    Assigned,
    BlockTag,
    Body,
    Done,
    Grant,
    Granted,
    GrantedBlock,
    Hello,
    Standing,
    Void,
    Voided,
)
from hsmkme.model import BlockName, Entry
from hsmkme.states import BlockState, KeyState
from hsmkme.store.accepting import Insertion, accept, given, insert_assigned
from hsmkme.store.blocks import freeze_block
from hsmkme.store.database import Database, Transaction
from hsmkme.store.links import (
    LASTING,
    PEER_RESTORED,
    RESTORED,
    freeze,
    is_behind,
    note_far_end,
    reopen,
    state_in,
)
from hsmkme.store.outbox import require_open
from hsmkme.store.rows import KeyRow, void_rows
from hsmkme.store.seals import BLOCK_IS_SOUND, is_sealed, seal_of
from hsmkme.store.timekeeping import clock_of

WINDOW: Final = 4096
"""How far a message may be behind the newest of its link."""

_SET_OWNER: Final = f"""
UPDATE block SET mine = :mine, own_epoch = :own_epoch, seal = {seal_of("block", mine=":mine", own_epoch=":own_epoch")}
WHERE block_pk = :block AND {is_sealed("block")}
"""  # noqa: S608 - ours alone

KEPT_SECONDS: Final = 300
"""How long an answer is kept: longer than a message may be under way."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Which message of which link: its number, and the incarnation of the peer that sent it."""

    link_id: str
    txid: UUID
    seq: int
    incarnation: str
    body: bytes


GiveUp = Callable[[Transaction, str, list[str], Entry], None]


class Inbox:
    """The verbs of kme-peer/1 at the receiving end; ``entry`` names the peer as the actor."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def answered(self, receipt: Receipt) -> bytes | None:
        """The answer that the same message got before; raises `PeerRefused` if it was another under the same txid."""
        with self._database.read() as connection:
            return _answered(connection, receipt)

    def hello(self, receipt: Receipt, hello: Hello, entry: Entry) -> bytes:
        """The peer says where it stands. One whose link is frozen, and who forgot what is known of it here, is behind.

        While its link is frozen it sends nothing else, so nothing can have overtaken its hello. Writes, in one
        commit: what is known of the peer, the link's state, audit row if that changes.
        """
        with self._database.write(logged=False) as transaction:
            here = state_in(transaction, receipt.link_id)
            verdict = "behind" if is_behind(here, receipt.incarnation, hello) else "good"
            if verdict == "behind":
                alarm = Entry("alarm.peer-restored", entry.actor, entry.facts)
                freeze(transaction, receipt.link_id, PEER_RESTORED, alarm, unless=LASTING)
            else:
                note_far_end(transaction, receipt.link_id, receipt.incarnation, hello.log_rows, hello.ready)
                note_seen(transaction, receipt)
                if hello.reconciled or hello.why != RESTORED:
                    reopen(transaction, receipt.link_id, PEER_RESTORED, entry)
            facts = {"verdict": verdict, "incarnation": here.incarnation, "log_rows": here.log_rows}
            standing = Standing.model_validate({**facts, "why": here.why, "ready": here.ready})
            return _keep(transaction, receipt, standing)

    @contextmanager
    def _received(self, receipt: Receipt) -> Iterator[Transaction]:
        """A transaction for a message that is new; its answer is to be kept in it by `_keep`."""
        with self._database.write(logged=False) as transaction:
            row = transaction.execute(
                "SELECT incarnation, seen FROM far_end WHERE link_id = ?", (receipt.link_id,)
            ).fetchone()
            if row is None or row[0] != receipt.incarnation:
                raise PeerRefused("this incarnation is not known here: say hello", alarm=False)
            if receipt.seq <= row[1] - WINDOW:
                raise PeerRefused("the message is far behind the newest", alarm=True)
            note_seen(transaction, receipt)
            yield transaction

    def announce(self, receipt: Receipt, announce: Announce, entry: Entry) -> bytes:
        """The peer has sealed these blocks; those that are here with the same tag are ready.

        Writes, in one commit: block states, audit row for those that became ready and for each that differs.
        """
        with self._received(receipt) as transaction:
            results, ready = {}, []
            for block in announce.blocks:
                results[block.block_id], became_ready = _compare(transaction, receipt.link_id, block, entry)
                ready += [block.block_id] if became_ready else []
            if ready:
                transaction.append(entry.knowing(link=receipt.link_id, blocks=ready))
            return _keep(transaction, receipt, Announced.model_validate({"results": results}))

    def assign(
        self, receipt: Receipt, assign: Assign, due: int, entry: Entry, insert: Insertion = insert_assigned
    ) -> bytes:
        """The peer gives keys to a relation: all of them are accepted or none.

        ``due``: bits of the slaves that this KME serves. ``insert`` makes the rows. Writes, in one commit: rows of
        keys, segments that can never be assigned again, counts of blocks, audit row.
        """
        with self._received(receipt) as transaction:
            result = accept(transaction, receipt.link_id, assign, due, entry, insert)
            if result not in ("assigned", "already"):
                alarm = result in ("conflict", "not_owner")
                event = f"alarm.assign-{result.replace('_', '-')}" if alarm else "refused.assign"
                facts = {"link": receipt.link_id, "result": result, "key_IDs": [str(key_id) for key_id in assign.named]}
                transaction.append(Entry(event, entry.actor, facts))
            log_rows = transaction.head()[0]
            return _keep(transaction, receipt, Assigned(result=result, log_rows=log_rows))

    def void(self, receipt: Receipt, void: Void, entry: Entry) -> bytes:
        """The peer will never deliver these keys. One that a slave here has already is an alarm."""
        with self._received(receipt) as transaction:
            rows = {row.key_id: row for row in given(transaction, receipt.link_id, void.key_ids)}
            late = [str(row.key_id) for row in rows.values() if _is_collected(row)]
            void_rows(
                transaction,
                [row for row in rows.values() if not _is_collected(row)],
                entry.knowing(link=receipt.link_id, reason=void.reason),
                tell=False,
            )
            if late:
                facts = {"link": receipt.link_id, "key_IDs": late}
                transaction.append(Entry("alarm.void-too-late", entry.actor, facts))
            results = {str(key_id): _voided(rows.get(key_id)) for key_id in void.key_ids}
            return _keep(transaction, receipt, Voided.model_validate({"results": results}))

    def grant(self, receipt: Receipt, grant: Grant, entry: Entry) -> bytes:
        """The peer gives blocks of its own to this end."""
        with self._received(receipt) as transaction:
            _require_open(transaction, receipt.link_id)
            results = {block.block_id: _take_over(transaction, receipt.link_id, block) for block in grant.blocks}
            accepted = [block_id for block_id, result in results.items() if result == "accepted"]
            transaction.append(entry.knowing(link=receipt.link_id, blocks=accepted, stale=len(results) - len(accepted)))
            return _keep(transaction, receipt, Granted.model_validate({"results": results}))

    def give_up(self, receipt: Receipt, block_ids: list[str], entry: Entry, give_up: GiveUp) -> bytes:
        """The peer does not have these blocks any more: it was restored, or revoked them."""
        with self._database.write(logged=False) as transaction:
            give_up(transaction, receipt.link_id, block_ids, entry)
            return _keep(transaction, receipt, Done())


def _require_open(transaction: Transaction, link_id: str) -> None:
    """A frozen end takes nothing over; the peer says it again."""
    try:
        require_open(transaction, link_id)
    except LinkFrozen as frozen:
        raise PeerRefused(str(frozen), alarm=False) from None


def note_seen(transaction: Transaction, receipt: Receipt) -> None:
    """Remember the highest number, and that the peer is in touch."""
    transaction.execute(
        "UPDATE far_end SET seen = max(seen, ?), heard = ? WHERE link_id = ?",
        (receipt.seq, transaction.now(), receipt.link_id),
    )


def _answered(connection: Any, receipt: Receipt) -> bytes | None:
    row = connection.execute(
        "SELECT body, answer FROM inbox WHERE link_id = ? AND txid = ?", (receipt.link_id, receipt.txid.bytes)
    ).fetchone()
    if row is None:
        return None
    if row[0] != receipt.body:
        raise PeerRefused("another message had the same txid", alarm=True)
    return bytes(row[1])


def _keep(transaction: Transaction, receipt: Receipt, answer: Body) -> bytes:
    """Keep an answer for when the same message comes again, and drop those whose time is over.

    The same message may have come twice at once; it did something once, and both answers say the same.
    """
    now, encoded = transaction.now(), answer.encoded()
    transaction.execute("DELETE FROM inbox WHERE until < ?", (now,))
    values = (receipt.link_id, receipt.txid.bytes, receipt.body, encoded, now + KEPT_SECONDS)
    statement = "INSERT INTO inbox (link_id, txid, body, answer, until) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    transaction.execute(statement, values)
    return encoded


def _compare(transaction: Transaction, link_id: str, told: BlockTag, entry: Entry) -> tuple[str, bool]:
    """What to answer of one announced block, and whether it became ready here."""
    row = transaction.execute(
        "SELECT tag, key_count, key_bits, state, not_before FROM block"  # noqa: S608 - ours alone
        f" WHERE link_id = ? AND block_id = ? AND {BLOCK_IS_SOUND}",
        (link_id, told.block_id),
    ).fetchone()
    if row is None or row[0] is None:
        return "unknown", False
    tag, count, bits, state, not_before = row
    if not hmac.compare_digest(tag, bytes.fromhex(told.tag)) or (count, bits) != (told.count, told.bits):
        quarantine(transaction, link_id, told.block_id, entry.actor)
        return "mismatch", False
    locked = state == BlockState.DEPOSITED and not_before > clock_of(transaction.connection, transaction.now()).vouched
    if locked or state in (BlockState.FROZEN, BlockState.REVOKED, BlockState.EXPIRED):
        return "unknown", False
    return "match", make_ready(transaction, link_id, told.block_id)


def make_ready(transaction: Transaction, link_id: str, block_id: str) -> bool:
    """Both ends hold the same bytes: keys of the block may be claimed, unless it is not to be released yet."""
    done = transaction.execute(
        "UPDATE block SET state = 'ready' WHERE link_id = ? AND block_id = ? AND state = 'deposited'"  # noqa: S608 - ours
        f" AND not_before <= ? AND {BLOCK_IS_SOUND}",
        (link_id, block_id, clock_of(transaction.connection, transaction.now()).vouched),
    )
    return bool(done.rowcount)


def quarantine(transaction: Transaction, link_id: str, block_id: str, actor: str) -> None:
    """The two ends hold other bytes under one name: freeze the block and raise an alarm, once."""
    if freeze_block(transaction, BlockName(link_id, block_id)):
        transaction.append(Entry("alarm.block-mismatch", actor, {"link": link_id, "block": block_id}))


def _is_collected(row: KeyRow) -> bool:
    return row.state in (KeyState.DELIVERED, KeyState.CONSUMED)


def _voided(row: KeyRow | None) -> str:
    if row is None:
        return "unknown"
    return "already_delivered" if _is_collected(row) else "voided"


def _take_over(transaction: Transaction, link_id: str, block: GrantedBlock) -> str:
    row = transaction.execute(
        "SELECT block_pk, mine, own_epoch, next_index, state FROM block"  # noqa: S608 - ours alone
        f" WHERE link_id = ? AND block_id = ? AND {BLOCK_IS_SOUND}",
        (link_id, block.block_id),
    ).fetchone()
    if row is None:
        return "stale"
    block_pk, mine, own_epoch, used, state = row
    if mine and own_epoch == block.own_epoch:
        return "accepted"
    if mine or own_epoch >= block.own_epoch or used or state != BlockState.READY:
        return "stale"
    set_owner(transaction, block_pk, mine=True, own_epoch=block.own_epoch)
    return "accepted"


def set_owner(transaction: Transaction, block_pk: int, *, mine: bool, own_epoch: int) -> None:
    """A block has another owner from now on, in a later epoch of ownership; one that is altered keeps what it says."""
    transaction.execute(_SET_OWNER, {"block": block_pk, "mine": mine, "own_epoch": own_epoch})
