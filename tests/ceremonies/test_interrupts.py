"""Can people stop at every prompt of every ceremony that ships, and is what was done by then whole and recorded?

The prompts are those of the goldens: a prompt that is added is interrupted here too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsmkme.ceremony.drafts import kinds
from hsmkme.ceremony.prompts import INTERRUPT
from tests.ceremonies.halls import Backed, Hall, backup_of, lines_of, told
from tests.ceremonies.test_dry_runs import ABOUT, GOLDENS, hall_for
from tests.ceremonies.test_kinds import transport_answers
from tests.ceremonies.test_stores import begin_service, with_store
from tests.processes import apart, hsmkme
from tests.tokens import PIN, link_answers, shared_answers

LOGIN = "op-1.the-user-PIN"
WITHOUT_LOGIN = ("initialise", "change-pin")
KEY = bytes(range(32))
COMPONENTS = {**link_answers("paris", KEY), **transport_answers("device-1", KEY), **shared_answers()}
GIVEN = {**COMPONENTS, "op-1.the-new-PIN": "another-pin", "op-1.the-old-PIN": PIN}


def prompts_of(kind: str) -> list[str]:
    """The key of every prompt up to the end of the last step, in order, and of the login that comes with going on."""
    golden = (GOLDENS / f"{kind}.txt").read_text()
    present = re.findall(r"^(\S+) is (?:security-officer|operator|custodian|witness)$", golden, re.MULTILINE)
    asked = re.findall(r"^  asks (\S+): ", golden, re.MULTILINE)
    login = [] if kind in WITHOUT_LOGIN else [LOGIN]
    return list(dict.fromkeys([*(f"{person}.{person}-is-here" for person in present), *asked, *login]))


def hall_with_store(kind: str, request: pytest.FixtureRequest, home: Path) -> Hall:
    hall = hall_for(kind, request, home)
    if kind in ("rotate", "destroy-epoch"):
        apart(begin_service, with_store(hall))
    if kind == "destroy-epoch":
        assert hall.run(hall.plan("rotate", "2")).status == 0
    return hall


@pytest.mark.parametrize("kind", kinds())
def test_ctrl_c_at_any_prompt_is_recorded_and_leaves_nothing_half_made(
    kind: str, request: pytest.FixtureRequest, backed: Backed, tmp_path: Path
) -> None:
    """At one prompt after the other: each time the same command goes on, as far as the next of them."""
    hall = hall_with_store(kind, request, tmp_path / "hall")
    plan = hall.plan(kind, str(backup_of(backed[0])) if kind == "restore" else ABOUT.get(kind, ""))
    given = {**GIVEN, **{f"{who}.your-share": words for who, words in backed[2].items()}}
    made = {0: hall.objects()}
    for key in prompts_of(kind):
        stopped = hall.run(plan, {**given, key: INTERRUPT})
        assert (stopped.status, "interrupted, and recorded so" in stopped.err) == (3, True), (key, stopped)
        assert lines_of(plan)[-1]["what"] == "abort", key
        done = len(told(plan, "done"))
        assert hall.objects() == made.setdefault(done, hall.objects()), key
        assert [path.name for path in hall.home.glob("*.backup.json")] == [], key
    assert sorted(made) == list(range(len(made)))
    held = hall.run(plan, given)
    assert held.status == 0, held.err
    assert hsmkme("ceremony", "verify", plan).status == 0
