"""Is what a ceremony does written down, so that a change of it is seen? And does a dry run change nothing?

``goldens/`` has the dry run of every plan that ships. After a change that is meant run this file with WRITE_GOLDENS=1,
and look at the difference.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from hsmkme.ceremony.backups import Backup, read_backup, write_backup
from hsmkme.ceremony.drafts import kinds
from hsmkme.ceremony.shares import split
from hsmkme.hsm.backup import WrappedMaster
from hsmkme.model import KeyMaterial
from tests.ceremonies.halls import LABEL, Backed, Hall, backup_of, shape, transcript_of
from tests.processes import Done, hsmkme
from tests.tokens import PIN, PINS, evidence_of, link_answers

GOLDENS = Path(__file__).parent / "goldens"
ABOUT = {
    "link-key": "paris", "transport-key": "device-1", "rotate": "2", "destroy-epoch": "1",
    **dict.fromkeys(("first-of-several", "another-token"), "other"),
}
STARTS = {
    **dict.fromkeys(("first", "first-with-backup", "first-of-several", "another-token"), "bare"),
    **dict.fromkeys(("initialise", "restore"), "bare"),
    **dict.fromkeys(("audit-key", "first-master"), "initialised"),
    "backup": "backed",
}
"""Where a ceremony is held; the others on a token that had its first."""
WRITE = "WRITE_GOLDENS"
REHEARSAL_PINS = {"op-1.the-user-PIN": "rehearsal-user", "so-1.the-SO-PIN": "rehearsal-so"}
OLD_PIN = "op-1.the-old-PIN"
REHEARSED = ("first", "first-with-backup", "link-key", "change-pin", "decommission", "backup", "restore")
"""Kinds that are rehearsed here; those that change epochs are in `test_stores`."""


def text_of(done: Done) -> str:
    """What a dry run says of the ceremony: not who answered, nor what is only so on this day."""
    assert done.status == 0, done.err
    own = [line for line in done.out.splitlines() if not line.startswith(("remark", "op-1, enter", "> "))]
    first, *rest = own
    name = first.partition(":")[0]
    whole = "\n".join([first.replace(name, name[:-8] + "DATE"), *rest, ""])
    return re.sub("ceremony/[0-9a-f]{16}", "ceremony/NOTE", whole)


def hall_for(kind: str, request: pytest.FixtureRequest, home: Path) -> Hall:
    """One in which a ceremony of this kind can be held."""
    start: Hall | Backed = request.getfixturevalue(STARTS.get(kind, "equipped"))
    return (start if isinstance(start, Hall) else start[0]).copy(home)


def plan_of(kind: str, hall: Hall) -> Path:
    """Its plan. A backup to restore is one of no key: a dry run looks at what the file says only."""
    if kind != "restore":
        return hall.plan(kind, ABOUT.get(kind, ""))
    public, _ = split(KeyMaterial(bytes(32)), 2, 2, lambda length: bytes(range(length)))
    write_backup(hall.home / "b.json", Backup(WrappedMaster(1, "0123456789", bytes(40)), public))
    return hall.plan(kind, str(hall.home / "b.json"))


@pytest.mark.parametrize("kind", kinds())
def test_a_dry_run_says_what_is_written_down_and_changes_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    hall = hall_for(kind, request, tmp_path / "hall")
    plan = plan_of(kind, hall)
    before, tokens = hall.objects(), hall.tokens()
    said = text_of(hall.run(plan, {}, "--dry-run"))
    if os.environ.get(WRITE):
        (GOLDENS / f"{kind}.txt").write_text(said)
    assert said == (GOLDENS / f"{kind}.txt").read_text()
    assert (hall.objects(), hall.tokens()) == (before, tokens)
    assert not transcript_of(plan).exists()


def test_there_is_a_golden_dry_run_of_every_plan_and_of_nothing_else() -> None:
    assert sorted(path.stem for path in GOLDENS.iterdir()) == kinds()


def test_a_dry_run_finds_what_is_wrong_with_the_token(hall: Hall) -> None:
    done = hall.run(hall.plan("first-master"), {}, "--dry-run")
    assert (done.status, "makes master/1, which the token has already" in done.err) == (1, True)


def test_a_dry_run_of_an_interrupted_ceremony_tells_of_the_rest(hall: Hall) -> None:
    plan = hall.plan("link-key", "paris")
    step = '\n[[step]]\ndo = "bring"\nby = ["custodian-1", "custodian-2"]\nobject = "link/rome"\nother_end = "far"\n'
    plan.write_text(plan.read_text() + step)
    assert hall.run(plan, link_answers("paris", bytes(range(32)))).status == 3
    done = hall.run(plan, {}, "--dry-run")
    assert done.status == 0, done.err
    assert ("bring link/rome" in done.out, "bring link/paris" in done.out) == (True, False)


# Rehearsals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REHEARSED)
def test_a_rehearsal_has_the_prompts_and_the_transcript_of_the_ceremony(
    kind: str, request: pytest.FixtureRequest, backed: Backed, tmp_path: Path
) -> None:
    hall = hall_for(kind, request, tmp_path / "hall")
    plan = hall.plan(kind, str(backup_of(backed[0])) if kind == "restore" else ABOUT.get(kind, ""))
    key = {**link_answers("paris", bytes(range(32))), "op-1.the-new-PIN": "another-pin", OLD_PIN: PIN}
    before, tokens = hall.objects(), hall.tokens()
    home = tmp_path / "rehearsal"
    new = STARTS.get(kind) == "bare"
    pins = {} if new else {**REHEARSAL_PINS, OLD_PIN: REHEARSAL_PINS["op-1.the-user-PIN"]}
    answers = hall.answers({**key, **pins})
    rehearsed = hsmkme("ceremony", "rehearse", plan, "--answers", answers, "--directory", home)
    assert rehearsed.status == 0, rehearsed.err
    assert (hall.objects(), hall.tokens()) == (before, tokens)
    assert not transcript_of(plan).exists()
    held = hall.run(plan, {**PINS, **key, **{f"{who}.your-share": words for who, words in backed[2].items()}})
    assert held.status == 0, held.err
    assert shape(home / "transcript.jsonl") == shape(transcript_of(plan))
    assert prompts(rehearsed.out) == prompts(held.out)
    proved = hsmkme("ceremony", "verify", plan, "--transcript", home / "transcript.jsonl")
    assert proved.status == 0, proved.out


def prompts(said: str) -> list[str]:
    """The questions that were asked, whatever the token is called and the digest is."""
    lines = said.replace("test-rehearsal", LABEL).splitlines()
    asked = [line for line, after in itertools.pairwise(lines) if after.startswith("> ")]
    return [line.partition("the digest begins with")[0] for line in asked]


def test_people_who_rehearse_a_restore_are_told_shares_of_a_key_that_is_worth_nothing(
    backed: Backed, empty: Hall, tmp_path: Path
) -> None:
    plan, home = empty.plan("restore", str(backup_of(backed[0]))), tmp_path / "rehearsal"
    done = hsmkme("ceremony", "rehearse", plan, "--answers", empty.answers({}), "--directory", home)
    assert done.status == 0, done.err
    shown = re.findall(r"^In this rehearsal that is: (.*)$", done.out, re.MULTILINE)
    assert [len(words.split()) for words in shown] == [42, 42]
    assert not set(shown) & set(backed[2].values())
    (restored,) = (one for one in evidence_of(home / "transcript.jsonl") if one.get("shares"))
    assert restored["check_value"] != read_backup(backup_of(backed[0])).master.check_value


def test_a_rehearsal_wants_an_empty_directory(hall: Hall) -> None:
    done = hsmkme("ceremony", "rehearse", hall.plan("audit-key"), "--directory", hall.home)
    assert (done.status, "is not empty: a rehearsal begins with nothing" in done.err) == (1, True)
