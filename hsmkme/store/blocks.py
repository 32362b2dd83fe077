"""Blocks: deposit and claim. Each verb is one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from hsmkme.errors import BlockConflict, BlockReplayed, PoolFull, PoolShort
from hsmkme.model import (
    BlockName,
    BlockSeal,
    Demand,
    Entry,
    Part,
    Relation,
    Retry,
    SealedBlock,
    SealedKey,
    segment_bytes,
)
from hsmkme.states import BlockState, KeyState
from hsmkme.store.answers import remember
from hsmkme.store.database import Database, Transaction

_RATE_WINDOW: Final = 16
"""Over how many of the latest blocks of a link its key rate is measured."""


class Outcome(StrEnum):
    """What became of a deposit that was not refused."""

    TAKEN = "taken"
    ALREADY = "already"


@dataclass(frozen=True, slots=True)
class Vein:
    """Keys of one size on one link; a key of another size is joined and cut from ``per_key`` of them."""

    link_id: str
    key_bits: int
    ready: int
    per_key: int

    @property
    def keys(self) -> int:
        """How many keys of the size asked for it can give."""
        return self.ready // self.per_key


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive segments of one block taken by a claim."""

    block_pk: int
    seal: BlockSeal
    first: int
    count: int
    sealed: bytes

    def part(self, offset: int, count: int) -> Part:
        stride = segment_bytes(self.seal.key_bits)
        data = self.sealed[offset * stride : (offset + count) * stride]
        return Part(self.seal, self.first + offset, count, data)


class Blocks:
    """The pool."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def deposit(self, block: SealedBlock, state: BlockState, limit: int, entry: Entry) -> Outcome:
        """Insert ``block`` in ``state`` unless it is known; idempotent by link, block id and digest.

        Writes, in one commit: block, segments, audit row. Raises `BlockConflict` (the stored block is frozen
        and an alarm recorded), `BlockReplayed` (an alarm is recorded) and `PoolFull` (more than ``limit`` keys).
        """
        name = block.seal.name
        facts = entry.knowing(link=name.link_id, block=name.block_id, keys=block.key_count, bits=block.seal.key_bits)
        with self._database.write() as transaction:
            clash = _clash(transaction, block)
            if clash is None:
                _refuse_overflow(transaction, name.link_id, block.key_count, limit)
                _insert(transaction, block, state)
                transaction.append(facts.knowing(epoch=block.seal.epoch))
                return Outcome.TAKEN
            if clash.known == name and clash.same_keys:
                return Outcome.ALREADY
            if clash.known == name:
                _freeze(transaction, name)
                transaction.append(Entry("alarm.block-conflict", entry.actor, facts.facts))
            else:
                replayed = facts.knowing(known_link=clash.known.link_id, known_block=clash.known.block_id)
                transaction.append(Entry("alarm.block-replayed", entry.actor, replayed.facts))
        raise _refusal(name, clash)

    def claim(self, demand: Demand, entry: Entry, retry: Retry | None = None) -> list[SealedKey]:
        """Take keys for ``demand`` and mark them delivered; all of them or, by `PoolShort`, none.

        Writes, in one commit: cursors of the blocks, a row for each key, the answer if there may be a
        ``retry``, audit row. After it the keys count as delivered, whatever happens to the caller.
        """
        with self._database.write() as transaction:
            keys: list[SealedKey] = []
            rows: list[tuple[UUID, str]] = []
            waiting = list(reversed(demand.key_ids))
            for vein in _enough(transaction, demand):
                runs = _take(transaction, vein, min(len(waiting), vein.keys) * vein.per_key)
                for parts, places in _cut(runs, vein.per_key):
                    key_id = waiting.pop()
                    keys.append(SealedKey(key_id, demand.size, parts))
                    rows.append((key_id, places))
            relation_id = _relation_id(transaction, demand.relation)
            now = transaction.now()
            transaction.executemany(
                "INSERT INTO key (key_id, relation_id, state, size, parts, claimed_at) VALUES (?, ?, ?, ?, ?, ?)",
                [(k.bytes, relation_id, KeyState.DELIVERED.value, demand.size, p, now) for k, p in rows],
            )
            if retry is not None:
                remember(transaction, retry, demand.key_ids)
            transaction.append(_claimed(entry, demand, keys))
            return keys

    def veins(self, peer: str, size: int) -> list[Vein]:
        """What can give keys of ``size`` bits on open links to ``peer`` now."""
        with self._database.read() as connection:
            return _veins(connection, peer, size)

    def freeze(self, name: BlockName, entry: Entry) -> None:
        """Quarantine a block: nothing of it is claimed or collected while it is frozen."""
        with self._database.write() as transaction:
            if _freeze(transaction, name):
                transaction.append(entry.knowing(link=name.link_id, block=name.block_id))


@dataclass(frozen=True, slots=True)
class _Clash:
    known: BlockName
    same_keys: bool


def _clash(transaction: Transaction, block: SealedBlock) -> _Clash | None:
    name = block.seal.name
    row = transaction.execute(
        "SELECT digest, key_bits FROM block WHERE link_id = ? AND block_id = ?", (name.link_id, name.block_id)
    ).fetchone()
    if row is not None:
        return _Clash(name, row == (block.digest, block.seal.key_bits))
    row = transaction.execute("SELECT link_id, block_id FROM block WHERE digest = ?", (block.digest,)).fetchone()
    return None if row is None else _Clash(BlockName(*row), True)


def _refusal(name: BlockName, clash: _Clash) -> BlockConflict | BlockReplayed:
    if clash.known == name:
        return BlockConflict(
            f"block {name.block_id} of link {name.link_id} is known with other bytes: nothing was taken, the stored "
            "block is frozen. Find out which of the two the device meant."
        )
    return BlockReplayed(
        f"the bytes of block {name.block_id} are known as block {clash.known.block_id} of link "
        f"{clash.known.link_id}: nothing was taken. The device repeats itself or its randomness failed."
    )


def _refuse_overflow(transaction: Transaction, link_id: str, more: int, limit: int) -> None:
    """Keys that wait for the peer's confirmation take room too: a peer that is away must not fill the disk."""
    (held,) = transaction.execute(
        "SELECT (SELECT coalesce(sum(ready), 0) FROM pool WHERE link_id = :link)"
        " + (SELECT coalesce(sum(key_count), 0) FROM block WHERE link_id = :link AND state = 'deposited')",
        {"link": link_id},
    ).fetchone()
    if held + more > limit:
        raise PoolFull(f"link {link_id} holds {held} keys of at most {limit}: no room for {more} more now")


