"""Does what is revoked reach nobody any more, at once, and is everybody named who has some of it?"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsmkme.errors import KeyNotHeld, PoolShort, StoreError
from hsmkme.hsm import TokenAddress
from hsmkme.identifiers import KeyIds
from hsmkme.model import Demand, Entry, Relation
from hsmkme.revocation import Revocation
from hsmkme.store import Scope
from hsmkme.upkeep import Upkeep
from tests.conftest import FakeClock
from tests.processes import killed
from tests.rotating import KEYS, RELATION, Kme, new_kme
from tests.world import Demo

OTHER = Relation.of("sae-3", ["sae-4"])
ENTRY = Entry("test", "test")
HOUR = 3600


@pytest.fixture
def kme(own_address: TokenAddress, tmp_path: Path, clock: FakeClock) -> Iterator[Kme]:
    with new_kme(own_address, tmp_path, clock) as opened:
        for sae_id in ("sae-1", "sae-2", "sae-3", "sae-4"):
            opened.store.registry.add_sae(sae_id, "kme-1", ENTRY)
        yield opened


@pytest.fixture
def revocation(kme: Kme) -> Revocation:
    return Revocation(kme.store, "officer", "the device was opened")


def count(kme: Kme, query: str) -> int:
    with kme.store.log._database.read() as connection:
        return int(connection.execute(query).fetchone()[0])


def ready(kme: Kme) -> int:
    return count(kme, "SELECT coalesce(sum(ready), 0) FROM pool")


def test_nothing_of_a_revoked_block_is_claimed_or_collected(kme: Kme, revocation: Revocation) -> None:
    kme.deposit("bad")
    kme.deposit("good")
    claimed = kme.fetch(2)
    held = kme.custody.held([key.key_id for key in claimed])
    outcome = revocation.blocks(Scope(block_id="bad"))
    assert (outcome.blocks, ready(kme)) == (1, KEYS)
    assert kme.are_of(kme.fetch(KEYS), "good")
    with pytest.raises(KeyNotHeld):
        kme.custody.collect("sae-2", [held[claimed[0].key_id]], "sae:sae-2")
    assert {key.state for key in kme.custody.held([key.key_id for key in claimed]).values()} == {"void"}


def test_those_who_have_keys_of_it_are_named_and_others_are_not(kme: Kme, revocation: Revocation) -> None:
    kme.deposit("bad")
    kme.deposit("good")
    collected, waiting = kme.fetch(1), kme.fetch(1)
    kme.collect(collected)
    other = kme.fetch(2, OTHER)
    kme.fetch(1, OTHER)
    outcome = revocation.blocks(Scope(link_id="local", block_id="bad"))
    assert outcome.delivered == {
        RELATION: sorted(key.key_id for key in [*collected, *waiting]),
        OTHER: sorted(key.key_id for key in other),
    }
    told = sorted((json.loads(row) for row in kme.rows("key.compromised")), key=lambda row: str(row["master"]))
    assert [(row["master"], row["slaves"], row["reason"]) for row in told] == [
        ("sae-1", ["sae-2"], "the device was opened"),
        ("sae-3", ["sae-4"], "the device was opened"),
    ]
    assert [row["key_IDs"] for row in told] == [
        [str(key_id) for key_id in outcome.delivered[relation]] for relation in (RELATION, OTHER)
    ]
    assert "alarm" not in "".join(kme.rows(""))


def test_nothing_of_a_revoked_block_is_left_in_the_store(kme: Kme, revocation: Revocation) -> None:
    kme.deposit("bad")
    kme.fetch(1)
    revocation.blocks(Scope(block_id="bad"))
    assert count(kme, "SELECT count(*) FROM segments") == 0
    assert count(kme, "SELECT live FROM block WHERE state = 'retired'") == 0


def test_blocks_of_a_time_are_meant_by_the_time(kme: Kme, revocation: Revocation) -> None:
    start = int(kme.clock())
    for hour in range(4):
        kme.deposit(f"hour-{hour}")
        kme.clock.now += HOUR
    outcome = revocation.blocks(Scope(link_id="local", since=start + HOUR, until=start + 2 * HOUR))
    assert (outcome.blocks, ready(kme)) == (2, 2 * KEYS)
    assert kme.are_of(kme.fetch(2 * KEYS), "hour-0", "hour-3")


def test_a_key_of_two_blocks_ends_with_either(kme: Kme, revocation: Revocation) -> None:
    """The other block's part of it is erased too, and that block goes on."""
    kme.deposit("good")
    kme.deposit("bad")
    kme.fetch(KEYS - 1)
    (long,) = kme.custody.release(Demand(RELATION, "kme-1", 512, KeyIds(kme.clock)(1)), "sae:sae-1")
    revocation.blocks(Scope(block_id="bad"))
    assert kme.custody.held([long.key_id])[long.key_id].state == "void"
    assert count(kme, "SELECT live FROM block WHERE block_id = 'good'") == KEYS - 1


