"""Whatever kill -9 leaves of a ceremony: does the same command say so, and bring it to its end?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hsmkme.ceremony.prompts import INTERRUPT
from hsmkme.ceremony.transcript import read
from hsmkme.ceremony.verifying import verify
from tests.ceremonies.halls import NOTE, Answers, Backed, Hall, backup_of, lines_of, told, transcript_of
from tests.ceremonies.killed import run_killed
from tests.ceremonies.test_kinds import ALL, require_pins, require_state
from tests.processes import apart, hsmkme, status_of
from tests.tokens import PIN, link_answers

PROGRAMS = Path(__file__).parent.parent / "programs"
MOST_POINTS = 40
STRIDE = 128
LINK = link_answers("paris", bytes(range(32)))


def has(*labels: str) -> Callable[[Hall], None]:
    """Whether the token holds these objects, each once, and there is no other token.

    What SoftHSM leaves of an object that it did not make to its end is no object of the token, and holds no key.
    """

    def check(hall: Hall) -> None:
        audit = ["audit"] if "audit" in labels else []  # two objects
        assert [label for label in hall.all_labels() if not label.startswith(NOTE)] == sorted([*labels, *audit])
        (_,) = (file for file in hall.home.glob("tokens/*/token.object") if file.stat().st_size)

    return check


@dataclass(frozen=True)
class Case:
    """A ceremony: its kind, where it is held, what it is about and what people answer, how its end is known."""

    kind: str
    start: str
    check: Callable[[Hall], object]
    about: str = ""
    answers: Answers = field(default_factory=dict)
    changes: tuple[tuple[str, str], ...] = ()
    """Of the plan."""


def pin_changed(hall: Hall) -> None:
    apart(require_pins, hall.address, "operator", "another-pin", PIN)


def no_share_is_left(hall: Hall) -> None:
    assert backup_of(hall).exists()
    assert list((hall.home / "sheets").iterdir()) == []


def nothing_left(hall: Hall) -> None:
    assert hall.objects() == {}
    apart(require_state, hall.address, "without user PIN")


CASES = [
    Case("first", "bare", has(*ALL)),
    Case("link-key", "equipped", has(*ALL, "link/paris"), "paris", LINK),
    Case("change-pin", "equipped", pin_changed, "", {"op-1.the-new-PIN": "another-pin", "op-1.the-old-PIN": PIN}),
    Case("decommission", "equipped", nothing_left),
    Case("backup", "backed", backup_of),
    Case("backup", "backed", no_share_is_left, changes=(("# sheets = ", "sheets = "),)),
    Case("restore", "bare", has(*ALL)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_a_ceremony_killed_before_anything_that_it_does_is_gone_on_with_to_the_same_end(
    case: Case, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Hall | Backed = request.getfixturevalue(case.start)
    start = found if isinstance(found, Hall) else found[0]
    about, answers = case.about, case.answers
    if case.kind == "restore":
        hall, _, shares = request.getfixturevalue("backed")
        about, answers = str(backup_of(hall)), {f"{who}.your-share": words for who, words in shares.items()}

    def run(hall: Hall, plan: Path, point: int) -> int:
        arguments = ("ceremony", "run", plan, "--answers", hall.answers(answers))
        return status_of(run_killed, point, hall.home / "points", *arguments)

    whole = start.copy(tmp_path / "whole")
    written = whole.plan(case.kind, about, *case.changes)
    (whole.home / "sheets").mkdir()
    assert run(whole, written, 0) == 0
    points = (whole.home / "points").read_text().splitlines()
    assert len(points) > 4
    for point, name in enumerate(points, start=1):
        hall = start.copy(tmp_path / f"point-{point}")
        (hall.home / "sheets").mkdir()
        plan = hall.home / written.name
        plan.write_text(written.read_text().replace(str(whole.home), str(hall.home)))
        assert run(hall, plan, point) == -signal.SIGKILL, name
        interrupted = read(transcript_of(plan)).begun is not None
        again = hall.run(plan, answers)
        assert again.status == 0, (name, again.err)
        assert ("was begun and not reported" in again.out) == interrupted, name
        verify(transcript_of(plan).read_text().splitlines())
        case.check(hall)


def left_on_disk(plan: Path) -> tuple[object, ...]:
    """The rough shape of what a killed ceremony left: SoftHSM writes an object anew for each of its attributes."""
    files = [path for path in (plan.parent / "tokens").rglob("*") if path.suffix != ".lock"]
    return len(lines_of(plan)), *sorted((path.name[-12:], path.stat().st_size // STRIDE) for path in files)


INSIDE = [
    Case("initialise", "bare", has()),
    Case("audit-key", "initialised", has("audit")),
    Case("link-key", "equipped", has(*ALL, "link/paris"), "paris", LINK),
    Case("change-pin", "equipped", pin_changed, "", {"op-1.the-new-PIN": "another-pin", "op-1.the-old-PIN": PIN}),
    Case("decommission", "equipped", nothing_left),
]


@pytest.fixture(scope="session")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What kills a process inside the token's library."""
    built = tmp_path_factory.mktemp("killer") / "killer.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", built, PROGRAMS / "killer.c", "-ldl"], check=True)
    return built


