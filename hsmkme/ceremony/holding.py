"""What is done with a plan: checked, run dry, held."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from hsmkme.ceremony import checks, verifying
from hsmkme.ceremony.checks import Machine
from hsmkme.ceremony.conduct import Ceremony, carry_out
from hsmkme.ceremony.hands import DryHands, Login, TokenHands
from hsmkme.ceremony.people import Desk, People
from hsmkme.ceremony.plan import Plan, Written
from hsmkme.ceremony.prompts import DryDesk
from hsmkme.ceremony.step import Epochs, Room
from hsmkme.ceremony.transcript import Told, Transcript, read
from hsmkme.errors import ConfigRefused
from hsmkme.hsm import initialising
from hsmkme.hsm.officer import Officer
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource
from hsmkme.model import Clock

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Findings:
    """What is ``wrong`` and stops a ceremony, and ``remarks`` that its transcript will have."""

    wrong: list[str]
    remarks: list[str]

    def raise_wrong(self) -> None:
        """Refuse if anything is wrong."""
        if self.wrong:
            raise ConfigRefused(self.wrong)


def examined(written: Written, plan_file: Path, machine: Machine) -> Findings:
    """Everything that shows itself before anybody logs in."""
    plan, told = written.plan, read(written.plan.transcript)
    of_machine = [*checks.of_machine(machine, plan, plan_file)]
    of_token = checks.of_token(plan, begun=bool(told.told("step")))
    wrong = [*checks.of_files(plan, told.done, told.begun), *_of_transcript(told), *of_token]
    return Findings(wrong, of_machine) if plan.token.is_test else Findings([*of_machine, *wrong], [])


def _of_transcript(told: Told) -> list[str]:
    if told.digest is None:
        return []
    try:
        verifying.verify(told.path.read_text(encoding="utf-8").splitlines())
    except verifying.BrokenError:
        return []  # signatures are missing: it is gone on with
    return [f"{told.path} exists: the ceremony was held; a transcript is never overwritten"]


def of_objects(plan: Plan, desk: Desk) -> list[str]:
    """What is wrong with the objects on the token. Somebody logs in for it, to look only."""
    told = read(plan.transcript)
    return [*checks.of_objects(plan, _present(plan, told, desk), told.done, told.begun)]


class Keeper(Protocol):
    """Who keeps the store that steps about epochs change."""

    def open(self, address: TokenAddress, login: Login) -> Epochs:
        """The epochs of the KME at this token."""

    def prepare(self, address: TokenAddress, pin: str, active: int) -> None:
        """For a rehearsal: a new store, with ``active`` as the active epoch of a token that has ``master/1``."""


def hold(written: Written, desk: Desk, clock: Clock, keeper: Keeper, remarks: Sequence[str] = ()) -> bytes:
    """Hold a ceremony in which nothing was found wrong, or go on with it; returns the digest of its transcript."""
    plan = written.plan
    transcript = Transcript(plan.transcript, clock)
    people = People(desk, transcript.record)
    hands = TokenHands(plan.token.address, partial(log_in, plan, people), again=transcript.begun is not None)
    epochs = keeper.open(plan.token.address, hands.logged_out)
    room = Room(people, hands, hands, epochs, plan.token.label, plan.absent)
    return Ceremony(written, room, hands, transcript).hold(remarks)


def log_in(plan: Plan, people: People, use: Callable[[PinSource], Result]) -> Result:
    """The operator's PIN, for ``use``."""
    return people.secret(plan.holders["operator"], "the user PIN", lambda pin: use(lambda: pin))


def run_dry(written: Written, desk: Desk) -> list[str]:
    """Say everything that would happen, and change nothing; returns what is wrong with the objects on the token."""
    plan, told = written.plan, read(written.plan.transcript)
    present = _present(plan, told, desk)
    people = People(DryDesk(desk.say), partial(_say_line, desk.say))
    hands = DryHands({"label": plan.token.label}, present)
    desk.say(f"{plan.ceremony}: {plan.purpose}. Dry run: nothing is changed.")
    for person in plan.person:
        desk.say(f"{person.id} is {person.role}{', and signs' if person.key else ''}")
    room = Room(people, hands, hands, hands, plan.token.label, plan.absent)
    carry_out(plan, room, partial(_say_line, desk.say), told.done)
    desk.say(f"\nAfterwards the token holds: {', '.join(hands.labels()) or 'nothing'}.")
    return [*checks.of_objects(plan, present, told.done, told.begun)]


def _say_line(say: Say, what: str, facts: Mapping[str, object]) -> None:
    say(f"  writes {what}: {json.dumps(facts, sort_keys=True)}")


def _present(plan: Plan, told: Told, desk: Desk) -> frozenset[str]:
    """What the token holds, as far as the plan needs to know."""
    if not plan.logs_in or initialising.token_state(plan.token.address) != "ready":
        return frozenset()
    if plan.initialises and not told.lines:
        return frozenset()
    people = People(desk, lambda _what, _facts: None)
    officer = log_in(plan, people, lambda pin: Officer(plan.token.address, pin, writable=False))
    try:
        return frozenset(officer.labels())
    finally:
        officer.close()