def test_a_revocation_given_again_after_a_kill_finds_what_is_left(kme: Kme, revocation: Revocation) -> None:
    kme.deposit("bad")
    claimed = kme.fetch(1)
    kme.store.revoking.end(Scope(block_id="bad"), ENTRY)  # and killed
    outcome = revocation.blocks(Scope(block_id="bad"))
    assert outcome.delivered == {RELATION: [claimed[0].key_id]}
    assert count(kme, "SELECT count(*) FROM segments") == 0


def test_the_duties_of_upkeep_go_on_after_a_revocation(kme: Kme, revocation: Revocation) -> None:
    """Keys that were kept for repeated requests, and those nobody collected, are gone already."""
    kme.deposit("bad")
    collected, _ = kme.fetch(1), kme.fetch(1)
    held = kme.custody.held([collected[0].key_id])
    kme.custody.collect("sae-2", [held[collected[0].key_id]], "sae:sae-2", keep_seconds=60)
    revocation.blocks(Scope(block_id="bad"))
    kme.clock.now += 2 * 86400
    upkeep = Upkeep(kme.site.settings, kme.custody, kme.store, kme.clock, kme.token.anchor().drop)
    for duty in upkeep.duties:
        duty.act()


def test_nothing_is_revoked_when_nothing_is_meant(revocation: Revocation) -> None:
    with pytest.raises(StoreError, match="no block is meant by that: nothing was revoked"):
        revocation.blocks(Scope(block_id="unknown"))


# SAEs -------------------------------------------------------------------------------------------------------


def test_keys_of_a_revoked_sae_that_a_slave_waits_for_are_burnt_and_those_it_has_are_named(
    kme: Kme, revocation: Revocation
) -> None:
    kme.deposit("one")
    collected, waiting = kme.fetch(1), kme.fetch(1)
    other = kme.fetch(1, OTHER)
    kme.collect(collected)
    outcome = revocation.sae("sae-1")
    assert outcome.delivered == {RELATION: sorted(key.key_id for key in [*collected, *waiting])}
    assert kme.store.registry.known().saes["sae-1"].revoked
    states = kme.custody.held([key.key_id for key in [*collected, *waiting, *other]])
    assert [states[key.key_id].state for key in [*collected, *waiting, *other]] == ["consumed", "void", "delivered"]


# Epochs -----------------------------------------------------------------------------------------------------


def test_a_compromised_master_key_takes_everything_with_it_that_was_ever_under_it(
    kme: Kme, revocation: Revocation
) -> None:
    kme.deposit("moved")
    kme.rotation.rotate(because="test")
    kme.rotation.rewrap(1)  # whoever has master/1 and an old copy of the store opens it
    kme.deposit("never under it")
    outcome = revocation.epoch(1, kme.rotation)
    assert outcome.blocks == 1
    assert kme.states() == {1: "destroyed", 2: "active"}
    assert kme.are_of(kme.fetch(KEYS), "never under it")


def test_the_active_epoch_when_compromised_is_replaced_and_destroyed(kme: Kme, revocation: Revocation) -> None:
    kme.deposit("bad")
    claimed = kme.fetch(1)
    outcome = revocation.epoch(1, kme.rotation)
    assert outcome.delivered == {RELATION: [claimed[0].key_id]}
    assert kme.states() == {1: "destroyed", 2: "active"}
    assert kme.masters() == ["master/2"]
    with pytest.raises(PoolShort):
        kme.fetch(1)
    kme.deposit("fresh")
    assert kme.are_of(kme.fetch(KEYS), "fresh")


