"""Blocks that are revoked, at this end or at the other: nothing of them stays in the store. Inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from hsmkme.model import Entry
from hsmkme.store.database import Transaction
from hsmkme.store.rows import KeyRow, rows_of, void_rows

REVOCABLE: Final = "('deposited', 'ready', 'frozen', 'exhausted')"

KEYS_OF_BLOCKS: Final = (
    "SELECT DISTINCT key_id FROM key_of_block WHERE block_pk IN (SELECT value FROM json_each(?))"
)
"""Of blocks that are shared with a peer. Never reads all keys: there may be millions, and the peer waits."""


def keys_of(connection: sqlite3.Connection, block_pks: Sequence[int]) -> list[KeyRow]:
    """Every key that has a part in one of the blocks, which are shared with a peer; whatever became of it, pads too."""
    found = connection.execute(KEYS_OF_BLOCKS, (json.dumps(list(block_pks)),)).fetchall()
    return rows_of(connection, [UUID(bytes=key_id) for (key_id,) in found])


def revoke(transaction: Transaction, link_id: str, block_ids: Sequence[str], entry: Entry) -> None:
    """End blocks of which the two ends cannot both have the bytes, and what was claimed of them: nobody can collect it.

    Writes: states, rows of keys, audit rows; zeros over the segments, and they are deleted.
    """
    ended = {}
    for block_id in block_ids:
        row = transaction.execute(
            "UPDATE block SET state = 'revoked' WHERE link_id = ? AND block_id = ?"  # noqa: S608 - constants
            f" AND state IN {REVOCABLE} RETURNING block_pk",
            (link_id, block_id),
        ).fetchone()
        if row is not None:
            ended[row[0]] = block_id
    if ended:
        transaction.append(entry.knowing(link=link_id, blocks=list(ended.values())))
        void = Entry("key.void", entry.actor, {"reason": "its block ended"})
        void_rows(transaction, keys_of(transaction.connection, list(ended)), void, tell=False)
        wipe_blocks(transaction, list(ended))


def wipe_blocks(transaction: Transaction, block_pks: Sequence[int]) -> None:
    """Erase those of the blocks that are revoked. Keys of theirs that are not ended must be void before."""
    for pk in block_pks:
        revoked = transaction.execute(
            "UPDATE block SET live = 0, state = 'retired' WHERE block_pk = ? AND state = 'revoked'", (pk,)
        )
        if revoked.rowcount:
            transaction.execute("DELETE FROM segments WHERE block_pk = ?", (pk,))
            transaction.execute("DELETE FROM assigned_segment WHERE block_pk = ?", (pk,))
