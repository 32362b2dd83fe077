"""Where keys are taken from: blocks of one size on one link that this end may assign. Inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import PoolShort, StoreTampered
from hsmkme.model import BlockName, BlockSeal, Demand, Entry, Part, SealedKey, segment_bytes
from hsmkme.states import BlockState
from hsmkme.store.copies import IN_REACH, packed
from hsmkme.store.database import Transaction
from hsmkme.store.seals import is_sealed
from hsmkme.store.segments import Places, Run, joined, shares

_RATE_WINDOW: Final = 16
"""Over how many of the latest blocks of each link the key rate is measured."""

_LATEST: Final = """
SELECT deposited_at, key_count, key_bits FROM block
WHERE link_id = ? AND key_bits > 0 AND (mine = 1 OR tag IS NOT NULL) ORDER BY block_pk DESC LIMIT ?
"""
"""What was carried here (the peer's, without a tag) came from no device."""

_NEXT_OF: Final = f"""
SELECT block_pk, block_id, epoch, wrapped, key_count, next_index, coalesce(substr(sealed, next_index * ? + 1,
    min(?, key_count - next_index) * ?), x''), next_index = segments AND next_index BETWEEN 0 AND key_count - 1
    AND {is_sealed("block")}
FROM block LEFT JOIN taken USING (block_pk) LEFT JOIN segments USING (block_pk)
WHERE link_id = ? AND key_bits = ? AND state = 'ready' AND mine = 1 AND max(deposited_at, not_before) >= ?
"""  # noqa: S608 - ours alone
_NEXT: Final = f"{_NEXT_OF} ORDER BY block_pk LIMIT 1"
_NEXT_IN_REACH: Final = f"{_NEXT_OF} AND {IN_REACH.format('?7')} ORDER BY block_pk LIMIT 1"
_READY_IN_REACH: Final = f"""
SELECT coalesce(sum(key_count - next_index), 0) FROM block
WHERE link_id = :link AND key_bits = :bits AND state = 'ready' AND mine = 1
    AND max(deposited_at, not_before) >= :oldest AND {IN_REACH.format(":away")}
"""  # noqa: S608 - ours alone
"""Segments that are lost do not open: the token's keeper quarantines the block."""

_POOLS: Final = """
SELECT link_id, key_bits, ready, ttl FROM pool JOIN link USING (link_id)
WHERE peer = ? AND link.state = 'open' AND ready > 0
"""
AGED: Final = """
SELECT coalesce(sum(key_count - next_index), 0) FROM block WHERE link_id = :link AND key_bits = :bits
    AND state IN ('deposited', 'ready') AND state = 'ready' AND mine = 1
    AND deposited_at < :oldest AND not_before < :oldest
"""
"""How many keys are too old. Mostly upkeep has ended what is, so that there is little to be added up."""

_MOVE: Final = "UPDATE block SET next_index = ? WHERE block_pk = ?"
_EXHAUST: Final = "UPDATE block SET next_index = ?, state = 'exhausted' WHERE block_pk = ?"
"""Apart: a statement that sets the state rewrites the indexes of it."""


@dataclass(frozen=True, slots=True)
class Vein:
    """Keys of one size on one link; a key of another size is joined and cut from ``per_key`` of them.

    What was deposited before ``oldest`` is too old. ``away``: see `Demand`."""

    link_id: str
    key_bits: int
    ready: int
    per_key: int
    oldest: int = 0
    away: frozenset[int] = frozenset()

    @property
    def keys(self) -> int:
        """How many keys of the size asked for it can give."""
        return self.ready // self.per_key


def veins_of(
    connection: sqlite3.Connection, peer: str, size: int, now: int, away: frozenset[int] = frozenset()
) -> list[Vein]:
    """What can give keys of ``size`` bits on open links to ``peer``, the least wasteful first."""
    veins = []
    for link_id, bits, ready, ttl in connection.execute(_POOLS, (peer,)).fetchall():
        oldest = now - ttl if ttl else 0
        if away:
            found = _in_reach(connection, link_id, bits, oldest, away)
        else:
            found = max(ready - (_aged(connection, link_id, bits, oldest) if ttl else 0), 0)
        veins.append(Vein(link_id, bits, found, -(-size // bits), oldest, away))
    return sorted(veins, key=lambda vein: (vein.per_key * vein.key_bits - size, vein.per_key, vein.link_id))


def _aged(connection: sqlite3.Connection, link_id: str, key_bits: int, oldest: int) -> int:
    values = {"link": link_id, "bits": key_bits, "oldest": oldest}
    return int(connection.execute(AGED, values).fetchone()[0])


def _in_reach(
    connection: sqlite3.Connection, link_id: str, key_bits: int, oldest: int, away: frozenset[int]
) -> int:
    """Nobody counts what is in reach while all is: this reads every block that is ready."""
    values = {"link": link_id, "bits": key_bits, "oldest": oldest, "away": packed(away)}
    return int(connection.execute(_READY_IN_REACH, values).fetchone()[0])


def draw(
    transaction: Transaction, peer: str, size: int, away: frozenset[int], wanted: int
) -> Iterator[tuple[tuple[Part, ...], Places]]:
    """Take ``wanted`` keys of ``size`` bits from links to ``peer``, the least wasteful veins first: the parts of each,
    and where they are. Raises `PoolShort` if all veins together cannot give them. ``away``: see `Demand`."""
    veins = veins_of(transaction.connection, peer, size, transaction.now(), away)
    available = sum(vein.keys for vein in veins)
    if available < wanted:
        raise PoolShort(available, key_rate(transaction, peer, size))
    for vein in veins:
        keys = min(wanted, vein.keys)
        yield from cut(take(transaction, vein, keys * vein.per_key), vein.per_key)
        wanted -= keys


def key_rate(transaction: Transaction, peer: str, size: int) -> float:
    """Keys of ``size`` bits per second that links to ``peer`` received lately; 0.0 when nothing can be said."""
    links = transaction.execute("SELECT link_id FROM link WHERE peer = ?", (peer,)).fetchall()
    latest = [row for (link,) in links for row in transaction.execute(_LATEST, (link, _RATE_WINDOW)).fetchall()]
    if len(latest) < 2:
        return 0.0
    keys = sum(key_count / -(-size // key_bits) for _, key_count, key_bits in latest)
    return float(keys / max(transaction.now() - min(row[0] for row in latest), 1))


def take(transaction: Transaction, vein: Vein, wanted: int) -> list[Run]:
    """Move the cursors of ready blocks over ``wanted`` segments."""
    stride, runs = segment_bytes(vein.key_bits), []
    statement, further = (_NEXT_IN_REACH, (packed(vein.away),)) if vein.away else (_NEXT, ())
    while wanted:
        place = (vein.link_id, vein.key_bits, vein.oldest, *further)
        row = transaction.execute(statement, (stride, wanted, stride, *place)).fetchone()
        if row is None or not row[-1]:
            raise StoreTampered("the pool counts keys that are not there, or a block says what cannot be")
        block_pk, block_id, epoch, wrapped, key_count, first, sealed, _ = row
        count = min(wanted, key_count - first)
        ends = first + count == key_count
        transaction.execute(_EXHAUST if ends else _MOVE, (first + count, block_pk))
        state = BlockState.EXHAUSTED if ends else BlockState.READY
        seal = BlockSeal(BlockName(vein.link_id, block_id), epoch, vein.key_bits, wrapped)
        runs.append(Run(block_pk, seal, state, first, count, sealed))
        wanted -= count
    return runs


def cut(runs: Sequence[Run], per_key: int) -> Iterator[tuple[tuple[Part, ...], Places]]:
    """Cut runs into keys of ``per_key`` segments; gives the parts and where they are."""
    of_block = {run.block_pk: run for run in runs}
    for places in shares(where(runs), per_key):
        yield tuple([of_block[block_pk].part(first, count) for block_pk, first, count in places]), places


def where(runs: Sequence[Run]) -> Places:
    """Where runs are, as rows of keys say it."""
    return [(run.block_pk, run.first, run.count) for run in runs]


def claim_entry(entry: Entry, demand: Demand, keys: Sequence[SealedKey]) -> Entry:
    """What the log says of keys that are claimed."""
    return claim_entry_of(entry, demand, [key.key_id for key in keys], [part for key in keys for part in key.parts])


def claim_entry_of(entry: Entry, demand: Demand, key_ids: Sequence[UUID], parts: Sequence[Part | Run]) -> Entry:
    """The same of keys that are ``parts`` cut one after the other."""
    places = [(f"{part.block.name.link_id}/{part.block.name.block_id}", part.first, part.count) for part in parts]
    return entry.knowing(
        master=demand.relation.master,
        slaves=list(demand.relation.slaves),
        size=demand.size,
        key_IDs=[str(key_id) for key_id in key_ids],
        blocks=sorted({block for block, _, _ in places}),
        segments=joined(places),
        epochs=sorted({part.block.epoch for part in parts}),
    )