# The command ------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(kme: Kme) -> None:
    kme.deposit("bad")
    (claimed,) = kme.fetch(1)
    done = kme.site.hsmkme("revoke", "--block", "bad", "--reason", "test", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out) == {
        "blocks": 1,
        "burnt": 0,
        "delivered": [{"master": "sae-1", "slaves": ["sae-2"], "key_IDs": [str(claimed.key_id)]}],
    }
    kme.deposit("next")
    done = kme.site.hsmkme("revoke", "--link", "local", "--from", "2020-01-01", "--reason", "test")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == "1 blocks revoked, 0 keys burnt that nobody had"
    done = kme.site.hsmkme("revoke", "--epoch", 1, "--reason", "test", "--json")
    assert (done.status, json.loads(done.out)["blocks"]) == (0, 0)
    assert kme.states() == {1: "destroyed", 2: "active"}
    assert kme.site.hsmkme("revoke", "--sae", "sae-1", "--reason", "test").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "name one of --link, --block, --sae, --epoch"),
        (("--link", "local", "--epoch", "1"), 2, "name one of"),
        (("--block", "x", "--from", "2020-01-01"), 2, "--from and --to go with --link"),
        (("--block", "nothing"), 1, "no block is meant by that"),
        (("--sae", "nobody"), 1, "no SAE nobody is registered"),
        (("--epoch", "7"), 1, "there is no epoch 7"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], status: int, said: str, kme: Kme
) -> None:
    done = kme.site.hsmkme("revoke", *arguments, "--reason", "test")
    assert (done.status, said in done.err) == (status, True), done.err


# Kills ------------------------------------------------------------------------------------------------------


def _by_sae(kme: Kme, number: int) -> Relation:
    kme.store.registry.add_sae(f"master-{number}", "kme-1", ENTRY)
    return Relation.of(f"master-{number}", ["sae-2"])


@pytest.mark.parametrize("meant", ["block", "epoch", "sae"])
def test_killed_at_every_durable_step_and_given_again_it_comes_to_the_same_end(meant: str, kme: Kme) -> None:
    """Each time another block: of its four keys one is collected, one delivered, one agreed on, one of nobody."""
    for number in range(1, 100):
        relation = _by_sae(kme, number)
        kme.deposit(f"bad-{number}")
        has, waits = kme.fetch(1, relation), kme.fetch(1, relation)
        kme.collect(has)
        with kme.store.log._database.write(logged=False) as transaction:
            transaction.execute("UPDATE block SET tag = zeroblob(16) WHERE block_id = ?", (f"bad-{number}",))
        name = {"block": f"bad-{number}", "epoch": number, "sae": f"master-{number}"}[meant]
        arguments = ("--config", kme.site.config, "revoke", f"--{meant}", name, "--reason", "test", "--json")
        first = killed(number, *arguments)
        assert first.status in (0, -signal.SIGKILL), first.err
        again = killed(0, *arguments)
        assert again.status == 0, again.err
        delivered = {row["master"]: row["key_IDs"] for row in json.loads(again.out)["delivered"]}
        known = sorted(str(key.key_id) for key in [*has, *waits])
        assert delivered[relation.master] == known
        states = kme.custody.held([has[0].key_id, waits[0].key_id])
        assert [states[key.key_id].state for key in [*has, *waits]] == ["consumed", "void"]
        told = [json.loads(row) for row in kme.rows("key.compromised")]
        assert {k for row in told for k in row["key_IDs"] if row["master"] == relation.master} == set(known)
        if meant == "sae":
            assert kme.store.registry.known().saes[relation.master].revoked
            assert len([row for row in kme.rows("sae.revoke") if f'"{relation.master}"' in row]) == 1
        else:
            blocks = "block JOIN segments USING (block_pk)"
            assert count(kme, f"SELECT count(*) FROM {blocks} WHERE block_id = 'bad-{number}'") == 0  # noqa: S608
            assert len([row for row in kme.rows("block.revoke") if f'"bad-{number}"' in row]) == 1
            assert count(kme, "SELECT count(*) FROM outbox WHERE call = 'blocks/revoke'") == number
        if meant == "epoch":
            assert kme.states()[number] == "destroyed"
            assert kme.masters() == [f"master/{number + 1}"]
        if first.status == 0:
            break
    assert number > {"block": 8, "epoch": 16, "sae": 4}[meant]
    assert kme.rows("alarm") == []


def test_workers_that_run_give_nothing_more_of_what_is_revoked(fresh_demo: Callable[..., Demo]) -> None:
    demo = fresh_demo(saes=2, keys=512, workers=2)
    fetched = demo.enc("sae-1", "sae-2", number=8)
    with demo.session("sae-1") as master, demo.session("sae-2") as slave:
        assert master.post(demo.url("sae-2/enc_keys"), json={}, timeout=60).status_code == 200
        told = json.loads(demo.cli("revoke", "--link", "local", "--reason", "test", "--json").stdout)
        assert master.post(demo.url("sae-2/enc_keys"), json={}, timeout=60).status_code == 503
        wanted = {"key_IDs": [{"key_ID": key_id} for key_id in fetched]}
        assert slave.post(demo.url("sae-1/dec_keys"), json=wanted, timeout=60).status_code == 400
    (relation,) = told["delivered"]
    assert set(fetched) <= set(relation["key_IDs"])
    assert demo.stored("sae-1", "sae-2") == 0
