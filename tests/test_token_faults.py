"""Does the token come back by itself from what heals by itself, and stop at what a person must see to?"""

from __future__ import annotations

import _ssl
import ctypes
import gc
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import NamedTuple

import pkcs11
import pytest

from hsmkme.errors import ObjectMissing, OperatorFault, PinRefused, RecordFault, TokenMisuse, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.breaker import LATELY_SECONDS, LONGEST_PAUSE_SECONDS
from hsmkme.hsm.cryptoki import CryptokiError
from hsmkme.hsm.faults import fault_of, outward, translated
from hsmkme.hsm.softhsm import mend_token_files, token_directory
from hsmkme.model import RawBlock, SealedBlock
from tests.blocks import flipped, key_of, open_bytes, part_of
from tests.conftest import FakeClock
from tests.tokens import PIN, made_token

PROGRAMS = Path(__file__).parent / "programs"
FORKING = PROGRAMS / "token_fork.py"
LOGIN = PROGRAMS / "token_login.py"
OPENSSL = ctypes.PyDLL(_ssl.__file__)


class CountingPin:
    """Gives the PIN, or what it was changed to, and counts how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.pin = PIN

    def __call__(self) -> str:
        self.asked += 1
        return self.pin


@pytest.fixture
def pin() -> CountingPin:
    return CountingPin()


@pytest.fixture
def counted(address: TokenAddress, pin: CountingPin, clock: FakeClock) -> Iterator[Token]:
    """The shared token with a PIN source that counts and a clock that the test moves."""
    opened = Token(address, pin, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def block(raw_block: Callable[..., RawBlock]) -> RawBlock:
    return raw_block(2)


@pytest.fixture
def sealed(counted: Token, block: RawBlock) -> SealedBlock:
    """A block that was opened once: its key is unwrapped in the token."""
    sealed = counted.seal(block, 1)
    open_bytes(counted, key_of(part_of(sealed)))
    return sealed


# Handles are lost -------------------------------------------------------------------------------------

# What other code of this process may do to the module behind the service's back.


def close_all_sessions(address: TokenAddress) -> None:
    slot = pkcs11.lib(str(address.module)).get_token(token_label=address.label).slot.slot_id
    assert ctypes.CDLL(str(address.module)).C_CloseAllSessions(ctypes.c_ulong(slot)) == 0


def log_out(address: TokenAddress) -> None:
    session = pkcs11.lib(str(address.module)).get_token(token_label=address.label).open()
    assert ctypes.CDLL(str(address.module)).C_Logout(ctypes.c_ulong(session.handle)) == 0
    session.close()


def finalise_the_module(address: TokenAddress) -> None:
    assert ctypes.CDLL(str(address.module)).C_Finalize(None) == 0


def finalise_the_binding(address: TokenAddress) -> None:
    pkcs11.lib(str(address.module)).finalize()


def initialise_anew(address: TokenAddress) -> None:
    pkcs11.lib(str(address.module)).reinitialize()


LOSSES = [close_all_sessions, log_out, finalise_the_module, finalise_the_binding, initialise_anew]


class Use(NamedTuple):
    """A token and what it may be used on."""

    token: Token
    block: RawBlock
    sealed: SealedBlock


def open_rightly(use: Use) -> None:
    assert open_bytes(use.token, key_of(part_of(use.sealed))) == use.block.material.reveal()


def digest_rightly(use: Use) -> None:
    assert use.token.digest(use.block) == use.sealed.digest


VERBS: dict[str, Callable[[Use], object]] = {
    "seal": lambda use: use.token.seal(use.block, 1),
    "open": open_rightly,
    "digest": digest_rightly,
    "sign": lambda use: use.token.sign(bytes(32)),
    "audit_public_key": lambda use: use.token.audit_public_key(),
    "check_value": lambda use: use.token.check_value(1),
    "prove": lambda use: use.token.prove(1),
}


@pytest.fixture
def use(counted: Token, block: RawBlock, sealed: SealedBlock) -> Use:
    return Use(counted, block, sealed)


@pytest.mark.parametrize("loss", [finalise_the_module, finalise_the_binding])
def test_a_module_that_began_anew_leaves_no_errors_that_tls_would_take_for_its_own(
    use: Use, address: TokenAddress, loss: Callable[[TokenAddress], None]
) -> None:
    loss(address)
    open_rightly(use)
    assert OPENSSL.ERR_peek_error() == 0


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_handles_are_found_again_within_the_same_call_by_one_login(
    use: Use, pin: CountingPin, address: TokenAddress, loss: Callable[[TokenAddress], None], verb: str
) -> None:
    public = loss is log_out and verb == "audit_public_key"  # that needs no login
    VERBS[verb](use)
    loss(address)
    VERBS[verb](use)
    assert pin.asked == (1 if public else 2)
    VERBS[verb](use)
    assert pin.asked == (1 if public else 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_token_that_did_nothing_yet_recovers_too(
    counted: Token, pin: CountingPin, address: TokenAddress, block: RawBlock, loss: Callable[[TokenAddress], None]
) -> None:
    loss(address)
    assert open_bytes(counted, key_of(part_of(counted.seal(block, 1)))) == block.material.reveal()
    assert pin.asked == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_threads_that_lose_their_handles_together_log_in_once(
    counted: Token,
    pin: CountingPin,
    address: TokenAddress,
    block: RawBlock,
    sealed: SealedBlock,
    loss: Callable[[TokenAddress], None],
) -> None:
    together = Barrier(8)
    opened: list[bytes] = []

    def work() -> None:
        together.wait()
        opened.extend(open_bytes(counted, key_of(part_of(sealed))) for _ in range(5))

    loss(address)
    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [block.material.reveal()] * 40
    assert pin.asked == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_an_altered_record_met_with_lost_handles_is_still_that_records_fault(
    counted: Token, address: TokenAddress, sealed: SealedBlock, loss: Callable[[TokenAddress], None]
) -> None:
    part = part_of(sealed)
    loss(address)
    with pytest.raises(RecordFault):
        counted.open([key_of(replace(part, sealed=flipped(part.sealed, 0)))])


def test_a_token_never_acts_through_handles_that_became_those_of_another_token(
    address: TokenAddress, make_token: Callable[[], TokenAddress], raw_block: Callable[..., RawBlock]
) -> None:
    other_address = make_token()
    initialise_anew(address)  # sees the new token, and counts its handles from one again
    first = Token(address, lambda: PIN)
    block = raw_block(1)
    sealed = first.seal(block, 1)
    check_values = first.check_value(1), (other := Token(other_address, lambda: PIN)).check_value(1)
    other._sessions.reset(other._sessions.generation, hard=True)  # now `other` holds the numbers `first` had
    other.prove(1)
    assert (first.check_value(1), other.check_value(1)) == check_values
    assert open_bytes(first, key_of(part_of(sealed))) == block.material.reveal()
    with pytest.raises(RecordFault):
        other.open([key_of(part_of(first.seal(block, 1)))])
    first.close()
    other.close()


# Logins -----------------------------------------------------------------------------------------------


def test_a_wrong_pin_is_for_an_operator_and_asked_for_once(address: TokenAddress, pin: CountingPin) -> None:
    pin.pin = "not-the-pin"
    with pytest.raises(OperatorFault, match="PinIncorrect"):
        Token(address, pin)
    assert pin.asked == 1


@pytest.mark.parametrize("wrong", ["not-the-pin", "", "x" * 300])
def test_a_pin_that_stopped_being_right_is_never_tried_again(
    use: Use, pin: CountingPin, clock: FakeClock, address: TokenAddress, wrong: str
) -> None:
    pin.pin = wrong
    close_all_sessions(address)
    faults = []
    for verb in VERBS.values():
        with pytest.raises(OperatorFault) as fault:
            verb(use)
        faults.append(fault.value)
        clock.now += LONGEST_PAUSE_SECONDS
    assert pin.asked == 2
    assert len({str(fault) for fault in faults}) == 1
    assert len({id(fault) for fault in faults}) == len(faults)  # one that is raised twice keeps its callers' frames
    assert wrong == "" or wrong not in str(faults[0])


def test_threads_that_meet_a_wrong_pin_together_try_it_once(
    counted: Token, pin: CountingPin, address: TokenAddress, sealed: SealedBlock
) -> None:
    pin.pin = "not-the-pin"
    close_all_sessions(address)
    together = Barrier(8)
    refused: list[Exception] = []

    def work() -> None:
        together.wait()
        for _ in range(5):
            try:
                counted.open([key_of(part_of(sealed))])
            except (OperatorFault, TokenUnavailable) as error:
                refused.append(error)

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pin.asked == 2
    assert len(refused) == 40
    assert any(isinstance(error, OperatorFault) for error in refused)
    with pytest.raises(OperatorFault):
        counted.prove(1)


def test_the_pin_is_kept_nowhere(address: TokenAddress) -> None:
    class Pin(str):
        __slots__ = ("__weakref__",)

    given: list[weakref.ref[Pin]] = []

    def source() -> str:
        pin = Pin(PIN)
        given.append(weakref.ref(pin))
        return pin

    token = Token(address, source)
    token.prove(1)
    gc.collect()
    assert [pin() for pin in given] == [None]
    token.close()


def test_a_token_of_another_serial_number_is_not_this_token(address: TokenAddress) -> None:
    with pytest.raises(TokenUnavailable, match=r"no token labelled .* \(serial 0000\) is present"):
        Token(replace(address, serial="0000"), lambda: PIN)
    serial = pkcs11.lib(str(address.module)).get_token(token_label=address.label).serial.decode()
    Token(replace(address, serial=serial), lambda: PIN).close()


def test_a_closed_token_answers_at_once_that_it_is_logged_out(address: TokenAddress, block: RawBlock) -> None:
    token = Token(address, lambda: PIN)
    token.close()
    token.close()
    with pytest.raises(TokenUnavailable, match="logged out"):
        token.seal(block, 1)


def test_objects_that_were_away_while_the_module_listed_them_are_found_again(
    counted: Token, address: TokenAddress, sealed: SealedBlock, softhsm: Path, tmp_path: Path
) -> None:
    key = key_of(part_of(sealed))
    due = open_bytes(counted, key)
    files = [file for file in softhsm.parent.glob("tokens/*/*.object") if file.name != "token.object"]
    try:
        for number, file in enumerate(files):
            file.rename(tmp_path / str(number))
        finalise_the_module(address)
        with pytest.raises(ObjectMissing, match="no SECRET_KEY labelled 'master/1': run the ceremony"):
            counted.prove(1)
    finally:
        for number, file in enumerate(files):
            (tmp_path / str(number)).rename(file)
    assert open_bytes(counted, key) == due


# A login is killed ------------------------------------------------------------------------------------


@pytest.fixture
def fragile(tmp_path: Path) -> TokenAddress:
    """A token in a directory of its own, whose logins may be killed."""
    (tmp_path / "tokens").mkdir()
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(
        f"# its own\ndirectories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n"
        "library.reset_on_fork = true\n"
    )
    return made_token("fragile", conf)


def in_a_process_of_its_own(address: TokenAddress) -> None:
    """Log in, prove the token, log out; the module of this process looks at another token directory."""
    command = [sys.executable, str(LOGIN), str(address.softhsm_conf), address.label, "1"]
    subprocess.run(command, input=f"{PIN}\ngo\n", text=True, check=True, stdout=subprocess.DEVNULL)


def token_file(address: TokenAddress) -> Path:
    (file,) = token_directory(address.softhsm_conf or Path()).glob("*/token.object")
    return file


def test_a_token_survives_logins_that_are_killed_while_softhsm_writes_its_file(fragile: TokenAddress) -> None:
    file, left_empty = token_file(fragile), 0
    for _ in range(20):  # most kills leave the file empty; a few come too late
        command = [sys.executable, str(LOGIN), str(fragile.softhsm_conf), fragile.label, "1000"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdin is not None
            victim.stdin.write(f"{PIN}\ngo\n")
            victim.stdin.flush()
            while file.stat().st_size and victim.poll() is None:
                pass  # the moment is too short for anything slower
            victim.kill()
        left_empty += file.stat().st_size == 0
        if left_empty == 3:
            break
    assert left_empty == 3
    in_a_process_of_its_own(fragile)
    assert file.stat().st_size


def test_the_copy_of_a_tokens_file_is_as_private_as_the_file_and_follows_it(fragile: TokenAddress) -> None:
    file = token_file(fragile)
    copy = file.with_name("token.object.kept")
    assert fragile.softhsm_conf is not None
    mend_token_files(fragile.softhsm_conf)
    assert copy.read_bytes() == file.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert (copy.stat().st_uid, copy.stat().st_gid) == (file.stat().st_uid, file.stat().st_gid)
    changed = file.read_bytes() + b"changed"
    file.write_bytes(changed)
    mend_token_files(fragile.softhsm_conf)
    assert copy.read_bytes() == file.read_bytes() == changed
    file.write_bytes(b"")
    mend_token_files(fragile.softhsm_conf)
    assert file.read_bytes() == changed


def test_a_copy_that_cannot_be_made_does_not_stop_a_login_and_is_logged(
    fragile: TokenAddress, caplog: pytest.LogCaptureFixture
) -> None:
    token_file(fragile).with_name("token.object.kept").unlink()
    token_file(fragile).with_name("token.object.kept").mkdir()
    assert fragile.softhsm_conf is not None
    mend_token_files(fragile.softhsm_conf)
    assert "could not be kept or mended before the login" in caplog.text
    in_a_process_of_its_own(fragile)


def test_a_token_directory_that_is_not_named_is_softhsms_own(tmp_path: Path) -> None:
    conf = tmp_path / "softhsm2.conf"
    conf.write_text("log.level = ERROR\n")
    assert token_directory(conf) == Path("/var/lib/softhsm/tokens")


# The device is away -----------------------------------------------------------------------------------


@pytest.fixture
def unplugged(softhsm: Path) -> Iterator[Callable[[bool], None]]:
    """Takes SoftHSM's token directory away, or puts it back; back in any case in the end."""
    present, away = softhsm.parent / "tokens", softhsm.parent / "away"

    def unplug(gone: bool) -> None:
        if present.exists() == gone:
            (present if gone else away).rename(away if gone else present)

    yield unplug
    unplug(False)


