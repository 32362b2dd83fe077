"""What is not to be believed is refused and raises an alarm, and everybody else is served as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from hsmkme.errors import BlockConflict, BlockReplayed, PeerError, PeerRefused, PeerUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.messages.bodies import Assign, Place, Void
from hsmkme.messages.signing import Envelope, Message, signature_header
from hsmkme.model import Entry
from tests.conftest import PIN, FakeClock
from tests.peering.line import Line, Reply, Request
from tests.peering.pair import LINK, End, Pair, PeerPapers


def well(pair: Pair) -> None:
    pair.heal()
    pair.works()
    pair.judge()


def serves_others(pair: Pair) -> None:
    """Keys on another link between the two, and on a local one, are there for who asks."""
    for end in pair.ends:
        master, slave = ("a1", "a2") if end is pair.a else ("b1", "b2")
        if not end.store.links.state("local").ready:
            pair.deposit(end, link="local", keys=64)
        keys = end.enc(master, slave)
        assert end.dec(slave, master, list(keys)) == keys


def signed(end: End, call: str, body: bytes, *, token: Token | None = None, **changes: object) -> Request:
    """A message as ``end`` would send it, with another envelope, or signed by another token."""
    draft = end.store.outbox.number(LINK, call, Void(key_ids=[uuid4()], reason=""))
    envelope = Envelope(LINK, end.kme_id, draft.txid, draft.seq, draft.incarnation, int(end.clock.now) + 30)
    message = Message(call, replace(envelope, **changes), body)  # type: ignore[arg-type]
    mac = (token or end.token).link_mac(LINK, message.covered())
    headers = {**message.headers(), "Signature": signature_header(mac)}
    return Request(end.kme_id, end.peer, call, headers, body)


def refused_with_alarm(pair: Pair, request: Request, status: int = 400) -> None:
    states = [(end.keys(), end.owned()) for end in pair.ends]
    reply = pair.line.deliver(request)
    assert reply.status == status
    assert pair.b.alarms == ["alarm.peer-message"]
    for _ in range(5):  # not more often than one can read
        assert pair.line.deliver(request).status == status
    assert pair.b.alarms == ["alarm.peer-message"]
    assert [(end.keys(), end.owned()) for end in pair.ends] == states
    serves_others(pair)
    well(pair)


VOID = Void(key_ids=[uuid4()], reason="because").encoded()


@pytest.fixture
def wrong(wrong_address: TokenAddress) -> Iterator[Token]:
    token = Token(wrong_address, lambda: PIN)
    yield token
    token.close()


def test_a_wrong_link_key(pair: Pair, wrong: Token) -> None:
    refused_with_alarm(pair, signed(pair.a, "keys/void", VOID, token=wrong))


def test_two_ends_with_different_link_keys_exchange_nothing(
    tmp_path: Path, clock: FakeClock, both: Token, wrong: Token, papers: PeerPapers
) -> None:
    pair = Pair.made(tmp_path, clock, {"kme-1": both, "kme-2": wrong}, papers)
    pair.fill(2)
    pair.rounds(4)
    assert {state for end in pair.ends for _, _, state in end.owned().values()} == {"deposited"}
    for end in pair.ends:
        assert end.why() == "starting"
        assert set(end.alarms) == {"alarm.peer-message"}
    for master, slave in (("a1", "b1"), ("b1", "a1")):
        assert isinstance(pair.refused(master, slave), PeerError)
    serves_others(pair)
    pair.close()


def test_a_wrong_peer(pair: Pair) -> None:
    """A KME of the peers' CA, which is not the one at the other end of the link."""
    refused_with_alarm(pair, replace(signed(pair.a, "keys/void", VOID), sender="kme-3"))


def test_a_peer_that_says_it_is_another(pair: Pair) -> None:
    refused_with_alarm(pair, signed(pair.a, "keys/void", VOID, sender="kme-3"))


def test_a_message_of_this_end_that_comes_back(pair: Pair) -> None:
    refused_with_alarm(pair, replace(signed(pair.b, "keys/void", VOID), sender="kme-1", to="kme-2"))


def test_an_unknown_link(pair: Pair) -> None:
    request = signed(pair.a, "keys/void", VOID)
    parameters = request.headers["Signature-Input"].replace("link/far", "link/unknown")
    refused_with_alarm(pair, replace(request, headers={**request.headers, "Signature-Input": parameters}))


def test_a_local_link_is_no_link_of_a_peer(pair: Pair) -> None:
    request = signed(pair.a, "keys/void", VOID)
    parameters = request.headers["Signature-Input"].replace("link/far", "link/local")
    refused_with_alarm(pair, replace(request, headers={**request.headers, "Signature-Input": parameters}))


