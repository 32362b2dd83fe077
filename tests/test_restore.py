"""A store that is put back from a copy, where nobody else knows what was delivered since: the token remembers."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pkcs11 import Attribute

from hsmkme import config as configuration
from hsmkme.custody import Custody
from hsmkme.errors import ObjectMissing, PoolShort
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.anchor import ANCHOR_LABEL, NOTHING, anchor_template
from hsmkme.identifiers import KeyIds
from hsmkme.model import BlockName, Demand, Entry, KeyMaterial, Lineage, OpenKey, RawBlock, Relation
from hsmkme.states import BlockState
from hsmkme.store import Store
from hsmkme.store.ending import KEYS_OF_BLOCKS
from hsmkme.upkeep import Upkeep
from tests.conftest import PIN, FakeClock
from tests.sites import Site, make_site

RELATION = Relation.of("sae-1", ["sae-2"])
NO_LIMIT = 1_000_000


@pytest.fixture
def own_token(make_token: Callable[[], TokenAddress]) -> Iterator[tuple[Token, TokenAddress]]:
    """A token that remembers no store."""
    address = make_token()
    token = Token(address, lambda: PIN)
    yield token, address
    token.close()


@pytest.fixture
def site(own_token: tuple[Token, TokenAddress], tmp_path: Path, softhsm: Path) -> Site:
    token, address = own_token
    (tmp_path / "site").mkdir()
    return make_site(tmp_path / "site", token, address.label, softhsm)


def upkeep(site: Site, store: Store, custody: Custody, clock: FakeClock) -> Upkeep:
    return Upkeep(configuration.load(site.config), custody, store, clock, site.token.anchor().drop)


def deposit(custody: Custody, name: str, keys: int = 8) -> None:
    block = RawBlock(BlockName("local", name), 256, KeyMaterial(os.urandom(32 * keys)))
    custody.deposit([block], BlockState.READY, NO_LIMIT, "device")


def fetch(custody: Custody, clock: FakeClock, number: int) -> list[OpenKey]:
    return custody.release(Demand(RELATION, "kme-1", 256, KeyIds(clock)(number)), "sae:sae-1")


def copied(site: Site, to: Path) -> Path:
    with closing(sqlite3.connect(site.path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


def put_back(site: Site, copy: Path) -> None:
    for suffix in ("-wal", "-shm"):
        site.path.with_name(site.path.name + suffix).unlink(missing_ok=True)
    site.path.write_bytes(copy.read_bytes())


def alarms(store: Store) -> list[str]:
    return [row.text for row in store.log.latest(100, "alarm.store-restored")]


def test_a_restored_store_whose_saes_are_all_here_gives_no_key_twice(
    site: Site, clock: FakeClock, tmp_path: Path
) -> None:
    store, custody = site.open(clock)
    deposit(custody, "one")
    (early,) = fetch(custody, clock, 1)
    copy = copied(site, tmp_path / "copy")
    late = fetch(custody, clock, 3)
    upkeep(site, store, custody, clock).anchor()
    store.close()
    put_back(site, copy)
    unaware = site.open_store(clock)
    assert unaware.registry.pools()[1]["ready"] == 7, "the copy would give them again"
    unaware.close()
    store, custody = site.open(clock)
    assert len(alarms(store)) == 1
    assert '"keys_void":7' in alarms(store)[0]
    with pytest.raises(PoolShort):
        fetch(custody, clock, 1)
    (again,) = custody.collect("sae-2", [custody.held([early.key_id])[early.key_id]], "sae:sae-2")
    assert again.material.reveal() == early.material.reveal(), "what was claimed before the copy is still collected"
    assert custody.held([key.key_id for key in late]) == {}
    deposit(custody, "two")
    assert len(fetch(custody, clock, 8)) == 8
    store.close()


def test_it_is_noticed_once_however_many_processes_start(site: Site, clock: FakeClock, tmp_path: Path) -> None:
    store, custody = site.open(clock)
    copy = copied(site, tmp_path / "copy")
    deposit(custody, "one")
    duties = upkeep(site, store, custody, clock)
    duties.anchor()
    store.close()
    put_back(site, copy)
    opened = [site.open(clock) for _ in range(3)]
    assert len(alarms(opened[0][0])) == 1
    upkeep(site, *opened[0], clock).anchor()
    store, _ = site.open(clock)
    assert len(alarms(store)) == 1, "once anchored anew it is the store that the token remembers"
    for one in (store, *(store for store, _ in opened)):
        one.close()
    put_back(site, copied(site, tmp_path / "second"))
    assert len(alarms(site.open(clock)[0])) == 1, "a copy of now is not old"


def test_beside_a_token_that_remembers_nothing_a_store_counts_as_an_old_copy(site: Site, clock: FakeClock) -> None:
    """As after a ceremony that restored master keys to a new token: the latest store would be one, too."""
    store, custody = site.open(clock)
    deposit(custody, "one")
    store.close()
    store, custody = site.open(clock)
    assert alarms(store) == [], "one that was never anchored begins"
    upkeep(site, store, custody, clock).anchor()
    store.lineage.note_anchored()
    store.close()
    site.token.anchor().drop(NOTHING)
    store, custody = site.open(clock)
    assert len(alarms(store)) == 1
    with pytest.raises(PoolShort):
        fetch(custody, clock, 1)
    deposit(custody, "two")
    store.close()
    store, custody = site.open(clock)
    assert len(alarms(store)) == 1, "it is given up once"
    assert len(fetch(custody, clock, 8)) == 8
    store.close()


def test_links_to_peers_wait_for_a_reconciliation(site: Site, clock: FakeClock, tmp_path: Path) -> None:
    store, custody = site.open(clock)
    with closing(sqlite3.connect(site.path)) as connection, connection:
        connection.execute("INSERT INTO far_end (link_id, incarnation) VALUES ('far', 'x')")
    copy = copied(site, tmp_path / "copy")
    deposit(custody, "one")
    upkeep(site, store, custody, clock).anchor()
    store.close()
    put_back(site, copy)
    store, _ = site.open(clock)
    assert store.links.state("far").why == "restored"


def test_a_copy_whose_log_was_made_longer_since_is_still_one(site: Site, clock: FakeClock, tmp_path: Path) -> None:
    store, custody = site.open(clock)
    deposit(custody, "one")
    copy = copied(site, tmp_path / "copy")
    fetch(custody, clock, 3)
    upkeep(site, store, custody, clock).anchor()
    store.close()
    put_back(site, copy)
    padded = site.open_store(clock)
    for number in range(20):
        padded.log.append(Entry("padding", "test", {"number": number}))
    padded.close()
    store, custody = site.open(clock)
    assert len(alarms(store)) == 1
    with pytest.raises(PoolShort):
        fetch(custody, clock, 1)
    store.close()


def test_another_store_on_the_same_token_is_no_old_copy(site: Site, clock: FakeClock) -> None:
    site.token.anchor().drop(Lineage(bytes(range(16)), 3, 1_000_000))
    store, _ = site.open(clock)
    assert alarms(store) == []


def test_an_anchor_that_a_killed_process_left_broken_is_replaced(site: Site) -> None:
    store_id = bytes(range(16))
    anchor = site.token.anchor()
    anchor.drop(Lineage(store_id, 0, 10))
    add_object(site, b"half")  # killed while the next one was made
    assert site.token.anchored() == Lineage(store_id, 0, 10)
    anchor.drop(Lineage(store_id, 0, 20))
    assert site.token.anchored() == Lineage(store_id, 0, 20)
    assert count_objects(site) == 1


def test_an_anchor_that_a_killed_process_did_not_destroy_is_the_older_one(site: Site) -> None:
    store_id = bytes(range(16))
    site.token.anchor().drop(Lineage(store_id, 1, 5))
    add_object(site, store_id + bytes(7) + b"\0" + bytes(6) + b"\1\0")  # of before, without a hash
    assert site.token.anchored() == Lineage(store_id, 1, 5)


def test_a_token_that_remembers_nothing_at_all_is_refused(site: Site, clock: FakeClock) -> None:
    on_objects(site, lambda session: [found.destroy() for found in session.get_objects(ANCHORS)])
    with pytest.raises(ObjectMissing, match="has no anchor: run the ceremony"):
        site.open(clock)


ANCHORS = {Attribute.LABEL: ANCHOR_LABEL}


def on_objects(site: Site, act: Callable[[Any], Any]) -> Any:
    """Do something to the token's objects behind the product's back, with its PIN."""

    def in_lane(lane: Any) -> Any:
        session = lane.session.token.open(rw=True)
        try:
            return act(session)
        finally:
            session.close()

    return site.token._runner.run("tampering with an anchor", in_lane)


def add_object(site: Site, value: bytes) -> None:
    template = {**anchor_template(Lineage(bytes(16), 0, 0)), Attribute.VALUE: value}
    on_objects(site, lambda session: session.create_object(template))


def count_objects(site: Site) -> int:
    return len(on_objects(site, lambda session: list(session.get_objects(ANCHORS))))


def test_key_ids_of_the_copy_are_not_used_again(clock: FakeClock) -> None:
    made: set[UUID] = set()
    for _ in range(2):
        made |= set(KeyIds(clock)(100))
    assert len(made) == 200


def test_what_is_asked_of_blocks_is_not_searched_for_among_all_keys(site: Site, clock: FakeClock) -> None:
    store = site.open_store(clock)
    assert store.links.state("far").peer == "kme-2"  # the store is at this version's schema
    with closing(sqlite3.connect(site.path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {KEYS_OF_BLOCKS}", ("[1]",))]
    assert any(step.startswith("SEARCH key_of_block USING PRIMARY KEY") for step in plan), plan
    assert not any(step.startswith("SCAN key") for step in plan), plan