def killed_inside(killer: Path, *held: tuple[int, Path, Path]) -> list[int]:
    """Numbers that ``kill_inside.py`` prints, for points, plans and answers."""
    command = [sys.executable, PROGRAMS / "kill_inside.py", *(str(argument) for one in held for argument in one)]
    environment = {**os.environ, "LD_PRELOAD": str(killer)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", INSIDE, ids=lambda case: case.kind)
def test_a_ceremony_killed_while_the_token_writes_is_gone_on_with_to_the_same_end(
    case: Case, request: pytest.FixtureRequest, killer: Path, tmp_path: Path
) -> None:
    """Between the two halves of a key pair, in the middle of an object, of a PIN: wherever a file is changed."""
    start: Hall = request.getfixturevalue(case.start)
    whole = start.copy(tmp_path / "whole")
    written = whole.plan(case.kind, case.about)
    (count,) = killed_inside(killer, (0, written, whole.answers(case.answers)))
    case.check(whole)
    points = range(1, count + 1, 1 + count // MOST_POINTS)
    halls = [start.copy(tmp_path / f"point-{point}") for point in points]
    plans = [hall.home / written.name for hall in halls]
    for plan in plans:
        plan.write_text(written.read_text().replace(str(whole.home), str(plan.parent)))
    answers = [hall.answers(case.answers) for hall in halls]
    statuses = killed_inside(killer, *zip(points, plans, answers, strict=True))
    assert statuses == [-signal.SIGKILL] * len(points)
    differing = {left_on_disk(plan): (hall, plan) for hall, plan in zip(halls, plans, strict=True)}
    assert len(differing) > 3
    for hall, plan in differing.values():
        again = hall.run(plan, case.answers)
        assert again.status == 0, (hall.home.name, again.err)
        verify(transcript_of(plan).read_text().splitlines())
        case.check(hall)


def test_what_an_interrupted_step_left_is_removed_and_made_again(equipped: Hall, tmp_path: Path) -> None:
    hall = equipped.copy(tmp_path / "hall")
    plan, before = hall.plan("link-key", "paris"), hall.objects()
    answers = hall.answers(LINK)
    points = hall.home / "points"
    assert status_of(run_killed, 4, points, "ceremony", "run", plan, "--answers", answers) == -signal.SIGKILL
    assert points.read_text().splitlines()[-1] == "verify_object"
    left = hall.objects().keys() - before.keys()
    assert len(left) == 1
    assert hall.run(plan, LINK).status == 0
    assert told(plan, "removed") == [{"label": "link/paris", "destroyed": 1}]
    assert not left & hall.objects().keys()


def test_a_token_that_others_made_meanwhile_is_not_erased(empty: Hall) -> None:
    """The ceremony was stopped where the token was to be initialised; another one made it since then."""
    plan = empty.plan("first")
    assert empty.run(plan, {"so-1.new-SO-PIN": INTERRUPT}).status == 3
    assert empty.run(empty.plan("first-with-backup")).status == 0
    before = empty.objects()
    done = empty.run(plan)
    assert (done.status, "it is not the one that this ceremony began to make" in done.err) == (1, True)
    done = empty.run(plan, {"op-1.new-user-PIN": "another-pin"})
    assert (done.status, "PinIncorrect" in done.err) == (1, True)
    assert empty.objects() == before


def test_a_line_that_was_being_written_never_happened(equipped: Hall, tmp_path: Path) -> None:
    hall = equipped.copy(tmp_path / "hall")
    plan = hall.plan("link-key", "paris")
    hall.run(plan, {})  # ends where custodians are asked
    transcript = transcript_of(plan)
    whole = transcript.read_bytes()
    transcript.write_bytes(whole + whole[: len(whole.splitlines()[0]) // 2])
    assert hall.run(plan, LINK).status == 0
    assert transcript.read_bytes().startswith(whole)
    assert hsmkme("ceremony", "verify", plan).status == 0


def test_an_object_that_the_transcript_has_and_the_token_lost_stops_it(equipped: Hall, tmp_path: Path) -> None:
    """Somebody took away between two runs what the first one made."""
    hall = equipped.copy(tmp_path / "hall")
    step = '\n[[step]]\ndo = "bring"\nby = ["custodian-1", "custodian-2"]\nobject = "link/rome"\nother_end = "far"\n'
    plan = hall.plan("link-key", "paris")
    plan.write_text(plan.read_text() + step)
    before = set(hall.objects())
    assert hall.run(plan, LINK).status == 3  # nobody answers about rome
    (made,) = set(hall.objects()) - before
    (path,) = hall.home.glob(f"tokens/*/{made}")
    path.unlink()
    done = hall.run(plan, LINK)
    assert (done.status, "the token does not have it" in done.err) == (1, True)