@pytest.mark.parametrize("seconds", [-100, 100], ids=["slow", "fast"])
def test_clock_skew(pair: Pair, seconds: int) -> None:
    expires = int(pair.clock.now) + 30 + seconds
    refused_with_alarm(pair, signed(pair.a, "keys/void", VOID, expires=expires), 409)


def test_an_altered_byte_of_the_body(pair: Pair) -> None:
    request = signed(pair.a, "keys/void", VOID)
    refused_with_alarm(pair, replace(request, body=request.body.replace(b"because", b"becausf")))


def test_the_same_block_id_with_different_bytes(pair: Pair) -> None:
    name = pair.deposit(pair.a)
    pair.deposit(pair.b, name=name)
    other = pair.deposit()
    pair.rounds(2)
    for end in pair.ends:
        assert end.owned()[f"{LINK}/{name}"][2] == "frozen"
        assert end.owned()[f"{LINK}/{other}"][2] == "ready"
        assert end.alarms == ["alarm.block-mismatch"]
    serves_others(pair)
    well(pair)


def test_the_same_block_id_with_different_bytes_at_one_end(pair: Pair) -> None:
    name = pair.deposit()
    pair.rounds(2)
    with pytest.raises(BlockConflict):
        pair.deposit(pair.a, name=name)
    assert pair.a.alarms == ["alarm.block-conflict"]
    serves_others(pair)
    refusals = [pair.refused(*relation) for relation in (("a1", "b1"), ("b1", "a1")) for _ in range(12)]
    assert sum(refusal is not None for refusal in refusals) <= 1, "the other end goes on offering the frozen block"
    well(pair)


def test_the_same_bytes_under_two_ids(pair: Pair) -> None:
    from hsmkme.model import BlockName, KeyMaterial, RawBlock

    material = bytes(range(128))
    for end in pair.ends:
        end.intake.take([RawBlock(BlockName(LINK, "once"), 256, KeyMaterial(material))], "device")
        with pytest.raises(BlockReplayed):
            end.intake.take([RawBlock(BlockName(LINK, "twice"), 256, KeyMaterial(material))], "device")
        assert end.alarms == ["alarm.block-replayed"]
    pair.rounds(2)
    serves_others(pair)
    well(pair)


def test_the_same_bytes_under_an_id_of_its_own_at_each_end(pair: Pair) -> None:
    from hsmkme.model import BlockName, KeyMaterial, RawBlock

    material = bytes(range(128, 256))
    for end, name in zip(pair.ends, ("mine", "yours"), strict=True):
        end.intake.take([RawBlock(BlockName(LINK, name), 256, KeyMaterial(material))], "device")
    pair.rounds(3)
    assert pair.a.owned()[f"{LINK}/mine"][2] == pair.b.owned()[f"{LINK}/yours"][2] == "deposited"
    well(pair)


def slow(way: Line, request: Request) -> Reply:
    """Answers when nobody waits any more; meanwhile time goes by."""
    way.ends[request.sender].clock.now += 3
    way.deliver(request)
    raise TimeoutError("too slow")


def test_a_peer_that_answers_too_slowly(pair: Pair) -> None:
    pair.line.always = slow
    began = pair.clock.now
    assert isinstance(pair.refused("a1", "b1"), PeerUnavailable)
    assert pair.clock.now - began <= 9
    serves_others(pair)
    well(pair)


NONSENSE = {
    "no JSON": Reply(200, {}, b"nonsense"),
    "an error page": Reply(502, {}, b"<html>Bad Gateway</html>"),
    "an answer of no key": Reply(200, {}, b'{"result":"assigned","log_rows":1}'),
    "too much": Reply(200, {}, b"x" * 100_000),
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE)
def test_a_peer_that_answers_nonsense(pair: Pair, reply: Reply) -> None:
    pair.line.always = lambda *_: reply
    refusal = pair.refused("a1", "b1", number=2)
    assert isinstance(refusal, PeerError)
    assert not pair.masters
    for _ in range(3):
        pair.a.liaison.round()
    if reply.status == 200:  # what passes for an answer and has no signature is an attack
        assert "alarm.peer-answer" in pair.a.alarms
    serves_others(pair)
    well(pair)


def test_a_signed_answer_of_nonsense(pair: Pair) -> None:
    """The peer has the key of the link, and lost its mind."""

    def mad(way: Line, request: Request) -> Reply:
        signature = trouble_signature(request)
        said = pair.b.peering._signed(LINK, 200, b'{"result":"of course","log_rows":1}', signature)
        return Reply(said.status, said.headers, said.body)

    pair.line.next("keys/assign", mad)
    assert isinstance(pair.refused("a1", "b1"), PeerRefused)
    assert not pair.masters
    serves_others(pair)
    well(pair)


