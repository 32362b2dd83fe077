"""Processes that start quickly: a clean one, which has imported the product already, forks them.

Nothing of pytest's own process is shared with them, least of all the token's module.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

processes = multiprocessing.get_context("forkserver")
COMMANDS = ["audit", "ceremony", "check", "demo", "deposit", "links", "operate", "peers", "registry", "views"]
processes.set_forkserver_preload([*(f"hsmkme.cli.{name}" for name in COMMANDS), "tests.tokens", "tests.exercise_store"])

SECONDS = 300


@dataclass(frozen=True)
class Done:
    """What a command left: exit status and output."""

    status: int
    out: str
    err: str


def hsmkme(*arguments: object, stdin: bytes = b"") -> Done:
    """Run a command of `hsmkme` in a process of its own."""
    return _done(_command, arguments, stdin)


def killed(kill_at: int, *arguments: object) -> Done:
    """Run a command of `hsmkme`, killed with -9 at its ``kill_at``-th durable moment; with 0 at none."""
    return _done(_killed, (kill_at, *arguments))


def script(path: Path, *arguments: object) -> Done:
    """Run a file of Python in a process of its own."""
    return _done(_file, (path, *arguments))


def apart(work: Callable[..., object], *arguments: object) -> None:
    """Call ``work``, a function of a module, in a process of its own; it must not fail."""
    assert status_of(work, *arguments) == 0


def status_of(work: Callable[..., object], *arguments: object) -> int:
    """The exit status of a process of its own in which ``work`` is called; negative for a signal."""
    child = processes.Process(target=work, args=arguments)
    child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        raise AssertionError(f"{work} does not end")
    return child.exitcode


def _done(run: Callable[[list[str]], object], arguments: tuple[object, ...], stdin: bytes = b"") -> Done:
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory) / name for name in ("in", "out", "err")]
        for path in streams:
            path.write_bytes(stdin if path.name == "in" else b"")
        status = status_of(_run, run, [str(argument) for argument in arguments], streams)
        return Done(status, *(path.read_text() for path in streams[1:]))


def _command(arguments: list[str]) -> None:
    from hsmkme.cli import main

    main(arguments)


def _killed(arguments: list[str]) -> None:
    from tests.kills import command

    command(arguments)


def _file(arguments: list[str]) -> None:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _run(run: Callable[[list[str]], object], arguments: list[str], streams: list[Path]) -> None:
    """With ``streams`` as those of the process, and of whatever it starts."""
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
    run(arguments)
