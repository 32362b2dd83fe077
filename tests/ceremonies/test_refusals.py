"""Is everything that is wrong found before the first act, with an exit status that says so and nothing made?"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hsmkme.ceremony import checks, plan
from hsmkme.errors import ConfigRefused
from tests.ceremonies.halls import LABEL, Hall, transcript_of
from tests.processes import hsmkme
from tests.tokens import SO_PIN, link_answers

Change = tuple[str, str]


def refused(hall: Hall, plan_file: Path, why: str, answers: dict[str, str | list[str]] | None = None) -> None:
    """Both `check` and `run` refuse with exit status 1 and say ``why``; the token is what it was."""
    before, tokens = hall.objects(), hall.tokens()
    given = hall.answers(answers or {})
    for command in ("check", "run"):
        done = hsmkme("ceremony", command, plan_file, "--answers", given)
        assert done.status == 1, done
        assert why in done.err
    assert (hall.objects(), hall.tokens()) == (before, tokens)


# The text of a plan -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    ("change", "why"),
    [
        (('purpose = "', 'goal = "'), "5: goal: unknown key"),
        (('policy = "CHANGE: the clause of your policy that asks for this"\n', ""), "policy: is missing"),
        (('role = "operator"', 'role = "boss"'), "person.1.role: Input should be"),
        (('id = "op-1"', 'id = "so-1"'), "person.1.id: another person has this id"),
        (('role = "witness"', 'role = "operator"'), "person.2.role: there is another operator"),
        (('by = ["so-1", "op-1"]', 'by = ["op-1", "so-1"]'), "initialise is done by security-officer, operator"),
        (('by = ["so-1", "op-1"]', 'by = ["so-1", "op-9"]'), "step.0.by: nobody is called op-9"),
        (('object = "digest"', 'object = "diggest"'), "step.3.object: String should match pattern"),
        (('object = "digest"', 'object = "master/1"'), "step.3.object: master/1 is made before"),
        (('do = "initialise"', 'do = "inititalise"'), "step.0: Input tag 'inititalise'"),
        (('object = "anchor"', 'object = "anchor"\nepoch = 3'), "step.4.epoch: unknown key"),
        (("# key = ", "key = "), "person.2.key: Value error, not an Ed25519 key"),
        (('label = "test-hall"', 'label = "hall"'), "policy: name the clause of your policy"),
        (('label = "test-hall"', "label = 5"), "token.label: Input should be a valid string"),
        (("[token]", "[token"), "first.toml: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_that_is_wrong_is_refused_with_the_line_to_change(empty: Hall, change: Change, why: str) -> None:
    refused(empty, empty.plan("first", "", change), why)


def test_every_fault_of_a_plan_is_named_at_once_with_its_line(empty: Hall) -> None:
    path = empty.plan("first", "", ('role = "witness"', 'role = "boss"'), ('object = "digest"', 'object = "x"'))
    with pytest.raises(ConfigRefused) as refusal:
        plan.load(path)
    lines = path.read_text().splitlines()
    found = [re.match(rf"{path}:(\d+): (.*?): ", finding) for finding in refusal.value.findings]
    assert [lines[int(one[1]) - 1] for one in found if one] == ['role = "boss"', 'object = "x"']


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("link-key", ('["custodian-1", "custodian-2"]', '["custodian-1"]'), "bring is done by custodian, custodian"),
        ("link-key", ('["custodian-1", "custodian-2"]', '["custodian-1", "custodian-1"]'), "the same person twice"),
        ("link-key", ('["custodian-1", "custodian-2"]', '["custodian-1", "op-1"]'), "bring is done by custodian"),
        ("link-key", ('role = "operator"', 'role = "witness"'), "nobody is operator"),
        ("change-pin", ('whose = "operator"', 'whose = "security-officer"'), "change-pin is done by security-officer"),
        ("decommission", ('by = ["so-1", "op-1"]', 'by = ["so-1"]'), "decommission is done by"),
    ],
)
def test_people_who_may_not_act_are_named(hall: Hall, kind: str, change: Change, why: str) -> None:
    refused(hall, hall.plan(kind, "paris" if kind == "link-key" else "", change), why)


# The token ----------------------------------------------------------------------------------------------------


def test_an_object_that_is_there_already_is_found_before_anything_is_made(hall: Hall) -> None:
    refused(hall, hall.plan("first-master"), "step 1 (make) makes master/1, which the token has already")


def test_a_token_that_is_there_already_is_not_initialised(hall: Hall) -> None:
    refused(hall, hall.plan("first"), "a token labelled 'test-hall' exists already; initialising would erase it")


def test_another_token_than_the_one_named_is_refused(hall: Hall) -> None:
    path = hall.plan("audit-key")
    path.write_text(re.sub('serial = ".*"', 'serial = "0000000000000000"', path.read_text()))
    refused(hall, path, f"no token labelled '{LABEL}' (serial 0000000000000000) is present")


def test_a_plan_for_a_token_that_exists_names_its_serial_number(hall: Hall) -> None:
    path = hall.plan("audit-key")
    path.write_text(re.sub('serial = ".*"\n', "", path.read_text()))
    refused(hall, path, "a token that exists is named by its serial number")


def test_another_library_than_the_one_named_is_refused(hall: Hall) -> None:
    path = hall.plan("audit-key")
    path.write_text(re.sub('module_sha256 = ".*"', f'module_sha256 = "{"0" * 64}"', path.read_text()))
    refused(hall, path, f"the configuration pins {'0' * 64}")


def test_a_tracing_shim_in_place_of_the_library_is_refused(hall: Hall) -> None:
    shim = hall.home / "shim.so"
    shim.write_bytes(b"PKCS11SPY")
    path = hall.plan("audit-key")
    path.write_text(re.sub('module = ".*"', f'module = "{shim}"', path.read_text()))
    refused(hall, path, "is a tracing shim")


def test_a_transcript_is_never_overwritten(hall: Hall) -> None:
    path = hall.plan("change-pin")
    answers: dict[str, str | list[str]] = {"op-1.the-new-PIN": "another-pin", "op-1.the-old-PIN": "test-user-pin"}
    assert hall.run(path, answers).status == 0
    kept = transcript_of(path).read_bytes()
    refused(hall, path, "exists: the ceremony was held; a transcript is never overwritten", answers)
    assert transcript_of(path).read_bytes() == kept


def test_a_transcript_of_another_plan_is_not_gone_on_with(hall: Hall) -> None:
    path = hall.plan("link-key", "paris")
    hall.run(path, {})  # there are no answers about the components
    path.write_text(path.read_text() + "# another\n")
    before = hall.objects()
    done = hall.run(path, link_answers("paris", bytes(range(32))))
    assert (done.status, "is of another plan" in done.err) == (1, True)
    assert hall.objects() == before


def test_a_transcript_that_was_altered_is_not_gone_on_with(hall: Hall) -> None:
    path = hall.plan("link-key", "paris")
    hall.run(path, {})
    transcript = transcript_of(path)
    transcript.write_text(transcript.read_text().replace("custodian-1 is here", "custodian-1 is away"))
    refused(hall, path, "no transcript that can be gone on with: line", link_answers("paris", bytes(range(32))))


def test_a_transcript_that_cannot_be_written_is_named(hall: Hall) -> None:
    path = hall.plan("audit-key")
    path.write_text(re.sub('transcript = "', 'transcript = "nowhere/', path.read_text()))
    refused(hall, path, "nowhere is no directory, or not writable")


def test_a_key_that_is_not_as_the_plan_expects_is_destroyed(hall: Hall) -> None:
    path = hall.plan("link-key", "paris", ("EXTRACTABLE = false", "EXTRACTABLE = true"))
    before = hall.objects()
    done = hall.run(path, link_answers("paris", bytes(range(32))))
    assert done.status == 3
    assert "the plan expects something else than EXTRACTABLE = false; what was made was destroyed" in done.err
    assert hall.objects() == before


# Answers from a file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_answers_only_for_a_token_that_is_marked_test(empty: Hall, command: str) -> None:
    path = empty.plan("first", "", (f'label = "{LABEL}"', 'label = "real"'), ("CHANGE: the", "The"))
    done = hsmkme("ceremony", command, path, "--answers", empty.answers({}))
    assert (done.status, "--answers is for rehearsals" in done.err) == (1, True)
    assert empty.tokens() == 0
    assert not transcript_of(path).exists()


@pytest.mark.parametrize(
    ("text", "mode", "status", "why"),
    [
        ("phrases = true", 0o440, 1, "can be read by others"),
        ("phrases = ", 0o400, 1, "is no TOML"),
        ("phrases = 1", 0o400, 1, "no answers of the right form at: phrases"),
        ("[answers]\nx = 5", 0o400, 1, "no answers of the right form at: answers.x"),
        ("", 0o400, 3, "the file of answers has none for 'so-1.so-1-is-here'"),
    ],
)
def test_a_file_of_answers_that_is_not_fit_is_refused(
    empty: Hall, text: str, mode: int, status: int, why: str
) -> None:
    answers = empty.home / "own.toml"
    answers.write_text(text)
    answers.chmod(mode)
    done = hsmkme("ceremony", "run", empty.plan("first"), "--answers", answers)
    assert (done.status, why in done.err) == (status, True), done
    assert empty.tokens() == 0


# The machine ------------------------------------------------------------------------------------------------------

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GOOD = checks.Machine((), 0, NOW)


@pytest.fixture
def real(empty: Hall) -> Path:
    """A plan for a token that is worth something, held at `NOW`."""
    path = empty.plan("first", "", (f'label = "{LABEL}"', 'label = "real"'), ("CHANGE: the", "The"))
    for name, moment in (("begins", NOW - timedelta(hours=1)), ("ends", NOW + timedelta(hours=1))):
        path.write_text(re.sub(f"^{name} = .*$", f"{name} = {moment.isoformat()}", path.read_text(), flags=re.M))
    return path


def findings(path: Path, machine: checks.Machine) -> list[str]:
    return [*checks.of_machine(machine, plan.load(path).plan, path)]


def test_a_good_machine_is_found_good(real: Path) -> None:
    assert findings(real, GOOD) == []


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (replace(GOOD, swaps=("/dev/sda2",)), "swap is on (/dev/sda2): swapoff -a"),
        (replace(GOOD, core_limit=-1), "core dumps are on: ulimit -c 0"),
        (replace(GOOD, core_limit=1024), "core dumps are on: ulimit -c 0"),
        (replace(GOOD, now=NOW + timedelta(hours=2)), "the clock says 2030-01-01T02:00:00+00:00, the plan is for"),
        (replace(GOOD, now=NOW - timedelta(hours=2)), "the clock says 2029-12-31T22:00:00+00:00, the plan is for"),
    ],
)
def test_a_machine_that_could_betray_keys_is_found(real: Path, machine: checks.Machine, why: str) -> None:
    (found,) = findings(real, machine)
    assert found.startswith(why)


def test_a_clock_that_is_behind_the_plan_is_found(real: Path) -> None:
    early = replace(GOOD, now=datetime(2020, 1, 1, tzinfo=UTC))
    assert any("the plan was written later than that" in found for found in findings(real, early))


def test_the_machine_that_this_is_is_seen_as_it_is() -> None:
    machine = checks.this_machine(lambda: NOW.timestamp())
    assert machine.now == NOW
    assert len(machine.swaps) == len(Path("/proc/swaps").read_text().splitlines()) - 1


def test_what_is_wrong_with_the_machine_stops_a_real_ceremony_and_is_remarked_in_a_test(empty: Hall) -> None:
    test = empty.plan("first")
    past = ("2020-01-01T00:00:00+00:00", "2020-01-02T00:00:00+00:00")
    for name, moment in zip(("begins", "ends"), past, strict=True):
        test.write_text(re.sub(f"^{name} = .*$", f"{name} = {moment}", test.read_text(), flags=re.M))
    assert any("the clock says" in remark for remark in checked(test)["remarks"])
    test.write_text(test.read_text().replace(f'label = "{LABEL}"', 'label = "real"').replace("CHANGE", "The"))
    assert any("the clock says" in wrong for wrong in checked(test)["wrong"])
    done = hsmkme("ceremony", "run", test)
    assert (done.status, "the clock says" in done.err) == (1, True)
    assert empty.tokens() == 0


def checked(path: Path) -> dict[str, list[str]]:
    """What `ceremony check` finds."""
    found: dict[str, list[str]] = json.loads(hsmkme("ceremony", "check", path, "--json").out)
    return found


# Other uses of the command line -------------------------------------------------------------------------------------


def test_a_plan_is_never_overwritten(empty: Hall) -> None:
    path = empty.plan("first")
    text = path.read_text()
    done = hsmkme("ceremony", "new", "first", path, "--label", LABEL, "--softhsm-conf", empty.conf)
    assert (done.status, path.read_text()) == (2, text)


def test_a_plan_about_a_link_needs_its_name(empty: Hall) -> None:
    path = empty.home / "link.toml"
    done = hsmkme("ceremony", "new", "link-key", path, "--label", LABEL, "--softhsm-conf", empty.conf)
    assert (done.status, "name it with --about" in done.err) == (1, True)
    assert not path.exists()


def test_a_plan_that_is_missing_is_named(tmp_path: Path) -> None:
    done = hsmkme("ceremony", "check", tmp_path / "none.toml")
    assert (done.status, "none.toml: cannot be read" in done.err) == (1, True)


def test_a_pin_that_people_get_wrong_three_times_ends_the_ceremony(hall: Hall) -> None:
    before = hall.objects()
    path = hall.plan("decommission")
    done = hall.run(path, {"op-1.the-user-PIN": "wrong-wrong"})
    assert (done.status, "op-1 gave no right answer to: the user PIN" in done.err) == (3, True)
    assert hall.objects() == before
    assert SO_PIN not in transcript_of(path).read_text()
