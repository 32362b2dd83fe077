"""Both stores of a link were put back to old copies: neither can tell the other what was delivered since."""

from __future__ import annotations

import pytest

from hsmkme.errors import StoreError
from hsmkme.model import Entry, Link
from hsmkme.store.links import GIVEN_UP, RESTORED
from tests.peering.pair import LINK, End, Pair
from tests.peering.test_restores import BOTH_WAYS, traffic

BY = Entry("link.give-up", "operator:test")


def give_up(end: End) -> int:
    return end.liaison.give_up(Link(LINK, end.peer), BY)


def found_old(end: End) -> None:
    """As the token says when it remembers a younger store."""
    end.store.links.freeze(LINK, RESTORED, Entry("alarm.store-restored", "custody"))


@pytest.fixture
def restored(pair: Pair) -> Pair:
    """Keys were claimed before the copies were made, and after; a block was on its way then, and was used since."""
    pair.fill(1, keys=64)
    pair.rounds(2)
    early = pair.enc("a1", "b1", number=2)
    pair.deposit(keys=64, name="on its way")
    copies = [end.backup() for end in pair.ends]
    pair.rounds(2)
    traffic(pair, number=8)
    for end, copy in zip(pair.ends, copies, strict=True):
        end.restore(copy)
        found_old(end)
    pair.rounds(3)
    assert pair.dec("b1", "a1", list(early)) == early, "what was claimed before is still collected"
    return pair


def refused_both_ways(pair: Pair) -> bool:
    return all(pair.refused(master, slave) is not None for master, slave in BOTH_WAYS)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_they_stay_frozen_until_both_gave_their_keys_up_and_go_on_with_new_ones(
    restored: Pair, order: tuple[int, int]
) -> None:
    first, second = (restored.ends[place] for place in order)
    assert [end.why() for end in restored.ends] == [RESTORED, RESTORED]
    assert refused_both_ways(restored)
    assert give_up(first) > 0
    restored.rounds(2)
    assert (first.why(), second.why()) == (GIVEN_UP, RESTORED)
    assert refused_both_ways(restored)
    first.crash()
    restored.rounds(2)
    assert (first.why(), second.why()) == (GIVEN_UP, RESTORED), "a start forgets nothing"
    assert give_up(first) == 0, "given again it finds nothing more"
    give_up(second)
    restored.heal()
    for end in restored.ends:
        assert end.rows("SELECT 1 FROM block WHERE link_id = 'far' AND state IN ('deposited', 'ready')") == []
        assert {row["actor"] for row in end.log() if row["event"] == "link.give-up"} == {"operator:test"}
    assert refused_both_ways(restored), "there are no keys"
    restored.fill(1, keys=64)
    restored.rounds(2)
    traffic(restored, number=2)
    restored._one_relation_for_each_key()


def test_nothing_is_given_up_while_the_peer_knows_better(pair: Pair) -> None:
    found_old(pair.a)
    before = pair.a.owned()
    with pytest.raises(StoreError, match="the store of kme-2 is no old copy: learn from it"):
        give_up(pair.a)
    assert pair.a.owned() == before
    pair.heal()
    pair.works()
