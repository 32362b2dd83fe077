"""Do people get every chance to answer rightly, and can they stop at every prompt with nothing half made?"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hsmkme.ceremony.people import Prompt
from hsmkme.cli.desk import Terminal
from tests.ceremonies.halls import Hall, told, transcript_of
from tests.processes import hsmkme
from tests.tokens import PIN, SO_PIN, link_answers

LINK = link_answers("paris", bytes(range(32)))
WRONG_COMPONENT = "12"


def test_wrong_input_is_asked_for_again_and_recorded_without_what_was_typed(hall: Hall) -> None:
    plan = hall.plan("link-key", "paris")
    once_wrong = {
        "op-1.op-1-is-here": ["op-1 is hear", "op-1 is here"],
        "op-1.the-user-PIN": ["no-such-pin", PIN],
        "custodian-1.component-of-link/paris": [WRONG_COMPONENT, LINK["custodian-1.component-of-link/paris"]],
        "custodian-1.check-value-of-link/paris": ["0123456789", LINK["custodian-1.check-value-of-link/paris"]],
    }
    done = hall.run(plan, {**LINK, **once_wrong})
    assert done.status == 0, done.err
    asked = [(facts["by"], facts["asked"], facts["why"].partition(":")[0]) for facts in told(plan, "wrong-input")]
    assert asked == [
        ("op-1", "op-1-is-here", "that is something else"),
        ("op-1", "the user PIN", "opening the token"),
        ("custodian-1", "a component of link/paris", "a component has 64 hex digits"),
        ("custodian-1", "check-value-of-link/paris", "that is something else"),
    ]
    text = transcript_of(plan).read_text()
    assert not any(typed in text for typed in ("hear\\", "no-such-pin", "0123456789", PIN))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["short", "short", "long-enough", "long-enough"], "it has another length"),
        (["x" * 65, "long-enough", "long-enough"], "it has another length"),
        (["long-enough", "otherwise", "long-enough", "long-enough"], "the two differ"),
    ],
)
def test_a_new_pin_is_typed_twice_and_has_a_fit_length(empty: Hall, answers: list[str], why: str) -> None:
    plan = empty.plan("initialise")
    done = empty.run(plan, {"so-1.new-SO-PIN": answers})
    assert done.status == 0, done.err
    assert {facts["why"] for facts in told(plan, "wrong-input")} == {why}


# The terminal -------------------------------------------------------------------------------------------------------


@contextmanager
def at_a_terminal(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`hsmkme` on a terminal of its own; gives the process and the other end of the line."""
    here, there = pty.openpty()
    command = [sys.executable, "-m", "hsmkme", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    try:
        yield process, here
    finally:
        process.kill()
        process.wait()
        os.close(here)


def read_until(line: int, words: bytes, meanwhile: Callable[[], object] = lambda: None) -> bytes:
    """What comes over the line up to ``words``; ``meanwhile`` is called before each wait for more."""
    seen, deadline = b"", time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < deadline, seen
        meanwhile()
        if select.select([line], [], [], 1)[0]:
            seen += os.read(line, 4096)
    return seen


def answer(line: int, question: bytes, given: str) -> bytes:
    """Wait for a question and its prompt, type an answer; gives what was shown up to the prompt."""
    seen = read_until(line, question)
    if not seen.endswith(b"> "):
        seen += read_until(line, b"> ")
    os.write(line, given.encode() + b"\n")
    return seen


def test_a_ceremony_is_held_on_a_plain_terminal_and_secrets_are_not_echoed(empty: Hall) -> None:
    plan = empty.plan("initialise")
    with at_a_terminal("ceremony", "run", plan) as (process, line):
        for person in ("so-1", "op-1", "witness-1"):
            answer(line, f"type exactly: {person} is here".encode(), f"{person} is here")
        answer(line, b"type exactly: initialise test-hall", "initialise test-hall")
        shown = b""
        for question, secret in (("SO PIN, 8", SO_PIN), ("SO PIN once", SO_PIN), ("user PIN, 8", PIN)):
            shown += answer(line, question.encode(), secret)
        shown += answer(line, b"user PIN once more", PIN)
        digest = answer(line, b"the digest begins with ", "wrong")
        assert SO_PIN.encode() not in shown
        assert PIN.encode() not in shown
        beginning = told(plan, "end") and digest.partition(b"begins with ")[2][:8].decode()
        answer(line, b"attempts left: 2", f"the digest begins with {beginning}")
        read_until(line, b"transcript ")
        assert process.wait(timeout=30) == 0
    assert hsmkme("ceremony", "verify", plan).status == 0


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "end of input"])
def test_ctrl_c_and_the_end_of_the_input_stop_it_at_a_prompt(empty: Hall, key: str) -> None:
    plan = empty.plan("initialise")
    with at_a_terminal("ceremony", "run", plan) as (process, line):
        read_until(line, b"so-1 is here\r\n> ")
        if key == "\x03":  # in the moment before a prompt begins to read it is not noticed: people press it again
            read_until(line, b"interrupted, and recorded so", lambda: os.kill(process.pid, signal.SIGINT))
        else:
            os.write(line, key.encode())
            read_until(line, b"interrupted, and recorded so")
        assert process.wait(timeout=30) == 3
    assert told(plan, "abort") == [{"why": "interrupted at a prompt"}]
    assert empty.tokens() == 0


@pytest.mark.parametrize(
    ("kind", "left"), [("xterm", b"\x1b[H\x1b[2J\x1b[3J"), ("dumb", b"\r\n" * 100), ("", b"\r\n" * 100)]
)
def test_nothing_that_was_shown_stays_on_the_screen_of_a_terminal_or_a_serial_console(kind: str, left: bytes) -> None:
    here, there = pty.openpty()
    program = "from hsmkme.cli.desk import Terminal\nt = Terminal()\nt.say('a secret')\nt.clear()\nt.say('the end')"
    environment = {**os.environ, "TERM": kind, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=there, stderr=there, env=environment)
    os.close(there)
    shown = read_until(here, b"the end")
    os.close(here)
    assert process.wait(timeout=60) == 0
    assert left in shown.partition(b"a secret")[2].partition(b"the end")[0]


def test_a_signal_between_prompts_waits_for_the_next_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An act on the token is not cut in two; at a prompt the same signal stops it."""
    before = signal.getsignal(signal.SIGINT)

    def interrupted(_prompt: str) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "the signal was lost"

    try:
        terminal = Terminal()
        os.kill(os.getpid(), signal.SIGINT)  # nothing happens
        monkeypatch.setattr("builtins.input", interrupted)
        with pytest.raises(KeyboardInterrupt):
            terminal.ask(Prompt("a.b", "a question"))
        os.kill(os.getpid(), signal.SIGINT)  # nothing happens again
    finally:
        signal.signal(signal.SIGINT, before)
