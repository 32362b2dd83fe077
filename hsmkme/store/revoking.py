"""Blocks and keys that are revoked: nobody gets anything of them any more, and who has something of them is listed.

A block is ended first, at once and for every process; what was claimed of it is looked for afterwards. Every verb can
be done again: what a killed process left is found by the next one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.messages.bodies import Revoke
from hsmkme.model import Entry, Relation
from hsmkme.states import KeyState
from hsmkme.store.database import Database, Transaction
from hsmkme.store.ending import REVOCABLE, keys_of, wipe_blocks
from hsmkme.store.outbox import post
from hsmkme.store.rows import CHUNK, KeyRow, rows_of, void_rows
from hsmkme.store.segments import erase

BLOCKS_AT_ONCE: Final = 32
"""Blocks that are ended in one commit, and told of in one message."""

_ENDED: Final = (KeyState.CONSUMED, KeyState.VOID)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which blocks are meant: those of a link, or of all; of one name; deposited from ``since`` to ``until`` (seconds
    since the epoch); of these ``numbers`` in the store; live ones that are ``under`` an epoch now."""

    link_id: str | None = None
    block_id: str | None = None
    since: int = 0
    until: int = 2**62
    numbers: tuple[int, ...] | None = None
    under: int | None = None

    @property
    def where(self) -> str:
        """The condition, with the names of its parameters."""
        of = {
            "link_id = :link": self.link_id,
            "block_id = :block": self.block_id,
            "block_pk IN (SELECT value FROM json_each(:numbers))": self.numbers,
            _UNDER: self.under,
        }
        return " AND ".join([*(text for text, value in of.items() if value is not None), _TIMES])

    @property
    def values(self) -> dict[str, object]:
        """The parameters."""
        times = {"since": self.since, "until": self.until}
        own = {"link": self.link_id, "block": self.block_id, "under": self.under}
        return {**own, "numbers": json.dumps(self.numbers), **times}


_UNDER: Final = """
(epoch = :under OR block_pk IN (SELECT block_pk FROM copy WHERE epoch = :under)) AND state <> 'retired'
"""
_TIMES: Final = "deposited_at BETWEEN :since AND :until"
_EVER_UNDER: Final = """
SELECT block_pk FROM block WHERE epoch = :epoch OR block_pk IN (SELECT block_pk FROM copy WHERE epoch = :epoch)
    OR link_id || '/' || block_id IN (
    SELECT text ->> '$.link' || '/' || (text ->> '$.block') FROM log
        WHERE text ->> '$.event' IN ('block.deposit', 'block.carry') AND (text ->> '$.epoch' = :epoch
            OR EXISTS (SELECT 1 FROM json_each(text, '$.also') AS also WHERE also.value = :epoch))
    UNION ALL SELECT value FROM log, json_each(text, '$.blocks')
        WHERE text ->> '$.event' IN ('block.rewrap', 'block.copy') AND text ->> '$.to' = :epoch)
"""


