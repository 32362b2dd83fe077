"""Is a key given only in its time: not before it, not after it, and does what is too old end?"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hsmkme.config import FairUseSection
from hsmkme.errors import BadRequest, DepositRefused, PoolShort
from hsmkme.fairuse import FairUse
from hsmkme.hsm import Token, TokenAddress
from hsmkme.identifiers import KeyIds
from hsmkme.kme import Kme as KeyService
from hsmkme.model import BlockName, Entry, KeyMaterial, RawBlock
from hsmkme.policy import KeyRequest
from hsmkme.states import BlockState
from hsmkme.store import Steady
from hsmkme.store.ageing import GRACE_SECONDS
from hsmkme.store.counters import Counters
from hsmkme.store.veins import AGED
from hsmkme.upkeep import Upkeep
from tests.conftest import PIN, FakeClock
from tests.rotating import KEYS, Kme, same
from tests.sealing import rewrite
from tests.sites import make_site
from tests.tampering import hand_on

TTL = 3600
ADMIT = Entry("link.admit", "test")


@pytest.fixture
def kme(address: TokenAddress, tmp_path: Path, clock: FakeClock, softhsm: Path) -> Iterator[Kme]:
    """A KME whose local link lets keys live for an hour; no master key changes here."""
    token = Token(address, lambda: PIN)
    site = make_site(tmp_path, token, address.label, softhsm)
    site.change_config('peer = "kme-1"', f'peer = "kme-1"\nttl_seconds = {TTL}')
    opened = Kme(site, clock)
    opened.store.registry.admit_links(site.settings.links, ADMIT)
    yield opened
    opened.store.close()
    token.close()


def upkeep(kme: Kme) -> Upkeep:
    return Upkeep(kme.site.settings, kme.custody, kme.store, kme.clock, kme.token.anchor().drop)


def age(kme: Kme) -> None:
    upkeep(kme).age()


def states(kme: Kme) -> dict[str, str]:
    with closing(sqlite3.connect(kme.site.path)) as connection:
        return dict(connection.execute("SELECT block_id, state FROM block").fetchall())


def test_what_nobody_claimed_in_time_ends_and_is_erased(kme: Kme) -> None:
    kme.deposit("old")
    kme.clock.now += TTL
    age(kme)
    assert states(kme) == {"old": "ready"}
    kme.clock.now += 1
    kme.deposit("new")
    age(kme)
    assert states(kme) == {"old": "retired", "new": "ready"}
    assert kme.are_of(kme.fetch(KEYS), "new")
    with pytest.raises(PoolShort):
        kme.fetch(1)
    (row,) = kme.rows("block.expire")
    assert '"blocks":["local/old"],"event":"block.expire","keys":4' in row


def test_what_was_claimed_in_time_is_collected_afterwards(kme: Kme) -> None:
    kme.deposit("old")
    claimed = kme.fetch(KEYS - 1)
    kme.clock.now += TTL + 1
    age(kme)
    assert states(kme) == {"old": "expired"}
    assert same(kme.collect(claimed), claimed)
    assert states(kme) == {"old": "retired"}


def test_a_link_without_a_lifetime_keeps_its_keys(kme: Kme) -> None:
    kme.deposit("far", link="far")
    kme.clock.now += 1000 * TTL
    age(kme)
    assert states(kme) == {"far": "ready"}


def test_a_block_of_the_peers_lives_a_little_longer_here(kme: Kme) -> None:
    kme.deposit("theirs")
    rewrite(kme.store, "block", "block_id = 'theirs'", mine="0", own_epoch="1")
    with closing(sqlite3.connect(kme.site.path)) as connection, connection:
        connection.execute("INSERT INTO assigned_segment SELECT block_pk, 2 FROM block")
    kme.clock.now += TTL + 1
    age(kme)
    assert states(kme) == {"theirs": "ready"}
    kme.clock.now += GRACE_SECONDS
    age(kme)
    assert states(kme) == {"theirs": "expired"}, "one segment of it is of a key"
    with closing(sqlite3.connect(kme.site.path)) as connection:
        assert connection.execute("SELECT live FROM block").fetchall() == [(1,)]


def test_looking_for_old_blocks_costs_the_same_however_many_there_are(kme: Kme) -> None:
    kme.deposit("one")
    with closing(sqlite3.connect(kme.site.path)) as connection:
        query = (
            "EXPLAIN QUERY PLAN SELECT block_pk FROM block WHERE link_id = 'local' AND state IN ('deposited', 'ready')"
            " AND deposited_at < 5 AND (mine = 1 OR deposited_at < 3) ORDER BY deposited_at LIMIT 64"
        )
        plan = [row[3] for row in connection.execute(query)]
    assert plan == ["SEARCH block USING INDEX ageing (link_id=? AND deposited_at<?)"]


# At the claim, with or without upkeep -----------------------------------------------------------------------


def test_what_is_too_old_is_not_claimed_though_upkeep_is_away(kme: Kme) -> None:
    kme.deposit("old")
    kme.clock.now += TTL // 2
    kme.deposit("young")
    kme.clock.now += TTL // 2 + 1
    assert kme.store.blocks.veins("kme-1", 256)[0].keys == KEYS
    assert kme.are_of(kme.fetch(KEYS), "young")
    with pytest.raises(PoolShort):
        kme.fetch(1)
    assert states(kme) == {"old": "ready", "young": "exhausted"}, "upkeep is to end it"
    kme.deposit("next")
    assert len(kme.fetch(KEYS)) == KEYS
    assert kme.rows("alarm") == []


def test_a_lifetime_that_is_configured_anew_holds_from_the_next_start(kme: Kme) -> None:
    kme.deposit("old")
    kme.clock.now += TTL + 1
    kme.site.change_config(f"ttl_seconds = {TTL}", f"ttl_seconds = {2 * TTL}")
    kme.store.registry.admit_links(kme.site.settings.links, ADMIT)
    assert len(kme.fetch(1)) == 1
    assert len(kme.rows("link.admit")) == 4
    kme.store.registry.admit_links(kme.site.settings.links, ADMIT)
    assert len(kme.rows("link.admit")) == 4, "what is the same is not written"


def test_what_is_too_old_is_found_by_its_age(kme: Kme) -> None:
    kme.deposit("one")
    with closing(sqlite3.connect(kme.site.path)) as connection:
        values = {"link": "local", "bits": 256, "oldest": 5}
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {AGED}", values)]
    assert plan == ["SEARCH block USING INDEX ageing (link_id=? AND deposited_at<?)"]


# Not before a time ------------------------------------------------------------------------------------------


def lock(kme: Kme, name: str, seconds: int) -> None:
    """Deposit a block that is not to be released for so long."""
    kme.plain[name] = os.urandom(32 * KEYS)
    raw = RawBlock(BlockName("local", name), 256, KeyMaterial(kme.plain[name]), int(kme.clock.now) + seconds)
    kme.custody.deposit([raw], BlockState.READY, 1_000_000, "device")


def goes_on(kme: Kme, seconds: float) -> None:
    """Time goes by, and upkeep looks at the clock."""
    kme.clock.now += seconds
    kme.store.timekeeping.look(Steady("boot", kme.clock.now), "upkeep")


def test_a_locked_block_is_claimed_when_its_time_has_come_and_not_a_second_before(kme: Kme) -> None:
    goes_on(kme, 0)
    lock(kme, "locked", 60)
    goes_on(kme, 59)
    with pytest.raises(PoolShort):
        kme.fetch(1)
    goes_on(kme, 1)
    assert kme.are_of(kme.fetch(KEYS), "locked")
    (row,) = kme.rows("block.unlock")
    assert '"blocks":["local/locked"]' in row
    assert '"not_before":1800000060' in kme.rows("block.deposit")[0]


def test_upkeep_releases_what_nobody_asks_for(kme: Kme) -> None:
    goes_on(kme, 0)
    lock(kme, "locked", 60)
    assert kme.store.ageing.unlock("upkeep") == 0
    assert [link["locked"] for link in kme.store.views.links()] == [0, 1]
    goes_on(kme, 60)
    assert kme.store.ageing.unlock("upkeep") == 1
    assert kme.store.blocks.veins("kme-1", 256)[0].keys == KEYS


ALTERED_TIMES = {
    "older than it is": ("old", "UPDATE block SET deposited_at = 1"),
    "older than what the peer confirms": ("far", "UPDATE block SET deposited_at = 1, state = 'deposited'"),
    "unlocked": ("locked", "UPDATE block SET not_before = 1"),
}


@pytest.mark.parametrize("name", ALTERED_TIMES)
def test_no_block_ends_or_opens_because_of_a_time_that_was_altered(kme: Kme, name: str) -> None:
    block, statement = ALTERED_TIMES[name]
    goes_on(kme, 0)
    if block == "locked":
        lock(kme, block, TTL)
    else:
        kme.deposit(block, "far" if block == "far" else "local")
    kme.store.close()
    with hand_on(kme.site.path) as connection:
        connection.execute(statement)
    working = upkeep(kme)
    for _ in range(2):
        working.tick()
        goes_on(kme, 600)
    assert states(kme) == {block: "frozen"}
    assert [json.loads(row)["event"] for row in kme.rows("alarm.")] == ["alarm.block-tampered"]
    with pytest.raises(PoolShort):
        kme.fetch(1)


def test_no_lock_opens_by_a_clock_that_jumped_or_that_nobody_looked_at(kme: Kme) -> None:
    goes_on(kme, 0)
    lock(kme, "locked", 3600)
    kme.clock.now += 3600
    with pytest.raises(PoolShort):
        kme.fetch(1)
    assert not kme.store.timekeeping.look(Steady("boot", kme.clock.now - 3600), "upkeep")
    with pytest.raises(PoolShort):
        kme.fetch(1)
    kme.store.timekeeping.accept(Steady("boot", kme.clock.now), ADMIT)
    assert kme.are_of(kme.fetch(KEYS), "locked")


def test_the_life_of_a_locked_block_begins_when_it_is_released(kme: Kme) -> None:
    goes_on(kme, 0)
    lock(kme, "locked", 3 * TTL)
    goes_on(kme, 3 * TTL)
    upkeep(kme).expire()
    age(kme)
    assert kme.are_of(kme.fetch(KEYS), "locked")


def test_a_block_that_is_deposited_again_with_another_time_is_refused_and_stays_as_it_is(kme: Kme) -> None:
    goes_on(kme, 0)
    lock(kme, "locked", 60)
    raw = RawBlock(BlockName("local", "locked"), 256, KeyMaterial(kme.plain["locked"]))
    with pytest.raises(DepositRefused, match="with another time before which it is not released"):
        kme.custody.deposit([raw], BlockState.READY, 1_000_000, "device")
    assert states(kme) == {"locked": "deposited"}
    assert kme.rows("alarm") == []


def test_the_command_locks_what_it_deposits(kme: Kme, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(os.urandom(64))
    named = ("--link", "local", "--block-id", "x")
    done = kme.site.hsmkme("deposit", *named, "--not-before", "2030-01-01", tmp_path / "keys")
    assert done.status == 0, done.err
    (row,) = kme.rows("block.deposit")
    assert '"not_before":1893456000' in row
    assert states(kme) == {"x": "deposited"}


# Relations --------------------------------------------------------------------------------------------------


def service(kme: Kme) -> KeyService:
    """The service that SAEs talk to, with a limit on how long sae-2 may collect keys of sae-1."""
    for sae_id in ("sae-1", "sae-2", "sae-3"):
        kme.store.registry.add_sae(sae_id, "kme-1", ADMIT)
    kme.store.registry.allow("sae-1", "sae-2", ADMIT, TTL)
    kme.store.registry.allow("sae-1", "sae-3", ADMIT)
    counters = Counters(kme.site.directory / "counters", kme.clock)
    fair_use = FairUse(FairUseSection(), counters, kme.store.log.append, kme.clock)
    limits = kme.site.settings.keys
    return KeyService("kme-1", kme.custody, kme.store, limits, fair_use, kme.clock, KeyIds(kme.clock))


def test_a_key_is_collected_as_long_as_its_relation_lets_it_live_and_no_longer(kme: Kme) -> None:
    kme.deposit("one")
    sae = service(kme)
    early, late = sae.get_key("sae-1", "sae-2", KeyRequest(2, 256))
    kme.clock.now += TTL
    assert same(sae.get_key_with_ids("sae-2", "sae-1", [early.key_id]), [early])
    kme.clock.now += 1
    with pytest.raises(BadRequest) as refusal:
        sae.get_key_with_ids("sae-2", "sae-1", [late.key_id])
    assert refusal.value.rule == "KEY-AGE-1"
    upkeep(kme).lapse()
    assert kme.custody.held([late.key_id])[late.key_id].state == "void"
    (row,) = kme.rows("key.expire")
    assert str(late.key_id) in row


def test_a_slave_without_a_limit_keeps_the_key_alive_for_itself_alone(kme: Kme) -> None:
    kme.deposit("one")
    sae = service(kme)
    (key,) = sae.get_key("sae-1", "sae-2", KeyRequest(1, 256, ("sae-3",)))
    kme.clock.now += TTL + 1
    upkeep(kme).lapse()
    with pytest.raises(BadRequest):
        sae.get_key_with_ids("sae-2", "sae-1", [key.key_id])
    assert same(sae.get_key_with_ids("sae-3", "sae-1", [key.key_id]), [key])


def test_keys_are_looked_at_once_however_often_upkeep_comes(kme: Kme) -> None:
    """And a limit that is given later holds for keys that there are."""
    kme.deposit("one")
    sae = service(kme)
    kme.store.registry.allow("sae-1", "sae-2", ADMIT)
    sae.get_key("sae-1", "sae-2", KeyRequest(1, 256))
    duties = upkeep(kme)
    for _ in range(2):
        kme.clock.now += TTL + 1
        duties.lapse()
    assert kme.rows("key.expire") == []
    kme.store.registry.allow("sae-1", "sae-2", ADMIT, TTL)
    duties.lapse()
    kme.deposit("two")
    sae.get_key("sae-1", "sae-2", KeyRequest(1, 256))
    kme.clock.now += TTL + 1
    duties.lapse()
    assert len(kme.rows("key.expire")) == 2


def test_pairs_are_told_with_their_limit(kme: Kme) -> None:
    service(kme)
    assert kme.site.hsmkme("pair", "allow", "sae-2", "sae-1", "--ttl", 90).out == "sae-2 → sae-1: allowed, for 90 s\n"
    assert "was allowed already" in kme.site.hsmkme("pair", "allow", "sae-2", "sae-1", "--ttl", 90).out
    rows = json.loads(kme.site.hsmkme("pair", "list", "--json").out)
    told = {(row["master"], row["slave"]): row["ttl_seconds"] for row in rows}
    assert told == {("sae-1", "sae-2"): TTL, ("sae-1", "sae-3"): 0, ("sae-2", "sae-1"): 90}
