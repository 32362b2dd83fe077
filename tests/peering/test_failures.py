"""The table of failures of peer-protocol.md: a test for each row, named by it.

Two whole KMEs each (`pair.py`). After each failure keys are exchanged in both directions, and I1, I2, I3 hold.
"""

from __future__ import annotations

import pytest

from hsmkme.errors import KeyNotHeld, PeerError, PeerRefused, PeerUnavailable
from hsmkme.model import Demand, Entry, Relation
from hsmkme.store.inbox import set_owner
from tests.peering import line as trouble
from tests.peering.pair import BITS, LINK, End, Pair
from tests.sealing import rewrite
from tests.tampering import hand_on


def well(pair: Pair) -> None:
    """All is well again, and nothing that must not be has been."""
    pair.heal()
    pair.works()
    pair.judge()


def offered(pair: Pair, master: str, *slaves: str, number: int = 1) -> tuple[End, Demand]:
    """What an end needs to go through an agreement step by step."""
    end = pair.serving(master)
    relation = Relation.of(master, slaves)
    demand = Demand(relation, end.peer, BITS, end.new_ids(number), end.elsewhere(relation))
    return end, demand


def claim_without_asking(pair: Pair) -> list[str]:
    """A claim is committed, and the process that made it is killed before it asks the peer."""
    end, demand = offered(pair, "a1", "b1", number=3)
    return [str(key) for key in end.custody.offer(demand, end.new_ids, "sae:a1").key_ids]


# assign or its answer lost: retried with the same txid → `already`; after the deadline void here, `void` in the outbox
# until acknowledged, SAE gets 503


@pytest.mark.parametrize("fault", [trouble.drop_request, trouble.drop_answer], ids=lambda fault: fault.__name__)
def test_an_assign_or_its_answer_is_lost_and_the_retry_agrees(pair: Pair, fault: trouble.Fault) -> None:
    pair.line.next("keys/assign", fault)
    keys = pair.exchange("a1", "b1")
    first, second = (request for request in pair.line.seen if request.call == "keys/assign")
    assert first.headers["Signature-Input"].split("nonce")[1] == second.headers["Signature-Input"].split("nonce")[1]
    assert pair.a.keys()[next(iter(keys))][0] == "delivered"
    well(pair)


@pytest.mark.parametrize("fault", [trouble.drop_request, trouble.drop_answer], ids=lambda fault: fault.__name__)
def test_an_assign_is_lost_until_the_deadline_and_void_is_repeated_until_acknowledged(
    pair: Pair, fault: trouble.Fault
) -> None:
    began = pair.clock.now
    pair.line.always = fault
    refusal = pair.refused("a1", "b1", number=2)
    assert isinstance(refusal, PeerUnavailable)  # 503 and Retry-After: api/problems.py
    assert pair.clock.now - began < 6
    assert [state for state, _ in pair.a.keys().values()] == ["void", "void"]
    for _ in range(3):
        assert pair.a.store.outbox.count(LINK) == 1
        pair.rounds(1)
    pair.line.heal()
    pair.rounds(2)
    assert pair.a.store.outbox.count(LINK) == 0
    assert {state for state, _ in pair.b.keys().values()} <= {"void"}
    well(pair)


# crash after committing the claim, before the assign is confirmed: at start: nobody waits; void


@pytest.mark.parametrize("arrived", [False, True], ids=["before the assign", "before its answer"])
def test_a_crash_after_the_claim_and_before_it_is_confirmed_voids_it(pair: Pair, arrived: bool) -> None:
    end, demand = offered(pair, "a1", "b1", number=3)
    offer = end.custody.offer(demand, end.new_ids, "sae:a1")
    if arrived:
        pair.a.peers.send(offer.draft)
        assert {state for state, _ in pair.b.keys().values()} == {"assigned"}
    pair.a.crash()
    assert {state for state, _ in pair.a.keys().values()} == {"void"}
    with pytest.raises((KeyNotHeld, PeerError)):
        pair.a.custody.settle(offer, demand, "sae:a1")
    well(pair)


def test_a_claim_whose_worker_alone_was_killed_is_void_after_a_while(pair: Pair) -> None:
    keys = claim_without_asking(pair)
    pair.rounds(11)
    assert [pair.a.keys()[key][0] for key in keys] == ["void"] * 3
    assert pair.a.store.outbox.count(LINK) == 0
    well(pair)


# crash after committing delivery, before the reply: counts as delivered


def test_a_crash_after_delivery_and_before_the_reply_counts_as_delivered(pair: Pair) -> None:
    end, demand = offered(pair, "a1", "b1", number=2)
    offer = end.custody.offer(demand, end.new_ids, "sae:a1")
    pair.a.peers.send(offer.draft)
    end.store.agreed.settle(offer, demand, Entry("key.deliver", "sae:a1"))  # and not opened any more
    pair.a.crash()
    keys = [str(key.key_id) for key in offer.wanted]
    assert [pair.a.keys()[key][0] for key in keys] == ["delivered"] * 2
    pair.heal()
    assert not set(pair.exchange("a1", "b1", number=3)) & set(keys)
    got = pair.b.dec("b1", "a1", keys)  # had the reply come before the crash, the slave would have these
    assert len(got) == 2
    well(pair)


