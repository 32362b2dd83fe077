"""What every store must do, as exercises that any implementation can be run through.

`exercise_store(make)` runs all of them; pytest takes them one by one from `EXERCISES`. ``make`` gives a `Subject`:
an empty store that knows epoch 1 and the links of `LINKS`, and a way to see the rows behind its verbs. After every
verb the pool's counters are compared with a count of every segment that can be claimed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from hsmkme.errors import (
    AnsweredAlready,
    BlockConflict,
    BlockReplayed,
    KeyNotHeld,
    PoolFull,
    PoolShort,
    StoreError,
)
from hsmkme.model import (
    BlockName,
    BlockSeal,
    Demand,
    Entry,
    HeldKey,
    Link,
    Relation,
    Retry,
    Sae,
    Seal,
    SealedBlock,
    SealedKey,
    segment_bytes,
)
from hsmkme.states import BlockState, EpochState
from hsmkme.store import Collection, Outcome, Store
from tests.blocks import claim, collect

LINKS: Final = (Link("local", "kme-1"), Link("second", "kme-1"), Link("far", "kme-2"))
TABLES: Final = (
    *("block", "segments", "pool", "key", "relation", "answer", "erase_later"),
    *("log", "log_head", "sae", "pair", "link", "epoch"),
)
ENTRY: Final = Entry("test", "tester")
NO_LIMIT: Final = 1_000_000

EXERCISES: list[Callable[[Subject], None]] = []


@dataclass
class Subject:
    """A store to be exercised; ``rows`` gives the rows of a SELECT, ``clock.now`` can be set."""

    store: Store
    rows: Callable[[str], list[tuple[Any, ...]]]
    clock: Any
    deposited: dict[BlockName, SealedBlock] = field(default_factory=dict)

    # Verbs, each followed by a count ------------------------------------------------------------------

    def deposit(
        self, block: SealedBlock, state: BlockState = BlockState.READY, limit: int = NO_LIMIT
    ) -> Outcome:
        (outcome,) = self.counted(lambda: self.store.blocks.deposit([block], state, limit, ENTRY))
        self.deposited.setdefault(block.seal.name, block)
        return outcome

    def fill(self, keys: int = 4, bits: int = 256, link: str = "local") -> SealedBlock:
        """Deposit a new block of random segments."""
        block = make_block(keys, bits, link)
        assert self.deposit(block) is Outcome.TAKEN
        return block

    def claim(
        self, number: int = 1, size: int = 256, *, peer: str = "kme-1", slaves: Sequence[str] = ("bob",)
    ) -> list[SealedKey]:
        demand = demand_for(number, size, peer, slaves)
        keys: list[SealedKey] = self.counted(lambda: claim(self.store, demand, ENTRY))
        assert [key.key_id for key in keys] == list(demand.key_ids)
        return keys

    def collect(self, slave: str, keys: Iterable[SealedKey]) -> None:
        ids = [key.key_id for key in keys]
        self.counted(lambda: collect(self.store, slave, ids, ENTRY))

    def void(self, keys: Iterable[SealedKey]) -> list[UUID]:
        ids = [key.key_id for key in keys]
        voided: list[UUID] = self.counted(lambda: self.store.keys.void(ids, ENTRY))
        return voided

    def freeze(self, block: SealedBlock) -> None:
        self.counted(lambda: self.store.blocks.freeze(block.seal.name, ENTRY))

    def counted(self, verb: Callable[[], Any]) -> Any:
        try:
            return verb()
        finally:
            self.check_counts()

    # What is behind them ------------------------------------------------------------------------------

    def check_counts(self) -> None:
        """The counters, and `Vein.keys` of several sizes, are what counting every segment gives."""
        truth, waiting = (
            {
                (link_id, bits): keys
                for link_id, bits, keys in self.rows(
                    "SELECT link_id, key_bits, sum(key_count - next_index) FROM block"  # noqa: S608 - constants
                    f" WHERE state = '{state}' GROUP BY link_id, key_bits"
                )
            }
            for state in ("ready", "deposited")
        )
        pools = self.rows("SELECT link_id, key_bits, ready, waiting FROM pool")
        assert {(link_id, bits): ready for link_id, bits, ready, _ in pools if ready} == truth
        assert {(link_id, bits): keys for link_id, bits, _, keys in pools if keys} == waiting
        for peer, size in itertools.product(("kme-1", "kme-2"), (64, 128, 256, 352, 4096)):
            open_links = {link.link_id for link in LINKS if link.peer == peer}
            expected = sum(n // -(-size // bits) for (link_id, bits), n in truth.items() if link_id in open_links)
            assert sum(vein.keys for vein in self.store.blocks.veins(peer, size)) == expected

    def ready(self, peer: str = "kme-1", size: int = 256) -> int:
        return sum(vein.keys for vein in self.store.blocks.veins(peer, size))

    def held(self, key: SealedKey) -> HeldKey:
        return self.store.keys.held([key.key_id])[key.key_id]

    def block_state(self, block: SealedBlock) -> str:
        name = block.seal.name
        found = {(link, one): state for link, one, state in self.rows("SELECT link_id, block_id, state FROM block")}
        return str(found[name.link_id, name.block_id])

    def segments(self, block: SealedBlock) -> bytes | None:
        """The block's segments as they are now; None when their row is gone."""
        found = {
            (link, block_id): bytes(sealed)
            for link, block_id, sealed in self.rows(
                "SELECT link_id, block_id, sealed FROM segments JOIN block USING (block_pk)"
            )
        }
        return found.get((block.seal.name.link_id, block.seal.name.block_id))

    def erased(self, block: SealedBlock) -> list[int]:
        """Numbers of the block's segments that are zeros; every other is as it was deposited."""
        now, stride = self.segments(block), segment_bytes(block.seal.key_bits)
        assert now is not None
        assert len(now) == len(block.segments)
        zeros = []
        for number in range(block.key_count):
            place = slice(number * stride, (number + 1) * stride)
            if now[place] == bytes(stride):
                zeros.append(number)
            else:
                assert now[place] == block.segments[place]
        return zeros

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """Every row of every table, to see that nothing changed."""
        return [self.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES]  # noqa: S608 - constants

    def log(self) -> list[dict[str, Any]]:
        """The audit log."""
        return [json.loads(text) for (text,) in self.rows("SELECT text FROM log ORDER BY seq")]

    def alarms(self) -> list[str]:
        return [row["event"] for row in self.log() if row["event"].startswith("alarm.")]


