"""Are keys that are carried under one-time pads the same at both ends, accepted once, and gone where they failed?"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from hsmkme.agreement import SEVERAL_MOST, WAITING_MOST
from hsmkme.audit import AuditChain
from hsmkme.errors import KeyNotHeld, LinkFrozen, PeerRefused, PeerUnavailable, PoolShort, RecordFault, TokenMisuse
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.messages.bodies import Assign, Assigned, Carry, Hello, Query, Void, Voided, parsed
from hsmkme.messages.signing import VERSION
from hsmkme.model import BlockName, Entry, Link, RawBlock, SealedBlock, SealedKey, segment_bytes
from hsmkme.store import Draft, Receipt, Store
from hsmkme.store.links import OPERATOR
from tests.blocks import altered, collect, flipped, key_of, open_bytes, part_of
from tests.conftest import FakeClock
from tests.peering.ends import ALSO_AT_FAR, AT_FAR, AT_HOME, AT_NEAR, RELATION, Ends, greet, made

ALL_OF_THEM = "SELECT count(*) FROM key WHERE state = ?"


@pytest.fixture
def ends(tmp_path: Path, token: Token, clock: FakeClock) -> Iterator[Ends]:
    both = made(tmp_path, token, clock)
    yield both
    both.home.store.close()
    both.away.store.close()


def carried(ends: Ends, number: int = 1, size: int = 256) -> tuple[Draft, Carry]:
    """A message that was made and not sent."""
    offer = ends.home.custody.offer(ends.demand(number, size), lambda n: tuple(uuid4() for _ in range(n)), "test")
    (draft,) = ends.home.custody.carry(offer)
    return draft, parsed(Carry, draft.body)


def said(ends: Ends, draft: Draft, carry: Carry | None = None) -> str:
    """What kme-3 answers to a message, to another one than ``draft`` if ``carry`` is given."""
    if carry is not None:
        draft = replace(draft, body=carry.encoded(), txid=uuid4())
    answer = ends.wire.say(draft)
    assert answer.status == 200, answer.body
    return parsed(Assigned, answer.body).result


def changed(carry: Carry, **values: Any) -> Carry:
    """The message with other values in what it assigns."""
    return carry.model_copy(update={"pads": Assign.model_validate({**carry.pads.model_dump(), **values})})


def moved(carry: Carry, **place: Any) -> Carry:
    """The message with other values in the first place of its pads."""
    first, *others = carry.pads.places
    return changed(carry, places=[first.model_copy(update=place), *others])


def zeroed(ends: Ends, end: str) -> list[int]:
    """The segments of the block of `far` that are erased at one end."""
    kme, stride = {"home": ends.home, "away": ends.away}[end], segment_bytes(256)
    ((sealed,),) = kme.rows(
        "SELECT sealed FROM segments JOIN block USING (block_pk) WHERE link_id = 'far' AND block_id = 'block-1'"
    )
    assert isinstance(sealed, bytes)
    return [n for n in range(8) if not any(sealed[n * stride : (n + 1) * stride])]


# The way there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "size"), [(1, 256), (5, 256), (2, 128), (2, 1024), (3, 72), (1, 64)])
def test_every_slave_gets_what_the_master_got_and_gets_it_once(ends: Ends, number: int, size: int) -> None:
    keys = ends.fetch(number, size)
    assert {len(key) * 8 for key in keys.values()} == {size}
    for slave in (AT_FAR, AT_HOME):
        assert ends.collect(list(keys), slave) == keys
        end = ends.away if slave == AT_FAR else ends.home
        with pytest.raises(KeyNotHeld):
            collect(end.store, slave, list(keys), Entry("key.collect", "test"))


def test_the_peer_of_the_link_is_told_of_the_key_and_the_other_of_the_masked_key(ends: Ends) -> None:
    ((key_id, key),) = ends.fetch().items()
    assign, carry = ends.wire.sent
    assert (assign.link_id, assign.call, carry.link_id, carry.call) == ("near", "keys/assign", "far", "keys/carry")
    body = parsed(Carry, carry.body)
    pad = ends.block.material.reveal()[:32]
    assert body.pads.named == [key_id]
    assert body.masked == [bytes(a ^ b for a, b in zip(key, pad, strict=True))]


def test_used_pads_are_erased_at_both_ends_and_never_claimed_again(ends: Ends) -> None:
    ends.fetch(number=3)
    assert zeroed(ends, "home") == zeroed(ends, "away") == [0, 1, 2]
    assert ends.home.rows(ALL_OF_THEM, "void") == [(3,)]
    ends.fetch(number=2)
    first = [parsed(Carry, draft.body).pads.places[0].first for draft in ends.wire.sent[1::2]]
    assert first == [0, 3]


def test_the_block_that_was_carried_is_erased_when_its_slaves_have_it(ends: Ends) -> None:
    keys = ends.fetch(number=2)
    statement = "SELECT state, tag, mine FROM block WHERE block_id LIKE 'carried/%'"
    assert ends.away.rows(statement) == [("exhausted", None, 0)]
    for key_id in keys:
        ends.collect([key_id])
    assert ends.away.rows(statement) == [("retired", None, 0)]
    assert ends.away.rows("SELECT count(*) FROM segments") == [(1,)]


def test_a_slave_of_another_kme_cannot_collect_it_here(ends: Ends) -> None:
    keys = list(ends.fetch())
    with pytest.raises(KeyNotHeld):
        ends.away.custody.collect(AT_NEAR, [ends.away.custody.held(keys)[keys[0]]], "test")


def test_what_was_carried_counts_neither_as_stock_nor_as_rate_nor_as_size_of_a_block(ends: Ends) -> None:
    statement = "SELECT link_id, key_bits, ready, theirs FROM pool"
    before = ends.away.rows(statement)
    ends.fetch(number=1)
    ((_, bits, ready, theirs),) = before
    assert ends.away.rows(statement) == [("far", bits, ready, int(str(theirs)) - 1)]
    assert ends.away.store.links.block_size("far", 256) == 8


# Confirm before deliver -----------------------------------------------------------------------------------


def void_everywhere(ends: Ends) -> None:
    """Nothing is left that anybody could get; both peers are told, of keys alone."""
    assert ends.home.rows("SELECT DISTINCT state FROM key") == [("void",)]
    told = ends.home.store.outbox.waiting("far", 10) + ends.home.store.outbox.waiting("near", 10)
    keys = {bytes(str(key_id), "ascii") for key_id in key_ids_claimed(ends)}
    assert [(draft.link_id, draft.call) for draft in told] == [("far", "keys/void"), ("near", "keys/void")]
    assert all(set(json.loads(draft.body)["key_ids"]) == {key.decode() for key in keys} for draft in told)


def key_ids_claimed(ends: Ends) -> list[UUID]:
    """The keys of `near`."""
    claims = [json.loads(text) for text in ends.home.events("key.claim")]
    return [UUID(key_id) for claim in claims if "masks" not in claim for key_id in claim["key_IDs"]]


def test_a_far_kme_that_does_not_answer_lets_nothing_through(ends: Ends) -> None:
    ends.wire.cut = True
    with pytest.raises(PeerUnavailable):
        ends.fetch(number=2)
    void_everywhere(ends)
    assert ends.home.events("key.deliver") == []


@pytest.mark.parametrize("answer", ["conflict", "not_owner", "void", "frozen"])
def test_a_near_kme_that_refuses_lets_nothing_through(ends: Ends, answer: Any) -> None:
    ends.wire.near = answer
    with pytest.raises((PeerRefused, LinkFrozen)):
        ends.fetch()
    void_everywhere(ends)
    assert [draft.call for draft in ends.wire.sent] == ["keys/assign"]


def test_an_answer_that_was_lost_is_asked_for_again_and_is_the_same(ends: Ends) -> None:
    ends.wire.lose = 1
    keys = ends.fetch()
    first, second = ends.wire.answers
    assert first.body == second.body
    assert parsed(Assigned, first.body).result == "assigned"
    assert ends.collect(list(keys)) == keys


def test_keys_whose_acceptance_nobody_heard_of_end_at_both_ends(ends: Ends) -> None:
    ends.wire.lose = 99
    with pytest.raises(PeerUnavailable):
        ends.fetch()
    void_everywhere(ends)
    (key_id,) = key_ids_claimed(ends)
    assert ends.away.state_of(key_id) == "assigned"
    (told,) = ends.home.store.outbox.waiting("far", 10)
    ends.wire.say(told)
    assert ends.away.state_of(key_id) == "void"
    assert ends.away.rows("SELECT state FROM block WHERE block_id LIKE 'carried/%'") == [("retired",)]


def test_a_crash_before_anything_was_said_ends_keys_and_pads_and_tells_of_keys_alone(ends: Ends) -> None:
    carried(ends, number=2)
    ends.clock.now += 60
    entry = Entry("key.void", "upkeep", {"reason": "not confirmed"})
    assert ends.home.store.keys.abandon(int(ends.clock.now) - 15, entry) == 4
    void_everywhere(ends)


@pytest.mark.parametrize("link_id", ["near", "far"])
def test_nothing_is_delivered_when_a_link_is_frozen_after_all_have_accepted(ends: Ends, link_id: str) -> None:
    passed_on = ends.wire.send

    def send(draft: Draft) -> bytes:
        answer = passed_on(draft)
        if draft.call == "keys/carry":
            ends.home.store.links.freeze(link_id, OPERATOR, Entry("link.freeze", "test"))
        return answer

    ends.wire.send = send  # type: ignore[method-assign]
    with pytest.raises(PeerUnavailable, match="agreed too late"):
        ends.fetch()
    void_everywhere(ends)


def test_pads_that_were_given_up_meanwhile_deliver_nothing(ends: Ends) -> None:
    demand = ends.demand()
    offer = ends.home.custody.offer(demand, lambda n: tuple(uuid4() for _ in range(n)), "test")
    ends.home.store.keys.void(offer.pads[0].pad_ids, Entry("key.void", "test"))
    with pytest.raises(KeyNotHeld):
        ends.home.custody.settle(offer, demand, "test")
    assert ends.home.state_of(demand.key_ids[0]) == "assigning"


def test_nothing_is_claimed_from_one_link_when_the_other_has_too_little(ends: Ends) -> None:
    ends.fill("near", "block-2")
    carried(ends, number=8)
    before = ends.home.rows("SELECT (SELECT count(*) FROM key), ready FROM pool WHERE link_id = 'near'")
    with pytest.raises(PoolShort):
        ends.fetch()
    assert ends.home.rows("SELECT (SELECT count(*) FROM key), ready FROM pool WHERE link_id = 'near'") == before
    assert before == [(16, 8)]


def test_nothing_is_claimed_for_a_far_kme_that_was_not_heard_of(ends: Ends) -> None:
    ends.clock.now += 60
    with pytest.raises(PeerUnavailable, match="not heard of lately"):
        ends.fetch()
    assert ends.home.rows("SELECT count(*) FROM key") == [(0,)]
    greet(ends)
    assert ends.fetch()


@pytest.mark.parametrize(("awaited", "places"), [("several peers", SEVERAL_MOST), ("kme-3", WAITING_MOST)])
def test_nothing_is_claimed_while_enough_others_wait(ends: Ends, awaited: str, places: int) -> None:
    agreement = ends.agreement
    with ExitStack() as others:
        for _ in range(places):
            others.enter_context(agreement._turn(awaited, places))
        with pytest.raises(PeerUnavailable, match=f"requests wait for {awaited} already"):
            agreement.release(ends.demand(), "test")
    assert ends.home.rows("SELECT count(*) FROM key") == [(0,)]
    assert agreement.release(ends.demand(), "test")


def test_a_key_that_does_not_open_ends_with_its_pads_and_is_told_to_nobody_as_delivered(ends: Ends) -> None:
    with ends.home.store.log._database.write(logged=False) as transaction:
        transaction.execute(
            "UPDATE segments SET sealed = zeroblob(length(sealed)) WHERE block_pk ="
            " (SELECT block_pk FROM block WHERE link_id = 'near')"
        )
    with pytest.raises(RecordFault):
        ends.fetch()
    assert ends.home.rows("SELECT DISTINCT state FROM key") == [("void",)]
    assert ends.home.rows("SELECT state FROM block WHERE link_id = 'near'") == [("frozen",)]
    assert ends.wire.sent == []


# What kme-3 refuses ---------------------------------------------------------------------------------------


def nothing_of_it(ends: Ends) -> None:
    assert ends.away.rows("SELECT count(*) FROM block") == [(1,)]
    assert ends.away.rows("SELECT count(*) FROM key") == [(0,)]
    assert ends.away.rows("SELECT state, next_index FROM block") == [("ready", 0)]
    assert zeroed(ends, "away") == []


def test_a_message_that_was_altered_is_refused(ends: Ends) -> None:
    draft, carry = carried(ends)
    other = carry.model_copy(update={"masked": [flipped(carry.masked[0], 3)]})
    with pytest.raises(PeerRefused, match="not the one that the digest is of"):
        ends.wire.say(draft, other.encoded())
    nothing_of_it(ends)
    assert said(ends, draft) == "assigned"


def test_another_message_under_the_same_txid_is_refused(ends: Ends) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft) == "assigned"
    other = carry.model_copy(update={"masked": [flipped(carry.masked[0], 3)]})
    answer = ends.wire.say(replace(draft, body=other.encoded()))
    assert (answer.status, b"same txid" in answer.body) == (409, True)


def test_a_pad_is_used_once_whatever_is_said_of_it(ends: Ends) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft) == "assigned"
    another = changed(carry, key_ids=uuid4().hex)
    assert said(ends, draft, another) == "conflict"
    assert ends.away.rows("SELECT state FROM block WHERE block_id = 'block-1'") == [("ready",)]
    assert ends.away.events("alarm.assign-conflict")


def test_a_pad_for_two_keys_of_one_message_is_refused(ends: Ends) -> None:
    draft, carry = carried(ends, number=2)
    (both,) = carry.pads.places
    twice = changed(carry, places=[both.model_copy(update={"count": 1})] * 2)
    assert said(ends, draft, twice) == "conflict"
    nothing_of_it(ends)


def test_the_same_keys_in_another_message_are_known_already(ends: Ends) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft) == "assigned"
    assert said(ends, draft, carry) == "already"
    assert ends.away.rows("SELECT count(*) FROM block WHERE block_id LIKE 'carried/%'") == [(1,)]


def test_the_same_message_twice_at_once_is_acted_upon_once(ends: Ends) -> None:
    draft, carry = carried(ends)
    receipt = Receipt("far", draft.txid, draft.seq, draft.incarnation, draft.body)
    due, entry = 1 << RELATION.slaves.index(AT_FAR), Entry("key.carry", "peer:kme-1")
    answers = [ends.away.custody.take_over(receipt, carry, due, entry) for _ in range(2)]
    assert [parsed(Assigned, answer).result for answer in answers] == ["assigned", "already"]
    assert ends.away.rows("SELECT count(*) FROM key") == [(1,)]


def test_a_peer_voids_no_key_of_another_link(ends: Ends) -> None:
    keys = list(ends.fetch())
    ends.away.store.registry.admit_links([Link("other", "kme-2")], Entry("link.admit", "test"))
    hello = Hello(versions=[VERSION], sent=0, log_rows=0, why="", ready={})
    entry = Entry("link.hello", "peer:kme-2")
    ends.away.store.inbox.hello(Receipt("other", uuid4(), 1, "0" * 32, b"hello"), hello, entry)
    receipt = Receipt("other", uuid4(), 2, "0" * 32, b"void")
    answer = ends.away.store.inbox.void(receipt, Void(key_ids=keys, reason="spite"), entry)
    assert set(parsed(Voided, answer).results.values()) == {"unknown"}
    assert ends.away.state_of(keys[0]) == "assigned"


def test_a_known_key_for_another_relation_is_refused(ends: Ends) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft) == "assigned"
    assert said(ends, draft, changed(carry, slaves=[AT_FAR, ALSO_AT_FAR])) == "conflict"


@pytest.mark.parametrize("slaves", [[AT_NEAR, AT_HOME], [AT_NEAR, AT_FAR]], ids=["none is here", "not in order"])
def test_a_relation_that_is_not_for_this_kme_is_refused(ends: Ends, slaves: list[str]) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft, changed(carry, slaves=slaves)) == "conflict"
    nothing_of_it(ends)


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        ({"own_epoch": 1}, "not_owner"),
        ({"block_id": "nowhere"}, "unknown"),
        ({"first": 8}, "conflict"),
        ({"count": 9}, "conflict"),
    ],
    ids=str,
)
def test_a_pad_that_the_peer_may_not_use_is_refused(ends: Ends, place: dict[str, Any], answer: str) -> None:
    draft, carry = carried(ends)
    assert said(ends, draft, moved(carry, **place)) == answer
    nothing_of_it(ends)


def test_a_pad_that_is_shorter_than_its_key_is_refused(ends: Ends) -> None:
    draft, carry = carried(ends, size=512)
    assert said(ends, draft, moved(carry, count=1)) == "conflict"
    nothing_of_it(ends)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_masked_key_of_another_length_is_refused(ends: Ends, length: int) -> None:
    draft, carry = carried(ends)
    other = carry.model_copy(update={"masked": [bytes(length)]})
    answer = ends.wire.say(replace(draft, body=other.encoded(), txid=uuid4()))
    assert (answer.status, b"masked has one value" in answer.body) == (409, True)
    nothing_of_it(ends)


def test_nothing_is_accepted_on_a_frozen_link(ends: Ends) -> None:
    draft, _ = carried(ends)
    ends.away.store.links.freeze("far", OPERATOR, Entry("link.freeze", "test"))
    assert said(ends, draft) == "frozen"
    nothing_of_it(ends)


def test_a_pad_that_does_not_open_here_voids_the_keys_and_freezes_its_block(ends: Ends) -> None:
    draft, _ = carried(ends)
    with ends.away.store.log._database.write(logged=False) as transaction:
        transaction.execute("UPDATE segments SET sealed = zeroblob(length(sealed))")
    assert said(ends, draft) == "void"
    assert ends.away.rows("SELECT state FROM block") == [("frozen",)]
    assert ends.away.rows("SELECT count(*) FROM key") == [(0,)]


def test_pads_of_a_block_that_ended_there_end_here_too_and_the_next_ones_are_good(ends: Ends) -> None:
    ends.fill("far", "block-2")
    ends.away.store.blocks.freeze(BlockName("far", "block-1"), Entry("block.freeze", "test"))
    with pytest.raises(PeerRefused, match="void"):
        ends.fetch()
    assert ends.home.rows("SELECT link_id, block_id, state FROM block ORDER BY link_id, block_id") == [
        ("far", "block-1", "retired"),
        ("far", "block-2", "ready"),
        ("near", "block-1", "ready"),
    ]
    keys = ends.fetch()
    assert ends.collect(list(keys)) == keys


# After a restore ------------------------------------------------------------------------------------------


def test_a_reconciliation_leaves_carried_keys_alone(ends: Ends) -> None:
    keys = ends.fetch()
    assert ends.away.store.reconciling.live("far") == ["block-1"]
    assert ends.home.store.reconciling.report("far", Query(after="")).live == ["block-1"]
    report = ends.home.store.reconciling.report("far", Query(blocks=["block-1"]))
    entry = Entry("link.reconcile", "test")
    ends.away.store.reconciling.apply("far", "kme-3", ["block-1"], report.blocks, entry)
    assert ends.collect(list(keys)) == keys


def test_a_pad_is_no_key_to_the_other_end_but_its_segments_are_used(ends: Ends) -> None:
    carried(ends, number=2)
    (block,) = ends.home.store.reconciling.report("far", Query(blocks=["block-1"])).blocks
    assert (block.used, block.keys) == (2, [])
    ends.away.store.reconciling.apply("far", "kme-3", ["block-1"], [block], Entry("link.reconcile", "test"))
    assert zeroed(ends, "away") == [0, 1]


def test_a_kme_that_forgot_its_pads_does_not_use_them_again(ends: Ends, tmp_path: Path, clock: FakeClock) -> None:
    with closing(sqlite3.connect(ends.home.path)) as source, closing(sqlite3.connect(tmp_path / "copy")) as copy:
        source.backup(copy)
    draft, _ = carried(ends, number=3)
    assert said(ends, draft) == "assigned"
    report = ends.away.store.reconciling.report("far", Query(blocks=["block-1"]))
    assert [(block.used, block.keys) for block in report.blocks] == [(3, [])]
    restored = Store(tmp_path / "copy", AuditChain(), clock)
    restored.reconciling.apply("far", "kme-1", ["block-1"], report.blocks, Entry("link.reconcile", "test"))
    offer = restored.agreed.offer(ends.demand(), lambda n: tuple(uuid4() for _ in range(n)), Entry("key.claim", "test"))
    assert offer.pads[0].assign.places[0].first == 3
    restored.close()


# The token ------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(token: Token, raw_block: Callable[..., RawBlock]) -> tuple[SealedKey, SealedKey, bytes, bytes]:
    """A key and a pad of 72 bits, sealed and plain."""
    key, pad = raw_block(keys=2, bits=128), raw_block(keys=2, bits=256)
    sealed = [key_of(part_of(token.seal(block, 1), 0, 1), size=72) for block in (key, pad)]
    return sealed[0], sealed[1], key.material.reveal()[:9], pad.material.reveal()[:9]


def masked_by(token: Token, key: SealedKey, pad: SealedKey) -> bytes:
    (masked,) = sole(token).mask([key], [pad], lambda _: token.name)
    return masked


def unmasked_by(token: Token, masked: bytes, pad: SealedKey, name: str = "carried/1") -> SealedBlock:
    block = sole(token).unmask([masked], [pad], BlockName("far", name), lambda _: token.name)
    return token.seal_carried(block, 1)


def test_masked_is_key_xor_pad_and_unmasked_is_the_key_sealed(
    token: Token, pair: tuple[SealedKey, SealedKey, bytes, bytes]
) -> None:
    key, pad, plain, pad_bytes = pair
    masked = masked_by(token, key, pad)
    assert masked == bytes(a ^ b for a, b in zip(plain, pad_bytes, strict=True))
    sealed = unmasked_by(token, masked, pad)
    assert (sealed.key_count, sealed.seal.key_bits, sealed.mine, sealed.tag) == (1, 128, False, None)
    assert open_bytes(token, key_of(part_of(sealed), size=72)) == plain


def test_a_pad_of_another_length_masks_nothing(token: Token, pair: tuple[SealedKey, SealedKey, bytes, bytes]) -> None:
    key, pad, _, _ = pair
    for size in (64, 80, 128):
        with pytest.raises(TokenMisuse):
            masked_by(token, key, pad._replace(size=size))
        with pytest.raises(TokenMisuse):
            unmasked_by(token, bytes(9), pad._replace(size=size))


def test_a_pad_that_was_moved_or_altered_does_not_open(
    token: Token, pair: tuple[SealedKey, SealedKey, bytes, bytes]
) -> None:
    key, pad, _, _ = pair
    moved_pad = pad._replace(parts=(replace(pad.parts[0], first=1),))
    renamed = pad._replace(parts=(altered(pad.parts[0], name=BlockName("far", "x")),))
    broken = pad._replace(parts=(replace(pad.parts[0], sealed=flipped(pad.parts[0].sealed, 5)),))
    for wrong in (moved_pad, renamed, broken):
        with pytest.raises(RecordFault):
            masked_by(token, key, wrong)
        with pytest.raises(RecordFault):
            unmasked_by(token, bytes(9), wrong)


def test_the_same_key_carried_twice_is_two_blocks_with_digests_of_their_own(
    token: Token, pair: tuple[SealedKey, SealedKey, bytes, bytes]
) -> None:
    key, pad, _, _ = pair
    masked = masked_by(token, key, pad)
    digests = {unmasked_by(token, masked, pad, f"carried/{n}").digest for n in range(2)}
    assert len(digests) == 2
