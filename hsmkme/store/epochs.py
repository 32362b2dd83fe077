"""Epochs of the master key: which is active, what is under each, and how one ends. Each verb is one transaction.

An epoch is of one token. What is under it are blocks' own wrapped keys and copies of them (``store/copies.py``).
The database itself refuses a block under an epoch that is not active, and to end an epoch under which a live block is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from hsmkme.errors import StoreError, StoreTampered
from hsmkme.model import BlockName, BlockSeal, Entry, SealedKey
from hsmkme.states import EpochState
from hsmkme.store.copies import in_reach
from hsmkme.store.database import Database, Transaction, spoken
from hsmkme.store.writers import turn

NAMES_MOST: Final = 500
"""How many blocks one row of the log names."""

_UNDER: Final = """
SELECT block_pk, link_id, block_id, key_bits, wrapped, state FROM block WHERE epoch = :epoch AND state <> 'retired'
UNION ALL SELECT block_pk, link_id, block_id, key_bits, copy.wrapped, state FROM copy JOIN block USING (block_pk)
WHERE copy.epoch = :epoch AND state <> 'retired'
"""
_COUNT: Final = f"SELECT state, count(*) FROM ({_UNDER}) GROUP BY state"  # noqa: S608 - ours alone
_SOME: Final = f"""
SELECT block_pk, link_id, block_id, key_bits, wrapped FROM ({_UNDER})
WHERE block_pk > :after ORDER BY block_pk LIMIT :limit
"""  # noqa: S608 - ours alone
_ENDED: Final = """
SELECT link_id, block_id,
    (SELECT json_group_array(epoch) FROM (SELECT epoch FROM block AS own WHERE own.block_pk = ended.block_pk
        UNION ALL SELECT epoch FROM copy WHERE copy.block_pk = ended.block_pk) WHERE epoch <> :epoch)
FROM (SELECT block_pk, link_id, block_id FROM block WHERE epoch = :epoch AND state = 'retired'
    UNION ALL SELECT block_pk, link_id, block_id FROM copy JOIN block USING (block_pk)
    WHERE copy.epoch = :epoch AND state = 'retired') AS ended ORDER BY block_pk
"""
_MOVE: Final = """
UPDATE block SET epoch = ?, wrapped = ? WHERE link_id = ? AND block_id = ? AND epoch = ? AND wrapped = ?
    AND state <> 'retired'
"""
_MOVE_COPY: Final = """
UPDATE copy SET epoch = ?, wrapped = ?
WHERE block_pk = (SELECT block_pk FROM block WHERE link_id = ? AND block_id = ? AND state <> 'retired')
    AND epoch = ? AND wrapped = ?
