"""Does kme-peer/1 keep its promises in every state that can be reached, and is each of its rules there for a reason?"""

from __future__ import annotations

from typing import Any

import pytest

from tests.peering.model import Rules
from tests.peering.search import Result, search


def told(result: Result) -> str:
    """Each broken property with the way to it, for whoever reads the failure."""
    return "\n".join(f"{name}:\n  " + "\n  ".join(way) for name, way in result.broken.items())


def test_the_protocol_keeps_its_promises_in_every_state() -> None:
    result = search(Rules())
    assert not result.broken, told(result)
    assert result.states == 39_092  # a change of the model is to be seen


@pytest.mark.parametrize(
    ("rules", "states"),
    [
        pytest.param(Rules(barrier=True), 36_936, id="the peer notes the higher own_epoch before it answers hello"),
        pytest.param(Rules(notice="always"), 44_460, id="every start is treated as a restore"),
        pytest.param(Rules(crashes=0, restores=2), 25_858, id="the same backup is restored twice"),
        pytest.param(Rules(crashes=2, restores=0), 3_994, id="two crashes"),
    ],
)
def test_it_keeps_them_too_when(rules: Rules, states: int) -> None:
    result = search(rules)
    assert not result.broken, told(result)
    assert result.states == states


def test_slaves_that_ask_after_their_master_never_meet_an_alarm() -> None:
    """An alarm is not how the protocol gets around I2: without guessed key_IDs there is none, restore or not."""
    result = search(Rules(early=False))
    assert not result.broken, told(result)
    assert (result.states, result.alarms) == (26_846, 0)


def test_the_search_sees_keys_exchanged_in_both_directions_and_after_every_misfortune() -> None:
    """What never happens would prove nothing. A second offer, a2, exists only after a restore forgot the first."""
    anyhow = {(relation, crashes, restores) for relation in ("a1", "b1") for crashes in (0, 1) for restores in (0, 1)}
    assert search(Rules()).exchanged == anyhow | {("a2", 0, 0), ("a2", 1, 0)}


MUTANTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    # the master gets a key that only its own end remembers: a restore forgets that, and the key is ready again
    "deliver first": ({"confirm": False}, {"I1", "I2", "I8", "live"}),
    # I1 holds: the other end remembers whom the key is for and refuses a second relation. But what the restored end
    # has as assigned it delivers once more, and what it has as assigning it voids under a slave whose master has it
    "no freeze after a restore": ({"freeze": False}, {"I2", "I8", "live"}),
    # an assign from before the restore and one from after it are both accepted
    "no uniqueness at the acceptor": ({"unique": False}, {"I1", "I8"}),
    # I1 holds, since every acceptance needs a ready row at both ends; but an acceptor that forgot its acceptance
    # claims the key itself, and the slave of the first relation never gets what its master has
    "no ownership": ({"owned": False}, {"I2", "live"}),
    # an acceptor that forgot is told nothing by the owner, which already has its answer
    "no pull": ({"pull": False}, {"live"}),
    # the restored row says assigning, the lost one delivered: only hello can tell
    "void at the start, hello after": ({"hello_first": False}, {"I2", "live"}),
    "assigned is still delivered after a restore": ({"burn": False}, {"I8"}),
    # a void from before the restore ends the assignment made after it
    "void names the relation alone": ({"exact_void": False}, {"I2", "live"}),
    # `already` for an offer from before the restore, and that offer's void comes later
    "already for the relation alone": ({"exact_already": False}, {"I2", "live"}),
    # a delivery sends the peer nothing, so a backup from just before it is not behind in numbers
    "a restore is noticed by numbers alone": ({"notice": "seq"}, {"I2", "I8", "live"}),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_no_rule_can_be_left_out(name: str) -> None:
    """A restore alone, without a crash, is enough to break what stands on the rule."""
    left_out, broken = MUTANTS[name]
    assert set(search(Rules(crashes=0, **left_out)).broken) == broken


@pytest.mark.parametrize("name", ["no freeze after a restore", "no ownership"])
def test_one_relation_per_key_outlives_the_loss_of(name: str) -> None:
    """I1 stands on confirmation and uniqueness: these two rules are there for I2 and I8, crash or not."""
    left_out, broken = MUTANTS[name]
    assert set(search(Rules(**left_out)).broken) == broken


def test_numbers_alone_are_enough_for_one_relation_per_key() -> None:
    """Every delivery was accepted by the peer after the number that it saw: I1 does not need the generation."""
    assert "I1" not in search(Rules(notice="seq", crashes=0)).broken


def test_ownership_and_uniqueness_stand_in_for_each_other() -> None:
    """Without both, two relations share a key though nothing is lost, nobody crashes and nothing is restored."""
    assert "I1" in search(Rules(owned=False, unique=False, crashes=0, restores=0), stop_at="I1").broken


def test_the_barrier_does_what_uniqueness_does_after_a_restore() -> None:
    """Two relations need two accepted offers; the barrier makes the older one stale. Void rows need uniqueness."""
    assert set(search(Rules(unique=False, barrier=True, crashes=0)).broken) == {"I8"}


def test_the_judge_sees_what_is_wrong() -> None:
    """The shortest way to two relations, told step by step."""
    way = search(Rules(confirm=False, crashes=0), stop_at="I1").broken["I1"]
    assert [line.partition(":")[0] for line in way] == [
        "backup",
        "claim",
        "deliver",
        "restore",
        "hello",
        "reconcile",
        "claim",
        "deliver",
    ]
    assert way[-1].endswith("masters ['a1', 'a2'], slaves []")
