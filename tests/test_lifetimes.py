"""Do keys that nobody claimed while they were fresh end, and those that were claimed not?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hsmkme.errors import PoolShort
from hsmkme.hsm import Token, TokenAddress
from hsmkme.store.ageing import GRACE_SECONDS
from hsmkme.upkeep import Upkeep
from tests.conftest import PIN, FakeClock
from tests.rotating import KEYS, Kme, same
from tests.sites import make_site

TTL = 3600


@pytest.fixture
def kme(address: TokenAddress, tmp_path: Path, clock: FakeClock, softhsm: Path) -> Iterator[Kme]:
    """A KME whose local link lets keys live for an hour; no master key changes here."""
    token = Token(address, lambda: PIN)
    site = make_site(tmp_path, token, address.label, softhsm)
    site.change_config('peer = "kme-1"', f'peer = "kme-1"\nttl_seconds = {TTL}')
    opened = Kme(site, clock)
    yield opened
    opened.store.close()
    token.close()


def age(kme: Kme) -> None:
    Upkeep(kme.site.settings, kme.custody, kme.store, kme.clock, kme.token.anchor().drop).age()


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
    with closing(sqlite3.connect(kme.site.path)) as connection, connection:
        connection.execute("UPDATE block SET mine = 0, own_epoch = 1")
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
