"""Is every answer of PKCS#11 known for what it means, and does each lead where it should?

``pkcs11-answers.txt`` has the names and numbers of OASIS's header of v3.2. The answers come through a module that
gives them in SoftHSM's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import pkcs11
import pytest

from hsmkme.errors import OperatorFault, TokenError, TokenMisuse, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.answers import ANSWERS, CODES, OK, VENDOR_DEFINED, Fault, fault_of_code, name_of_code
from hsmkme.hsm.breaker import LONGEST_PAUSE_SECONDS
from hsmkme.hsm.faults import code_of, fault_of
from hsmkme.hsm.module import load_module
from hsmkme.model import RawBlock, SealedKey
from tests.blocks import key_of, open_bytes, part_of
from tests.conftest import FakeClock
from tests.shim import Shim

_LINES = (Path(__file__).parent / "pkcs11-answers.txt").read_text().splitlines()
STANDARD = {name.removeprefix("CKR_"): int(code, 16) for name, code in map(str.split, _LINES)}

OUTCOMES: dict[Fault, type[TokenError]] = {
    Fault.RECORD: TokenUnavailable,  # of every record, the sentinel too: it is the device
    Fault.SESSION: TokenUnavailable,
    Fault.DEVICE: TokenUnavailable,
    Fault.OPERATOR: OperatorFault,
    Fault.BUG: TokenMisuse,
}


def test_every_answer_of_the_standard_is_in_the_table_and_no_other() -> None:
    assert {"OK": OK, **CODES} == STANDARD
    assert len(CODES) == sum(len(named) for named in ANSWERS.values())


def test_every_answer_that_the_binding_knows_is_in_the_table() -> None:
    known = set(re.findall(r"\bCKR_(\w+)", resources.files(pkcs11).joinpath("_pkcs11.pxd").read_text()))
    assert len(known) > 90
    assert known <= {"OK", *CODES}


def test_a_vendors_own_answer_means_that_the_device_fails_and_one_of_nobody_is_a_bug() -> None:
    assert fault_of_code(VENDOR_DEFINED + 0x11) is Fault.DEVICE
    assert fault_of_code(0x7FFF_FFFF) is Fault.BUG
    assert name_of_code(0x30) == "CKR_DEVICE_ERROR"
    assert name_of_code(VENDOR_DEFINED + 0x11) == "0x80000011"


@pytest.fixture
def session(shared_shim: Shim, address: TokenAddress) -> Iterator[Any]:
    """A session of the binding without a login."""
    opened = load_module(shared_shim.address(address)).get_token(token_label=address.label).open()
    yield opened
    with suppress(pkcs11.SessionHandleInvalid):  # the tests below initialise the module anew
        opened.close()


@pytest.mark.parametrize("name", CODES)
def test_an_answer_is_recognised_in_the_error_that_the_binding_makes_of_it(shim: Shim, session: Any, name: str) -> None:
    shim.fail("C_GenerateRandom", CODES[name], times=1)
    with pytest.raises(pkcs11.PKCS11Error) as raised:
        session.generate_random(64)
    assert code_of(raised.value) == CODES[name]
    assert CODES[name] in ANSWERS[fault_of(raised.value)].values()


@pytest.fixture
def token(shimmed: Token) -> Token:
    return shimmed


@pytest.fixture
def block(raw_block: Callable[..., RawBlock]) -> RawBlock:
    return raw_block(1)


@pytest.fixture
def key(token: Token, block: RawBlock) -> SealedKey:
    """A key whose block key is in the token."""
    made = key_of(part_of(token.seal(block, 1)))
    open_bytes(token, made)
    return made


# A code that comes once leads to a second try, but for those that say that nothing is to be tried again.
ONCE = {**dict.fromkeys((Fault.RECORD, Fault.SESSION)), **{kind: OUTCOMES[kind] for kind in list(Fault)[2:]}}


@pytest.mark.parametrize("name", CODES)
def test_no_answer_of_the_token_blames_a_record_and_the_key_opens_when_it_is_over(
    shim: Shim, token: Token, key: SealedKey, block: RawBlock, clock: FakeClock, name: str
) -> None:
    kind = fault_of_code(CODES[name])
    shim.fail("C_Decrypt", CODES[name])
    with pytest.raises(OUTCOMES[kind]) as raised:
        token.open([key])
    assert isinstance(raised.value, OUTCOMES[kind])
    shim.restore()
    clock.now += LONGEST_PAUSE_SECONDS
    assert open_bytes(token, key) == block.material.reveal()
    shim.fail("C_Decrypt", CODES[name], times=1)
    due = ONCE[kind]
    if due is None:
        assert open_bytes(token, key) == block.material.reveal()
    else:
        with pytest.raises(due):
            token.open([key])


ONE_OF_EACH = ["GENERAL_ERROR", "KEY_HANDLE_INVALID", "DEVICE_ERROR", "TOKEN_WRITE_PROTECTED", "MECHANISM_INVALID"]
CALLED = ["C_DecryptInit", "C_UnwrapKey", "C_FindObjects", "C_GetAttributeValue"]


@pytest.mark.parametrize("function", CALLED)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_is_the_same_with_any_call_that_opening_makes(
    shim: Shim, token: Token, block: RawBlock, clock: FakeClock, function: str, name: str
) -> None:
    fresh = key_of(part_of(token.seal(block, 1)))
    shim.forget_login()  # so that everything is called again
    shim.fail(function, CODES[name])
    with pytest.raises(OUTCOMES[fault_of_code(CODES[name])]):
        token.open([fresh])
    shim.restore()
    clock.now += LONGEST_PAUSE_SECONDS
    assert open_bytes(token, fresh) == block.material.reveal()