def _insert(transaction: Transaction, block: SealedBlock, state: BlockState) -> None:
    name, seal = block.seal.name, block.seal
    cursor = transaction.execute(
        "INSERT INTO block (link_id, block_id, state, epoch, key_bits, key_count, live, wrapped, digest, deposited_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(name.link_id, name.block_id, state.value, seal.epoch, seal.key_bits, block.key_count, block.key_count),
            *(seal.wrapped, block.digest, transaction.now()),
        ),
    )
    transaction.execute("INSERT INTO segments VALUES (?, ?)", (cursor.lastrowid, block.segments))


def _freeze(transaction: Transaction, name: BlockName) -> bool:
    cursor = transaction.execute(
        "UPDATE block SET state = 'frozen' WHERE link_id = ? AND block_id = ?"
        " AND state IN ('deposited', 'ready', 'exhausted')",
        (name.link_id, name.block_id),
    )
    return cursor.rowcount == 1


def _veins(connection: sqlite3.Connection, peer: str, size: int) -> list[Vein]:
    rows = connection.execute(
        "SELECT link_id, key_bits, ready FROM pool JOIN link USING (link_id)"
        " WHERE peer = ? AND link.state = 'open' AND ready > 0",
        (peer,),
    ).fetchall()
    veins = [Vein(link_id, bits, ready, -(-size // bits)) for link_id, bits, ready in rows]
    return sorted(veins, key=lambda vein: (vein.per_key * vein.key_bits - size, vein.per_key, vein.link_id))


def _enough(transaction: Transaction, demand: Demand) -> Iterator[Vein]:
    """The veins to draw on, the least wasteful first; raises `PoolShort` if they cannot give all together."""
    veins = _veins(transaction.connection, demand.peer, demand.size)
    available, wanted = sum(vein.keys for vein in veins), len(demand.key_ids)
    if available < wanted:
        raise PoolShort(available, _key_rate(transaction, demand))
    for vein in veins:
        if wanted > 0 and vein.keys:
            yield vein
            wanted -= vein.keys


def _key_rate(transaction: Transaction, demand: Demand) -> float:
    """Keys of the size wanted per second that links to the peer received lately; 0.0 when nothing can be said."""
    count, first, keys = transaction.execute(
        "SELECT count(*), min(deposited_at), sum(key_count * 1.0 / ((:size + key_bits - 1) / key_bits))"
        " FROM (SELECT deposited_at, key_count, key_bits FROM block JOIN link USING (link_id)"
        " WHERE peer = :peer ORDER BY block_pk DESC LIMIT :window)",
        {"size": demand.size, "peer": demand.peer, "window": _RATE_WINDOW},
    ).fetchone()
    return float(keys / max(transaction.now() - first, 1)) if count > 1 else 0.0


def _take(transaction: Transaction, vein: Vein, wanted: int) -> list[_Run]:
    """Move the cursors of ready blocks over ``wanted`` segments."""
    stride, runs = segment_bytes(vein.key_bits), []
    while wanted:
        row = transaction.execute(
            "SELECT block_pk, block_id, epoch, key_count, next_index, wrapped FROM block"
            " WHERE link_id = ? AND key_bits = ? AND state = 'ready' ORDER BY block_pk LIMIT 1",
            (vein.link_id, vein.key_bits),
        ).fetchone()
        block_pk, block_id, epoch, key_count, first, wrapped = row
        count = min(wanted, key_count - first)
        found = transaction.execute(
            "SELECT coalesce(substr(sealed, ?, ?), x'') FROM segments WHERE block_pk = ?",
            (first * stride + 1, count * stride, block_pk),
        ).fetchone()
        sealed = found[0] if found else b""  # lost segments do not open: the token's keeper quarantines the block
        state = BlockState.EXHAUSTED if first + count == key_count else BlockState.READY
        transaction.execute(
            "UPDATE block SET next_index = ?, state = ? WHERE block_pk = ?", (first + count, state.value, block_pk)
        )
        seal = BlockSeal(BlockName(vein.link_id, block_id), epoch, vein.key_bits, wrapped)
        runs.append(_Run(block_pk, seal, first, count, sealed))
        wanted -= count
    return runs


def _cut(runs: list[_Run], per_key: int) -> Iterator[tuple[tuple[Part, ...], str]]:
    """Cut runs into keys of ``per_key`` segments; gives the parts and where they are, as the row keeps it."""
    parts: list[Part] = []
    places: list[tuple[int, int, int]] = []
    missing = per_key
    for run in runs:
        offset = 0
        while offset < run.count:
            count = min(missing, run.count - offset)
            parts.append(run.part(offset, count))
            places.append((run.block_pk, run.first + offset, count))
            offset, missing = offset + count, missing - count
            if not missing:
                yield tuple(parts), json.dumps(places, separators=(",", ":"))
                parts, places, missing = [], [], per_key


def _relation_id(transaction: Transaction, relation: Relation) -> int:
    slaves = json.dumps(relation.slaves, separators=(",", ":"))
    transaction.execute(
        "INSERT INTO relation (master, slaves) VALUES (?, ?) ON CONFLICT DO NOTHING", (relation.master, slaves)
    )
    (relation_id,) = transaction.execute(
        "SELECT relation_id FROM relation WHERE master = ? AND slaves = ?", (relation.master, slaves)
    ).fetchone()
    return int(relation_id)


def _claimed(entry: Entry, demand: Demand, keys: list[SealedKey]) -> Entry:
    seals = {part.block for key in keys for part in key.parts}
    return entry.knowing(
        master=demand.relation.master,
        slaves=list(demand.relation.slaves),
        size=demand.size,
        key_IDs=[str(key.key_id) for key in keys],
        blocks=sorted(f"{seal.name.link_id}/{seal.name.block_id}" for seal in seals),
        epochs=sorted({seal.epoch for seal in seals}),
    )