def test_a_device_that_is_away_is_unavailable_left_alone_for_a_while_and_found_again(
    counted: Token,
    pin: CountingPin,
    clock: FakeClock,
    sealed: SealedBlock,
    raw_block: Callable[..., RawBlock],
    unplugged: Callable[[bool], None],
) -> None:
    block = raw_block(1)
    fresh = key_of(part_of(counted.seal(block, 1)))
    unplugged(True)
    with pytest.raises(TokenUnavailable) as fault:
        counted.open([fresh])
    assert fault.value.retry_after > 0
    asked = pin.asked
    for _ in range(5):  # in the pause nothing is tried
        with pytest.raises(TokenUnavailable, match="failed a moment ago"):
            counted.open([fresh])
    for _ in range(3):  # after each pause it is tried once
        clock.now += LONGEST_PAUSE_SECONDS
        with pytest.raises(TokenUnavailable, match="opening the token again"):
            counted.open([fresh])
        with pytest.raises(TokenUnavailable, match="failed a moment ago"):
            counted.open([fresh])
    assert pin.asked == asked
    unplugged(False)
    with pytest.raises(TokenUnavailable, match="failed a moment ago"):
        counted.open([fresh])
    clock.now += LONGEST_PAUSE_SECONDS
    assert open_bytes(counted, fresh) == block.material.reveal()
    assert open_bytes(counted, key_of(part_of(sealed)))


