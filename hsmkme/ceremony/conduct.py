"""Holding a ceremony: the roll call, each step of the plan, the end, the signatures. Killed anywhere, it goes on.

Order of durable acts: a line says that a step begins, the token is changed, a line says what was read back. A step
that was begun and not reported is undone and done again: nobody vouches for an object that no line reports.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hsmkme import __version__
from hsmkme.ceremony import checks, verifying
from hsmkme.ceremony.hands import TokenHands
from hsmkme.ceremony.people import Record
from hsmkme.ceremony.plan import Plan, Written
from hsmkme.ceremony.signing import signature_of
from hsmkme.ceremony.step import Room, Step
from hsmkme.ceremony.transcript import Transcript
from hsmkme.errors import CeremonyAborted, ConfigRefused, HsmkmeError, OperatorFault
from hsmkme.hsm.officer import Evidence
from hsmkme.model import CeremonyNote
from hsmkme.words import spoken


class Ceremony:
    """One ceremony by the plan ``written``, recorded in ``transcript``."""

    def __init__(self, written: Written, room: Room, hands: TokenHands, transcript: Transcript) -> None:
        self._written = written
        self._plan = written.plan
        self._room = room
        self._people = room.people
        self._hands = hands
        self._transcript = transcript

    def hold(self, remarks: Sequence[str] = ()) -> bytes:
        """From the roll call to the last signature; returns the digest of the transcript. ``remarks`` are recorded.

        Raises `CeremonyAborted` if people stop, and what the token refuses; the transcript has it by then.
        """
        with self._recorded():
            self._open(remarks)
            if self._transcript.digest is None:
                self._require_objects()
                self._carry_out()
                self._transcript.record("end", self._last_facts())
            return self._close()

    def _carry_out(self) -> None:
        carry_out(self._plan, self._room, self._transcript.record, self._transcript.done, self._transcript.begun)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever ends a ceremony is in its transcript, and the token is logged out."""
        record = self._transcript.record
        try:
            yield
        except KeyboardInterrupt:
            record("abort", {"why": "interrupted at a prompt"})
            raise CeremonyAborted("interrupted, and recorded so; the same command goes on with it") from None
        except CeremonyAborted as aborted:
            record("abort", {"why": str(aborted)})
            raise
        except HsmkmeError as error:
            record("failed", {"why": str(error)})
            raise
        finally:
            self._hands.close()

    def _open(self, remarks: Sequence[str]) -> None:
        """The first lines, or a line that says that it goes on."""
        facts = {
            "ceremony": self._plan.ceremony,
            "purpose": self._plan.purpose,
            "policy": self._plan.policy,
            "plan": self._written.text,
            "plan_sha256": self._written.digest,
            "token": self._hands.describe(),
            "attested": "nothing: what token and library say of themselves is evidence",
            "version": __version__,
            "remarks": [*remarks],
        }
        self._people.say(f"{self._plan.ceremony}: {self._plan.purpose} ({self._plan.policy})")
        if self._transcript.lines:
            self._require_same_plan()
            self._say_where()
            self._transcript.record("resumed", {"done": self._transcript.done, "token": facts["token"]})
        else:
            self._transcript.record("begin", facts)
        for person in self._plan.present:
            self._people.confirm(person.id, f"{person.id} is here")

    def _require_same_plan(self) -> None:
        if self._transcript.lines[0]["facts"].get("plan_sha256") != self._written.digest:
            raise OperatorFault(f"{self._transcript.path} is of another plan: name another file in this one")

    def _say_where(self) -> None:
        done, begun = self._transcript.done, self._transcript.begun
        self._people.say(f"It was begun before: {done} of {len(self._plan.step)} steps are done.")
        if begun is not None:
            self._people.say(f"Step {begun} was begun and not reported: what it left is removed, and it is done again.")

    def _require_objects(self) -> None:
        """What only a login shows, looked at before the first act."""
        if self._plan.logs_in and not (self._plan.initialises and self._transcript.done == 0):
            present = frozenset(self._hands.labels())
            wrong = [*checks.of_objects(self._plan, present, self._transcript.done, self._transcript.begun)]
            if wrong:
                raise ConfigRefused(wrong)

    def _last_facts(self) -> dict[str, object]:
        """What the token holds at the end, and the key that signs."""
        held = self._hands.labels() if self._plan.logs_in else []
        key = self._hands.officer.audit_public_key().decode() if "audit" in held else None
        return {"objects": held, "audit_key": key, "token": self._hands.describe()}

    def _close(self) -> bytes:
        """What follows the end, as far as it is missing: a note on the token, its signature, those of people."""
        digest = self._transcript.digest
        if digest is None:
            raise OperatorFault("the ceremony did not end")
        (end,) = self._transcript.told("end")
        signed = {line["facts"]["by"] for line in self._transcript.told("signature")}
        if end["facts"]["objects"]:
            self._hands.officer.note(CeremonyNote(self._plan.ceremony, digest, self._made()))
        if end["facts"]["audit_key"] and "token" not in signed:
            seal = self._hands.officer.sign(hashlib.sha256(verifying.SIGNED + digest).digest())
            self._transcript.record("signature", {"by": "token", "signature": base64.b64encode(seal).decode()})
        self._people.say(f"The digest of the transcript, read aloud:\n{digest.hex()}\n{spoken(digest)}")
        for person in self._plan.person:
            if person.role == "witness":
                self._people.confirm(person.id, f"the digest begins with {digest.hex()[:8]}")
            if person.key is not None and person.id not in signed:
                signature = signature_of(person, digest, self._people)
                self._transcript.record("signature", {"by": person.id, "signature": signature})
        return digest

    def _made(self) -> dict[str, str | None]:
        """Check values of what was made, by label: what the service will write into its log."""
        evidence = [line["facts"]["evidence"] for line in self._transcript.told("done")]
        return {str(one["label"]): one.get("check_value") for one in evidence if "label" in one}


