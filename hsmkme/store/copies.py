"""Copies of block keys: what further tokens wrap, so that any of them opens the block. Read when the first fails."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from hsmkme.errors import StoreTampered
from hsmkme.model import BlockName, BlockSeal, Entry, SealedBlock
from hsmkme.store.database import Database, Transaction
from hsmkme.store.seals import is_sealed, seal_of

IN_REACH: Final = """
(block.epoch NOT IN (SELECT value FROM json_each({0})) OR EXISTS (SELECT 1 FROM copy
    WHERE copy.block_pk = block.block_pk AND copy.epoch NOT IN (SELECT value FROM json_each({0}))))
"""
"""The condition that a block is under an epoch that is not away; `packed` ones are the parameter."""

_MISSING: Final = f"""
SELECT link_id, block_id, block.epoch, key_bits, wrapped FROM epoch JOIN block ON block.epoch = epoch.epoch
WHERE epoch.state <> 'destroyed' AND token <> :token AND link_id = :link
    AND block.state <> 'retired' AND block.state <> 'frozen' AND {IN_REACH.format(":away")}
    AND NOT EXISTS (SELECT 1 FROM copy JOIN epoch AS other ON other.epoch = copy.epoch
        WHERE copy.block_pk = block.block_pk AND other.token = :token)
ORDER BY block_pk LIMIT :limit
"""  # noqa: S608 - ours alone
_OWN: Final = "SELECT epoch, wrapped FROM block WHERE link_id = ? AND block_id = ?"
_COPIES: Final = """
SELECT copy.epoch, copy.wrapped FROM copy JOIN block USING (block_pk) WHERE link_id = ? AND block_id = ?
"""
_KEEP: Final = f"""
INSERT INTO copy (block_pk, epoch, wrapped, seal)
VALUES (:block, :epoch, :wrapped, {seal_of("copy", block_pk=":block", epoch=":epoch", wrapped=":wrapped")})
"""  # noqa: S608 - ours alone
_WRAP: Final = f"""
UPDATE epoch SET wraps = wraps + :more, seal = {seal_of("epoch", wraps="wraps + :more")}
WHERE epoch = :epoch AND {is_sealed("epoch")}
"""  # noqa: S608 - ours alone
_LIVE: Final = """
SELECT block_pk FROM block WHERE link_id = ?1 AND block_id = ?2 AND state <> 'retired'
    AND ((epoch = ?3 AND wrapped = ?4) OR EXISTS (SELECT 1 FROM copy
        WHERE copy.block_pk = block.block_pk AND copy.epoch = ?3 AND copy.wrapped = ?4))
"""
_ALTERED: Final = f"SELECT epoch FROM epoch WHERE NOT {is_sealed('epoch')} LIMIT 1"  # noqa: S608 - ours alone


def packed(epochs: Collection[int]) -> str:
    """Epochs as `IN_REACH` takes them."""
    return json.dumps(sorted(epochs))


class Copies:
    """The copies that are missing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def missing(self, link_id: str, token: str, away: Collection[int], limit: int) -> list[BlockSeal]:
        """Up to ``limit`` live blocks of a link that ``token`` wraps no key of, the oldest first, each as it is
        wrapped under an epoch that is not ``away``."""
        values = {"link": link_id, "token": token, "away": packed(away), "limit": limit}
        with self._database.read() as connection:
            rows = connection.execute(_MISSING, values).fetchall()
            seals = [BlockSeal(BlockName(link, name), *rest) for link, name, *rest in rows]
            return [in_reach(connection, seal, away) for seal in seals]

    def add(self, made: Sequence[tuple[BlockSeal, bytes]], epoch: int, entry: Entry) -> int:
        """Keep copies that are wrapped under ``epoch``; returns how many.

        Writes, in one commit: a copy for each block that is still as it was read, audit row.
        """
        with self._database.write() as transaction:
            done = [seal for seal, wrapped in made if _add(transaction, seal, wrapped, epoch)]
            if done:
                count_wraps(transaction, [epoch] * len(done))
                names = [f"{seal.name.link_id}/{seal.name.block_id}" for seal in done]
                transaction.append(entry.knowing(to=epoch, blocks=names))
            return len(done)


def in_reach(connection: sqlite3.Connection, seal: BlockSeal, away: Collection[int]) -> BlockSeal:
    """The seal that a block has by now: its own, or a copy if that is of an epoch ``away`` and there is one."""
    name = (seal.name.link_id, seal.name.block_id)
    own = connection.execute(_OWN, name).fetchone()
    if own is None:
        return seal
    copies = connection.execute(_COPIES, name).fetchall() if own[0] in away else []
    epoch, wrapped = next((copy for copy in copies if copy[0] not in away), own)
    return seal._replace(epoch=epoch, wrapped=wrapped)


def epochs_of(block: SealedBlock) -> dict[str, object]:
    """What the log says of the epochs that a new block is under."""
    also = {"also": [copy.epoch for copy in block.copies]} if block.copies else {}
    return {"epoch": block.seal.epoch, **also}


def keep_rest(transaction: Transaction, block_pk: int, block: SealedBlock) -> None:
    """What is not in the row of a new block: its segments and the copies of its key."""
    transaction.execute("INSERT INTO segments VALUES (?, ?)", (block_pk, block.segments))
    for copy in block.copies:
        _keep(transaction, block_pk, copy.epoch, copy.wrapped)


def _keep(transaction: Transaction, block_pk: int, epoch: int, wrapped: bytes) -> None:
    transaction.execute(_KEEP, {"block": block_pk, "epoch": epoch, "wrapped": wrapped})


def require_epochs(connection: sqlite3.Connection) -> None:
    """Raise `StoreTampered` if the row of an epoch is not what was sealed."""
    altered = connection.execute(_ALTERED).fetchone()
    if altered is not None:
        raise StoreTampered(f"the row of epoch {altered[0]} was tampered with")


def count_wraps(transaction: Transaction, epochs: Iterable[int]) -> None:
    """Note that so many block keys more were wrapped under each of ``epochs``; once in a transaction."""
    for epoch, more in Counter(epochs).items():
        if transaction.execute(_WRAP, {"epoch": epoch, "more": more}).rowcount != 1:
            raise StoreTampered(f"the row of epoch {epoch} was tampered with")


def _add(transaction: Transaction, seal: BlockSeal, wrapped: bytes, epoch: int) -> bool:
    name = (seal.name.link_id, seal.name.block_id)
    row = transaction.execute(_LIVE, (*name, seal.epoch, seal.wrapped)).fetchone()
    if row is not None:
        _keep(transaction, row[0], epoch, wrapped)
    return row is not None
