"""Does an operator see how a link to another KME stands, and does what is done about it do what it says?"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from hsmkme.audit import AuditChain
from hsmkme.cli import main
from hsmkme.hsm import Token, TokenAddress
from hsmkme.messages.bodies import Hello, Standing, parsed
from hsmkme.messages.signing import VERSION
from hsmkme.model import Demand, Entry, Link, Relation
from hsmkme.states import BlockState
from hsmkme.store import Draft, Receipt, Store, migrate
from hsmkme.store.links import GIVEN_UP, OPERATOR, PEER_RESTORED, RESTORED, STARTING
from hsmkme.store.outbox import OPEN
from tests.conftest import FakeClock
from tests.exercise_store import make_block
from tests.sites import Site, make_site
from tests.world import Demo, free_port, start_demo, until

BY = Entry("test", "operator:test")
RELATION = Relation.of("sae-1", ["sae-2"])
LINK = "kme-1.kme-2"
LINKS = ("far", "local")


# The store ------------------------------------------------------------------------------------------------


def waiting_block(link: str = "far", *, mine: bool = True) -> Any:
    block = make_block(4, 256, link)
    return type(block)(block.seal, block.key_count, block.segments, block.digest, tag=bytes(16), mine=mine)


def ready_block(store: Store, link: str = "far", *, mine: bool = True) -> str:
    """A block that both ends confirmed; gives its id."""
    block = waiting_block(link, mine=mine)
    store.blocks.deposit([block], BlockState.DEPOSITED, 1_000_000, BY)
    store.sharing.compared(link, {block.seal.name.block_id: "match"}, BY)
    return str(block.seal.name.block_id)


def in_touch(store: Store, link: str = "far") -> None:
    store.links.heard(link, Standing(verdict="good", incarnation="a" * 32, log_rows=1, why="", ready={"256": 7}))


def agreed(store: Store, number: int = 1, peer: str = "kme-2") -> list[Any]:
    """Keys that the peer confirmed and nobody has drawn; gives their ids."""
    demand = Demand(RELATION, peer, 256, tuple(uuid4() for _ in range(number)), frozenset(["sae-2"]))
    offer = store.agreed.offer(demand, lambda _: (), BY)
    ahead = type(offer)(offer.draft, (), tuple(offer.key_ids))
    store.agreed.settle(ahead, demand, BY)
    return list(offer.key_ids)


def test_an_open_link_is_halted_and_any_other_stays_as_it_is(store: Store) -> None:
    assert store.links.halt("far", BY) == OPEN
    assert store.links.state("far").why == OPERATOR
    for why in (OPERATOR, RESTORED, STARTING, PEER_RESTORED):
        store.links.freeze("far", why, BY)
        assert store.links.halt("far", BY) == why
        assert store.links.state("far").why == why


def test_a_thawed_link_to_a_peer_is_greeted_before_it_opens_and_a_local_one_opens(store: Store) -> None:
    for link_id, becomes in (("far", STARTING), ("local", OPEN)):
        store.links.halt(link_id, BY)
        assert store.links.thaw(link_id, becomes, BY) == OPERATOR
        assert store.links.state(link_id).why == becomes
    assert store.links.thaw("far", STARTING, BY) == STARTING
    store.links.freeze("far", RESTORED, BY)
    assert store.links.thaw("far", STARTING, BY) == RESTORED
    assert store.links.state("far").why == RESTORED, "what an operator did not freeze he does not thaw"


def test_what_is_told_of_a_link_is_what_is_in_the_store(store: Store, clock: FakeClock) -> None:
    ready_block(store)
    ready_block(store, mine=False)
    store.blocks.deposit([waiting_block()], BlockState.DEPOSITED, 1_000_000, BY)
    in_touch(store)
    agreed(store, 2)
    store.sharing.grant("far", 256, 1, BY)
    clock.now += 5
    (far,) = [link for link in store.views.links() if link["link"] == "far"]
    assert far["pools"] == [{"key_bits": 256, "ready": 2, "theirs": 4, "peer_ready": 7}]
    assert (far["unconfirmed"], far["unconfirmed_since"]) == (1, int(clock.now) - 5)
    assert (far["outbox"], far["outbox_since"]) == (0, None), "a block that was drawn from is not given away"
    assert (far["heard"], far["sent"], far["seen"]) == (int(clock.now) - 5, 1, 0)
    assert store.views.waiting("far") == {"offered": 0, "agreed": 2, "accepted": 0}
    assert store.views.waiting("local") == {"offered": 0, "agreed": 0, "accepted": 0}
    assert store.views.blocks("far") == [
        {"state": "ready", "mine": True, "blocks": 1, "keys": 2},
        {"state": "ready", "mine": False, "blocks": 1, "keys": 4},
        {"state": "deposited", "mine": True, "blocks": 1, "keys": 4},
    ]


def test_messages_that_wait_are_counted_from_the_oldest(store: Store, clock: FakeClock) -> None:
    for _ in range(2):
        ready_block(store)
    began = int(clock.now)
    for _ in range(2):
        assert store.sharing.grant("far", 256, 1, BY) == 1
        clock.now += 3
    (far,) = [link for link in store.views.links() if link["link"] == "far"]
    assert (far["outbox"], far["outbox_since"]) == (2, began)


def test_keys_that_were_agreed_on_a_frozen_link_or_of_a_frozen_block_are_not_counted(store: Store) -> None:
    block_id = ready_block(store)
    in_touch(store)
    agreed(store, 3)
    assert store.agreed.count(RELATION, 256) == 3
    store.links.halt("far", BY)
    assert store.agreed.count(RELATION, 256) == 0
    store.links.thaw("far", OPEN, BY)
    assert store.agreed.count(RELATION, 256) == 3
    store.sharing.compared("far", {block_id: "mismatch"}, BY)
    assert store.agreed.count(RELATION, 256) == 0


def test_undelivered_keys_of_one_link_end_alone(store: Store) -> None:
    store.registry.admit_links([Link("near", "kme-3")], BY)
    for link, peer in (("far", "kme-2"), ("near", "kme-3")):
        ready_block(store, link)
        in_touch(store, link)
        agreed(store, 1, peer)
    assert store.keys.void_undelivered(BY, link_id="far") == 1
    assert [store.views.waiting(link)["agreed"] for link in ("far", "near")] == [0, 1]
    assert store.keys.void_undelivered(BY) == 1


def test_one_process_at_a_time_speaks_for_a_link(store: Store) -> None:
    with store.links.turn("far") as taken, store.links.turn("far", wait=False) as second:
        assert (taken, second) == (True, False)
        with store.links.turn("local", wait=False) as other:
            assert other
    with store.links.turn("far", wait=False) as again:
        assert again


# Greetings ------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(store: Store, tmp_path: Path, clock: FakeClock) -> Iterator[tuple[Store, Store]]:
    """The stores at both ends of the link `far`, which have greeted each other."""
    path = tmp_path / "other.sqlite"
    migrate(path)
    other = Store(path, AuditChain(), clock)
    other.registry.admit_links([Link("far", "kme-1")], BY)
    for one, far in ((store, other), (other, store)):
        assert greet(one, far).verdict == "good"
    yield store, other
    other.close()


def hello(store: Store, **changed: Any) -> tuple[Draft, Hello]:
    said = store.links.hello("far", [VERSION]).model_copy(update=changed)
    return store.outbox.number("far", "hello", said), said


def arrives(far: Store, draft: Draft, said: Hello) -> Standing:
    receipt = Receipt("far", draft.txid, draft.seq, draft.incarnation, draft.body)
    return parsed(Standing, far.inbox.hello(receipt, said, Entry("link.hello", "peer:test")))


def greet(store: Store, far: Store, **changed: Any) -> Standing:
    standing = arrives(far, *hello(store, **changed))
    store.links.heard("far", standing)
    return standing


@pytest.mark.parametrize("why", [STARTING, RESTORED, OPERATOR, PEER_RESTORED])
@pytest.mark.parametrize("forgotten", ["log_rows", "sent"])
def test_an_old_copy_is_known_by_its_greeting_whatever_froze_it(
    ends: tuple[Store, Store], why: str, forgotten: str
) -> None:
    one, other = ends
    one.links.freeze("far", why, BY)
    assert greet(one, other).verdict == "good"
    assert greet(one, other, **{forgotten: 0}).verdict == "behind"
    assert other.links.state("far").why == PEER_RESTORED


def test_a_peer_that_starts_under_another_name_is_behind_and_one_that_was_reconciled_is_not(
    ends: tuple[Store, Store], clock: FakeClock
) -> None:
    one, other = ends
    one.links.freeze("far", PEER_RESTORED, BY)
    clock.now += 1
    one.links.renew("far", BY)
    assert greet(one, other).verdict == "good", "this end may be the one that forgot"
    one.links.freeze("far", STARTING, BY)
    clock.now += 1
    one.links.renew("far", BY)
    assert greet(one, other).verdict == "behind", "it may have lost everything"


def test_a_greeting_that_an_answer_overtakes_is_not_behind(ends: tuple[Store, Store]) -> None:
    one, other = ends
    one.links.freeze("far", STARTING, BY)
    under_way = hello(one)
    one.log.append(BY)
    standing = greet(other, one)
    assert standing.log_rows > under_way[1].log_rows
    assert arrives(other, *under_way).verdict == "good"
    assert other.log.latest(10, "alarm.") == []


def test_an_answer_of_before_a_reconciliation_changes_nothing(ends: tuple[Store, Store], clock: FakeClock) -> None:
    one, other = ends
    late = arrives(one, *hello(other))
    clock.now += 1
    one.links.renew("far", BY)
    assert greet(one, other, reconciled=True).verdict == "good"
    other.links.heard("far", late)
    assert other.links.state("far").far_incarnation == one.links.state("far").incarnation


def test_a_store_that_was_copied_while_the_peer_was_restored_asks_before_it_opens(store: Store) -> None:
    for was, becomes in ((PEER_RESTORED, STARTING), (OPEN, STARTING), (OPERATOR, OPERATOR), (RESTORED, RESTORED)):
        store.links.freeze("far", was, BY)
        store.links.begin(["far"], BY)
        assert store.links.state("far").why == becomes


# Commands, without a peer ---------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, token: Token, address: TokenAddress, softhsm: Path) -> Site:
    (tmp_path / "site").mkdir()
    return make_site(tmp_path / "site", token, address.label, softhsm)


def run(site: Site, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(site.config), *arguments])


@pytest.mark.parametrize(
    ("why", "says", "next_step"),
    [
        (OPEN, "open, but the peer was not heard of lately", "link probe far"),
        (STARTING, "does not know yet from the peer whether its store is an old copy", "link probe far"),
        (RESTORED, "the store of this KME is an old copy", "link reconcile far"),
        (PEER_RESTORED, "the store of the peer is an old copy", "nothing here"),
        (OPERATOR, "frozen by an operator", "link thaw far"),
    ],
)
def test_a_state_is_told_in_words_with_what_to_do_next(
    site: Site, clock: FakeClock, why: str, says: str, next_step: str
) -> None:
    store = site.open_store(clock)
    store.links.freeze("far", why, BY)
    store.close()
    shown = run(site, "link", "show", "far").output
    assert says in shown
    assert next_step in shown
    assert (f"frozen: {why}" in run(site, "link", "list").output) is (why != OPEN)


def test_a_link_without_keys_is_listed(site: Site) -> None:
    far, local = json.loads(run(site, "link", "list", "--json").output)
    assert [(row["link"], row["key_bits"], row["ready"]) for row in (far, local)] == [(n, None, None) for n in LINKS]
    assert [row["peer"] for row in (far, local)] == ["kme-2", "kme-1"]


def test_an_open_local_link_needs_no_peer(site: Site) -> None:
    facts = json.loads(run(site, "link", "show", "local", "--json").output)
    assert (facts["says"], facts["next"], facts["last_contact_seconds"]) == ("open", "", None)


@pytest.mark.parametrize("command", ["show", "probe", "freeze", "thaw", "reconcile"])
def test_a_link_that_there_is_not_is_refused_with_those_that_are(site: Site, command: str) -> None:
    result = run(site, "link", command, "elsewhere")
    assert result.exit_code == 1
    assert "configured: local, far" in result.output


@pytest.mark.parametrize("command", ["probe", "reconcile"])
def test_a_local_link_has_nobody_to_ask(site: Site, command: str) -> None:
    result = run(site, "link", command, "local")
    assert result.exit_code == 2
    assert "it has no other end" in result.output


@pytest.mark.parametrize("why", [STARTING, RESTORED, PEER_RESTORED])
def test_a_link_that_is_frozen_for_a_graver_reason_is_neither_frozen_nor_thawed(
    site: Site, clock: FakeClock, why: str
) -> None:
    store = site.open_store(clock)
    store.links.freeze("far", why, BY)
    for command in ("freeze", "thaw"):
        result = run(site, "link", command, "far")
        assert result.exit_code == 1
        assert "stays as it is" in result.output
    assert store.links.state("far").why == why
    store.close()


def test_it_is_for_the_restored_end_to_reconcile(site: Site, clock: FakeClock) -> None:
    store = site.open_store(clock)
    store.links.freeze("far", PEER_RESTORED, BY)
    result = run(site, "link", "reconcile", "far", "--yes")
    assert result.exit_code == 1
    assert "it is for kme-2 to reconcile" in result.output
    assert store.links.state("far").why == PEER_RESTORED
    store.close()


@pytest.mark.parametrize("why", [OPEN, OPERATOR, STARTING, PEER_RESTORED])
def test_keys_are_given_up_only_where_this_store_is_an_old_copy(site: Site, clock: FakeClock, why: str) -> None:
    store = site.open_store(clock)
    store.links.freeze("far", why, BY)
    result = run(site, "link", "give-up", "far", "--yes")
    assert result.exit_code == 1
    assert "nothing is to be given up while the link is" in result.output
    store.links.freeze("far", RESTORED, BY)
    result = run(site, "link", "give-up", "far")
    assert result.exit_code == 2
    assert "say --yes" in result.output
    assert store.links.state("far").why == RESTORED
    store.close()


def test_a_peer_that_was_never_in_touch_is_listed(site: Site) -> None:
    (peer,) = json.loads(run(site, "peer", "list", "--json").output)
    assert (peer["peer"], peer["links"], peer["last_contact_seconds"]) == ("kme-2", ["far"], None)
    assert run(site, "peer", "show", "kme-9").output.strip() == "no peer 'kme-9' is configured; configured: kme-2"


# Commands, between two KMEs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Two KMEs: sae-1 and sae-3 at the first, sae-2 and sae-4 at the second."""
    with start_demo(tmp_path_factory.mktemp("two"), kmes=2, saes=4, keys=2048) as running:
        yield running


