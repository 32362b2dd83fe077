"""One end is put back to an old copy of its store, at any moment, while the network does what it likes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkme.liaison import HELLO_SECONDS
from hsmkme.model import Entry, Relation
from hsmkme.store.links import OPERATOR, PEER_RESTORED, RESTORED, STARTING
from tests.peering import line as trouble
from tests.peering.pair import BITS, LINK, End, Pair

FAULTS = (trouble.drop_answer, trouble.delay, trouble.duplicate)
BOTH_WAYS = (("a1", "b1"), ("b1", "a1"), ("a2", "b2"), ("b2", "a2"))


def well(pair: Pair) -> None:
    pair.heal()
    pair.fill(1, keys=64)
    pair.rounds(2)
    pair.works()
    pair.judge()


def traffic(pair: Pair, number: int = 2) -> None:
    for master, slave in BOTH_WAYS:
        pair.exchange(master, slave, number=number)


def held_by_masters(pair: Pair, number: int = 2) -> None:
    """Keys that masters have, and slaves have not asked for yet."""
    for master, slave in BOTH_WAYS:
        pair.enc(master, slave, number=number)


@pytest.fixture(params=["kme-1", "kme-2"])
def end(request: pytest.FixtureRequest, pair: Pair) -> End:
    return pair.a if request.param == "kme-1" else pair.b


def test_an_old_copy_is_noticed_and_reconciled_and_no_key_is_given_again(pair: Pair, end: End) -> None:
    pair.fill(1, keys=64)
    traffic(pair)
    copy = end.backup()
    traffic(pair)
    held_by_masters(pair)
    pair.fill(1, keys=32)
    pair.rounds(2)
    traffic(pair)
    end.restore(copy)
    other = pair.b if end is pair.a else pair.a
    for master, slave in BOTH_WAYS:
        agreed = pair.serving(master).store.agreed.count(Relation.of(master, [slave]), BITS)
        for _ in range(agreed):  # before the copy was put in place: it does not know all of them, and learns of them
            pair.enc(master, slave)
        assert pair.refused(master, slave) is not None, "claimed before it was reconciled"
    pair.heal()
    assert "alarm.store-restored" in end.alarms
    assert "alarm.peer-restored" in other.alarms
    well(pair)


@pytest.mark.parametrize("lost", ["hello", "keys/query", "blocks/missing"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_old_copy_is_reconciled_over_a_network_that_loses_messages(
    pair: Pair, end: End, lost: str, fault: trouble.Fault
) -> None:
    copy = end.backup()
    held_by_masters(pair)
    pair.fill(1)
    pair.rounds(2)
    held_by_masters(pair)
    end.restore(copy)
    pair.line.next(lost, *[fault] * 4)
    pair.rounds(8)
    assert "alarm.store-restored" in end.alarms
    well(pair)


def test_an_old_copy_is_noticed_however_long_the_peer_was_away(pair: Pair, end: End) -> None:
    """Meanwhile the end that was restored asks in vain, and serves SAEs of its own."""
    copy = end.backup()
    held_by_masters(pair, number=1)
    pair.rounds(2)
    end.restore(copy)
    pair.line.always = trouble.drop_request
    for _ in range(60):
        end.liaison.round()
        end.store.log.append(Entry("refused.dec_keys", "sae:somebody"))
        pair.clock.now += 0.6
    pair.line.heal()
    pair.rounds(3)
    assert "alarm.store-restored" in end.alarms
    well(pair)


def test_an_old_copy_is_noticed_when_the_answer_that_says_so_is_lost(pair: Pair, end: End) -> None:
    copy = end.backup()
    held_by_masters(pair, number=1)
    pair.rounds(2)
    end.restore(copy)
    pair.line.next("hello", *[trouble.drop_answer] * 30)
    for _ in range(30):
        end.liaison.round()
        pair.clock.now += 0.6
    pair.rounds(3)
    assert "alarm.store-restored" in end.alarms
    well(pair)


def test_a_copy_that_lacks_nothing_but_keys_the_peer_assigned_is_old_too(pair: Pair) -> None:
    """Nothing was said by the end that is restored; what it forgets, its slaves could never fetch."""
    pair.rounds(1)
    copy = pair.b.backup()
    pair.enc("a1", "b1", number=2)
    pair.b.restore(copy)
    pair.heal()
    assert "alarm.store-restored" in pair.b.alarms
    well(pair)


@pytest.mark.parametrize("frozen", [OPERATOR, PEER_RESTORED, RESTORED])
def test_a_copy_made_while_the_link_was_frozen_is_noticed(pair: Pair, end: End, frozen: str) -> None:
    end.store.links.freeze(LINK, frozen, Entry("link.freeze", "test"))
    copy = end.backup()
    end.store.links.open(LINK, frozen, Entry("link.open", "test"))
    held_by_masters(pair)
    pair.rounds(2)
    end.restore(copy)
    pair.rounds(3)
    if frozen == OPERATOR:
        assert end.why() == OPERATOR
        end.store.links.thaw(LINK, STARTING, Entry("link.thaw", "test"))
    pair.heal()
    assert "alarm.store-restored" in end.alarms or frozen == RESTORED
    well(pair)


def test_a_key_of_two_blocks_of_which_the_copy_has_one_leaves_an_alarm(pair: Pair, end: End) -> None:
    """Its slave can never have it: somebody must be told."""
    copy = end.backup()
    pair.fill(2, keys=63)
    pair.rounds(2)
    for master, slave in BOTH_WAYS:
        for _ in range(4):
            pair.enc(master, slave, size=1280)
    end.restore(copy)
    well(pair)


def test_a_key_of_two_blocks_that_waited_when_the_copy_was_made_is_kept(pair: Pair, end: End) -> None:
    for kme in ("kme-1", "kme-2"):  # in any order of their names
        for name in (f"z-{kme}", f"y-{kme}", f"x-{kme}"):
            pair.deposit(keys=63, name=name)
    copy = end.backup()
    pair.rounds(2)
    for master, slave in BOTH_WAYS:
        for _ in range(5):
            pair.enc(master, slave, size=1280)
    end.restore(copy)
    pair.heal()
    assert "alarm.store-restored" in end.alarms
    for key_id, [(master, slaves, _)] in pair.masters.items():
        for slave in slaves:
            pair.dec(slave, master, [key_id])
    well(pair)


def test_a_copy_with_a_grant_that_was_never_sent_leaves_no_block_without_an_owner(pair: Pair) -> None:
    for _ in range(14):
        pair.deposit(owner="kme-1", keys=2)
    while pair.b.store.links.state(LINK).ready:
        pair.enc("b1", "a1")
    pair.line.next("blocks/grant", *[trouble.drop_request] * 40)
    pair.rounds(2)
    assert pair.a.store.outbox.count(LINK)
    copy = pair.a.backup()
    pair.exchange("a1", "b1")
    pair.rounds(1)
    pair.a.restore(copy)
    pair.heal()
    owners = [pair.a.owned(), pair.b.owned()]
    for name in owners[0]:
        (mine, _, state), (theirs, _, other) = owners[0][name], owners[1][name]
        assert mine != theirs or "ready" not in (state, other), name
    well(pair)


def test_a_grant_that_the_peer_forgot_leaves_no_block_without_an_owner(pair: Pair) -> None:
    for _ in range(14):
        pair.deposit(owner="kme-1", keys=2)
    while pair.b.store.links.state(LINK).ready:
        pair.enc("b1", "a1")
    copy = pair.b.backup()
    pair.rounds(2)
    pair.exchange("b1", "a1")
    pair.rounds(1)
    pair.b.restore(copy)
    pair.heal()
    for name, (mine, _, state) in pair.a.owned().items():
        theirs, _, other = pair.b.owned()[name]
        assert mine != theirs or "ready" not in (state, other), name
    well(pair)


def test_a_restore_of_a_copy_from_before_another_restore(pair: Pair, end: End) -> None:
    first = end.backup("first")
    held_by_masters(pair)
    second = end.backup("second")
    held_by_masters(pair)
    for copy in (second, first, second):
        end.restore(copy)
        pair.heal()
        pair.fill(1, keys=32)
        pair.rounds(2)
        held_by_masters(pair)
        pair.rounds(1)
    well(pair)


Step = Callable[[Pair], None]
MOMENTS: dict[str, Step] = {
    "after nothing": lambda _: None,
    "after an exchange": traffic,
    "while slaves have not come": held_by_masters,
    "after a refused request": lambda pair: _refused(pair),
    "after blocks came": lambda pair: _blocks(pair),
    "after a crash": lambda pair: _crash(pair),
    "in a partition": lambda pair: _partition(pair),
}


def _refused(pair: Pair) -> None:
    pair.line.next("keys/assign", *[trouble.drop_answer] * 4)
    for relation in (("a1", "b2"), ("b2", "a1")):
        pair.refused(*relation)
    pair.clock.now += HELLO_SECONDS


def _blocks(pair: Pair) -> None:
    pair.fill(1)
    pair.deposit(pair.a)
    pair.deposit(pair.b)
    pair.rounds(1)


def _crash(pair: Pair) -> None:
    for end in pair.ends:
        end.crash()
    pair.rounds(2)


def _partition(pair: Pair) -> None:
    held_by_masters(pair, 1)
    pair.line.always = trouble.drop_answer
    for relation in (("a1", "b1"), ("b1", "a1")):
        pair.refused(*relation)
    pair.line.heal()
    pair.clock.now += 1


PAIRS = [(before, then) for before in MOMENTS for then in MOMENTS if (before == "after nothing") or before != then]


@pytest.mark.parametrize(("before", "then"), PAIRS[::3])
def test_a_copy_of_one_moment_is_restored_at_another(pair: Pair, before: str, then: str) -> None:
    MOMENTS[before](pair)
    copies: list[tuple[End, Path]] = [(end, end.backup()) for end in pair.ends]
    MOMENTS[then](pair)
    for end, copy in copies:  # one after the other: both at once is beyond any protocol
        end.restore(copy)
        pair.rounds(1, 0.7)
        pair.heal()
        pair.fill(1)
        pair.rounds(2)
        held_by_masters(pair, 1)
    well(pair)
