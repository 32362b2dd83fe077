"""A desk at which a file of answers sits: for rehearsals and tests, refused on a token that is not marked so.

The file is TOML of mode 0400: ``phrases = true`` types every phrase that is shown; ``[answers]`` has an answer for
each other question, by its key (``so-1.new-SO-PIN``): a string for every time, or an array for one time each.
U+0003 is Ctrl-C.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from hsmkme.ceremony.people import Prompt
from hsmkme.ceremony.step import Table
from hsmkme.errors import CeremonyAborted, OperatorFault
from hsmkme.secrecy import private_text

INTERRUPT: Final = "\x03"


class Answers(Table):
    """The whole file."""

    phrases: bool = False
    answers: Annotated[dict[str, str | list[str]], Field(repr=False, default_factory=dict)]


class AnswersDesk:
    """Answers what a file answers; ``say`` shows what people would see."""

    def __init__(self, answers: Answers, say: Callable[[str], None]) -> None:
        self.say = say
        self._phrases = answers.phrases
        self._constant = {key: answer for key, answer in answers.answers.items() if isinstance(answer, str)}
        self._queues = {key: [*answer] for key, answer in answers.answers.items() if isinstance(answer, list)}

    def ask(self, prompt: Prompt) -> str:
        """See `Desk`. Raises `CeremonyAborted` where the file has no answer."""
        answer = self._answer(prompt)
        if answer == INTERRUPT:
            raise KeyboardInterrupt
        self.say(f"{prompt.text}\n> {'(hidden)' if prompt.hidden else answer}")
        return answer

    def clear(self) -> None:
        """Nothing is on this screen that others may not see."""

    def _answer(self, prompt: Prompt) -> str:
        if self._queues.get(prompt.key):
            return self._queues[prompt.key].pop(0)
        if prompt.key in self._constant:
            return self._constant[prompt.key]
        if self._phrases and prompt.shown and prompt.right is not None:
            return prompt.right
        raise CeremonyAborted(f"the file of answers has none for {prompt.key!r}")


class DryDesk:
    """Answers everything with what is right or fits, and shows each question with its key."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def ask(self, prompt: Prompt) -> str:
        """See `Desk`."""
        self.say(f"  asks {prompt.key}: {prompt.text}{' (hidden)' if prompt.hidden else ''}")
        return prompt.right or "0" * 64

    def clear(self) -> None:
        """See `Desk`."""
        self.say("  clears the screen")


def read_answers(path: Path) -> Answers:
    """The answers in the file at ``path``; raises `OperatorFault` and says nothing of what is in it."""
    try:
        return Answers.model_validate(tomllib.loads(private_text(path, "the file of answers")))
    except tomllib.TOMLDecodeError as error:
        raise OperatorFault(f"{path} is no TOML") from error
    except ValidationError as error:
        places = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise OperatorFault(f"{path} has no answers of the right form at: {places}") from None