def trouble_signature(request: Request) -> bytes:
    from hsmkme.messages.signing import signature_of

    return signature_of(request.headers)


# What only a peer with the key of the link can say


def assign_of(pair: Pair, *, slaves: list[str], master: str = "a1", first: int = 0, keys: int = 1) -> bytes:
    """An assign of segments of a block that kme-1 owns."""
    name = next(name for name, (mine, _, state) in pair.a.owned().items() if mine and name.startswith(LINK))
    place = Place(block_id=name.partition("/")[2], first=first, count=1, own_epoch=0)
    key_ids = "".join(uuid4().hex for _ in range(keys))
    return Assign(master=master, slaves=slaves, size=256, key_ids=key_ids, places=[place] * keys).encoded()


@pytest.mark.parametrize(
    ("slaves", "master"),
    [
        (["nobody"], "a1"),
        (["a2"], "a1"),
        (["b1", "nobody"], "a1"),
        (["b2", "b1"], "a1"),
        (["b1"], "b2"),
        (["b1"], "nobody"),
    ],
    ids=["unknown slave", "slave of the peer", "one unknown", "not sorted", "master of this end", "unknown master"],
)
def test_an_assign_for_saes_about_whom_the_registries_disagree(pair: Pair, slaves: list[str], master: str) -> None:
    reply = pair.line.deliver(signed(pair.a, "keys/assign", assign_of(pair, slaves=slaves, master=master)))
    assert b'"conflict"' in reply.body
    assert not pair.b.keys()
    assert pair.b.alarms == ["alarm.assign-conflict"]
    well(pair)


def test_an_assign_of_one_segment_for_two_keys(pair: Pair) -> None:
    reply = pair.line.deliver(signed(pair.a, "keys/assign", assign_of(pair, slaves=["b1"], keys=2)))
    assert b'"conflict"' in reply.body
    assert not pair.b.keys()


def test_an_assign_of_the_same_key_with_other_segments(pair: Pair) -> None:
    """It is not `already`: the master would get other bytes than the slave."""
    first = assign_of(pair, slaves=["b1"])
    assert b'"assigned"' in pair.line.deliver(signed(pair.a, "keys/assign", first)).body
    other = first.replace(b'"first":0', b'"first":1')
    assert b'"conflict"' in pair.line.deliver(signed(pair.a, "keys/assign", other)).body
    assert b'"already"' in pair.line.deliver(signed(pair.a, "keys/assign", first)).body


def test_a_void_of_keys_of_another_link_is_not_obeyed(pair: Pair) -> None:
    """Whoever is at the other end of one link has no say on another."""
    pair.fill(1, link="other")
    pair.rounds(2)
    keys = pair.enc("a1", "b1")
    draft = pair.a.store.outbox.number("other", "keys/void", Void(key_ids=[UUID(k) for k in keys], reason="mine"))
    envelope = Envelope("other", "kme-1", draft.txid, draft.seq, draft.incarnation, int(pair.clock.now) + 30)
    message = Message("keys/void", envelope, draft.body)
    signature = signature_header(pair.a.token.link_mac("other", message.covered()))
    headers = {**message.headers(), "Signature": signature}
    reply = pair.line.deliver(Request("kme-1", "kme-2", "keys/void", headers, draft.body))
    assert reply.status == 200, reply.body
    assert b"unknown" in reply.body
    assert pair.dec("b1", "a1", list(keys)) == keys


def test_a_slave_that_is_revoked_at_its_own_kme_alone(pair: Pair) -> None:
    pair.b.store.registry.revoke_sae("b1", Entry("sae.revoke", "test"))
    assert isinstance(pair.refused("a1", "b1"), PeerRefused)
    assert not pair.masters


def test_a_pair_that_is_not_allowed_at_the_slaves_kme(pair: Pair) -> None:
    pair.b.store.registry.deny("a1", "b1", Entry("pair.deny", "test"))
    assert isinstance(pair.refused("a1", "b1"), PeerRefused)
    assert not pair.masters


def test_a_tampered_block_at_the_slaves_end_costs_the_master_no_more_than_a_request(pair: Pair) -> None:
    keys = pair.enc("a1", "b1")
    with pair.b.store._database.write(logged=False) as transaction:
        transaction.execute("UPDATE segments SET sealed = zeroblob(length(sealed))")
    with pytest.raises(Exception, match="not found"):
        pair.dec("b1", "a1", list(keys))
    assert "alarm.block-tampered" in pair.b.alarms
    pair.fill(1, keys=64)
    pair.rounds(2)
    assert sum(pair.refused("a2", "b2") is not None for _ in range(12)) <= 2


