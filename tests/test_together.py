"""Requests of one worker that come at once are done together: does each get its own, and only its own failure?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hsmkme.errors import HsmkmeError, KeyNotHeld, RecordFault, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.answers import CODES
from hsmkme.model import Entry, OpenKey
from hsmkme.server.turns import Turns
from hsmkme.store import Store
from hsmkme.waiting import share
from tests.blocks import key_of, part_of
from tests.conftest import PIN, FakeClock
from tests.rotating import KEYS, Kme, same
from tests.shim import Shim
from tests.sites import make_site

BY = Entry("test", "test")


@pytest.fixture
def turns() -> Iterator[Turns]:
    """This thread is a worker's."""
    made = Turns(threads=8)
    share(made)
    yield made
    share(None)
    made.close()


@pytest.fixture
def kme(address: TokenAddress, shimmed: Token, softhsm: Path, tmp_path: Path, clock: FakeClock) -> Kme:
    return Kme(make_site(tmp_path, shimmed, address.label, softhsm), clock)


def at_once(turns: Turns, acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of ``acts`` gave or raised; all of them begin before any goes on."""
    found: list[Any] = [None] * len(acts)
    missing = set(range(len(acts)))

    def do(place: int) -> None:
        try:
            found[place] = acts[place]()
        except HsmkmeError as error:
            found[place] = error
        missing.remove(place)

    for place in range(len(acts)):
        turns.begin(lambda place=place: do(place))  # type: ignore[misc]
    while missing:
        turns.run()
    return found



def keys_of(found: Sequence[Sequence[OpenKey]]) -> bytes:
    return b"".join(key.material.reveal() for keys in found for key in keys)


def test_keys_of_several_requests_are_opened_in_one_turn_of_the_token_and_each_gets_its_own(
    turns: Turns, kme: Kme, shim: Shim
) -> None:
    kme.deposit("one")
    kme.deposit("two")
    before = shim.calls()
    found = at_once(turns, [lambda: kme.fetch(1), lambda: kme.fetch(3), lambda: kme.fetch(2)])
    assert [len(keys) for keys in found] == [1, 3, 2]
    assert keys_of(found) == (kme.plain["one"] + kme.plain["two"])[: 6 * 32]
    assert (shim.calls() - before)["C_Decrypt"] == 6
    collected = at_once(turns, [lambda keys=keys: kme.collect(keys) for keys in found])  # type: ignore[misc]
    assert all(same(mine, keys) for mine, keys in zip(collected, found, strict=True))


def test_a_key_that_two_ask_for_at_the_same_time_goes_to_one(turns: Turns, kme: Kme) -> None:
    kme.deposit("one")
    keys = kme.fetch(2)
    found = at_once(turns, [lambda: kme.collect(keys), lambda: kme.collect(keys[:1]), lambda: kme.collect(keys[1:])])
    given = [one for one in found if not isinstance(one, HsmkmeError)]
    assert sum(map(len, given)) == len({key.key_id for one in given for key in one})
    assert all(isinstance(one, KeyNotHeld) for one in found if one not in given)
    assert len(given) in (1, 2)


def test_a_block_that_does_not_open_burns_the_keys_of_those_alone_who_drew_from_it(turns: Turns, kme: Kme) -> None:
    kme.deposit("one")
    kme.deposit("two")
    with closing(sqlite3.connect(kme.site.path)) as connection:
        (sealed,) = connection.execute("SELECT sealed FROM segments WHERE block_pk = 2").fetchone()
        altered = bytes([sealed[0] ^ 1]) + sealed[1:]
        connection.execute("UPDATE segments SET sealed = ? WHERE block_pk = 2", (altered,))
        connection.commit()
    found = at_once(turns, [lambda: kme.fetch(2), lambda: kme.fetch(2), lambda: kme.fetch(1)])
    assert keys_of(found[:2]) == kme.plain["one"]
    assert isinstance(found[2], RecordFault)
    assert [row.text.count('"key.void"') for row in kme.store.log.latest(10, "key.void")] == [1]
    assert len(kme.store.log.latest(10, "alarm.")) == 1


def test_a_token_that_fails_once_costs_nobody_a_key(turns: Turns, kme: Kme, shim: Shim) -> None:
    kme.deposit("one")
    shim.fail("C_Decrypt", CODES["ENCRYPTED_DATA_INVALID"], times=1)
    found = at_once(turns, [lambda: kme.fetch(2), lambda: kme.fetch(2)])
    assert keys_of(found) == kme.plain["one"]
    assert kme.store.log.latest(10, "key.void") == kme.store.log.latest(10, "alarm.") == []


def test_a_token_that_is_away_is_known_before_anything_is_claimed_for_anybody(
    turns: Turns, kme: Kme, shim: Shim, clock: FakeClock
) -> None:
    kme.deposit("one")
    shim.remove()
    clock.now += 2  # nothing was heard of it for a while
    found = at_once(turns, [lambda: kme.fetch(1) for _ in range(KEYS)])
    assert all(isinstance(one, TokenUnavailable) for one in found)
    assert kme.store.log.latest(10, "key.") == []


def test_who_comes_after_a_look_at_the_registry_has_it_looked_at_anew(turns: Turns, store: Store) -> None:
    """A pipelined request begins while others go on that looked before it came."""
    store.registry.add_sae("sae-1", "kme-1", BY)
    other = Store(store._database.path, store._database.chain, store._database.clock)
    seen: list[bool] = []

    def look() -> None:
        seen.append(store.registry.known().saes["sae-1"].revoked)

    def revoke() -> None:
        look()
        other.registry.revoke_sae("sae-1", BY)
        turns.begin(look)

    turns.begin(look)
    turns.begin(revoke)
    while turns.seconds_left(1) == 0:
        turns.run()
    other.close()
    assert seen == [False, False, True]


def test_the_keys_of_one_request_are_opened_in_all_sessions_at_the_same_time(
    turns: Turns, built_shim: Path, address: TokenAddress, raw_block: Callable[..., Any], tmp_path: Path
) -> None:
    shim = Shim(built_shim, tmp_path, address.module)
    token = Token(shim.address(address, locking="parallel", sessions=4), lambda: PIN)
    block = raw_block(10)
    sealed = token.seal(block, 1)
    keys = [key_of(part_of(sealed, number, 1)) for number in range(10)]
    with shim.hold("C_Decrypt"):
        opened: list[Sequence[OpenKey]] = []
        turns.begin(lambda: opened.append(token.open(keys)))
        while shim.held_calls("C_Decrypt") < 4:
            turns.run()
    while not opened:
        turns.run()
    assert b"".join(key.material.reveal() for key in opened[0]) == block.material.reveal()
    assert [key.key_id for key in opened[0]] == [key.key_id for key in keys]
    token.close()
