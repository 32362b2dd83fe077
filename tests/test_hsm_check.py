"""Does `hsmkme hsm` say what a token does, does it find out what it must not do, and does it leave no trace?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkme.errors import OperatorFault, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress, load_profile, read_profile
from hsmkme.hsm.answers import CODES
from hsmkme.hsm.bench import Unfit, refused
from hsmkme.hsm.probes import PROBES
from hsmkme.hsm.survey import Finding, Survey, saved_profile, visible_tokens
from tests.conftest import PIN
from tests.shim import Shim
from tests.sites import Site, make_site


@pytest.fixture
def survey(shim: Shim, address: TokenAddress) -> Iterator[Survey]:
    """Of SoftHSM, through a module that a test may make lie."""
    opened = Survey(shim.address(address), lambda: PIN)
    yield opened
    shim.restore()
    opened.close()


def unfit(survey: Survey) -> dict[str, str]:
    return {finding.name: finding.found for finding in survey.findings() if finding.needed and not finding.good}


def test_softhsm_does_what_its_profile_says_and_all_that_is_needed(survey: Survey, address: TokenAddress) -> None:
    findings = list(survey.findings())
    assert {finding.name: finding.found for finding in findings} == address.profile.found
    assert all(finding.good for finding in findings)
    assert len(findings) == len(PROBES)


def test_the_speed_of_each_operation_is_measured(survey: Survey) -> None:
    speeds = {speed.name: speed.microseconds for speed in survey.speeds()}
    assert len(speeds) == 6
    assert all(0 < microseconds < 1e6 for microseconds in speeds.values())


def test_a_survey_leaves_no_object_behind(survey: Survey) -> None:
    def token_objects() -> int:
        with survey._sessions.lane() as lane:
            return len(list(lane.session.get_objects()))

    before = token_objects()
    assert unfit(survey) == {}
    assert token_objects() == before


LIES = {
    "AES-KW": ("C_WrapKey", "FUNCTION_NOT_SUPPORTED"),
    "AES-GCM": ("C_Encrypt", "MECHANISM_PARAM_INVALID"),
    "block key unwrapped": ("C_UnwrapKey", "TEMPLATE_INCONSISTENT"),
    "altered segment refused": ("C_Decrypt", "DEVICE_ERROR"),
    "altered wrapped key refused": ("C_UnwrapKey", "KEY_SIZE_RANGE"),
    "HMAC-SHA256": ("C_Sign", "KEY_FUNCTION_NOT_PERMITTED"),
    "data object kept": ("C_CreateObject", "TEMPLATE_INCONSISTENT"),
    "master key made": ("C_GenerateKey", "ATTRIBUTE_VALUE_INVALID"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_operation_that_the_token_does_not_do_makes_it_unfit(shim: Shim, survey: Survey, name: str) -> None:
    function, answer = LIES[name]
    shim.fail(function, CODES[answer])
    assert f"CKR_{answer}" in unfit(survey)[name]


def test_a_token_that_lets_pass_what_it_must_refuse_is_unfit() -> None:
    with pytest.raises(Unfit, match="it does"):
        refused(lambda: None)


# The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, token: Token, address: TokenAddress, softhsm: Path) -> Site:
    for name in ("cert.pem", "key.pem", "ca.pem", "peer-cert.pem", "peer-key.pem", "peer-ca.pem"):
        (tmp_path / name).touch()
    return make_site(tmp_path, token, address.label, softhsm)


def test_check_says_that_the_token_can_be_used_and_saves_what_it_found(site: Site) -> None:
    done = site.hsmkme("hsm", "check", "--json", "--save", site.directory / "mine.toml")
    report = json.loads(done.out)
    assert (done.status, report["usable"]) == (0, True)
    assert report["token"]["label"] == site.settings.token[0].label
    assert len(report["findings"]) == len(PROBES)
    assert {speed["name"] for speed in report["speeds"]} >= {"seal a key", "open a key"}
    site.change_config("[token]", '[token]\nprofile_file = "mine.toml"')
    again = site.hsmkme("hsm", "check")
    assert again.status == 0
    assert "this token can be used" in again.out
    assert read_profile(site.directory / "mine.toml").found == load_profile("softhsm-2.6").found


def test_check_overwrites_no_profile(site: Site) -> None:
    (site.directory / "mine.toml").write_text("mine")
    done = site.hsmkme("hsm", "check", "--save", site.directory / "mine.toml")
    assert done.status == 2
    assert "exists and is not overwritten" in done.err
    assert (site.directory / "mine.toml").read_text() == "mine"


def test_check_says_that_a_token_cannot_be_used_and_what_it_does_instead(site: Site, shim: Shim) -> None:
    shim.fail("C_WrapKey", CODES["FUNCTION_NOT_SUPPORTED"])
    site.change_config("[token]", f'[token]\nmodule = "{shim.module}"')
    done = site.hsmkme("hsm", "check")
    assert done.status == 1
    assert "this token cannot be used" in done.out
    assert "CKR_FUNCTION_NOT_SUPPORTED" in done.out
    assert json.loads(site.hsmkme("hsm", "check", "--json").out)["speeds"] == []


def test_list_shows_every_token_of_the_module_and_which_is_meant(
    site: Site, make_token: Callable[[], TokenAddress]
) -> None:
    other = make_token()
    rows = json.loads(site.hsmkme("hsm", "list", "--json").out)
    configured = {row["label"]: row["configured"] for row in rows}
    assert configured[site.settings.token[0].label] is True
    assert configured[other.label] is False
    assert other.label in site.hsmkme("hsm", "list").out


def test_list_needs_no_pin_and_tells_a_serial_number_that_is_not_there(address: TokenAddress) -> None:
    rows = visible_tokens([replace(address, serial="0000")])
    assert rows
    assert not any(row["configured"] for row in rows)


# Profiles ---------------------------------------------------------------------------------------------------


def test_a_saved_profile_is_one_whatever_the_token_says_of_itself(survey: Survey, tmp_path: Path) -> None:
    strange = {**survey.token(), "model": 'a "model"\\', "library": "3.1"}
    findings = [Finding('name with "quotes"', True, True, "found = [1]\\n")]
    text = saved_profile("strange", survey._sessions.address, strange, findings)
    (tmp_path / "strange.toml").write_text(text)
    profile = read_profile(tmp_path / "strange.toml")
    assert (profile.name, profile.library) == ("strange", (3, 1))
    assert profile.found == {'name with "quotes"': "found = [1]\\n"}


@pytest.mark.parametrize("content", [b"name = ", b'name = "x"', b"\xff", None])
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "wrong.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OperatorFault, match=str(path)):
        read_profile(path)


def test_a_survey_of_a_token_that_is_away_says_so(address: TokenAddress) -> None:
    with pytest.raises(TokenUnavailable, match="no token labelled 'nobody'"):
        Survey(replace(address, label="nobody"), lambda: PIN)
