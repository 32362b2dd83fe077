"""Does the module that the tests of faults stand on do what it is told, with SoftHSM behind it?

Asked of the binding alone where that can show it: what the product makes of a fault is a question of other files.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pkcs11
import pytest

from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.module import load_module
from hsmkme.model import RawBlock
from tests.blocks import key_of, open_bytes, part_of
from tests.conftest import PIN
from tests.shim import FUNCTIONS, Shim
from tests.world import until

DEVICE_ERROR = 0x30


@pytest.fixture
def behind(shim: Shim, address: TokenAddress) -> TokenAddress:
    """The shared token through the module."""
    return shim.address(address)


@pytest.fixture
def device(behind: TokenAddress) -> Any:
    """The token in the binding's words."""
    return load_module(behind).get_token(token_label=behind.label)


@pytest.fixture
def session(shim: Shim, device: Any) -> Iterator[Any]:
    """A session with a login."""
    opened = device.open(user_pin=PIN)
    yield opened
    shim.restore()
    with suppress(pkcs11.SessionHandleInvalid):  # some tests take it away
        opened.close()


def masters(session: Any) -> list[Any]:
    return list(session.get_objects({pkcs11.Attribute.LABEL: "master/1"}))


def test_every_function_of_the_list_is_forwarded() -> None:
    assert len(FUNCTIONS) == 68
    assert (FUNCTIONS[0], FUNCTIONS[24], FUNCTIONS[-1]) == ("C_Initialize", "C_GetAttributeValue", "C_WaitForSlotEvent")


def test_keys_are_sealed_and_opened_through_it(behind: TokenAddress, raw_block: Any) -> None:
    token = Token(behind, lambda: PIN)
    block: RawBlock = raw_block(3)
    assert open_bytes(token, key_of(part_of(token.seal(block, 1)))) == block.material.reveal()
    token.close()


def test_calls_are_counted_by_function(shim: Shim, session: Any) -> None:
    before = shim.calls()
    session.generate_random(64)
    session.generate_random(64)
    assert shim.calls() - before == {"C_GenerateRandom": 2}


def test_every_call_waits_as_long_as_it_is_told(shim: Shim, session: Any) -> None:
    shim.delay(20_000)
    began = time.monotonic()
    session.generate_random(64)
    session.generate_random(64)
    assert time.monotonic() - began >= 0.04


def test_a_function_fails_as_often_as_it_is_told_once_others_passed(shim: Shim, session: Any) -> None:
    shim.fail("C_GenerateRandom", DEVICE_ERROR, times=2, after=1)
    session.generate_random(64)
    for _ in range(2):
        with pytest.raises(pkcs11.DeviceError):
            session.generate_random(64)
    assert len(session.generate_random(64)) == 8


def test_a_function_fails_always_until_all_is_restored(shim: Shim, session: Any) -> None:
    shim.fail("C_GenerateRandom", DEVICE_ERROR)
    for _ in range(3):
        with pytest.raises(pkcs11.DeviceError):
            session.generate_random(64)
    assert masters(session)
    shim.restore()
    assert len(session.generate_random(64)) == 8


def test_a_function_hangs_until_it_is_let_go(shim: Shim, session: Any) -> None:
    given: list[bytes] = []
    caller = Thread(target=lambda: given.append(session.generate_random(64)))
    with shim.hold("C_GenerateRandom"):
        caller.start()
        until(lambda: shim.held_calls("C_GenerateRandom") == 1)
        assert not given
    caller.join()
    assert len(given) == 1
    assert shim.held_calls("C_GenerateRandom") == 0


def test_another_serial_is_shown(shim: Shim, behind: TokenAddress, device: Any) -> None:
    shim.show_serial("other")
    module = load_module(behind)
    assert module.get_token(token_label=behind.label).serial == b"other"
    shim.restore()
    assert module.get_token(token_label=behind.label).serial == device.serial != b"other"


def test_a_login_is_forgotten_until_the_next_one(shim: Shim, device: Any, session: Any) -> None:
    assert masters(session)
    shim.forget_login()
    assert not masters(session)
    with pytest.raises(pkcs11.UserNotLoggedIn):
        session.generate_key(pkcs11.KeyType.AES, 256)
    with device.open(user_pin=PIN) as again:
        assert masters(again)
        again.generate_key(pkcs11.KeyType.AES, 256).destroy()


def test_searches_find_nothing_of_objects_that_were_lost(shim: Shim, session: Any) -> None:
    shim.lose_objects()
    assert not masters(session)
    shim.restore()
    assert masters(session)


def test_a_token_that_was_removed_comes_back_without_its_sessions(
    shim: Shim, behind: TokenAddress, device: Any, session: Any
) -> None:
    module = load_module(behind)
    shim.remove()
    assert not module.get_slots(token_present=True)
    for call in (device.open, lambda: session.generate_random(64)):
        with pytest.raises(pkcs11.TokenNotPresent):
            call()
    shim.restore()
    assert module.get_slots(token_present=True)
    with pytest.raises(pkcs11.SessionHandleInvalid):
        session.generate_random(64)
    with device.open(user_pin=PIN) as again:
        assert masters(again)


def test_a_removed_token_answers_as_it_is_told(shim: Shim, session: Any) -> None:
    shim.remove(0x32)
    with pytest.raises(pkcs11.DeviceRemoved):
        session.generate_random(64)


def test_a_process_that_runs_already_is_told_too(shim: Shim, behind: TokenAddress) -> None:
    program = (
        "import sys, pkcs11\n"
        "session = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2]).open()\n"
        "for _ in sys.stdin:\n"
        "    try: print(len(session.generate_random(64)), flush=True)\n"
        "    except pkcs11.PKCS11Error as error: print(type(error).__name__, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(behind.module), behind.label]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def asked() -> str:
            process.stdin.write("\n")  # type: ignore[union-attr]
            return process.stdout.readline().strip()  # type: ignore[union-attr]

        before = shim.calls()
        assert asked() == "8"
        shim.fail("C_GenerateRandom", DEVICE_ERROR, times=1)
        assert [asked(), asked()] == ["DeviceError", "8"]
        assert (shim.calls() - before)["C_GenerateRandom"] == 3
        process.stdin.close()


def test_sessions_of_a_parallel_profile_wait_at_the_same_time(
    built_shim: Path, address: TokenAddress, tmp_path: Path
) -> None:
    shim = Shim(built_shim, tmp_path, address.module)  # the other one was initialised for one thread
    token = Token(shim.address(address, locking="parallel", sessions=16), lambda: PIN)
    threads = [Thread(target=token.prove, args=(1,)) for _ in range(16)]
    with shim.hold("C_UnwrapKey"):
        for thread in threads:
            thread.start()
        until(lambda: shim.held_calls("C_UnwrapKey") == 16)
    for thread in threads:
        thread.join()
    token.close()