def carry_out(plan: Plan, room: Room, record: Record, done: int = 0, begun: int | None = None) -> None:
    """Every step after the first ``done``; what the step ``begun`` left when it was interrupted is removed."""
    for number, step in enumerate(plan.step[done:], start=done + 1):
        phrase = step.phrase(room.label)
        room.people.say(f"\nStep {number} of {len(plan.step)}: {phrase}. {' and '.join(step.by)} act.")
        room.people.say(f"Expected: {_terms(step.expect)}." if step.expect else "Nothing more is expected of it.")
        record("step", {"number": number, "do": step.do, "by": step.by})
        room.people.confirm(step.by[0], phrase)
        if number == begun:
            _remove(step, room, record)
        evidence = step.act(room)
        _require_expected(step, evidence, room)
        record("done", {"number": number, "evidence": evidence})
        _show(evidence, room)


def _remove(step: Step, room: Room, record: Record) -> None:
    for label in step.makes():
        record("removed", room.hands.destroy(label))
    for path in step.writes():
        if path.exists():
            path.unlink()
            record("removed", {"file": path.name})


def _require_expected(step: Step, evidence: Evidence, room: Room) -> None:
    """An object that is not as the plan expects is destroyed, and the ceremony ends."""
    wrong = {name: evidence.get(name) for name, due in step.expect.items() if evidence.get(name) != due}
    if wrong:
        for label in step.makes():
            room.hands.destroy(label)
        raise CeremonyAborted(f"the plan expects something else than {_terms(wrong)}; what was made was destroyed")


def _show(evidence: Evidence, room: Room) -> None:
    value = evidence.get("check_value")
    if isinstance(value, str):
        room.people.say(f"Read back. Check value, read aloud: {value} - {spoken(bytes.fromhex(value))}")
    else:
        room.people.say("Done, and read back.")


def _terms(facts: Any) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in facts.items())
