"""Blocks: deposit and claim. Each verb is one transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from hsmkme.errors import BlockConflict, BlockReplayed, DepositRefused, PoolFull
from hsmkme.model import (
    BlockName,
    Demand,
    Entry,
    Relation,
    Retry,
    SealedBlock,
    SealedKey,
)
from hsmkme.states import BlockState, KeyState
from hsmkme.store.answers import remember
from hsmkme.store.copies import epochs_of, keep_rest
from hsmkme.store.database import Database, Transaction
from hsmkme.store.examining import count_pools
from hsmkme.store.locks import unlock
from hsmkme.store.rows import Batch, insert_rows
from hsmkme.store.segments import Places
from hsmkme.store.timekeeping import require_time
from hsmkme.store.veins import Vein, claim_entry, draw, veins_of


class Outcome(StrEnum):
    """What became of a deposit that was not refused."""

    TAKEN = "taken"
    ALREADY = "already"


class Claim(NamedTuple):
    """Keys for a ``demand``, by whom, and what to remember if the request may be repeated."""

    demand: Demand
    entry: Entry
    retry: Retry | None


class Blocks:
    """The pool."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def deposit(self, blocks: Sequence[SealedBlock], state: BlockState, limit: int, entry: Entry) -> list[Outcome]:
        """Insert blocks in ``state`` unless they are known; idempotent by link, block id and digest.

        One that is not to be released before a time is deposited until then.

        Writes, in one commit: blocks, segments, audit rows. Raises `BlockConflict` (the stored block is frozen
        and an alarm recorded), `BlockReplayed` (an alarm is recorded) and `PoolFull` (more than ``limit`` keys)
        for the first that is refused: those before it are stored, it and those after it are not.
        """
        outcomes: list[Outcome] = []
        refusal: DepositRefused | None = None
        with self._database.write() as transaction:
            try:
                outcomes = [_take(transaction, block, state, limit, entry) for block in blocks]
            except DepositRefused as refused:  # what was written until then is to stay
                refusal = refused
        if refusal is not None:
            raise refusal
        return outcomes

    def claim(self, claims_now: Callable[[], Sequence[Claim]]) -> list[list[SealedKey]]:
        """Take keys for each claim and mark them delivered; all of them or, by `PoolShort`, none.

        The claims are asked for once nobody else writes. Writes, in one commit: cursors of the blocks, a row for each
        key, the answers to requests that may be repeated, audit rows. After it the keys count as delivered, whatever
        happens to the caller.
        """
        with self._database.write() as transaction:
            clock = require_time(transaction)
            claims = claims_now()
            unlock(transaction, clock, claims[0].entry.actor)
            outcomes = _drawn(transaction, [claim.demand for claim in claims])
            for demand, _, retry in claims:
                if retry is not None:
                    remember(transaction, retry, demand.key_ids)
            transaction.append_all(
                [claim_entry(entry, demand, keys) for (demand, entry, _), keys in zip(claims, outcomes, strict=True)]
            )
            return outcomes

    def veins(self, peer: str, size: int) -> list[Vein]:
        """What can give keys of ``size`` bits on open links to ``peer`` now."""
        with self._database.read() as connection:
            return veins_of(connection, peer, size, int(self._database.clock()))

    def freeze(self, name: BlockName, entry: Entry) -> bool:
        """Quarantine a block: nothing of it is claimed or collected while it is frozen. False if it was."""
        with self._database.write() as transaction:
            frozen = freeze_block(transaction, name)
            if frozen:
                count_pools(transaction)  # the row may have been altered: it did not leave the pool it was in
                transaction.append(entry.knowing(link=name.link_id, block=name.block_id))
            return frozen


