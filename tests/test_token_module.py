"""Is only the token's own library let near the keys, and is it started as its profile says?"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pkcs11
import pydantic
import pytest

from hsmkme.errors import OperatorFault
from hsmkme.hsm import Profile, Token, TokenAddress, load_profile
from hsmkme.hsm.profiles import profile_names
from tests.conftest import PIN

RESETS = Path(__file__).parent / "programs" / "token_resets.py"


@pytest.fixture(scope="module")
def spy() -> Path:
    """OpenSC's pkcs11-spy (Debian: opensc-pkcs11), which logs every argument of every call."""
    places = ("pkcs11-spy.so", "*/pkcs11-spy.so", "*/pkcs11/pkcs11-spy.so")
    found = [path for place in places for path in Path("/usr/lib").glob(place)]
    assert found, "install opensc-pkcs11: the tests refuse the real tracing shim"
    return found[0]


def refused(address: TokenAddress) -> str:
    """What the refusal says; the PIN was not even asked for."""
    asked: list[bool] = []

    def pin() -> str:
        asked.append(True)
        return PIN

    with pytest.raises(OperatorFault) as fault:
        Token(address, pin)
    assert not asked
    return str(fault.value)


# Tracing shims ----------------------------------------------------------------------------------------


def test_a_tracing_shim_is_refused(address: TokenAddress, spy: Path) -> None:
    assert "is a tracing shim: it writes keys in the clear" in refused(replace(address, module=spy))


def test_a_tracing_shim_is_refused_under_any_name(address: TokenAddress, spy: Path, tmp_path: Path) -> None:
    copied, linked = tmp_path / "libsofthsm2.so", tmp_path / "linked.so"
    shutil.copy(spy, copied)
    linked.symlink_to(spy)
    for module in (copied, linked):
        assert "is a tracing shim" in refused(replace(address, module=module))


def test_a_tracing_shim_with_the_digest_that_is_pinned_is_refused_all_the_same(
    address: TokenAddress, spy: Path
) -> None:
    pinned = hashlib.sha256(spy.read_bytes()).hexdigest()
    assert "is a tracing shim" in refused(replace(address, module=spy, module_sha256=pinned))


@pytest.mark.parametrize("setting", ["PKCS11SPY", "PKCS11SPY_OUTPUT", "PKCS11_LOGGER_LIBRARY_PATH", "P11_KIT_DEBUG"])
@pytest.mark.parametrize("value", ["/usr/lib/softhsm/libsofthsm2.so", ""])
def test_the_setting_of_a_tracing_shim_is_refused_and_named(
    address: TokenAddress, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setenv(setting, value)
    assert f"{setting} is set: a tracing shim may be in the module chain" in refused(address)


def test_a_shim_does_write_keys_down_which_is_why(address: TokenAddress, spy: Path, tmp_path: Path) -> None:
    log = tmp_path / "spy.log"
    program = (
        "import sys, pkcs11\n"
        "session = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2]).open(user_pin=sys.argv[3])\n"
        "session.create_object({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,\n"
        "    pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES, pkcs11.Attribute.VALUE: bytes.fromhex('5A' * 32)})\n"
    )
    environment = {
        "PKCS11SPY": str(address.module),
        "PKCS11SPY_OUTPUT": str(log),
        "SOFTHSM2_CONF": str(address.softhsm_conf),
    }
    subprocess.run([sys.executable, "-c", program, spy, address.label, PIN], env=environment, check=True)
    assert "5A5A5A5A" in log.read_text(errors="replace").upper().replace(" ", "")


# Other files ------------------------------------------------------------------------------------------


def test_a_library_that_is_not_the_one_pinned_is_refused(address: TokenAddress) -> None:
    actual = hashlib.sha256(address.module.read_bytes()).hexdigest()
    message = refused(replace(address, module_sha256="0" * 64))
    assert f"has SHA-256 {actual}, the configuration pins {'0' * 64}" in message


def test_the_library_that_is_pinned_is_accepted(address: TokenAddress) -> None:
    pinned = hashlib.sha256(address.module.read_bytes()).hexdigest()
    Token(replace(address, module_sha256=pinned), lambda: PIN).close()


def test_a_library_that_is_missing_is_named(address: TokenAddress, tmp_path: Path) -> None:
    missing = tmp_path / "libmissing.so"
    for conf in (address.softhsm_conf, None):
        assert f"{missing} cannot be read: No such file" in refused(replace(address, module=missing, softhsm_conf=conf))


def test_a_directory_is_no_library(address: TokenAddress, tmp_path: Path) -> None:
    assert f"{tmp_path} cannot be read: Is a directory" in refused(replace(address, module=tmp_path))


def test_a_file_that_is_no_library_is_refused(address: TokenAddress, tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    assert "cannot be loaded" in refused(replace(address, module=text))


@pytest.mark.parametrize("locking", ["serial", "parallel"])
def test_a_library_that_is_no_pkcs11_module_is_refused(address: TokenAddress, locking: str) -> None:
    profile = address.profile.model_copy(update={"locking": locking})
    other = next(Path("/lib").glob("*/libm.so.6"))
    message = refused(replace(address, profile=profile, module=other))
    assert "is no PKCS#11 module: it has no C_GetFunctionList" in message


def test_a_softhsm_configuration_that_is_missing_is_named(address: TokenAddress, tmp_path: Path) -> None:
    missing = tmp_path / "softhsm2.conf"
    assert f"{missing} cannot be read: No such file" in refused(replace(address, softhsm_conf=missing))


# Profiles ---------------------------------------------------------------------------------------------


def test_every_shipped_profile_can_be_read() -> None:
    assert "softhsm-2.6" in profile_names()
    assert [load_profile(name).name for name in profile_names()] == profile_names()


def test_a_profile_that_does_not_exist_is_refused_with_those_that_do() -> None:
    for name in ("softhsm", "../profiles/softhsm-2.6", ""):
        with pytest.raises(OperatorFault, match=r"there are: .*softhsm-2\.6"):
            load_profile(name)


def test_a_profile_says_nothing_that_is_not_known() -> None:
    known = load_profile("softhsm-2.6").model_dump()
    for wrong in ({"lock": "serial"}, {"locking": "none"}, {"library": [2]}):
        with pytest.raises(pydantic.ValidationError):
            Profile.model_validate({**known, **wrong})


def test_the_library_under_test_is_the_one_that_the_profile_was_proved_with(address: TokenAddress) -> None:
    assert pkcs11.lib(str(address.module)).library_version == address.profile.library


@pytest.mark.parametrize("locking", ["serial", "parallel"])
def test_a_profile_of_either_kind_serves_many_threads_through_hard_resets_and_a_lost_module(
    address: TokenAddress, locking: str
) -> None:
    command = [sys.executable, str(RESETS), str(address.softhsm_conf), address.label, locking]
    done = subprocess.run(command, input=PIN, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), (done.stdout, done.stderr)


@pytest.mark.parametrize("locking", ["serial", "parallel"])
def test_a_token_that_is_opened_anew_waits_for_those_in_another_of_its_module(
    address: TokenAddress, make_token: Callable[[], TokenAddress], locking: str
) -> None:
    labels = f"{address.label},{make_token().label}"
    command = [sys.executable, str(RESETS), str(address.softhsm_conf), labels, locking]
    done = subprocess.run(command, input=PIN, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), (done.stdout, done.stderr)
