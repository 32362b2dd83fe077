"""Nothing of a KME is held while it waits for another: no transaction, no turn to write, no lane of the token."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from hsmkme.hsm import Token
from tests.peering import line as trouble
from tests.peering.line import Line, Reply, Request
from tests.peering.pair import LINK, End, Pair


def check_nothing_is_held(end: End, token: Token, patience: float = 30) -> None:
    """Seen from the thread that waits, and from another one, which gets what it asks within ``patience`` seconds."""
    database = end.store._database
    assert not database.connection.in_transaction
    assert database.writers._group is None
    assert database.writers._places.take(0)
    database.writers._places.give_back()
    turn = os.open(end.path.with_name(end.path.name + ".turn"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(turn)
    done: list[bytes] = []
    other = threading.Thread(target=lambda: done.append(token.link_mac(LINK, b"is there a free lane?")), daemon=True)
    other.start()
    other.join(patience)
    assert done, "the token serves nobody else"


@pytest.fixture
def watched(pair: Pair, both: Token) -> dict[str, int]:
    """How often each call was watched, from both ends."""
    counts: dict[str, int] = {}
    carry = Line.carry

    def watch(way: Line, request: Request) -> Reply:
        for end in pair.ends:
            check_nothing_is_held(end, both)
        counts[request.call] = counts.get(request.call, 0) + 1
        return carry(way, request)

    pair.line.carry = watch.__get__(pair.line)  # type: ignore[method-assign]
    return counts


def test_nothing_is_held_while_a_message_is_under_way(pair: Pair, watched: dict[str, int]) -> None:
    copy = pair.a.backup()
    for _ in range(3):
        pair.works()
        pair.rounds(1)  # keys are stocked ahead of need
    pair.exchange("a1", "b1", "a2", number=2)
    pair.line.next("keys/assign", trouble.drop_answer, trouble.drop_answer)
    assert pair.refused("a2", "b2") is not None
    for _ in range(16):
        pair.deposit(owner="kme-1", keys=64)
    pair.deposit(pair.b, owner="kme-2")
    pair.rounds(3)
    pair.a.restore(copy)
    pair.deposit(pair.b, owner="kme-1")
    pair.heal()
    assert watched.keys() >= {
        *("hello", "keys/assign", "keys/void", "keys/query", "blocks/announce", "blocks/grant", "blocks/missing")
    }


def test_the_watch_sees_what_is_held(pair: Pair, both: Token) -> None:
    check_nothing_is_held(pair.a, both)
    database = pair.a.store._database
    with database.write(logged=False), pytest.raises(AssertionError):
        check_nothing_is_held(pair.a, both)
    with database.read(), pytest.raises(AssertionError):
        check_nothing_is_held(pair.a, both)
    with both._sessions.lane(), pytest.raises(AssertionError):
        check_nothing_is_held(pair.a, both, 0.2)
