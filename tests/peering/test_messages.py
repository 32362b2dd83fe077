"""Whatever becomes of a message between two KMEs, no key goes to two relations and keys are exchanged afterwards.

Each call of kme-peer/1 × each thing that a network, or who sits in it, does to a message.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.peering import line as trouble
from tests.peering.line import Fault
from tests.peering.pair import LINK, Pair

FAULTS: list[Fault] = [
    trouble.drop_request,
    trouble.drop_answer,
    trouble.delay,
    trouble.reorder,
    trouble.duplicate,
    trouble.twice_and_late,
    trouble.truncate_request,
    trouble.truncate_answer,
    trouble.cut,
    trouble.alter_request,
    trouble.alter_header,
    trouble.alter_answer,
    trouble.alter_status,
    trouble.other_answer,
    trouble.replay_all,
]


RELATIONS = ("a1", "b2"), ("a2", "b1")
"""One for each time a call is made: nothing was agreed for it before."""


def assign(pair: Pair, time: int) -> None:
    pair.refused(*RELATIONS[time], number=2)


def void(pair: Pair, time: int) -> None:
    """An offer whose answers are lost is withdrawn, and the peer is told so."""
    pair.line.next("keys/assign", trouble.drop_answer, trouble.drop_answer)
    assert pair.refused(*RELATIONS[time]) is not None
    pair.clock.now += 1
    pair.a.liaison.round()


def announce(pair: Pair, time: int) -> None:
    pair.deposit(owner="kme-1")
    pair.deposit(owner="kme-2")
    pair.a.liaison.round()


def grant(pair: Pair, time: int) -> None:
    """One end has much more than the other."""
    for _ in range(14):
        pair.deposit(owner="kme-1", keys=2)
    while pair.b.store.links.state(LINK).ready:
        pair.enc("b1", "a1")
    pair.rounds(2)
    assert "blocks/grant" in pair.line.calls()


def hello(pair: Pair, time: int) -> None:
    pair.clock.now += 3
    pair.a.liaison.round()


CALLS: dict[str, Callable[[Pair, int], None]] = {
    "keys/assign": assign,
    "keys/void": void,
    "blocks/announce": announce,
    "blocks/grant": grant,
    "hello": hello,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("call", CALLS)
def test_a_message_that_meets_a_fault(pair: Pair, call: str, fault: Fault) -> None:
    """Once, and then again and again until the network works."""
    pair.works()
    for time, messages in enumerate((1, 40)):
        pair.line.next(call, *[fault] * messages)
        pair.line.met = 0
        CALLS[call](pair, time)
        assert pair.line.met >= 1
        pair.heal()
        pair.works()
    pair.judge()
