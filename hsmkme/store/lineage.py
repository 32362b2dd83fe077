"""Which store this is, and what happens when it turns out to be an old copy of itself."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from hsmkme.errors import OperatorFault
from hsmkme.model import Entry, Lineage
from hsmkme.store.approving import Approval, spend
from hsmkme.store.database import Database, Transaction, head_of
from hsmkme.store.links import RESTORED, freeze
from hsmkme.store.seals import seal_of
from hsmkme.store.segments import erase

_SEAL_FIRST: Final = {
    **{of: f"UPDATE {of} SET seal = {seal_of(of)} WHERE seal IS NULL" for of in ("block", "copy", "epoch")},  # noqa: S608
    "key": f"UPDATE key SET seal = {seal_of('key')} FROM relation WHERE relation.relation_id = key.relation_id"  # noqa: S608
    " AND state <> 'void'"
    " AND (seal IS NULL AND :first OR is_sealed(seal, key_id, master, slaves, size, parts, mine, due))",
}
"""The rows of keys were sealed before, without the time of the claim, unless this is the first key that seals any."""


class Lineages:
    """The identity of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> Lineage:
        """Which store this is, how often it was found to be an old copy, and how far its log has come."""
        with self._database.read() as connection:
            store_id, generation = connection.execute("SELECT store_id, generation FROM lineage").fetchone()
            return Lineage(bytes(store_id), generation, *head_of(connection))

    def seal_rows(self, key: bytes) -> None:
        """Seal rows under ``key`` from now on, at most 64 bytes, and believe no other.

        Raises `OperatorFault` if another key sealed them before. Durable the first time, in one commit: the key's check
        value, the seals of the rows that are there, audit row.
        """
        check_value = blake2b(b"hsmkme/row-key-check/1", key=key, digest_size=16).digest()
        with self._database.read() as connection:
            known, done = connection.execute("SELECT row_key_check, rows_sealed FROM lineage").fetchone()
        if known not in (None, check_value):
            raise OperatorFault("the digest key of this token is not the one that this store was begun with")
        self._database.rows.use(key)
        if known is None or not done:
            with self._database.write(logged=False) as transaction:
                _seal_once(transaction, check_value)

    def note_anchored(self) -> None:
        """A token remembers this store from now on."""
        with self._database.write(logged=False) as transaction:
            transaction.execute("UPDATE lineage SET anchored = 1 WHERE anchored = 0")

    def is_anchored(self) -> bool:
        """Whether a token remembers this store, as far as the store knows."""
        with self._database.read() as connection:
            return bool(connection.execute("SELECT anchored FROM lineage").fetchone()[0])

    def is_behind(self, remembered: Lineage) -> bool:
        """Whether this is an old copy of the store that is remembered, whatever was written into its log since."""
        now = self.now()
        if now.store_id != remembered.store_id or now.generation != remembered.generation:
            return now.store_id == remembered.store_id and now.generation < remembered.generation
        with self._database.read() as connection:
            row = connection.execute("SELECT hash FROM log WHERE seq = ?", (remembered.log_rows,)).fetchone()
        return remembered.log_rows > 0 and (row is None or remembered.log_hash not in (bytes(row[0]), bytes(32)))

    def give_up(self, remembered: Lineage, entry: Entry, approval: Approval | None = None) -> bool:
        """This store is an older copy of the one that is ``remembered``: no key is delivered that may have been.

        Keys of local links that were not claimed are given up, for nobody else knows which of them were; links to
        peers wait for a reconciliation. Writes, in one commit: nonce of the approval, cursors, zeros over segments,
        link states, the new generation, audit rows. False if another process did it.
        """
        with self._database.write() as transaction:
            (generation,) = transaction.execute("SELECT generation FROM lineage").fetchone()
            if generation > remembered.generation:
                return False
            if approval is not None:
                spend(transaction, approval)
            transaction.execute("UPDATE lineage SET anchored = 0, generation = ?", (remembered.generation + 1,))
            lost = _exhaust_local_blocks(transaction)
            facts = {"log_rows_lost": max(remembered.log_rows - transaction.head()[0], 0), "keys_void": lost}
            transaction.append(entry.knowing(**facts))
            for (link_id,) in transaction.execute("SELECT link_id FROM far_end").fetchall():
                freeze(transaction, link_id, RESTORED, Entry("link.freeze", entry.actor))
            return True


def _seal_once(transaction: Transaction, check_value: bytes) -> None:
    """Seal what was there before there were seals. That was done once if the log says so, whatever the column says:
    a row without a seal is one that somebody wrote since."""
    begin = "UPDATE lineage SET row_key_check = ? WHERE row_key_check IS NULL"
    first = transaction.execute(begin, (check_value,)).rowcount
    if transaction.execute("SELECT rows_sealed FROM lineage").fetchone()[0]:
        return  # by another process, a moment ago
    known = transaction.execute("SELECT seq FROM log WHERE instr(text, '\"event\":\"rows.seal\"') LIMIT 1").fetchone()
    if known is None:
        done = {of: transaction.execute(sealing, {"first": first}).rowcount for of, sealing in _SEAL_FIRST.items()}
        transaction.append(Entry("rows.seal", "custody", done))
    else:
        transaction.append(Entry("alarm.seals-reset", "custody", {"sealed": known[0]}))
    transaction.execute("UPDATE lineage SET rows_sealed = 1")


def _exhaust_local_blocks(transaction: Transaction) -> int:
    """Move the cursors of local blocks to their ends and erase what they pass over; returns how many keys."""
    blocks = transaction.execute(
        "SELECT block_pk, next_index, key_count FROM block WHERE state = 'ready' AND tag IS NULL"
    ).fetchall()
    statement = "UPDATE block SET next_index = key_count, state = 'exhausted' WHERE block_pk = ?"
    transaction.executemany(statement, [(block_pk,) for block_pk, _, _ in blocks])
    erase(transaction, [(pk, cursor, count - cursor) for pk, cursor, count in blocks])
    return sum(count - cursor for _, cursor, count in blocks)
