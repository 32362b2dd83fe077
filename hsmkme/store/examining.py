"""Rows that make no sense: found, kept apart, each told of by one alarm. Somebody wrote to the file.

Every verb that meets such a row raises `StoreTampered`, and whoever asked lets the store be examined and asks again.
A block is frozen, whatever its row says. A key is void and loses its place, so that nothing is erased that is not its
own. The counts of the pools are made anew, of what is left. What only the token can tell is not looked at here.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from uuid import UUID

from hsmkme.errors import StoreTampered
from hsmkme.model import GCM_TAG_BYTES, Entry
from hsmkme.states import BlockState
from hsmkme.store.copies import require_epochs
from hsmkme.store.database import Database, Transaction
from hsmkme.store.log import alarm_once
from hsmkme.store.rows import can_be_served
from hsmkme.store.seals import is_sealed

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_BLOCKS: Final = f"""
SELECT block_pk, CAST(link_id AS BLOB), CAST(block_id AS BLOB), coalesce(
    state IN ({", ".join(f"'{state}'" for state in BlockState)})
    AND link_id IN (SELECT link_id FROM link)
    AND epoch IN (SELECT epoch FROM epoch WHERE state <> 'destroyed')
    AND key_bits > 0 AND key_bits % 64 = 0 AND key_count > 0 AND mine IN (0, 1)
    AND next_index BETWEEN 0 AND key_count AND live BETWEEN 0 AND key_count
    AND next_index = segments AND {is_sealed("block")}
    AND NOT EXISTS (SELECT 1 FROM copy WHERE copy.block_pk = block.block_pk AND NOT {is_sealed("copy")})
    AND (sealed IS NULL OR length(sealed) = key_count * (key_bits / 8 + {GCM_TAG_BYTES})), 0)
FROM block LEFT JOIN taken USING (block_pk) LEFT JOIN segments USING (block_pk)
WHERE state NOT IN ('frozen', 'revoked', 'retired')
"""  # noqa: S608 - the states are ours
_FREEZE: Final = "UPDATE block SET state = 'frozen' WHERE block_pk = ?"
_RENAME: Final = """
UPDATE block SET state = 'frozen', block_id = 'tampered-' || block_pk, link_id = (SELECT min(link_id) FROM link)
WHERE block_pk = ?
"""
"""What is no text cannot be read: the alarm has what it was."""

_COUNTED: Final = """
SELECT coalesce(sum((block.state = 'ready') * mine * (key_count - next_index)), 0),
    coalesce(sum((block.state = 'ready') * (1 - mine) * (key_count - next_index)), 0),
    coalesce(sum((block.state = 'deposited') * (key_count - next_index)), 0), link_id, key_bits
FROM pool LEFT JOIN block USING (link_id, key_bits) GROUP BY link_id, key_bits
"""
_POOLS: Final = "SELECT ready, theirs, waiting, link_id, key_bits FROM pool"
_COUNT: Final = "UPDATE pool SET ready = ?, theirs = ?, waiting = ? WHERE link_id = ? AND key_bits = ?"
_ORPHANS: Final = "DELETE FROM copy WHERE block_pk NOT IN (SELECT block_pk FROM block) RETURNING block_pk, epoch"
_KEYS: Final = """
SELECT key_id, seal, CAST(state AS BLOB), served, CAST(master AS BLOB), CAST(slaves AS BLOB), size,
    CAST(parts AS BLOB), mine, due, claimed_at
