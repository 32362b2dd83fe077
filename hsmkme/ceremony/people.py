"""Talking with the people of a ceremony: who acts, what is expected, what they answer.

A wrong answer is asked for again and recorded; nothing of what was typed is. What people type in secret is
handed on and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from hsmkme.errors import CeremonyAborted, OperatorFault, PinRefused, ShareRefused
from hsmkme.hsm.components import component
from hsmkme.model import KeyMaterial
from hsmkme.words import spoken

Result = TypeVar("Result")
Record = Callable[[str, Mapping[str, object]], None]
"""Writes a line of the transcript: what happened, and the facts of it."""

ATTEMPTS: Final = 3
"""How often one thing is asked for. Real tokens lock a PIN after not many more."""
PIN_LENGTHS: Final = (8, 64)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question. ``key`` names it in an answers file; ``right`` is the one right answer, if there is one."""

    key: str
    text: str
    hidden: bool = False
    right: str | None = None
    shown: bool = False
    """Whether the right answer stands in the text."""


class Desk(Protocol):
    """Where people sit: a terminal, or a file of answers. `ask` raises ``KeyboardInterrupt`` when they stop."""

    def say(self, text: str) -> None:
        """Show a text."""

    def ask(self, prompt: Prompt) -> str:
        """Show a question and return what is answered."""

    def clear(self) -> None:
        """Leave nothing on the screen of what was shown before."""


class People:
    """The people at a desk; what they answer wrongly goes to ``record``."""

    def __init__(self, desk: Desk, record: Record) -> None:
        self.say = desk.say
        self.clear = desk.clear
        self._ask = desk.ask
        self._record = record

    def confirm(self, person: str, phrase: str) -> None:
        """Wait until ``person`` types ``phrase``, and record that."""
        text = f"{person}, type exactly: {phrase}"
        self._expect(person, Prompt(f"{person}.{_key(phrase)}", text, right=phrase, shown=True))
        self._record("confirmed", {"by": person, "phrase": phrase})

    def compare(self, person: str, of: str, value: str, other: str) -> None:
        """Have ``person`` read the check value of ``of`` aloud, and type what the people at ``other`` read."""
        self.say(f"{person} reads aloud: {value} - {spoken(bytes.fromhex(value))}")
        text = f"{person}, type the check value that {other} reads"
        self._expect(person, Prompt(f"{person}.check-value-of-{of}", text, right=value))
        self._record("compared", {"by": person, "of": of, "with": other, "value": value})

    def secret(self, person: str, what: str, use: Callable[[str], Result], *, shown: str | None = None) -> Result:
        """Ask ``person`` for a PIN, a passphrase or a share until ``use`` takes it; ``shown``: they just saw it."""
        text = f"{person}, enter {what}"
        prompt = Prompt(f"{person}.{_key(what)}", text, hidden=True, right=shown, shown=shown is not None)

        def attempt() -> Result:
            try:
                return use(self._ask(prompt))
            except (PinRefused, ShareRefused) as refusal:
                raise _WrongError(str(refusal)) from refusal

        return self._again(person, what, attempt)

    def new_pin(self, person: str, what: str) -> str:
        """Have ``person`` choose a PIN, typed twice."""
        low, high = PIN_LENGTHS
        text = f"{person}, choose {what}, {low} to {high} characters"
        first = Prompt(f"{person}.{_key(what)}", text, hidden=True)
        second = Prompt(first.key, f"{person}, {what} once more", hidden=True)

        def attempt() -> str:
            chosen = self._ask(first)
            if not low <= len(chosen) <= high:
                raise _WrongError("it has another length")
            if self._ask(second) != chosen:
                raise _WrongError("the two differ")
            return chosen

        return self._again(person, what, attempt)

    def component(self, person: str, of: str) -> KeyMaterial:
        """Have ``person`` type a component of the key ``of``, with nobody looking."""
        text = f"{person}, enter your component of {of}: 64 hex digits"
        prompt = Prompt(f"{person}.component-of-{of}", text, hidden=True)

        def attempt() -> KeyMaterial:
            try:
                return component(self._ask(prompt))
            except OperatorFault as fault:
                raise _WrongError(str(fault)) from None

        return self._again(person, f"a component of {of}", attempt)

    def text(self, person: str, what: str, use: Callable[[str], Result]) -> Result:
        """Ask ``person`` for something that is no secret until ``use`` raises no `OperatorFault`."""
        prompt = Prompt(f"{person}.{_key(what)}", f"{person}, enter {what}")

        def attempt() -> Result:
            try:
                return use(self._ask(prompt))
            except OperatorFault as fault:
                raise _WrongError(str(fault)) from fault

        return self._again(person, what, attempt)

    def _expect(self, person: str, prompt: Prompt) -> None:
        def attempt() -> None:
            if self._ask(prompt).strip() != prompt.right:
                raise _WrongError("that is something else")

        self._again(person, prompt.key.partition(".")[2], attempt)

    def _again(self, person: str, what: str, attempt: Callable[[], Result]) -> Result:
        for left in reversed(range(ATTEMPTS)):
            try:
                return attempt()
            except _WrongError as wrong:
                self._record("wrong-input", {"by": person, "asked": what, "why": str(wrong)})
                self.say(f"{wrong}; attempts left: {left}")
        raise CeremonyAborted(f"{person} gave no right answer to: {what}")


class _WrongError(Exception):
    """An answer to be asked for again."""


def _key(what: str) -> str:
    return what.replace(" ", "-")
