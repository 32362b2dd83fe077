"""Do two ends release a block at the same time, and end the keys of a relation alike?"""

from __future__ import annotations

import os

import pytest

from hsmkme.errors import BadRequest
from hsmkme.model import BlockName, Entry, KeyMaterial, RawBlock
from hsmkme.store import Steady
from tests.peering.pair import BITS, LINK, Pair

LOCK = 60
TTL = 90


def deposited(pair: Pair, *seconds: int) -> None:
    """A block `locked` at each end, not to be released for so many seconds; 0: at once."""
    material = os.urandom(4 * BITS // 8)
    for end, wait in zip(pair.ends, seconds, strict=True):
        time = int(pair.clock.now) + wait if wait else 0
        end.intake.take([RawBlock(BlockName(LINK, "locked"), BITS, KeyMaterial(material), time)], "device")


def states(pair: Pair) -> list[str]:
    """Of the block, after both ends looked at their clocks and said what they have to say."""
    for end in pair.ends:
        end.store.timekeeping.look(Steady("boot", pair.clock.now), "upkeep")
    pair.rounds(1)
    return [end.owned()["far/locked"][2] for end in pair.ends]


def test_a_block_is_ready_at_both_ends_when_its_time_has_come(pair: Pair) -> None:
    deposited(pair, LOCK, LOCK)
    for _ in range(3):
        assert states(pair) == ["deposited", "deposited"]
    pair.clock.now += LOCK - 6 - 1
    assert states(pair) == ["deposited", "deposited"]
    assert states(pair) == ["ready", "ready"]
    assert [end.alarms for end in pair.ends] == [[], []]


def test_a_block_whose_ends_know_different_times_is_given_by_none(pair: Pair) -> None:
    deposited(pair, LOCK, 0)
    assert states(pair) == ["frozen", "frozen"]
    assert [end.alarms for end in pair.ends] == [["alarm.block-mismatch"]] * 2


def test_a_block_that_waits_for_its_time_is_not_taken_for_one_that_the_peer_forgot(pair: Pair) -> None:
    uncollected = pair.a.config.keys.uncollected_seconds
    deposited(pair, 3 * uncollected, 3 * uncollected)
    assert states(pair) == ["deposited", "deposited"]
    pair.clock.now += 3 * uncollected
    assert states(pair) == ["ready", "ready"]


def test_keys_that_do_not_live_long_are_agreed_on_when_they_are_asked_for(pair: Pair) -> None:
    for end in pair.ends:
        end.store.registry.allow("a1", "b1", Entry("pair.allow", "test"), TTL)
    for _ in range(4):
        pair.exchange("a1", "b1")
        pair.rounds(1)
    assert "assigned" not in {state for state, _ in pair.a.keys().values()}, "none waits until somebody draws it"
    fetched = list(pair.enc("a1", "b1", number=2))
    pair.clock.now += TTL
    pair.dec("b1", "a1", fetched[:1])
    pair.clock.now += 1
    with pytest.raises(BadRequest) as refusal:
        pair.dec("b1", "a1", fetched[1:])
    assert refusal.value.rule == "KEY-AGE-1"
    pair.b.upkeep.lapse()
    assert pair.b.keys()[fetched[1]] == ("void", False)
    assert [end.alarms for end in pair.ends] == [[], []]