# partition: assigned keys go on being served; then 503 + Retry-After; ready keys stay


def test_a_partition_serves_agreed_keys_then_503_and_keeps_ready_keys(pair: Pair) -> None:
    for _ in range(4):
        pair.exchange("a1", "b1")
    pair.rounds(1)
    agreed = pair.a.store.agreed.count(Relation.of("a1", ["b1"]), BITS)
    assert agreed >= 4
    pair.line.always = trouble.drop_request
    pair.rounds(6)  # the liaisons know by now
    ready = pair.a.store.links.state(LINK).ready
    kept = [pair.enc("a1", "b1") for _ in range(agreed)]
    for _ in range(20):
        refusal = pair.refused("a1", "b1")
        assert isinstance(refusal, PeerUnavailable)
        assert refusal.retry_after > 0
        pair.clock.now += 1
    assert pair.a.store.links.state(LINK).ready == ready
    for keys in kept:  # the slave's KME serves them too
        assert pair.dec("b1", "a1", list(keys)) == keys
    well(pair)


def test_the_first_requests_in_a_partition_burn_few_keys(pair: Pair) -> None:
    """Until the peer counts as away, each request that waits for it in vain costs its keys."""
    pair.line.always = trouble.drop_request
    before = pair.a.store.links.state(LINK).ready
    for _ in range(40):
        assert isinstance(pair.refused("a2", "b2"), PeerUnavailable)
        pair.clock.now += 0.5
    lost = before[str(BITS)] - pair.a.store.links.state(LINK).ready[str(BITS)]
    assert lost <= 8
    well(pair)


# both ends claim at once: impossible by ownership; if configurations disagree: `conflict`, both void


def test_both_ends_claim_at_once_from_blocks_of_their_own(pair: Pair) -> None:
    """Each one's assign is answered while the other's is under way."""

    def at_the_same_time(line: trouble.Line, request: trouble.Request) -> trouble.Reply:
        for other in (("b1", "a1"), ("b2", "a2")) if request.sender == "kme-1" else ():
            pair.exchange(*other)
        return line.deliver(request)

    pair.line.next("keys/assign", at_the_same_time)
    pair.exchange("a1", "b1", number=3)
    used = [{segment for segment, *_ in end.segments()} for end in pair.ends]
    assert used[0] == used[1]
    well(pair)


def test_both_ends_believe_that_they_own_a_block(pair: Pair) -> None:
    """Configurations disagree: nobody gets a key of it, both are told, both void."""
    for end in pair.ends:
        rewrite(end.store, "block", "mine = 0", mine="1", own_epoch="own_epoch + 1")
    for master, slave in (("a1", "b1"), ("b1", "a1")):
        refusal = pair.refused(master, slave, number=2)
        assert isinstance(refusal, PeerRefused)
        assert refusal.alarm
    assert not pair.masters
    for end in pair.ends:
        assert {state for state, _ in end.keys().values()} == {"void"}
        assert "alarm.assign-not-owner" in end.alarms
    pair.rounds(2)
    pair.fill(1)
    pair.heal()
    pair.judge()


@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize(
    "change", ["mine = 1 - mine", "own_epoch = own_epoch + 1", "tag = randomblob(16)", "key_count = 3", "digest = tag"]
)
def test_what_a_row_says_of_a_shared_block_was_altered_at_one_end(pair: Pair, end: str, change: str) -> None:
    """The oldest block that `a` owns: it is kept apart where it was altered, and the others are used."""
    oldest = "SELECT block_id FROM block WHERE mine = 1 AND link_id = ? ORDER BY block_pk LIMIT 1"
    ((block,),) = pair.a.rows(oldest, LINK)
    altered = getattr(pair, end)
    with hand_on(altered.path) as connection:
        connection.execute(f"UPDATE block SET {change} WHERE link_id = ? AND block_id = ?", (LINK, block))  # noqa: S608
    for _ in range(4):
        if pair.refused("a1", "b1") is None:
            break
    pair.exchange("a1", "b1")
    pair.exchange("b1", "a1")
    altered.store.examining.examine("test")  # one that `a` does not take for its own is met when the others are used up
    assert altered.alarms.count("alarm.block-tampered") == 1
    assert altered.owned()[f"{LINK}/{block}"][2] == "frozen"
    pair.heal()
    pair._one_relation_for_each_key()
    pair._slaves_get_what_masters_got()


