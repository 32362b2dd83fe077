"""Is a device that fails left alone, probed by one caller, and found again; and do callers not pile up before it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Thread

import pytest

from hsmkme.errors import OperatorFault, RecordFault, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress, running, session
from hsmkme.hsm.breaker import FIRST_PAUSE_SECONDS, LATELY_SECONDS, LONGEST_PAUSE_SECONDS, PROBE_SECONDS, Breaker
from hsmkme.model import RawBlock, SealedKey
from tests.blocks import flipped, key_of, open_bytes, part_of
from tests.conftest import PIN, FakeClock
from tests.shim import Shim
from tests.world import until

DEVICE_ERROR = 0x30


# The breaker by itself ----------------------------------------------------------------------------------


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    """Its dice never shorten a pause."""
    return Breaker(clock, lambda: 0.0)


def is_open(breaker: Breaker) -> bool:
    try:
        return breaker.admit("asking")
    except TokenUnavailable:
        return True


def test_a_closed_breaker_lets_everybody_through_and_nobody_probes(breaker: Breaker) -> None:
    breaker.answered(probing=False)
    assert not breaker.admit("asking")


def test_the_first_failure_opens_it_and_says_when_to_come_back(breaker: Breaker) -> None:
    assert breaker.failed(probing=False) == 1
    with pytest.raises(TokenUnavailable, match="asking: the token failed a moment ago") as refusal:
        breaker.admit("asking")
    assert refusal.value.retry_after == 1


def test_after_the_pause_one_caller_probes_and_the_others_wait_for_what_it_finds(
    breaker: Breaker, clock: FakeClock
) -> None:
    breaker.failed(probing=False)
    clock.now += FIRST_PAUSE_SECONDS
    together = Barrier(8)
    admitted: list[bool] = []
    told: list[int] = []

    def ask() -> None:
        together.wait()
        try:
            admitted.append(breaker.admit("asking"))
        except TokenUnavailable as refusal:
            told.append(refusal.retry_after)

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted == [True]
    assert told == [PROBE_SECONDS] * 7
    breaker.answered(probing=True)
    assert not is_open(breaker)


def test_every_probe_that_fails_doubles_the_pause_up_to_the_longest(breaker: Breaker, clock: FakeClock) -> None:
    pauses = [breaker.failed(probing=False)]
    for _ in range(6):
        clock.now += pauses[-1]
        assert breaker.admit("asking")
        pauses.append(breaker.failed(probing=True))
    assert pauses == [1, 2, 4, 8, 15, 15, 15]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    clock.now += LONGEST_PAUSE_SECONDS
    breaker.admit("asking")
    breaker.answered(probing=True)
    assert breaker.failed(probing=False) == 1, "who answered is trusted anew"


def test_the_dice_shorten_a_pause_by_a_half_at_most(clock: FakeClock) -> None:
    for throw in (0.0, 0.5, 0.999):
        breaker = Breaker(clock, lambda thrown=throw: thrown)
        breaker.failed(probing=False)
        clock.now += FIRST_PAUSE_SECONDS * (1 - throw / 2) - 0.001
        with pytest.raises(TokenUnavailable):
            breaker.admit("asking")
        clock.now += 0.002
        assert breaker.admit("asking")


def test_callers_who_began_before_the_failure_neither_close_it_nor_make_it_worse(
    breaker: Breaker, clock: FakeClock
) -> None:
    breaker.failed(probing=False)
    clock.now += FIRST_PAUSE_SECONDS / 2
    breaker.answered(probing=False)
    assert not breaker.answered_lately
    assert breaker.failed(probing=False) == 1
    assert is_open(breaker)
    clock.now += FIRST_PAUSE_SECONDS / 2
    assert breaker.admit("asking")


def test_a_probe_that_never_comes_back_is_followed_by_another(breaker: Breaker, clock: FakeClock) -> None:
    breaker.failed(probing=False)
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.admit("asking")
    clock.now += PROBE_SECONDS
    assert breaker.admit("asking")


def test_an_answer_counts_for_a_second_and_a_failure_ends_that(breaker: Breaker, clock: FakeClock) -> None:
    assert not breaker.answered_lately
    breaker.answered(probing=False)
    clock.now += LATELY_SECONDS
    assert breaker.answered_lately
    clock.now += 0.1
    assert not breaker.answered_lately
    breaker.answered(probing=False)
    breaker.failed(probing=False)
    assert not breaker.answered_lately


# The breaker before a device ----------------------------------------------------------------------------


@pytest.fixture
def token(shim: Shim, address: TokenAddress, clock: FakeClock) -> Iterator[Token]:
    opened = Token(shim.address(address), lambda: PIN, clock=clock)
    opened.check_value(1)  # as custody does before anything else
    yield opened
    shim.restore()
    opened.close()


@pytest.fixture
def block(raw_block: Callable[..., RawBlock]) -> RawBlock:
    return raw_block(1)


@pytest.fixture
def key(token: Token, block: RawBlock) -> SealedKey:
    return key_of(part_of(token.seal(block, 1)))


def removed(shim: Shim) -> None:
    shim.remove()


def removed_as_a_device(shim: Shim) -> None:
    shim.remove(0x32)


def unwrapping_nothing(shim: Shim) -> None:
    shim.fail("C_UnwrapKey", DEVICE_ERROR)


def logged_out_and_letting_nobody_in(shim: Shim) -> None:
    shim.forget_login()
    shim.fail("C_Login", DEVICE_ERROR)


def replaced_by_another(shim: Shim) -> None:
    shim.show_serial("another")
    shim.forget_login()


OUTAGES = [removed, removed_as_a_device, unwrapping_nothing, logged_out_and_letting_nobody_in, replaced_by_another]


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_opens_the_breaker_costs_few_calls_and_heals(
    shim: Shim, token: Token, key: SealedKey, block: RawBlock, clock: FakeClock, outage: Callable[[Shim], None]
) -> None:
    outage(shim)
    with pytest.raises(TokenUnavailable) as first:
        token.open([key])
    assert first.value.retry_after >= 1
    before = shim.calls()
    for _ in range(50):
        with pytest.raises(TokenUnavailable, match="failed a moment ago"):
            token.open([key])
    assert shim.calls() == before, "in the pause the device is left alone"
    waited = []
    for _ in range(4):
        clock.now += LONGEST_PAUSE_SECONDS
        with pytest.raises(TokenUnavailable) as probe:
            token.open([key])
        waited.append(probe.value.retry_after)
    assert waited == sorted(waited)
    assert waited[-1] > waited[0]
    shim.restore()
    clock.now += LONGEST_PAUSE_SECONDS
    assert open_bytes(token, key) == block.material.reveal()
    assert open_bytes(token, key) == block.material.reveal()


def test_a_token_with_another_serial_number_is_never_given_the_pin(
    shim: Shim, token: Token, key: SealedKey, clock: FakeClock
) -> None:
    shim.show_serial("another")
    shim.forget_login()
    before = shim.calls()["C_Login"]
    for _ in range(3):
        with pytest.raises(TokenUnavailable):
            token.open([key])
        clock.now += LONGEST_PAUSE_SECONDS
    assert shim.calls()["C_Login"] == before


def test_a_master_key_that_was_replaced_blames_the_token_and_no_record(
    make_token: Callable[[], TokenAddress], address: TokenAddress, raw_block: Callable[..., RawBlock], clock: FakeClock
) -> None:
    """The sentinel is older than the key that took the place of the first: it opens as little as the records do."""
    token = Token(address, lambda: PIN, clock=clock)
    token.check_value(1)
    key = key_of(part_of(token.seal(raw_block(1), 1)))
    other = make_token()
    token._sessions.address = replace(token._sessions.address, label=other.label, serial=None)
    token._sessions.reset(token._sessions.generation, hard=True)
    with pytest.raises(TokenUnavailable):
        token.open([key])
    token.close()


def test_lost_objects_are_for_a_person_blame_nothing_and_come_back(
    shim: Shim, token: Token, key: SealedKey, block: RawBlock, clock: FakeClock
) -> None:
    shim.lose_objects()
    shim.forget_login()
    for _ in range(3):
        with pytest.raises(OperatorFault, match="run the ceremony"):
            token.open([key])
    before = shim.calls()["C_Initialize"]
    for _ in range(20):
        with pytest.raises(OperatorFault):
            token.open([key])
    assert shim.calls()["C_Initialize"] == before, "the objects are listed again now and then only"
    shim.restore()
    assert open_bytes(token, key) == block.material.reveal()


def test_a_record_that_does_not_open_leaves_the_breaker_closed(shim: Shim, token: Token, key: SealedKey) -> None:
    part = key.parts[0]
    for _ in range(3):
        with pytest.raises(RecordFault):
            token.open([key_of(replace(part, sealed=flipped(part.sealed, 3)))])
    assert token._runner.answered_lately
    assert open_bytes(token, key)


# The queue ----------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers wait for a session a moment only."""
    monkeypatch.setattr(session, "LANE_WAIT_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_call_that_hangs_holds_up_nobody_for_long_and_the_token_heals_when_it_ends(
    shim: Shim, token: Token, key: SealedKey, block: RawBlock, clock: FakeClock
) -> None:
    hung: list[bytes] = []
    with shim.hold("C_Decrypt"):
        caller = Thread(target=lambda: hung.append(open_bytes(token, key)))
        caller.start()
        until(lambda: shim.held_calls("C_Decrypt") == 1)
        with pytest.raises(TokenUnavailable, match="busy"):
            token.open([key])
        with pytest.raises(TokenUnavailable, match="failed a moment ago"):
            token.open([key])
        clock.now += LONGEST_PAUSE_SECONDS
        with pytest.raises(TokenUnavailable, match="busy"):
            token.open([key])
    caller.join()
    assert hung == [block.material.reveal()]
    clock.now += LONGEST_PAUSE_SECONDS
    assert open_bytes(token, key) == block.material.reveal()


def test_who_comes_when_the_queue_is_full_is_told_to_come_back_and_the_device_is_not_blamed(
    shim: Shim, token: Token, key: SealedKey, block: RawBlock
) -> None:
    with ThreadPoolExecutor(running.QUEUE_MOST) as callers:
        with shim.hold("C_Decrypt"):
            waiting = [callers.submit(open_bytes, token, key) for _ in range(running.QUEUE_MOST)]
            until(lambda: token._runner._queue._value == 0)  # type: ignore[attr-defined]
            with pytest.raises(TokenUnavailable, match="callers wait for the token already") as refusal:
                token.open([key])
            assert refusal.value.retry_after == 1
        assert [done.result() for done in waiting] == [block.material.reveal()] * running.QUEUE_MOST
    assert open_bytes(token, key) == block.material.reveal()