"""
_EVENT: Final = """
SELECT seq, text FROM log WHERE seq > ? AND text ->> '$.event' = ? AND text ->> '$.epoch' = ?
"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One generation of the master key of a ``token``. ``since``: when it became active, 0 if it did not. ``wraps``:
    block keys that were ever wrapped under it. ``proved``: the log says that the token showed that its master key is
    gone."""

    number: int
    token: str
    state: EpochState
    check_value: str
    since: int
    wraps: int
    proved: bool


class Epochs:
    """The epochs of this store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Epoch]:
        """Every epoch, the first one first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT epoch, token, state, check_value, since, wraps, text FROM epoch LEFT JOIN log ON seq = proof"
                " ORDER BY epoch"
            ).fetchall()
        if any(state not in set(EpochState) for _, _, state, *_ in rows):
            raise StoreTampered("the row of an epoch was tampered with: it has no state that there is")
        return [
            Epoch(number, token, EpochState(state), check_value, since, wraps, _is_end_of(number, text))
            for number, token, state, check_value, since, wraps, text in rows
        ]

    def one(self, number: int) -> Epoch:
        """One epoch; raises `StoreError` if there is none of that number."""
        for epoch in self.all():
            if epoch.number == number:
                return epoch
        raise StoreError(f"there is no epoch {number}: see `hsmkme epoch list`")

    def live(self, epoch: int) -> dict[str, int]:
        """How many blocks in which state are under an epoch; retired ones are not counted."""
        with self._database.read() as connection:
            rows = connection.execute(_COUNT, {"epoch": epoch})
            return dict(rows.fetchall())

    def active(self) -> dict[str, int]:
        """The epoch under which blocks are sealed in each token, by the token's name."""
        with self._database.read() as connection:
            active = dict(connection.execute("SELECT token, epoch FROM epoch WHERE state = 'active'").fetchall())
        if not active:
            raise StoreError("the store knows no active master key: hold a first ceremony (ops/ceremonies.md)")
        return active

    def usable(self) -> frozenset[int]:
        """The epochs that are not destroyed."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT epoch FROM epoch WHERE state <> 'destroyed'")
            return frozenset(epoch for (epoch,) in rows)

    @contextmanager
    def turn(self, *, wait: bool = True) -> Iterator[bool]:
        """Make, activate and destroy epochs as the only process that does so now; False if another does."""
        with spoken(), turn(self._database.path, "epochs.turn", wait=wait) as taken:
            yield taken

    def admit(self, epoch: int, check_value: str, entry: Entry, token: str = "") -> None:
        """Record the first master key, which a ceremony made, as the active epoch; its ``token`` may be seen later."""
        with self._database.write() as transaction:
            _insert(transaction, epoch, check_value, token)
            _activate(transaction, epoch)
            transaction.append(entry.knowing(epoch=epoch, check_value=check_value))

    def adopt(self, token: str) -> None:
        """The master keys of every epoch that was of no token yet were found in this one."""
        with self._database.read() as connection:
            known = connection.execute("SELECT 1 FROM epoch WHERE token = ''").fetchone() is None
        if not known:
            with self._database.write(logged=False) as transaction:
                transaction.execute("UPDATE epoch SET token = ? WHERE token = ''", (token,))

    def prepare(self, epoch: int, check_value: str, token: str, entry: Entry) -> None:
        """Record a master key that is in the token and nothing is under yet."""
        with self._database.write() as transaction:
            _insert(transaction, epoch, check_value, token)
            transaction.append(entry.knowing(epoch=epoch, check_value=check_value, token=token))

    def activate(self, epoch: int, entry: Entry, *, before: EpochState = EpochState.DEACTIVATED) -> None:
        """Let blocks go under ``epoch`` from now on; that of its token that was active becomes what ``before`` says."""
        with self._database.write() as transaction:
            ended = transaction.execute(
                "UPDATE epoch SET state = ? WHERE state = 'active' AND epoch <> ?"
                " AND token = (SELECT token FROM epoch WHERE epoch = ?) RETURNING epoch",
                (before, epoch, epoch),
            ).fetchall()
            _activate(transaction, epoch)
            transaction.append(entry.knowing(epoch=epoch, before=[number for (number,) in ended], becomes=str(before)))

    def compromise(self, epoch: int, entry: Entry) -> bool:
        """Mark an epoch that is not active as compromised; False if it was, or is destroyed."""
        with self._database.write() as transaction:
            moved = transaction.execute(
                "UPDATE epoch SET state = 'compromised' WHERE epoch = ? AND state NOT IN ('compromised', 'destroyed')",
                (epoch,),
            )
            if moved.rowcount:
                transaction.append(entry.knowing(epoch=epoch))
            return bool(moved.rowcount)

    # Rewrapping -------------------------------------------------------------------------------------

    def under(self, epoch: int, after: int, limit: int) -> list[tuple[int, BlockSeal]]:
        """Live blocks under an epoch, by their number in the store, the first of them after ``after``."""
        with self._database.read() as connection:
            rows = connection.execute(_SOME, {"epoch": epoch, "after": after, "limit": limit}).fetchall()
        return [(pk, BlockSeal(BlockName(link, name), epoch, bits, wrapped)) for pk, link, name, bits, wrapped in rows]

    def rewrapped(self, moved: Sequence[tuple[BlockSeal, bytes]], epoch: int, entry: Entry) -> int:
        """Keep block keys as they are wrapped under ``epoch`` now; returns how many blocks that moved.

        Writes, in one commit: epoch and wrapped key of each block, or copy, that is as it was read, audit row.
        """
        with self._database.write() as transaction:
            done = [seal for seal, wrapped in moved if _move(transaction, seal, wrapped, epoch)]
            for old in sorted({seal.epoch for seal in done}):
                names = [_named(seal.name) for seal in done if seal.epoch == old]
                transaction.append(Entry(entry.event, entry.actor, {"from": old, "to": epoch, "blocks": names}))
            return len(done)

    def renewed(self, keys: Sequence[SealedKey], away: frozenset[int] = frozenset()) -> list[SealedKey]:
        """The same keys with the seals that their blocks have by now; copies, where those are of epochs ``away``."""
        seals = {part.block for key in keys for part in key.parts}
        with self._database.read() as connection:
            fresh = {seal: in_reach(connection, seal, away) for seal in seals}
        return [key._replace(parts=tuple(replace(part, block=fresh[part.block]) for part in key.parts)) for key in keys]

    # The end ----------------------------------------------------------------------------------------

    def destroy(self, epoch: int, entry: Entry) -> None:
        """Give an epoch up, before its master key is destroyed; ``entry`` has what will prove that it is.

        Raises `IllegalTransition` while a live block is under it. Writes, in one commit: state, audit row.
        """
        with self._database.write() as transaction:
            transaction.execute("UPDATE epoch SET state = 'destroyed' WHERE epoch = ?", (epoch,))
            transaction.append(entry.knowing(epoch=epoch))

    def given_up(self, epoch: int) -> dict[str, Any]:
        """The row of the log by which an epoch was given up; raises `StoreError` if there is none."""
        with self._database.read() as connection:
            row = connection.execute(f"{_EVENT} ORDER BY seq DESC LIMIT 1", (0, "epoch.give-up", epoch)).fetchone()
        if row is None:
            raise StoreError(f"epoch {epoch} is destroyed, and the log does not say so: somebody wrote to the store")
        given_up: dict[str, Any] = json.loads(row[1])
        return given_up

    def prove(self, epoch: int, given_up: int, entry: Entry) -> None:
        """The token showed that the master key of an epoch is gone, which row ``given_up`` of the log gave up.

        Writes, in one commit: audit rows that name the blocks whose keys were wrapped under it last, and where copies
        are, audit row, the epoch's row. If the log says so already: the epoch's row, which somebody wrote to, and an
        alarm.
        """
        with self._database.write() as transaction:
            known = transaction.execute(_EVENT, (given_up, "epoch.destroy", epoch)).fetchone()
            if known is None:
                proof = _log_end(transaction, epoch, entry)
            else:
                proof = known[0]
                transaction.append(Entry("alarm.epoch-tampered", entry.actor, {"epoch": epoch, "proof": proof}))
            transaction.execute("UPDATE epoch SET proof = ? WHERE epoch = ?", (proof, epoch))


def _log_end(transaction: Transaction, epoch: int, entry: Entry) -> int:
    """Rows of the log that say what ended with an epoch; gives the number of the last."""
    rows = transaction.execute(_ENDED, {"epoch": epoch}).fetchall()
    for start in range(0, len(rows), NAMES_MOST):
        told = rows[start : start + NAMES_MOST]
        also = {_named(BlockName(*name)): json.loads(others) for *name, others in told if others != "[]"}
        facts = {"epoch": epoch, "blocks": [_named(BlockName(*name)) for *name, _ in told]}
        transaction.append(Entry("block.destroy", entry.actor, {**facts, "also": also} if also else facts))
    return transaction.append(entry.knowing(epoch=epoch, blocks=len(rows))).seq


def _is_end_of(epoch: int, text: str | None) -> bool:
    """Whether a row of the log says that the master key of an epoch is gone."""
    try:
        said = json.loads(text or "{}")
        return (said.get("event"), said.get("epoch")) == ("epoch.destroy", epoch)
    except (ValueError, AttributeError):
        return False


def _insert(transaction: Transaction, epoch: int, check_value: str, token: str) -> None:
    transaction.execute(
        "INSERT INTO epoch (epoch, state, check_value, token) VALUES (?, ?, ?, ?)",
        (epoch, EpochState.PREACTIVATION.value, check_value, token),
    )


def _activate(transaction: Transaction, epoch: int) -> None:
    transaction.execute("UPDATE epoch SET state = 'active', since = ? WHERE epoch = ?", (transaction.now(), epoch))


def _move(transaction: Transaction, seal: BlockSeal, wrapped: bytes, epoch: int) -> bool:
    values = (epoch, wrapped, seal.name.link_id, seal.name.block_id, seal.epoch, seal.wrapped)
    return any(transaction.execute(statement, values).rowcount for statement in (_MOVE, _MOVE_COPY))


def _named(name: BlockName) -> str:
    return f"{name.link_id}/{name.block_id}"
