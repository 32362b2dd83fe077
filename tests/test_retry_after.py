"""When is a client told to come back?"""

from __future__ import annotations

from uuid import uuid4

import pytest

from hsmkme.errors import PoolShort
from hsmkme.model import BlockName, BlockSeal, Demand, Entry, Relation, SealedBlock, segment_bytes
from hsmkme.states import BlockState
from hsmkme.store import Store
from tests.blocks import claim
from tests.conftest import FakeClock


def deposit(store: Store, number: int, keys: int) -> None:
    seal = BlockSeal(BlockName("local", f"b{number}"), 1, 256, b"wrapped")
    block = SealedBlock(seal, keys, bytes(keys * segment_bytes(256)), number.to_bytes(32, "big"))
    store.blocks.deposit([block], BlockState.READY, 10_000, Entry("block.deposit", "test"))


@pytest.mark.parametrize(("size", "per_second"), [(256, 4.0), (128, 4.0), (512, 2.0), (4096, 0.25)])
def test_the_rate_is_that_of_keys_of_the_size_asked_for(
    store: Store, clock: FakeClock, size: int, per_second: float
) -> None:
    for number in range(4):
        deposit(store, number, keys=16)
        clock.now += 4
    demand = Demand(Relation.of("alice", ["bob"]), "kme-1", size, tuple(uuid4() for _ in range(100)))
    with pytest.raises(PoolShort) as short:
        claim(store, demand, Entry("key.deliver", "test"))
    assert short.value.per_second == per_second


def test_nothing_is_said_of_a_link_that_received_one_block(store: Store) -> None:
    deposit(store, 1, keys=4)
    demand = Demand(Relation.of("alice", ["bob"]), "kme-1", 256, tuple(uuid4() for _ in range(5)))
    with pytest.raises(PoolShort) as short:
        claim(store, demand, Entry("key.deliver", "test"))
    assert short.value.per_second == 0.0