def test_a_row_that_was_altered_is_not_sealed_by_a_change_of_its_owner(pair: Pair) -> None:
    """Not even while it is kept apart, as who alters it may say."""
    with hand_on(pair.a.path) as connection:
        connection.execute("UPDATE block SET state = 'frozen', deposited_at = deposited_at + 9 WHERE block_pk = 1")
    with pair.a.store._database.write(logged=False) as transaction:
        set_owner(transaction, 1, mine=False, own_epoch=9)
        found = transaction.execute("SELECT own_epoch FROM block WHERE block_pk = 1 OR own_epoch = 9").fetchall()
    assert found == [(0,)]


def test_the_same_segments_for_two_keys_are_a_conflict_and_void_at_both_ends(pair: Pair) -> None:
    """An end whose cursor was moved back by something nobody thought of."""
    keys = pair.exchange("a1", "b1", number=2)
    with pair.a.store._database.write(logged=False) as transaction:
        transaction.execute("DROP TRIGGER cursor_moves_right")
        transaction.execute("UPDATE block SET next_index = 0 WHERE mine = 1")
    refusal = pair.refused("a2", "b2")
    assert isinstance(refusal, PeerRefused)
    assert pair.b.alarms == ["alarm.assign-conflict"]
    others = [state for key, (state, _) in pair.a.keys().items() if key not in keys]
    assert others == ["void"]
    assert not [key for key in list(pair.b.keys()) if key not in keys]
    pair._one_relation_for_each_key()


# replays, old messages: states are monotone, txid cached, seq window: harmless


def test_replays_and_old_messages_change_nothing(pair: Pair) -> None:
    pair.exchange("a1", "b1", number=3)
    pair.exchange("b2", "a2", number=2)
    pair.line.next("keys/assign", trouble.drop_answer, trouble.drop_answer)
    pair.refused("a2", "b1")
    pair.rounds(3)
    facts = [(end.keys(), end.owned(), len(end.log()), list(end.segments())) for end in pair.ends]
    for _ in range(2):
        pair.line.replay()
    assert [(end.keys(), end.owned(), len(end.log()), list(end.segments())) for end in pair.ends] == facts
    well(pair)


def test_replays_are_harmless_when_the_cached_answers_are_gone(pair: Pair) -> None:
    """They are too old by then: refused, whatever they say."""
    pair.exchange("a1", "b1", number=3)
    pair.clock.now += 400
    pair.rounds(2)
    keys = [end.keys() for end in pair.ends]
    old = [request for request in pair.line.seen if request.call == "keys/assign"]
    assert {pair.line.deliver(request).status for request in old} == {409}
    assert [end.keys() for end in pair.ends] == keys
    well(pair)


def test_a_message_of_the_life_before_a_restore_is_refused(pair: Pair) -> None:
    copy = pair.a.backup()
    pair.exchange("a1", "b1")
    pair.line.next("keys/assign", trouble.delay, trouble.delay)
    assert pair.refused("a2", "b2") is not None
    held, pair.line.held = pair.line.held, []
    pair.a.restore(copy)
    pair.rounds(3)
    assert pair.a.why() == ""
    assert {pair.line.deliver(request).status for request in held} == {409}
    well(pair)


# deposit at one end only: stays `deposited`, expires void with a metric; never delivered


def test_a_deposit_at_one_end_only_is_never_delivered_and_expires(pair: Pair) -> None:
    before = [end.store.links.state(LINK).ready for end in pair.ends]
    names = [pair.deposit(pair.a, owner="kme-1"), pair.deposit(pair.b, owner="kme-1")]
    pair.rounds(4)
    assert [end.store.links.state(LINK).ready for end in pair.ends] == before
    states = {**pair.a.owned(), **pair.b.owned()}
    assert [states[f"{LINK}/{name}"][2] for name in names] == ["deposited"] * 2
    pair.clock.now += 700
    pair.rounds(2)
    states = {**pair.a.owned(), **pair.b.owned()}
    assert [states[f"{LINK}/{name}"][2] for name in names] == ["retired"] * 2
    for end in pair.ends:
        assert "block.expire" in end.events()
    well(pair)


def test_a_block_that_expired_at_one_end_costs_the_other_no_more_than_a_request(pair: Pair) -> None:
    """The answer to its announcement was lost, and then the link was away until it expired."""
    for end in pair.ends:  # what is there is used first: take it away
        with end.store._database.write(logged=False) as transaction:
            transaction.execute("UPDATE block SET state = 'revoked'")
    first = pair.deposit(owner="kme-2", keys=16)
    pair.line.next("blocks/announce", trouble.drop_answer)
    pair.a.liaison.round()
    pair.line.always = trouble.drop_request
    pair.clock.now += 400
    second = pair.deposit(owner="kme-2", keys=16)
    pair.clock.now += 300
    pair.rounds(2)
    pair.line.heal()
    pair.rounds(3)
    assert [pair.a.owned()[f"{LINK}/{name}"][2] for name in (first, second)] == ["retired", "ready"]
    assert sum(pair.refused("b1", "a1") is not None for _ in range(8)) <= 1
    pair.judge()


# restore of an old backup at one end: see test_restores.py