def make_block(keys: int = 4, bits: int = 256, link: str = "local", block_id: str | None = None) -> SealedBlock:
    """A block of random segments, of which every one is another; the store cannot tell that no token made it."""
    segments = os.urandom(keys * segment_bytes(bits))
    seal = BlockSeal(BlockName(link, block_id or f"block-{uuid4()}"), 1, bits, b"wrapped" + os.urandom(8))
    return SealedBlock(seal, keys, segments, hashlib.sha256(segments).digest())


def renamed(block: SealedBlock, link: str, block_id: str) -> SealedBlock:
    """The same bytes under another name."""
    seal = BlockSeal(BlockName(link, block_id), block.seal.epoch, block.seal.key_bits, block.seal.wrapped)
    return SealedBlock(seal, block.key_count, block.segments, block.digest)


def demand_for(number: int, size: int, peer: str = "kme-1", slaves: Sequence[str] = ("bob",)) -> Demand:
    return Demand(Relation.of("alice", slaves), peer, size, tuple(uuid4() for _ in range(number)))


def places(key: SealedKey) -> list[tuple[str, int]]:
    """Block id and number of every segment of a key, in order."""
    return [(part.block.name.block_id, part.first + i) for part in key.parts for i in range(part.count)]


def exercise(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
    EXERCISES.append(check)
    return check


def exercise_store(make: Callable[[], Subject]) -> None:
    """Run every exercise, each on a store of its own."""
    for check in EXERCISES:
        check(make())


# Deposit ------------------------------------------------------------------------------------------------


@exercise
def the_same_block_again_changes_nothing(subject: Subject) -> None:
    block = subject.fill()
    before = subject.everything()
    assert subject.deposit(block) is Outcome.ALREADY
    assert subject.everything() == before


@exercise
def other_bytes_under_a_known_id_freeze_the_stored_block_and_raise_one_alarm(subject: Subject) -> None:
    block = subject.fill()
    other = make_block(block_id=block.seal.name.block_id)
    with pytest.raises(BlockConflict, match="known with other bytes"):
        subject.deposit(other)
    assert subject.block_state(block) == "frozen"
    assert subject.segments(block) == block.segments
    assert subject.alarms() == ["alarm.block-conflict"]
    assert subject.ready() == 0


@exercise
def known_bytes_under_another_id_are_refused_with_one_alarm(subject: Subject) -> None:
    block = subject.fill()
    for count, link in enumerate(("local", "second", "far"), start=1):
        with pytest.raises(BlockReplayed, match=block.seal.name.block_id):
            subject.deposit(renamed(block, link, f"new-on-{link}"))
        assert subject.alarms() == ["alarm.block-replayed"] * count
    assert len(subject.rows("SELECT * FROM block")) == 1
    assert subject.block_state(block) == "ready"


@exercise
def bytes_are_known_after_their_keys_ended(subject: Subject) -> None:
    block = subject.fill(1)
    subject.void(subject.claim())
    assert subject.block_state(block) == "retired"
    assert subject.deposit(block) is Outcome.ALREADY
    with pytest.raises(BlockReplayed):
        subject.deposit(renamed(block, "local", "again"))
    assert subject.ready() == 0


@exercise
def a_full_pool_takes_nothing_and_says_so(subject: Subject) -> None:
    subject.fill(6)
    before = subject.everything()
    with pytest.raises(PoolFull, match="6 keys of at most 10"):
        subject.deposit(make_block(5), limit=10)
    assert subject.everything() == before
    assert subject.deposit(make_block(4), limit=10) is Outcome.TAKEN


@exercise
def a_full_pool_has_room_again_when_keys_were_claimed(subject: Subject) -> None:
    subject.fill(6)
    block = make_block(6)
    with pytest.raises(PoolFull):
        subject.deposit(block, limit=10)
    subject.claim(2)
    assert subject.deposit(block, limit=10) is Outcome.TAKEN


@exercise
def another_link_being_full_is_no_reason_to_refuse(subject: Subject) -> None:
    subject.fill(6)
    assert subject.deposit(make_block(6, link="second"), limit=6) is Outcome.TAKEN


@exercise
def a_known_block_is_acknowledged_while_the_pool_is_full(subject: Subject) -> None:
    block = subject.fill(6)
    assert subject.deposit(block, limit=1) is Outcome.ALREADY


@exercise
def blocks_that_wait_for_the_peer_take_room_and_give_no_keys(subject: Subject) -> None:
    assert subject.deposit(make_block(6, link="far"), BlockState.DEPOSITED, 10) is Outcome.TAKEN
    assert subject.ready("kme-2") == 0
    with pytest.raises(PoolShort):
        subject.claim(peer="kme-2")
    with pytest.raises(PoolFull):
        subject.deposit(make_block(5, link="far"), BlockState.DEPOSITED, 10)


@exercise
def a_block_of_an_unknown_link_or_epoch_is_refused(subject: Subject) -> None:
    before = subject.everything()
    block = make_block()
    seal = BlockSeal(block.seal.name, 7, 256, block.seal.wrapped)
    for wrong in (make_block(link="nowhere"), SealedBlock(seal, 4, block.segments, block.digest)):
        with pytest.raises(StoreError):
            subject.deposit(wrong)
    assert subject.everything() == before


@exercise
def blocks_of_a_batch_are_stored_up_to_the_first_that_is_refused(subject: Subject) -> None:
    known, first, late = subject.fill(4), make_block(4), make_block(4)
    replayed = renamed(known, "local", "again")

    def batch(*blocks: SealedBlock, limit: int = NO_LIMIT) -> list[Outcome]:
        return subject.store.blocks.deposit(blocks, BlockState.READY, limit, ENTRY)

    with pytest.raises(BlockReplayed):
        batch(first, known, replayed, late)
    assert [row["event"] for row in subject.log()[-2:]] == ["test", "alarm.block-replayed"]
    assert batch(first, known) == [Outcome.ALREADY] * 2
    with pytest.raises(PoolFull):
        batch(make_block(2), late, limit=13)
    assert batch(late, first) == [Outcome.TAKEN, Outcome.ALREADY]
    subject.check_counts()


@exercise
def a_failing_deposit_leaves_nothing(subject: Subject) -> None:
    before = subject.everything()
    with pytest.raises(TypeError):  # the audit row cannot be made, after block and segments were written
        subject.store.blocks.deposit(
            [make_block()], BlockState.READY, NO_LIMIT, Entry("test", "tester", {"fact": object()})
        )
    assert subject.everything() == before


# Claim --------------------------------------------------------------------------------------------------


@exercise
def each_key_has_segments_of_its_own_in_order(subject: Subject) -> None:
    block = subject.fill(4)
    keys = [*subject.claim(3), *subject.claim(1)]
    stride = segment_bytes(256)
    assert [places(key) for key in keys] == [[(block.seal.name.block_id, number)] for number in range(4)]
    assert b"".join(part.sealed for key in keys for part in key.parts) == block.segments
    assert {len(part.sealed) for key in keys for part in key.parts} == {stride}
    assert subject.block_state(block) == "exhausted"


@exercise
def a_claim_goes_on_in_the_next_block(subject: Subject) -> None:
    first, second = subject.fill(3), subject.fill(3)
    keys = subject.claim(5)
    assert [places(key)[0] for key in keys] == [
        *((first.seal.name.block_id, number) for number in range(3)),
        *((second.seal.name.block_id, number) for number in range(2)),
    ]
    assert (subject.block_state(first), subject.block_state(second)) == ("exhausted", "ready")


@exercise
def a_claim_of_too_many_takes_none(subject: Subject) -> None:
    subject.fill(3)
    subject.fill(2)
    before = subject.everything()
    with pytest.raises(PoolShort) as short:
        subject.claim(6)
    assert short.value.available == 5
    assert subject.everything() == before
    assert len(subject.claim(5)) == 5


@exercise
def a_key_of_any_size_is_joined_from_whole_segments(subject: Subject) -> None:
    for size, segments in ((64, 1), (128, 1), (256, 1), (264, 2), (352, 2), (512, 2), (4096, 16)):
        blocks = [subject.fill(11), subject.fill(11), subject.fill(11)]
        keys = subject.claim(2, size)
        taken = [place for key in keys for place in places(key)]
        numbered = [(block.seal.name.block_id, number) for block in blocks for number in range(11)]
        assert taken == numbered[: 2 * segments]
        assert [len(places(key)) for key in keys] == [segments] * 2
        assert {key.size for key in keys} == {size}
        subject.claim(33 - 2 * segments)
        assert subject.ready() == 0


@exercise
def the_rest_of_a_pool_that_makes_no_whole_key_stays(subject: Subject) -> None:
    subject.fill(5)
    assert subject.ready(size=352) == 2
    subject.claim(2, 352)
    with pytest.raises(PoolShort) as short:
        subject.claim(1, 352)
    assert short.value.available == 0
    assert len(subject.claim(1, 256)) == 1


@exercise
def the_least_wasteful_vein_is_drawn_on_first(subject: Subject) -> None:
    wide = subject.fill(4, 256)
    exact = subject.fill(2, 128)
    narrow = subject.fill(4, 64, "second")
    names = {block.seal.name.block_id: block.seal.key_bits for block in (wide, exact, narrow)}
    keys = subject.claim(8, 128)
    drawn = [[names[block_id] for block_id, _ in places(key)] for key in keys]
    assert drawn == [[128]] * 2 + [[64, 64]] * 2 + [[256]] * 4


@exercise
def a_key_is_never_joined_from_two_veins(subject: Subject) -> None:
    subject.fill(1, 256)
    subject.fill(1, 128)
    assert subject.ready(size=384) == 0
    with pytest.raises(PoolShort):
        subject.claim(1, 384)


@exercise
def keys_to_one_peer_do_not_serve_another(subject: Subject) -> None:
    far = subject.fill(3, link="far")
    with pytest.raises(PoolShort) as short:
        subject.claim(1, peer="kme-1")
    assert short.value.available == 0
    assert len(subject.claim(3, peer="kme-2")) == 3
    assert subject.block_state(far) == "exhausted"


@exercise
def a_key_id_is_given_once(subject: Subject) -> None:
    subject.fill(4)
    demand = demand_for(2, 256)
    claim(subject.store, demand, ENTRY)
    before = subject.everything()
    with pytest.raises(StoreError):
        subject.counted(lambda: claim(subject.store, demand, ENTRY))
    assert subject.everything() == before


@exercise
def a_failing_claim_leaves_nothing(subject: Subject) -> None:
    subject.fill(4)
    before = subject.everything()
    with pytest.raises(TypeError):
        subject.counted(
            lambda: claim(subject.store, demand_for(2, 256), Entry("test", "tester", {"fact": object()}))
        )
    assert subject.everything() == before


@exercise
def a_short_pool_tells_at_which_rate_keys_arrived(subject: Subject) -> None:
    subject.fill(10)
    with pytest.raises(PoolShort) as short:
        subject.claim(50)
    assert short.value.per_second == 0.0  # one block says nothing of a rate
    subject.clock.now += 10
    subject.fill(10)
    with pytest.raises(PoolShort) as short:
        subject.claim(50)
    assert short.value.per_second == pytest.approx(2.0)


@exercise
def a_claim_is_recorded_with_its_keys_blocks_and_epochs(subject: Subject) -> None:
    blocks = [subject.fill(1), subject.fill(1)]
    keys = subject.claim(2, slaves=("carol", "bob"))
    row = subject.log()[-1]
    assert row["key_IDs"] == [str(key.key_id) for key in keys]
    assert row["blocks"] == sorted(f"local/{block.seal.name.block_id}" for block in blocks)
    assert (row["epochs"], row["size"], row["master"], row["slaves"]) == ([1], 256, "alice", ["bob", "carol"])


# Held, collected, voided, expired ------------------------------------------------------------------------


@exercise
def a_held_key_is_what_was_claimed(subject: Subject) -> None:
    subject.fill(5)
    subject.fill(5)
    keys = subject.claim(3, 640, slaves=("carol", "bob"))
    strangers = [uuid4(), uuid4()]
    held = subject.store.keys.held([*(key.key_id for key in keys), *strangers])
    assert list(held) == [key.key_id for key in keys]
    for key in keys:
        found = held[key.key_id]
        assert found.key == key
        assert [part.sealed for part in found.key.parts] == [part.sealed for part in key.parts]
        assert found.relation == Relation.of("alice", ["bob", "carol"])
        assert (found.state, found.collected) == ("delivered", frozenset())


@exercise
def many_keys_can_be_looked_up_at_once(subject: Subject) -> None:
    subject.fill(1200)
    keys = subject.claim(1200)
    assert len(subject.store.keys.held([key.key_id for key in keys])) == 1200


@exercise
def a_collected_key_is_consumed_and_erased_in_place(subject: Subject) -> None:
    block = subject.fill(4)
    keys = subject.claim(3)
    subject.collect("bob", [keys[1]])
    found = subject.held(keys[1])
    assert (found.state, found.collected, found.key.parts) == ("consumed", {"bob"}, ())
    assert subject.erased(block) == [1]


@exercise
def a_joined_key_is_erased_in_every_block_it_was_of(subject: Subject) -> None:
    first, second = subject.fill(3), subject.fill(3)
    keys = subject.claim(2, 512)  # segments 0, 1 of the first; 2 of the first and 0 of the second
    subject.collect("bob", [keys[1]])
    assert subject.erased(first) == [2]
    assert subject.erased(second) == [0]


@exercise
def a_key_for_several_slaves_is_consumed_by_the_last(subject: Subject) -> None:
    block = subject.fill(2)
    slaves = ("dave", "bob", "carol")
    (key,) = subject.claim(1, slaves=slaves)
    for count, slave in enumerate(slaves, start=1):
        assert subject.erased(block) == []
        subject.collect(slave, [key])
        found = subject.held(key)
        assert found.collected == set(slaves[:count])
        assert found.state == ("consumed" if count == 3 else "delivered")
        before = subject.everything()
        with pytest.raises(KeyNotHeld):
            subject.collect(slave, [key])
        assert subject.everything() == before
    assert subject.erased(block) == [0]


@exercise
def sixty_three_slaves_fit_in_a_relation(subject: Subject) -> None:
    subject.fill(2)
    slaves = [f"slave-{number}" for number in range(63)]
    (key,) = subject.claim(1, slaves=slaves)
    for slave in slaves:
        subject.collect(slave, [key])
    assert subject.held(key).state == "consumed"


@exercise
def collecting_is_all_or_none(subject: Subject) -> None:
    subject.fill(8)
    keys = subject.claim(4)
    subject.collect("bob", [keys[2]])
    before = subject.everything()
    for wanted in (keys, [keys[0], keys[0]]):
        with pytest.raises(KeyNotHeld):
            subject.collect("bob", wanted)
    known, held = subject.held(keys[0]), subject.held(keys[1])
    stranger = held._replace(key=held.key._replace(key_id=uuid4()))
    with pytest.raises(KeyNotHeld):
        subject.counted(lambda: subject.store.keys.collect([Collection("bob", [known, stranger], ENTRY)]))
    assert subject.everything() == before
    subject.collect("bob", [keys[0], keys[1], keys[3]])


@exercise
def nobody_collects_but_a_slave_of_the_relation(subject: Subject) -> None:
    subject.fill(2)
    keys = subject.claim(1)
    before = subject.everything()
    for stranger in ("alice", "mallory", ""):
        with pytest.raises(KeyNotHeld):
            subject.collect(stranger, keys)
    assert subject.everything() == before


@exercise
def a_block_is_retired_and_its_segments_deleted_with_the_last_key(subject: Subject) -> None:
    block = subject.fill(3)
    keys = subject.claim(3)
    subject.collect("bob", keys[:2])
    assert subject.block_state(block) == "exhausted"
    assert subject.erased(block) == [0, 1]
    subject.collect("bob", keys[2:])
    assert subject.block_state(block) == "retired"
    assert subject.segments(block) is None
    assert {subject.held(key).state for key in keys} == {"consumed"}  # the tombstones stay


@exercise
def a_block_with_keys_left_to_claim_is_not_retired(subject: Subject) -> None:
    block = subject.fill(3)
    subject.collect("bob", subject.claim(2))
    assert subject.block_state(block) == "ready"
    assert len(subject.claim(1)) == 1


@exercise
def voided_keys_are_erased_and_named(subject: Subject) -> None:
    block = subject.fill(4)
    keys = subject.claim(4)
    subject.collect("bob", keys[:1])
    assert subject.void(keys[:3]) == [keys[1].key_id, keys[2].key_id]
    assert subject.erased(block) == [0, 1, 2]
    assert subject.log()[-1]["key_IDs"] == [str(keys[1].key_id), str(keys[2].key_id)]
    before = subject.everything()
    assert subject.void(keys[:3]) == []
    assert subject.everything() == before
    with pytest.raises(KeyNotHeld):
        subject.collect("bob", [keys[1]])


@exercise
def a_key_that_one_slave_has_is_void_for_the_others(subject: Subject) -> None:
    subject.fill(2)
    keys = subject.claim(1, slaves=("bob", "carol"))
    subject.collect("bob", keys)
    assert subject.void(keys) == [keys[0].key_id]
    with pytest.raises(KeyNotHeld):
        subject.collect("carol", keys)
    assert subject.held(keys[0]).collected == {"bob"}


@exercise
def keys_expire_by_the_time_of_their_claim(subject: Subject) -> None:
    block = subject.fill(6)
    started = int(subject.clock.now)
    old = subject.claim(3)
    subject.collect("bob", old[:1])
    subject.clock.now += 10
    young = subject.claim(2)

    def expire(before: int, limit: int = 500) -> int:
        return int(subject.counted(lambda: subject.store.keys.expire(before, ENTRY, limit)))

    assert expire(started) == 0
    assert expire(started + 1, limit=1) == 1
    assert expire(started + 10) == 1
    assert expire(started + 10) == 0
    assert subject.erased(block) == [0, 1, 2]
    assert [subject.held(key).state for key in (*old, *young)] == [
        *("consumed", "void", "void"),
        *("delivered", "delivered"),
    ]


@exercise
def a_frozen_block_is_neither_claimed_nor_collected(subject: Subject) -> None:
    block = subject.fill(4)
    keys = subject.claim(2)
    subject.freeze(block)
    assert subject.ready() == 0
    with pytest.raises(PoolShort):
        subject.claim(1)
    assert {subject.held(key).state for key in keys} == {"frozen"}
    before = subject.everything()
    with pytest.raises(KeyNotHeld):
        subject.collect("bob", keys)
    assert subject.everything() == before


@exercise
def a_joined_key_with_one_frozen_block_is_not_collected(subject: Subject) -> None:
    subject.fill(1)
    second = subject.fill(3)
    (joined,) = subject.claim(1, 512)
    (other,) = subject.claim(1, 256)
    subject.freeze(second)
    for key in (joined, other):
        with pytest.raises(KeyNotHeld):
            subject.collect("bob", [key])


@exercise
def claims_go_on_beside_a_frozen_block(subject: Subject) -> None:
    frozen, good = subject.fill(2), subject.fill(2)
    subject.freeze(frozen)
    keys = subject.claim(2)
    assert {block_id for key in keys for block_id, _ in places(key)} == {good.seal.name.block_id}
    subject.collect("bob", keys)


@exercise
def keys_of_a_frozen_block_can_be_ended(subject: Subject) -> None:
    block = subject.fill(2)
    keys = subject.claim(2)
    subject.freeze(block)
    assert len(subject.void(keys)) == 2
    assert subject.erased(block) == [0, 1]
    assert subject.block_state(block) == "frozen"


@exercise
def freezing_is_recorded_once(subject: Subject) -> None:
    block = subject.fill()
    rows = len(subject.log())
    subject.freeze(block)
    subject.freeze(block)
    subject.counted(lambda: subject.store.blocks.freeze(BlockName("local", "unknown"), ENTRY))
    assert len(subject.log()) == rows + 1
    assert subject.log()[-1]["block"] == block.seal.name.block_id


# Requests that are repeated -------------------------------------------------------------------------------


def retry(key: str = "once", request: bytes = b"request", client: str = "client") -> Retry:
    return Retry(client, key, request, seconds=60)


def answered_claim(subject: Subject, number: int = 1, **one: Any) -> list[UUID]:
    demand = demand_for(number, 256)
    subject.counted(lambda: claim(subject.store, demand, ENTRY, retry(**one)))
    return list(demand.key_ids)


@exercise
def an_answer_is_remembered_with_its_claim(subject: Subject) -> None:
    subject.fill(9)
    key_ids = answered_claim(subject, 3)
    found = subject.store.answers.find(retry(), subject.clock.now + 59)
    assert found is not None
    assert (found.request, list(found.key_ids)) == (b"request", key_ids)
    for other in (retry("twice"), retry(client="another")):
        assert subject.store.answers.find(other, subject.clock.now) is None
    assert subject.store.answers.find(retry(), subject.clock.now + 60) is None


@exercise
def a_request_that_was_answered_already_takes_nothing(subject: Subject) -> None:
    subject.fill(9)
    key_ids = answered_claim(subject)
    subject.collect("bob", subject.claim(1))
    before = subject.everything()
    with pytest.raises(AnsweredAlready):
        answered_claim(subject)
    with pytest.raises(AnsweredAlready):
        subject.counted(lambda: collect(subject.store, "bob", key_ids, ENTRY, retry(request=b"other")))
    assert subject.everything() == before
    assert answered_claim(subject, key="twice")


@exercise
def a_claim_that_fails_leaves_no_answer(subject: Subject) -> None:
    subject.fill(2)
    with pytest.raises(PoolShort):
        answered_claim(subject, 3)
    assert subject.store.answers.find(retry(), subject.clock.now) is None
    assert answered_claim(subject, 2)


@exercise
def answers_that_are_over_are_dropped(subject: Subject) -> None:
    subject.fill(9)
    for number in range(3):
        answered_claim(subject, key=f"token-{number}")
    subject.clock.now += 60
    answered_claim(subject, key="token-0", request=b"other")
    assert subject.rows("SELECT token, request FROM answer") == [("token-0", b"other")]


@exercise
def a_consumed_key_can_be_kept_a_while(subject: Subject) -> None:
    block = subject.fill(2)
    keys = subject.claim(2)

    def erase_due() -> int:
        return int(subject.counted(lambda: subject.store.keys.erase_due(ENTRY)))

    for key in keys:
        subject.counted(lambda key=key: collect(subject.store, "bob", [key.key_id], ENTRY, None, 60))
        subject.clock.now += 10
    assert [subject.held(key).state for key in keys] == ["consumed"] * 2
    assert [subject.held(key).key for key in keys] == keys
    assert (subject.erased(block), erase_due()) == ([], 0)
    with pytest.raises(KeyNotHeld):
        subject.collect("bob", keys[:1])
    subject.clock.now += 40
    assert (erase_due(), subject.erased(block)) == (1, [0])
    assert [subject.held(key).key.parts for key in keys] == [(), keys[1].parts]
    subject.clock.now += 10
    assert (erase_due(), erase_due()) == (1, 0)
    assert (subject.block_state(block), subject.segments(block)) == ("retired", None)


@exercise
def a_kept_key_of_a_frozen_block_is_not_given_again(subject: Subject) -> None:
    block = subject.fill(2)
    (key,) = subject.claim(1)
    collect(subject.store, "bob", [key.key_id], ENTRY, None, 60)
    subject.freeze(block)
    assert subject.held(key).state == "frozen"


# Registry -------------------------------------------------------------------------------------------------


@exercise
def an_sae_is_registered_once_and_stays_at_its_kme(subject: Subject) -> None:
    registry = subject.store.registry
    assert registry.add_sae("alice", "kme-1", ENTRY)
    rows = len(subject.log())
    assert not registry.add_sae("alice", "kme-1", ENTRY)
    assert len(subject.log()) == rows
    with pytest.raises(StoreError, match="kme-1"):
        registry.add_sae("alice", "kme-2", ENTRY)
    assert dict(registry.known().saes) == {"alice": Sae("alice", "kme-1", revoked=False)}


@exercise
def a_revoked_sae_stays_revoked(subject: Subject) -> None:
    registry = subject.store.registry
    registry.add_sae("alice", "kme-1", ENTRY)
    assert registry.revoke_sae("alice", ENTRY)
    rows = len(subject.log())
    assert not registry.revoke_sae("alice", ENTRY)
    assert len(subject.log()) == rows
    assert dict(registry.known().saes) == {"alice": Sae("alice", "kme-1", revoked=True)}
    for act in (lambda: registry.add_sae("alice", "kme-1", ENTRY), lambda: registry.revoke_sae("nobody", ENTRY)):
        with pytest.raises(StoreError):
            act()


@exercise
def a_pair_is_allowed_and_denied_in_one_direction(subject: Subject) -> None:
    registry = subject.store.registry
    for sae_id in ("alice", "bob"):
        registry.add_sae(sae_id, "kme-1", ENTRY)
    assert registry.allow("alice", "bob", ENTRY)
    assert not registry.allow("alice", "bob", ENTRY)
    assert registry.known().allowed("alice", ["bob", "carol"]) == {"bob"}
    assert registry.known().allowed("bob", ["alice"]) == frozenset()
    assert registry.known().pairs == {("alice", "bob"): 0}
    assert registry.known().ttl("alice", "bob") == math.inf
    assert registry.allow("alice", "bob", ENTRY, 60)
    assert not registry.allow("alice", "bob", ENTRY, 60)
    assert registry.known().ttl("alice", "bob") == 60
    assert registry.deny("alice", "bob", ENTRY)
    rows = len(subject.log())
    assert not registry.deny("alice", "bob", ENTRY)
    assert len(subject.log()) == rows
    assert registry.known().pairs == {}


@exercise
def a_pair_of_strangers_or_of_one_sae_is_refused(subject: Subject) -> None:
    registry = subject.store.registry
    registry.add_sae("alice", "kme-1", ENTRY)
    before = subject.everything()
    for slave in ("nobody", "alice"):
        with pytest.raises(StoreError):
            registry.allow("alice", slave, ENTRY)
    assert subject.everything() == before


@exercise
def a_link_does_not_change_its_peer(subject: Subject) -> None:
    before = subject.everything()
    with pytest.raises(StoreError, match="far goes to kme-2, the configuration says kme-3"):
        subject.store.registry.admit_links([Link("new", "kme-4"), Link("far", "kme-3")], ENTRY)
    assert subject.everything() == before
    subject.store.registry.admit_links(LINKS, ENTRY)
    assert subject.everything() == before
    subject.store.registry.admit_links([Link("new", "kme-4")], ENTRY)
    assert subject.log()[-1]["link"] == "new"


@exercise
def pools_are_listed_with_every_size(subject: Subject) -> None:
    subject.fill(3, 256)
    subject.fill(2, 64)
    listed = [(p["link"], p["peer"], p["state"], p["key_bits"], p["ready"]) for p in subject.store.registry.pools()]
    assert listed == [
        ("far", "kme-2", "open", None, None),
        ("local", "kme-1", "open", 64, 2),
        ("local", "kme-1", "open", 256, 3),
        ("second", "kme-1", "open", None, None),
    ]


@exercise
def one_epoch_is_active(subject: Subject) -> None:
    before = subject.everything()
    for epoch in (1, 2):
        with pytest.raises(StoreError):
            subject.store.epochs.admit(epoch, "aabbccddee", ENTRY)
    assert subject.everything() == before
    assert [(e.number, e.state, e.check_value) for e in subject.store.epochs.all()] == [
        (1, EpochState.ACTIVE, "0011223344")
    ]


# Log ------------------------------------------------------------------------------------------------------


@exercise
def rows_of_the_log_are_numbered_and_its_head_is_the_last(subject: Subject) -> None:
    log = subject.store.log
    start, _ = log.head()
    rows = [log.append(Entry(event, "tester")) for event in ("a.one", "b.two", "a.three")]
    assert [row.seq for row in rows] == [start + 1, start + 2, start + 3]
    assert log.head() == (rows[-1].seq, rows[-1].hash)
    assert log.latest(2, "a.") == [rows[0], rows[2]]
    assert log.latest(1) == [rows[2]]


@exercise
def a_snapshot_of_the_log_is_of_one_moment(subject: Subject) -> None:
    log = subject.store.log
    seq, digest = log.head()
    with log.snapshot() as snapshot:
        assert (snapshot.seq, snapshot.hash) == (seq, digest)
        assert [row.seq for row in snapshot.rows] == list(range(1, seq + 1))


@exercise
def a_snapshot_that_was_not_read_to_its_end_holds_nothing(subject: Subject) -> None:
    log = subject.store.log
    for _ in range(3):
        log.append(ENTRY)
    with log.snapshot() as snapshot:
        assert next(snapshot.rows).seq == 1
    log.append(ENTRY)
    subject.store.checkpoint()


@exercise
def sealing_a_row_again_changes_nothing(subject: Subject) -> None:
    log = subject.store.log
    assert log.last_seal() is None
    seal = Seal(1, bytes(32), "2027-01-01T00:00:00.000Z", bytes(64))
    log.add_seal(seal)
    log.add_seal(Seal(1, bytes(32), "2027-01-02T00:00:00.000Z", bytes(range(64))))
    assert log.last_seal() == seal


@exercise
def a_fact_does_not_take_the_place_of_who_when_and_what(subject: Subject) -> None:
    row = subject.store.log.append(Entry("event", "tester", {"seq": 99, "actor": "other", "at": "never", "event": "x"}))
    text = json.loads(row.text)
    assert (text["seq"], text["actor"], text["event"]) == (row.seq, "tester", "event")
