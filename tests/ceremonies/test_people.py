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
from pathlib import Path

import pytest

from hsmkme.ceremony.people import Prompt
from hsmkme.ceremony.prompts import INTERRUPT
from hsmkme.cli.desk import Terminal
from tests.ceremonies.halls import Hall, lines_of, told, transcript_of
from tests.ceremonies.test_kinds import ALL
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


FIRST = {
    "so-1.so-1-is-here": 0,
    "op-1.op-1-is-here": 0,
    "witness-1.witness-1-is-here": 0,
    "so-1.initialise-test-hall": 0,
    "so-1.new-SO-PIN": 0,
    "op-1.new-user-PIN": 0,
    "op-1.make-audit": 1,
    "op-1.the-user-PIN": 1,
    "op-1.make-master/1": 2,
    "op-1.make-digest": 3,
    "op-1.make-anchor": 4,
}
"""Every prompt of the first ceremony but those with its digest, and how many steps are done when it is shown."""
OTHERS = {
    "link-key": [
        "op-1.op-1-is-here",
        "op-1.the-user-PIN",
        "custodian-1.bring-link/paris",
        "custodian-1.component-of-link/paris",
        "custodian-2.component-of-link/paris",
        "custodian-1.check-value-of-link/paris",
    ],
    "change-pin": ["op-1.change-the-operator-PIN-of-test-hall", "op-1.the-new-PIN", "op-1.the-old-PIN"],
    "decommission": [
        "op-1.the-user-PIN",
        "so-1.destroy-everything-on-test-hall",
        "op-1.destroy-everything-on-test-hall",
    ],
}
GIVEN = {"op-1.the-new-PIN": "another-pin", "op-1.the-old-PIN": PIN, **LINK}


@pytest.mark.parametrize("key", FIRST)
def test_ctrl_c_at_any_prompt_is_recorded_and_what_was_done_is_whole(empty: Hall, key: str) -> None:
    plan = empty.plan("first")
    require_abort(empty, plan, key)
    assert len(told(plan, "done")) == FIRST[key]
    assert empty.tokens() == (FIRST[key] > 0)
    require_end(empty, plan)
    assert empty.labels() == ALL


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in OTHERS.items() for key in keys])
def test_ctrl_c_at_any_prompt_is_recorded_and_leaves_nothing(hall: Hall, kind: str, key: str) -> None:
    plan, before = hall.plan(kind, "paris" if kind == "link-key" else ""), hall.objects()
    require_abort(hall, plan, key)
    assert hall.objects() == before
    require_end(hall, plan)


def test_ctrl_c_where_the_so_pin_is_asked_leaves_an_empty_token_to_be_erased(hall: Hall) -> None:
    """Every object was destroyed by then, and was to be."""
    plan = hall.plan("decommission")
    require_abort(hall, plan, "so-1.the-SO-PIN")
    assert hall.objects() == {}
    require_end(hall, plan)


def require_abort(hall: Hall, plan: Path, key: str) -> None:
    done = hall.run(plan, {**GIVEN, key: INTERRUPT})
    assert done.status == 3
    assert "interrupted, and recorded so; the same command goes on with it" in done.err
    assert lines_of(plan)[-1]["what"] == "abort"


def require_end(hall: Hall, plan: Path) -> None:
    """The same command goes on with it."""
    again = hall.run(plan, GIVEN)
    assert again.status == 0, again.err
    assert hsmkme("ceremony", "verify", plan).status == 0


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