@pytest.mark.parametrize("verb", ["seal", "digest", "sign", "check_value", "prove"])
def test_no_verb_that_needs_a_token_object_takes_an_absent_device_for_anything_else(
    use: Use, clock: FakeClock, unplugged: Callable[[bool], None], verb: str
) -> None:
    VERBS[verb](use)
    unplugged(True)
    with pytest.raises(TokenUnavailable):
        VERBS[verb](use)
    unplugged(False)
    clock.now += LONGEST_PAUSE_SECONDS
    VERBS[verb](use)


def test_an_altered_record_is_no_records_fault_while_the_device_is_away(
    counted: Token, clock: FakeClock, sealed: SealedBlock, unplugged: Callable[[bool], None]
) -> None:
    part = part_of(sealed)
    wrong = key_of(replace(part, sealed=flipped(part.sealed, 0)))
    unplugged(True)
    for _ in range(4):
        with pytest.raises(TokenUnavailable):
            counted.open([wrong])
        clock.now += LONGEST_PAUSE_SECONDS / 2
    unplugged(False)
    clock.now += LONGEST_PAUSE_SECONDS
    with pytest.raises(RecordFault):
        counted.open([wrong])


def test_a_token_that_is_away_at_the_start_is_unavailable_and_no_operators_fault(
    address: TokenAddress, unplugged: Callable[[bool], None]
) -> None:
    unplugged(True)
    finalise_the_binding(address)
    with pytest.raises(TokenUnavailable):
        Token(address, lambda: PIN)
    unplugged(False)
    Token(address, lambda: PIN).close()