@pytest.fixture
def one(two: Demo) -> Demo:
    """The first KME, its link open."""
    opened(two)
    return two.at("kme-1")


@pytest.fixture
def other(two: Demo) -> Demo:
    return two.at("kme-2")


def said(kme: Demo, *arguments: str) -> str:
    """What a command says that needs no token: it is run in this process, to be quick."""
    result = CliRunner().invoke(main, ["--config", str(kme.config), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def told(kme: Demo, *arguments: str) -> Any:
    return json.loads(said(kme, *arguments, "--json"))


def opened(two: Demo) -> None:
    until(lambda: all(told(two.at(kme), "link", "show", LINK)["why"] == "" for kme in two.kme_ids), what="open links")


def agree_ahead(two: Demo) -> list[str]:
    """Draw until more than three keys are agreed ahead of need; gives their ids."""
    two.enc("sae-1", "sae-2")
    until(lambda: two.enc("sae-1", "sae-2") and told(two.at("kme-1"), "link", "show", LINK)["agreed"] > 3)
    with two.at("kme-1").database() as connection:
        found = connection.execute("SELECT key_id FROM key WHERE state = 'assigned' AND mine = 1").fetchall()
    return [str(UUID(bytes=key_id)) for (key_id,) in found]


def delivered_elsewhere(kme: Demo) -> int:
    """How many keys their masters have that no slave collects here, and that are not erased yet."""
    with kme.database() as connection:
        (count,) = connection.execute("SELECT count(*) FROM key WHERE state = 'delivered' AND due = 0").fetchone()
    return int(count)


def states(kme: Demo, key_ids: list[str]) -> set[str]:
    return {told(kme, "key", "show", key_id)["key"]["state"] for key_id in key_ids}


def test_both_ends_tell_the_same_of_their_link(two: Demo, one: Demo, other: Demo) -> None:
    two.enc("sae-1", "sae-2", number=5)

    def same() -> bool:
        here, there = (told(kme, "link", "show", LINK) for kme in (one, other))
        ours, theirs = (link["pools"][0] for link in (here, there))
        return (
            (ours["ready"], ours["theirs"]) == (theirs["theirs"], theirs["ready"])
            and (ours["peer_ready"], theirs["peer_ready"]) == (theirs["ready"], ours["ready"])
            and (here["incarnation"], there["incarnation"]) == (there["peer_incarnation"], here["peer_incarnation"])
            and here["agreed"] == there["accepted"] - 5
        )

    until(same, what="both ends know how many keys each may assign")
    here = told(one, "link", "show", LINK)
    keys = {mine: sum(row["keys"] for row in here["blocks"] if row["mine"] is mine) for mine in (True, False)}
    assert keys == {True: here["pools"][0]["ready"], False: here["pools"][0]["theirs"]}
    assert here["last_contact_seconds"] < 8
    assert here["says"] == "open"
    assert here["unconfirmed"] == 0
    listed = {row["link"]: row for row in told(one, "link", "list")}
    assert set(listed) == {"local", LINK}
    assert {name: listed[LINK][name] for name in here["pools"][0]} == here["pools"][0]
    text = said(one, "link", "list")
    assert re.search(rf"^{LINK} +kme-2 +open +256 +{here['pools'][0]['ready']} ", text, re.MULTILINE)
    assert "kme-2 at https://localhost:" in said(one, "link", "show", LINK)


def test_a_probe_says_where_the_peer_stands(one: Demo, other: Demo) -> None:
    probed = json.loads(one.cli("link", "probe", LINK, "--json").stdout)
    assert (probed["verdict"], probed["why"], probed["peer"]) == ("good", "", "kme-2")
    assert probed["incarnation"] == told(other, "link", "show", LINK)["incarnation"]
    assert 0 < probed["milliseconds"] < 3000
    assert "kme-2 answers in" in one.cli("link", "probe", LINK).stdout.decode()


@pytest.fixture
def elsewhere(one: Demo) -> Iterator[Callable[[int], list[str]]]:
    """A command line on the first KME's configuration in which the peer is at another port."""
    file = one.config.with_name("elsewhere.toml")

    def at(port: int) -> list[str]:
        (url,) = (kme["peer_url"] for kme in one.description["kmes"] if kme["id"] == "kme-2")
        file.write_text(one.config.read_text().replace(url, f"https://localhost:{port}"))
        return ["--config", str(file)]

    yield at
    file.unlink(missing_ok=True)


def test_where_nobody_answers_a_probe_ends_with_75(one: Demo, elsewhere: Callable[[int], list[str]]) -> None:
    nobody = elsewhere(free_port())
    for command in (("link", "probe", LINK), ("peer", "show", "kme-2")):
        done = one.cli(*nobody, *command, check=False)
        assert done.returncode == 75, done.stderr
        assert b"does not answer" in done.stderr
        assert b"Traceback" not in done.stderr


def test_the_certificate_of_a_peer_is_shown(one: Demo) -> None:
    shown = told(one, "peer", "show", "kme-2")
    assert shown["certificate"]["uris"] == ["urn:qkd:kme:kme-2"]
    assert shown["certificate"]["is_the_peers"]
    assert shown["open_links"] == [LINK]
    assert "of peers" in shown["certificate"]["issuer"]
    assert re.search(r"not after  20\d\d-.*, in \d+ days", said(one, "peer", "show", "kme-2"))
    (listed,) = told(one, "peer", "list")
    assert listed["last_contact_seconds"] < 8


def test_another_kme_at_the_address_of_a_peer_is_seen(one: Demo, elsewhere: Callable[[int], list[str]]) -> None:
    itself = elsewhere(int(one.kme["peer_url"].rpartition(":")[2]))
    done = one.cli(*itself, "peer", "show", "kme-2", check=False)
    assert done.returncode == 1
    assert b"urn:qkd:kme:kme-1  is not that of kme-2" in done.stdout
    done = one.cli(*itself, "link", "probe", LINK, check=False)
    assert done.returncode == 75
    assert b"the certificate there is not that of kme-2" in done.stderr


def test_a_certificate_of_another_authority_is_refused(one: Demo, elsewhere: Callable[[int], list[str]]) -> None:
    done = one.cli(*elsewhere(one.port), "peer", "show", "kme-2", check=False)
    assert done.returncode == 1
    assert b"is not accepted" in done.stderr


def test_a_link_that_an_operator_froze_gives_no_key_until_he_thaws_it(two: Demo, one: Demo, other: Demo) -> None:
    agree_ahead(two)
    fetched = two.enc("sae-1", "sae-2")
    assert "frozen" in said(one, "link", "freeze", LINK)
    assert "already" in said(one, "link", "freeze", LINK)
    for master, slave in (("sae-1", "sae-2"), ("sae-2", "sae-1")):
        answer = two.post(master, f"{slave}/enc_keys", {})
        assert answer.status_code == 503, answer.text
    assert two.stored("sae-1", "sae-2") == 0
    assert two.dec("sae-2", "sae-1", list(fetched)) == fetched, "what the master has the slave collects"
    assert "link there  frozen: operator" in other.cli("link", "probe", LINK).stdout.decode()
    assert "it opens when the peer answers" in said(one, "link", "thaw", LINK)
    opened(two)
    for master, slave in (("sae-1", "sae-2"), ("sae-2", "sae-1")):
        fetched = two.enc(master, slave)
        assert two.dec(slave, master, list(fetched)) == fetched
    assert "was open already" in said(one, "link", "thaw", LINK)
    rows = [row for row in one.log_now() if row["event"] in ("link.freeze", "link.thaw", "link.open")][-3:]
    assert [row["event"] for row in rows] == ["link.freeze", "link.thaw", "link.open"]
    assert rows[0]["actor"] == rows[1]["actor"] != rows[2]["actor"]
    assert rows[0]["actor"].startswith("operator:")


def test_a_local_link_is_frozen_and_thawed_at_once(two: Demo, one: Demo) -> None:
    said(one, "link", "freeze", "local")
    assert two.post("sae-1", "sae-3/enc_keys", {}).status_code == 503
    assert "local: open" in said(one, "link", "thaw", "local")
    fetched = two.enc("sae-1", "sae-3")
    assert two.dec("sae-3", "sae-1", list(fetched)) == fetched


def test_a_reconciliation_that_nobody_needs_wants_a_yes_and_burns_what_was_agreed(
    two: Demo, one: Demo, other: Demo
) -> None:
    ahead = agree_ahead(two)
    fetched = two.enc("sae-1", "sae-2", number=3)
    ahead = [key_id for key_id in ahead if key_id not in fetched]
    until(lambda: not delivered_elsewhere(one), 30)  # erasing them may retire blocks
    before = told(one, "link", "show", LINK)
    refused = one.cli("link", "reconcile", LINK, check=False)
    assert refused.returncode == 2
    assert b"say --yes" in refused.stderr
    assert told(one, "link", "show", LINK)["incarnation"] == before["incarnation"]
    done = one.cli("link", "reconcile", LINK, "--yes").stdout.decode()
    after = told(one, "link", "show", LINK)
    blocks = sum(row["blocks"] for row in before["blocks"] if row["state"] != "retired")
    assert f"reconciled over {blocks} blocks, and open" in done
    assert after["why"] == ""
    assert after["incarnation"] > before["incarnation"]
    assert states(one, ahead) == {"void"}
    assert states(other, ahead) == {"assigned"}, "the peer is not told: it ends them in time"
    assert two.dec("sae-2", "sae-1", list(fetched)) == fetched
    until(lambda: told(other, "link", "show", LINK)["peer_incarnation"] == after["incarnation"])
    for master, slave in (("sae-1", "sae-2"), ("sae-2", "sae-1")):
        again = two.enc(master, slave, number=3)
        assert two.dec(slave, master, list(again)) == again
    assert [row["event"] for row in one.log_now() if row["event"].startswith("alarm.")] == []


def test_a_reconciliation_that_the_peer_does_not_answer_is_left_to_upkeep(
    two: Demo, one: Demo, elsewhere: Callable[[int], list[str]]
) -> None:
    done = one.cli(*elsewhere(free_port()), "link", "reconcile", LINK, "--yes", check=False)
    assert done.returncode == 75, done.stderr
    opened(two)  # by upkeep, which knows the right address
    assert [row["event"] for row in one.log_now()].count("link.renew") >= 1


# Keys -----------------------------------------------------------------------------------------------------


def test_a_key_tells_on_which_side_it_is_and_who_collects_it_where(two: Demo, one: Demo, other: Demo) -> None:
    (key_id,) = two.enc("sae-1", "sae-2", additional_slave_SAE_IDs=["sae-3"])
    here, there = (told(kme, "key", "show", key_id)["key"] for kme in (one, other))
    assert (here["mine"], here["peer"], here["due"], here["elsewhere"]) == (True, "kme-2", ["sae-3"], ["sae-2"])
    assert (there["mine"], there["peer"], there["due"], there["elsewhere"]) == (False, "kme-1", ["sae-2"], ["sae-3"])
    assert (here["state"], there["state"]) == ("delivered", "assigned")
    text = said(other, "key", "show", key_id)
    assert "side  theirs: kme-1 assigned it" in text
    assert "due  sae-2" in text
    assert "elsewhere  sae-3 at kme-1" in text
    two.dec("sae-2", "sae-1", [key_id])
    shown = said(other, "key", "show", key_id)
    assert "due  nobody" in shown
    assert "state  consumed" in shown
    assert "due  sae-3" in said(one, "key", "show", key_id)


def test_a_key_that_ended_before_it_was_drawn_is_still_told_of(two: Demo, one: Demo, other: Demo) -> None:
    key_id = agree_ahead(two)[-1]
    assert "state  assigned" in said(one, "key", "show", key_id)
    said(one, "link", "freeze", LINK)
    one.cli("link", "reconcile", LINK, "--yes")
    shown = said(one, "key", "show", key_id)
    assert "state  void" in shown
    assert "side  mine" in shown
    assert "due  nobody" in shown
    assert "key.void" in shown
    assert "side  theirs: kme-1 assigned it" in said(other, "key", "show", key_id)


def test_relations_tell_what_was_agreed_and_what_was_accepted(two: Demo, one: Demo, other: Demo) -> None:
    agree_ahead(two)
    for kme, side, name in ((one, 1, "agreed"), (other, 0, "accepted")):
        rows = told(kme, "relation", "show", "sae-1")
        (row,) = [row for row in rows if row["master"] == "sae-1" and row["slaves"] == ["sae-2"]]
        assert row["mine"] == side
        assert row[name] > 0
        states = ("offered", "agreed", "accepted", "uncollected", "partly_collected", "consumed", "void")
        assert row["keys"] == sum(row[state] for state in states)
    assert re.search(r"^sae-1 +sae-2 +theirs ", said(other, "relation", "show"), re.MULTILINE)


# The end of its keys --------------------------------------------------------------------------------------


def test_keys_of_a_link_of_which_both_stores_are_old_copies_are_given_up_by_command(
    two: Demo, one: Demo, other: Demo
) -> None:
    """The last test on these two: the link has no keys afterwards."""
    stores = [Store(kme.store, AuditChain(), time.time) for kme in (one, other)]
    with stores[0].links.turn(LINK), stores[1].links.turn(LINK):  # neither learns from the other in between
        for store in stores:
            store.links.freeze(LINK, RESTORED, Entry("alarm.store-restored", "custody"))
    assert "it opens when the peer gives up its own" in one.cli("link", "give-up", LINK, "--yes").stdout.decode()
    assert told(one, "link", "show", LINK)["why"] == GIVEN_UP
    assert "`hsmkme link give-up kme-1.kme-2` at the peer" in said(one, "link", "show", LINK)
    assert "blocks given up; open" in other.cli("link", "give-up", LINK, "--yes").stdout.decode()
    opened(two)
    assert [told(kme, "link", "show", LINK)["pools"][0]["ready"] for kme in (one, other)] == [0, 0]
    for store in stores:
        store.close()
