"""The terminal at which people hold a ceremony: plain lines, so that a serial console will do."""

from __future__ import annotations

import getpass
import os
import signal
import sys
from types import FrameType
from typing import Final

import click

from hsmkme.ceremony.people import Prompt

_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
_SCREENS: Final = "\n" * 300
"""Where no code clears a screen, as on many a serial console: nothing of what was shown is left on it."""


class Terminal:
    """Asks on the terminal. Ctrl-C counts at prompts alone: an act on the token is never cut in two."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, _not_now)

    def say(self, text: str) -> None:
        """See `Desk`."""
        click.echo(text)

    def ask(self, prompt: Prompt) -> str:
        """See `Desk`. The end of the input counts as Ctrl-C."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            click.echo(prompt.text)
            return getpass.getpass("> ") if prompt.hidden else input("> ")
        except EOFError:
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, _not_now)

    def clear(self) -> None:
        """See `Desk`. The lines that were scrolled away are cleared too, if the terminal can do that."""
        if sys.stdout.isatty():
            click.echo(_SCREENS if os.environ.get("TERM", "") in ("", "dumb", "unknown") else _CLEAR, nl=False)


def _not_now(_signal: int, _frame: FrameType | None) -> None:
    """The next prompt is where a ceremony can be stopped."""