class Revoking:
    """The verbs of a compromise."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def blocks(self, scope: Scope) -> list[tuple[str, str]]:
        """Link and name of every block that is meant, whatever its state."""
        with self._database.read() as connection:
            return connection.execute(
                f"SELECT link_id, block_id FROM block WHERE {scope.where} ORDER BY block_pk",  # noqa: S608 - constants
                scope.values,
            ).fetchall()

    def ever_under(self, epoch: int) -> Scope:
        """Every block whose key is wrapped under an epoch, or was by what the log says. Reads the whole log."""
        with self._database.read() as connection:
            found = connection.execute(_EVER_UNDER, {"epoch": epoch}).fetchall()
            return Scope(numbers=tuple(number for (number,) in found))

    def end(self, scope: Scope, entry: Entry) -> int:
        """End up to `BLOCKS_AT_ONCE` blocks that are meant and not ended yet; returns how many.

        Writes, in one commit: their states, a message to each peer that has them too, audit rows.
        """
        statement = (
            "UPDATE block SET state = 'revoked' WHERE block_pk IN (SELECT block_pk FROM block"  # noqa: S608 - constants
            f" WHERE {scope.where} AND state IN {REVOCABLE} LIMIT {BLOCKS_AT_ONCE})"
            " RETURNING link_id, block_id, tag IS NOT NULL"
        )
        with self._database.write() as transaction:
            ended = transaction.execute(statement, scope.values).fetchall()
            for link_id in sorted({link_id for link_id, _, _ in ended}):
                names = [name for link, name, _ in ended if link == link_id]
                transaction.append(entry.knowing(link=link_id, blocks=names))
                shared = [name for link, name, both in ended if link == link_id and both]
                if shared:
                    reason = str(entry.facts.get("reason", entry.event))
                    post(transaction, link_id, "blocks/revoke", Revoke(block_ids=shared, reason=reason))
            return len(ended)

    def keys_of_blocks(self, scope: Scope) -> list[UUID]:
        """Every key that has a part in a block that is meant. Reads every row of a claimed key once."""
        with self._database.read() as connection:
            found = connection.execute(
                "SELECT DISTINCT key_id FROM key, json_each(parts) AS part WHERE part.value ->> '$[0]'"  # noqa: S608
                f" IN (SELECT block_pk FROM block WHERE {scope.where}) ORDER BY key_id",
                scope.values,
            )
            return [UUID(bytes=key_id) for (key_id,) in found]

    def keys_of_sae(self, sae_id: str) -> list[UUID]:
        """Every key of a relation of which an SAE is master or slave."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT relation_id, master, slaves FROM relation").fetchall()
            of = [(number,) for number, master, slaves in rows if sae_id in (master, *json.loads(slaves))]
            found = (connection.execute("SELECT key_id FROM key WHERE relation_id = ?", one).fetchall() for one in of)
            return [UUID(bytes=key_id) for rows in found for (key_id,) in rows]

    def burn(self, key_ids: Sequence[UUID], entry: Entry, *, tell: bool) -> int:
        """Void those of ``key_ids`` that are not ended, and note those that somebody has; returns how many nobody had.

        Peers are told of each with ``tell``, else only of those that were carried to them. Writes, a commit for each
        `CHUNK` of keys: rows, zeros over their segments, messages, audit rows.
        """
        burnt = 0
        for start in range(0, len(key_ids), CHUNK):
            with self._database.write() as transaction:
                rows = rows_of(transaction.connection, key_ids[start : start + CHUNK])
                burnt += burn_rows(transaction, rows, entry, tell=tell)
        return burnt

    def noted(self, key_ids: Collection[UUID]) -> dict[Relation, list[UUID]]:
        """Those of ``key_ids`` that somebody has, by relation, as `burn` noted them, whatever became of them since.

        Reads the whole log.
        """
        wanted = {str(key_id) for key_id in key_ids}
        found: dict[Relation, set[UUID]] = defaultdict(set)
        with self._database.read() as connection:
            statement = "SELECT text FROM log WHERE instr(text, '\"event\":\"key.compromised\"')"
            for row in (json.loads(text) for (text,) in connection.execute(statement)):
                relation = Relation.of(row["master"], row["slaves"])
                found[relation] |= {UUID(name) for name in wanted.intersection(row["key_IDs"])}
        return {relation: sorted(has) for relation, has in found.items() if has}

    def wipe(self, scope: Scope) -> int:
        """Erase what is left of blocks that were revoked, a commit for each `BLOCKS_AT_ONCE`; returns how many."""
        statement = f"SELECT block_pk FROM block WHERE {scope.where} AND state = 'revoked'"  # noqa: S608 - constants
        with self._database.read() as connection:
            pks = [pk for (pk,) in connection.execute(statement, scope.values)]
        for start in range(0, len(pks), BLOCKS_AT_ONCE):
            with self._database.write(logged=False) as transaction:
                wipe_blocks(transaction, pks[start : start + BLOCKS_AT_ONCE])
        return len(pks)


def burn_rows(transaction: Transaction, rows: Sequence[KeyRow], entry: Entry, *, tell: bool) -> int:
    """As `Revoking.burn`, inside a transaction."""
    had = {row.key_id for row in rows if row.state in (KeyState.DELIVERED, KeyState.CONSUMED) or row.served}
    told = {row.key_id for row in rows if tell or _is_carried(transaction, row)}
    void = Entry("key.void", entry.actor, {"reason": "revoked"})
    void_rows(transaction, [row for row in rows if row.key_id in told], void)
    void_rows(transaction, [row for row in rows if row.key_id not in told], void, tell=False)
    kept = [row for row in rows if _was_kept(transaction, row)]
    erase(transaction, [place for row in kept for place in row.places])
    delivered: dict[Relation, list[str]] = defaultdict(list)
    for row in rows:
        if row.key_id in had:
            delivered[row.relation].append(str(row.key_id))
    for relation, key_ids in delivered.items():
        parties = {"master": relation.master, "slaves": list(relation.slaves), "key_IDs": key_ids}
        transaction.append(Entry("key.compromised", entry.actor, {**entry.facts, **parties}))
    return sum(row.key_id not in had and row.state not in _ENDED for row in rows)


def _is_carried(transaction: Transaction, row: KeyRow) -> bool:
    return transaction.execute("SELECT 1 FROM pad WHERE key_id = ?", (row.key_id.bytes,)).fetchone() is not None


def _was_kept(transaction: Transaction, row: KeyRow) -> bool:
    """Whether a consumed key was kept for requests that are repeated; it is not any more."""
    gone = transaction.execute("DELETE FROM erase_later WHERE key_id = ?", (row.key_id.bytes,))
    return bool(gone.rowcount)


def end_told(transaction: Transaction, link_id: str, block_ids: Sequence[str], entry: Entry) -> None:
    """The peer revoked these blocks: they end here too, and so does every key of them that is not ended."""
    statement = "SELECT block_pk FROM block WHERE link_id = ? AND block_id = ? AND tag IS NOT NULL"
    found = (transaction.execute(statement, (link_id, name)).fetchone() for name in block_ids)
    pks = [row[0] for row in found if row is not None]
    transaction.executemany(
        f"UPDATE block SET state = 'revoked' WHERE block_pk = ? AND state IN {REVOCABLE}",  # noqa: S608 - constants
        [(pk,) for pk in pks],
    )
    transaction.append(entry.knowing(link=link_id, blocks=list(block_ids)))
    burn_rows(transaction, keys_of(transaction.connection, pks), entry, tell=False)
    wipe_blocks(transaction, pks)