def prove_if_idle(token: Token) -> None:
    """As it is done before an act that cannot be undone."""
    if not token.answered_lately:
        token.prove(1)


def test_a_proof_is_made_when_the_token_was_idle_and_not_when_it_just_answered(
    counted: Token, pin: CountingPin, clock: FakeClock, address: TokenAddress, block: RawBlock
) -> None:
    counted.digest(block)
    close_all_sessions(address)
    clock.now += LATELY_SECONDS
    prove_if_idle(counted)
    assert pin.asked == 1  # it was not asked, else it had noticed
    clock.now += 0.1
    prove_if_idle(counted)
    assert pin.asked == 2


def test_a_proof_is_made_after_a_failure_however_short_ago_the_token_answered(
    counted: Token, clock: FakeClock, block: RawBlock, unplugged: Callable[[bool], None]
) -> None:
    counted.digest(block)
    unplugged(True)
    with pytest.raises(TokenUnavailable):
        counted.digest(block)
    with pytest.raises(TokenUnavailable):
        prove_if_idle(counted)


# Forks ------------------------------------------------------------------------------------------------


def test_a_token_opened_before_a_fork_is_refused_after_it_and_serves_its_own_process_on(
    address: TokenAddress,
) -> None:
    command = [sys.executable, str(FORKING), str(address.softhsm_conf), address.label]
    done = subprocess.run(command, input=PIN, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["child: open TokenMisuse", "child: after a failure TokenMisuse", "child: own login right", "parent: right"],
    ), done.stderr


