"""Are keys agreed on early enough that nobody waits for the peer, and no more than a relation draws?"""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hsmkme.liaison import ROUND_SECONDS
from hsmkme.messages.bodies import KEYS_MOST, Assign, Place, parsed
from hsmkme.model import Relation
from hsmkme.store.ahead import BUSY_SECONDS, DEPTH_MOST, STEADY_MOST
from hsmkme.store.segments import joined, shares
from tests.peering.pair import BITS, Pair

RELATION = Relation.of("a1", ["b1"])


def assigned(pair: Pair) -> list[Assign]:
    """What was assigned until now."""
    return [parsed(Assign, request.body) for request in pair.line.seen if request.call == "keys/assign"]


def draw(pair: Pair, number: int, every: float, times: int) -> None:
    """Draw so many keys at once, again and again; the liaison looks after the link meanwhile."""
    for _ in range(times):
        pair.enc("a1", "b1", number=number)
        pair.a.liaison.round()
        pair.b.liaison.round()
        pair.clock.now += every


@pytest.fixture
def rich(pair: Pair) -> Pair:
    pair.fill(6, keys=1024)
    pair.rounds()
    return pair


def test_a_relation_that_draws_all_the_time_never_waits_for_the_peer(rich: Pair) -> None:
    draw(rich, 100, ROUND_SECONDS, 6)
    before = len(assigned(rich))
    for _ in range(8):
        rich.enc("a1", "b1", number=100)
        assert len(assigned(rich)) == before, "a request asked the peer"
        rich.a.liaison.round()
        rich.clock.now += ROUND_SECONDS
        before = len(assigned(rich))
    assert max(assign.count for assign in assigned(rich)) == DEPTH_MOST


def test_a_message_has_no_more_keys_than_it_may_carry(rich: Pair) -> None:
    draw(rich, 100, ROUND_SECONDS, 8)
    before = len(assigned(rich))
    while len(assigned(rich)) == before:  # until nothing is left ahead, and more is wanted with as much as there may be
        rich.enc("a1", "b1", number=128)
    assert assigned(rich)[-1].count == KEYS_MOST


def test_a_relation_that_draws_now_and_then_is_given_fewer(rich: Pair) -> None:
    draw(rich, 40, BUSY_SECONDS / 2, 14)
    given = [assign.count for assign in assigned(rich)]
    assert max(given) == STEADY_MOST
    assert rich.a.store.agreed.count(RELATION, BITS) < 2 * STEADY_MOST


def test_a_relation_has_no_more_ahead_than_it_leaves_to_others(pair: Pair) -> None:
    pair.fill(1, keys=64)
    pair.rounds()
    draw(pair, 2, ROUND_SECONDS, 20)
    ahead = pair.a.store.agreed.count(RELATION, BITS)
    assert len(pair.enc("a2", "b1", number=ahead)) == ahead
    assert ahead > 0


def test_a_relation_that_stays_away_is_given_nothing(rich: Pair) -> None:
    draw(rich, 2, ROUND_SECONDS, 4)
    left = rich.a.store.agreed.count(RELATION, BITS)
    before = len(assigned(rich))
    rich.clock.now += 7 * BUSY_SECONDS
    rich.rounds(2)
    rich.enc("a1", "b1", number=left)
    assert len(assigned(rich)) == before
    rich.enc("a1", "b1")
    assert assigned(rich)[-1].count == 1


def test_keys_that_are_drawn_together_lie_together(rich: Pair) -> None:
    """Rows of keys are found by key_ID, segments by place: one order for both, and the log says little of many."""
    draw(rich, 5, ROUND_SECONDS, 8)
    rich.enc("a1", "b1", number=20)
    row = [row for row in rich.a.log() if row["event"] == "key.deliver"][-1]
    assert len(row["key_IDs"]) == 20
    assert len(row["segments"]) <= len(row["blocks"]) + 1


def test_an_assign_whose_places_are_not_as_many_for_each_key_is_none() -> None:
    place = Place(block_id="B", first=0, count=3, own_epoch=0)
    with pytest.raises(ValidationError, match="as many segments for each key"):
        Assign(master="a1", slaves=["b1"], size=BITS, key_ids="0" * 64, places=[place])


@pytest.mark.parametrize("each", [1, 2, 3, 6])
def test_runs_are_cut_into_keys_and_joined_again(each: int) -> None:
    runs = [(1, 5, 4), (2, 0, 1), (3, 7, 7)]
    cut = list(shares(runs, each))
    assert [sum(count for _, _, count in parts) for parts in cut] == [each] * (12 // each)
    assert joined(part for parts in cut for part in parts) == runs
