"""Where keys are taken from: blocks of one size on one link that this end may assign. Inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hsmkme.errors import PoolShort
from hsmkme.model import BlockName, BlockSeal, Demand, Entry, Part, Relation, SealedKey, segment_bytes
from hsmkme.states import BlockState
from hsmkme.store.database import Transaction

_RATE_WINDOW: Final = 16
"""Over how many of the latest blocks of a link its key rate is measured."""


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
class Run:
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


def veins_of(connection: sqlite3.Connection, peer: str, size: int) -> list[Vein]:
    rows = connection.execute(
        "SELECT link_id, key_bits, ready FROM pool JOIN link USING (link_id)"
        " WHERE peer = ? AND link.state = 'open' AND ready > 0",
        (peer,),
    ).fetchall()
    veins = [Vein(link_id, bits, ready, -(-size // bits)) for link_id, bits, ready in rows]
    return sorted(veins, key=lambda vein: (vein.per_key * vein.key_bits - size, vein.per_key, vein.link_id))


def enough(transaction: Transaction, demand: Demand) -> Iterator[Vein]:
    """The veins to draw on, the least wasteful first; raises `PoolShort` if they cannot give all together."""
    veins = veins_of(transaction.connection, demand.peer, demand.size)
    available, wanted = sum(vein.keys for vein in veins), len(demand.key_ids)
    if available < wanted:
        raise PoolShort(available, key_rate(transaction, demand))
    for vein in veins:
        if wanted > 0 and vein.keys:
            yield vein
            wanted -= vein.keys


def key_rate(transaction: Transaction, demand: Demand) -> float:
    """Keys of the size wanted per second that links to the peer received lately; 0.0 when nothing can be said.

    What was carried here (the peer's, without a tag) came from no device.
    """
    count, first, keys = transaction.execute(
        "SELECT count(*), min(deposited_at), sum(key_count * 1.0 / ((:size + key_bits - 1) / key_bits))"
        " FROM (SELECT deposited_at, key_count, key_bits FROM block JOIN link USING (link_id)"
        " WHERE peer = :peer AND (mine = 1 OR tag IS NOT NULL) ORDER BY block_pk DESC LIMIT :window)",
        {"size": demand.size, "peer": demand.peer, "window": _RATE_WINDOW},
    ).fetchone()
    return float(keys / max(transaction.now() - first, 1)) if count > 1 else 0.0


def take(transaction: Transaction, vein: Vein, wanted: int) -> list[Run]:
    """Move the cursors of ready blocks over ``wanted`` segments."""
    stride, runs = segment_bytes(vein.key_bits), []
    while wanted:
        row = transaction.execute(
            "SELECT block_pk, block_id, epoch, key_count, next_index, wrapped FROM block"
            " WHERE link_id = ? AND key_bits = ? AND state = 'ready' AND mine = 1 ORDER BY block_pk LIMIT 1",
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
        runs.append(Run(block_pk, seal, first, count, sealed))
        wanted -= count
    return runs


def cut(runs: list[Run], per_key: int) -> Iterator[tuple[tuple[Part, ...], str]]:
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


def relation_id(transaction: Transaction, relation: Relation) -> int:
    transaction.execute(
        "INSERT INTO relation (master, slaves) VALUES (?, ?) ON CONFLICT DO NOTHING", (relation.master, relation.packed)
    )
    (number,) = transaction.execute(
        "SELECT relation_id FROM relation WHERE master = ? AND slaves = ?", (relation.master, relation.packed)
    ).fetchone()
    return int(number)


def claim_entry(entry: Entry, demand: Demand, keys: Sequence[SealedKey]) -> Entry:
    """What the log says of keys that are claimed."""
    seals = {part.block for key in keys for part in key.parts}
    return entry.knowing(
        master=demand.relation.master,
        slaves=list(demand.relation.slaves),
        size=demand.size,
        key_IDs=[str(key.key_id) for key in keys],
        blocks=sorted(f"{seal.name.link_id}/{seal.name.block_id}" for seal in seals),
        segments=segments_of(
            (f"{part.block.name.link_id}/{part.block.name.block_id}", part.first, part.count)
            for key in keys
            for part in key.parts
        ),
        epochs=sorted({seal.epoch for seal in seals}),
    )


def segments_of(places: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What the log says of where keys are, one key after the other: block, first segment and count of each run."""
    runs: list[tuple[str, int, int]] = []
    for block, first, count in places:
        if runs and runs[-1][0] == block and runs[-1][1] + runs[-1][2] == first:
            block, first, count = block, runs[-1][1], runs.pop()[2] + count
        runs.append((block, first, count))
    return runs