# The table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault", "product"),
    [
        (pkcs11.GeneralError(), Fault.RECORD, TokenUnavailable),
        (pkcs11.FunctionFailed(), Fault.RECORD, TokenUnavailable),
        (pkcs11.EncryptedDataInvalid(), Fault.RECORD, TokenUnavailable),
        (pkcs11.WrappedKeyInvalid(), Fault.RECORD, TokenUnavailable),
        (pkcs11.SessionHandleInvalid(), Fault.SESSION, TokenUnavailable),
        (pkcs11.KeyHandleInvalid(), Fault.SESSION, TokenUnavailable),
        (pkcs11.UserNotLoggedIn(), Fault.SESSION, TokenUnavailable),
        (CryptokiError("C_GetAttributeValue", 0xB3), Fault.SESSION, TokenUnavailable),
        (CryptokiError("C_GetAttributeValue", 0x82), Fault.SESSION, TokenUnavailable),
        (CryptokiError("C_GetAttributeValue", 0x190), Fault.SESSION, TokenUnavailable),
        (pkcs11.DeviceRemoved(), Fault.DEVICE, TokenUnavailable),
        (pkcs11.TokenNotPresent(), Fault.DEVICE, TokenUnavailable),
        (pkcs11.HostMemory(), Fault.DEVICE, TokenUnavailable),
        (pkcs11.PinIncorrect(), Fault.OPERATOR, PinRefused),
        (pkcs11.PinLocked(), Fault.OPERATOR, OperatorFault),
        (pkcs11.MultipleTokensReturned(), Fault.OPERATOR, OperatorFault),
        (pkcs11.MechanismInvalid(), Fault.BUG, TokenMisuse),
        (pkcs11.TemplateInconsistent(), Fault.BUG, TokenMisuse),
        (pkcs11.KeyUnextractable(), Fault.BUG, TokenMisuse),
        (pkcs11.SessionReadOnly(), Fault.BUG, TokenMisuse),
        (pkcs11.PKCS11Error("Unmapped error code 0x1b"), Fault.BUG, TokenMisuse),
        (CryptokiError("C_InitToken", 0x54), Fault.BUG, TokenMisuse),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_an_error_of_the_token_means_what_the_table_says(
    error: Exception, fault: Fault, product: type[Exception]
) -> None:
    assert fault_of(error) is fault
    with pytest.raises(product, match=r"^trying: ") as raised, translated("trying"):
        raise error
    assert type(outward(error, "trying")) is product
    assert raised.value.__cause__ is error


def test_a_module_that_is_not_initialised_is_a_loss_of_handles_in_the_bindings_own_words(
    address: TokenAddress,
) -> None:
    module = pkcs11.lib(str(address.module))
    module.finalize()
    with pytest.raises(pkcs11.PKCS11Error) as error:
        module.get_slots()
    assert fault_of(error.value) is Fault.SESSION
    module.initialize()


def test_errors_that_are_not_the_tokens_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), translated("trying"):
        raise ZeroDivisionError


def test_a_token_that_was_killed_before_it_had_an_so_pin_is_removed_and_no_other(fragile: TokenAddress) -> None:
    """SoftHSM does not start with such a one beside it (CKR_GENERAL_ERROR)."""
    born = token_file(fragile)
    tokens, content = born.parent.parent, born.read_bytes()

    def made(name: str, **files: bytes) -> Path:
        (tokens / name).mkdir()
        for file, text in files.items():
            (tokens / name / file.replace("_", ".")).write_bytes(text)
        return tokens / name

    unborn = [
        made("begun", token_object=content[:8], token_lock=b""),
        made("labelled", token_object=content[:104], token_lock=b"", generation=bytes(8)),
    ]
    others = [
        born.parent,
        made("empty"),
        made("no login was finished", token_object=b"", token_lock=b""),
        made("has an SO PIN", token_object=content),
        made("has an object", token_object=content[:104], one_object=b"x"),
        made("was logged in to", token_object=content[:104], token_object_kept=content),
    ]
    mend_token_files(fragile.softhsm_conf or Path())
    assert [path for path in unborn if path.exists()] == []
    assert [path for path in others if not path.exists()] == []
    assert born.read_bytes() == content