def _drawn(transaction: Transaction, demands: Sequence[Demand]) -> list[list[SealedKey]]:
    """Keys for each of ``demands``, with their rows: those from the same peer and of one size are taken at once."""
    wanted: Counter[tuple[str, int, frozenset[int]]] = Counter()
    for demand in demands:
        wanted[demand.peer, demand.size, demand.away] += len(demand.key_ids)
    sources = {kind: draw(transaction, *kind, count) for kind, count in wanted.items()}
    rows: dict[tuple[Relation, int], tuple[list[UUID], list[Places]]] = defaultdict(lambda: ([], []))
    outcomes = []
    for demand in demands:
        key_ids, places = rows[demand.relation, demand.size]
        keys = []
        for key_id, (parts, where) in zip(demand.key_ids, sources[demand.peer, demand.size, demand.away], strict=False):
            keys.append(SealedKey(key_id, demand.size, parts))
            places.append(where)
        key_ids += demand.key_ids
        outcomes.append(keys)
    for (relation, size), (key_ids, places) in rows.items():
        insert_rows(transaction, Batch(relation, size, KeyState.DELIVERED), key_ids, places)
    return outcomes


def _take(transaction: Transaction, block: SealedBlock, state: BlockState, limit: int, entry: Entry) -> Outcome:
    name = block.seal.name
    facts = entry.knowing(link=name.link_id, block=name.block_id, keys=block.key_count, bits=block.seal.key_bits)
    clash = _clash(transaction, block)
    if clash is None:
        _refuse_overflow(transaction, name.link_id, block.key_count, limit)
        _insert(transaction, block, BlockState.DEPOSITED if block.not_before else state)
        locked = {"not_before": block.not_before} if block.not_before else {}
        transaction.append(facts.knowing(**epochs_of(block), **locked))
        return Outcome.TAKEN
    if clash.known == name and clash.same_keys:
        if clash.not_before != block.not_before:
            raise DepositRefused(
                f"block {name.block_id} of link {name.link_id} is known, with another time before which it is not "
                f"released ({clash.not_before}, not {block.not_before}): nothing was changed"
            )
        return Outcome.ALREADY
    if clash.known == name:
        freeze_block(transaction, name)
        transaction.append(Entry("alarm.block-conflict", entry.actor, facts.facts))
    else:
        replayed = facts.knowing(known_link=clash.known.link_id, known_block=clash.known.block_id)
        transaction.append(Entry("alarm.block-replayed", entry.actor, replayed.facts))
    raise _refusal(name, clash)


@dataclass(frozen=True, slots=True)
class _Clash:
    known: BlockName
    same_keys: bool
    not_before: int = 0


def _clash(transaction: Transaction, block: SealedBlock) -> _Clash | None:
    name = block.seal.name
    row = transaction.execute(
        "SELECT digest, key_bits, not_before FROM block WHERE link_id = ? AND block_id = ?",
        (name.link_id, name.block_id),
    ).fetchone()
    if row is not None:
        return _Clash(name, row[:2] == (block.digest, block.seal.key_bits), row[2])
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
        "SELECT coalesce(sum(ready + theirs + waiting), 0) FROM pool WHERE link_id = ?", (link_id,)
    ).fetchone()
    if held + more > limit:
        raise PoolFull(f"link {link_id} holds {held} keys of at most {limit}: no room for {more} more now")


def _insert(transaction: Transaction, block: SealedBlock, state: BlockState) -> None:
    name, seal = block.seal.name, block.seal
    cursor = transaction.execute(
        "INSERT INTO block (link_id, block_id, state, epoch, key_bits, key_count, live, wrapped, digest, deposited_at,"
        " tag, mine, not_before) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(name.link_id, name.block_id, state.value, seal.epoch, seal.key_bits, block.key_count, block.key_count),
            *(seal.wrapped, block.digest, transaction.now(), block.tag, block.mine, block.not_before),
        ),
    )
    keep_rest(transaction, int(cursor.lastrowid or 0), block)


def freeze_block(transaction: Transaction, name: BlockName) -> bool:
    cursor = transaction.execute(
        "UPDATE block SET state = 'frozen' WHERE link_id = ? AND block_id = ?"
        " AND state IN ('deposited', 'ready', 'exhausted')",
        (name.link_id, name.block_id),
    )
    return cursor.rowcount == 1