FROM key LEFT JOIN relation USING (relation_id) WHERE
"""
_LIVE: Final = f"{_KEYS} state NOT IN ('consumed', 'void')"
_NAMED: Final = f"{_KEYS} key_id = ? AND state <> 'void'"
_VOID: Final = "UPDATE key SET state = 'void', parts = '[]' WHERE key_id = ?"


class Examining:
    """Looks at every block, and at every key that is not ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sound(self, verb: Callable[[], Result], key_ids: Sequence[UUID] = ()) -> Result:
        """Do ``verb``; once more when what it met, these keys above all, was kept apart."""
        try:
            return verb()
        except StoreTampered as tampered:
            self.examine("kme", key_ids, tampered.blocks)
            return verb()

    def examine(self, actor: str, key_ids: Sequence[UUID] = (), suspects: Sequence[int] = ()) -> int:
        """Keep apart what makes no sense; returns how many rows did not.

        ``key_ids`` are looked at though they ended; ``suspects`` are blocks that are known to make none.

        Writes, in one commit: states of blocks and keys, counts of pools, an alarm for each row. A pool that promised
        keys though no row was found wrong lost a block: that is an alarm too. A copy that is of no block is dropped.
        While the row of an epoch is not what was sealed there is an alarm of that alone, for nothing is delivered then,
        and nobody can say what blocks are under it.
        """
        with self._database.write() as transaction, _unchecked(transaction.connection):
            if _epochs_differ(transaction, actor):
                return 1
            found = transaction.execute(_BLOCKS).fetchall()
            blocks = [_freeze(transaction, row, actor) for row in found if row[0] in suspects or not _good(row)]
            wrong = count_pools(transaction)
            if wrong and not blocks:
                transaction.append(Entry("alarm.pool-tampered", actor, {"links": sorted(wrong)}))
            copies = transaction.execute(_ORPHANS).fetchall()
            for row, epoch in copies:
                transaction.append(Entry("alarm.copy-tampered", actor, {"row": row, "epoch": epoch}))
            count = len(blocks or wrong) + len(copies) + self._keys(transaction, actor, key_ids)
        if count:
            log.error("ALARM somebody wrote to the store: %d rows made no sense and were kept apart", count)
        return count

    def _keys(self, transaction: Transaction, actor: str, key_ids: Sequence[UUID]) -> int:
        found = transaction.execute(_LIVE).fetchall()
        for key_id in key_ids:
            found += transaction.execute(_NAMED, (key_id.bytes,)).fetchall()
        blocks = {block_pk for (block_pk,) in transaction.execute("SELECT block_pk FROM block")}
        wrong = sorted({row[0] for row in found if not self._makes_sense(row, blocks)})
        for key_id in wrong:
            transaction.execute(_VOID, (key_id,))
            transaction.append(Entry("alarm.key-tampered", actor, {"key_ID": str(UUID(bytes=key_id))}))
        return len(wrong)

    def _makes_sense(self, row: Sequence[Any], blocks: Collection[int]) -> bool:
        key_id, seal, *said = row
        if None in said or not all(_is_text(value) for value in said if isinstance(value, bytes)):
            return False
        lasting: list[Any]
        state, served, *lasting = [value.decode() if isinstance(value, bytes) else value for value in said]
        if not self._database.rows.is_sealed(seal, "key", key_id, *lasting):
            return False
        _, slaves, _, parts, _, due, _ = lasting
        is_served = can_be_served(str(state), int(served), due, len(json.loads(slaves)))
        return is_served and all(place[0] in blocks for place in json.loads(parts))


def _epochs_differ(transaction: Transaction, actor: str) -> bool:
    """Whether the row of an epoch is not what was sealed, which is told of once."""
    try:
        require_epochs(transaction.connection)
    except StoreTampered as fault:
        alarm_once(transaction, Entry("alarm.epochs-differ", actor, {"reason": str(fault)}))
        return True
    return False


def count_pools(transaction: Transaction) -> set[str]:
    """Make the counts of every pool anew; returns the links of those that were wrong."""
    known = set(transaction.execute(_POOLS))
    wrong = [row for row in transaction.execute(_COUNTED).fetchall() if row not in known]
    transaction.executemany(_COUNT, wrong)
    return {row[3] for row in wrong}


def _good(row: tuple[int, bytes, bytes, int]) -> bool:
    return bool(row[3]) and _is_text(row[1]) and _is_text(row[2])


def _freeze(transaction: Transaction, row: tuple[int, bytes, bytes, int], actor: str) -> int:
    block_pk, link_id, block_id, _ = row
    readable = _is_text(link_id) and _is_text(block_id)
    transaction.execute(_FREEZE if readable else _RENAME, (block_pk,))
    named = {"link": link_id.decode(errors="replace"), "block": block_id.decode(errors="replace")}
    transaction.append(Entry("alarm.block-tampered", actor, {**named, "row": block_pk}))
    return block_pk


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _unchecked(connection: sqlite3.Connection) -> Iterator[None]:
    """A row that breaks a rule of its table could otherwise not even be marked as such."""
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA ignore_check_constraints = OFF")
