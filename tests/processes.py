"""Processes that start quickly: a clean one, which has imported the product already, forks them.

Nothing of pytest's own process is shared with them, least of all the token's module.
"""

from __future__ import annotations

import io
import multiprocessing
import runpy
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

processes = multiprocessing.get_context("forkserver")
COMMANDS = ["hsmkme.cli.deposit", "hsmkme.cli.operate", "hsmkme.cli.registry"]
processes.set_forkserver_preload([*COMMANDS, "tests.exercise_store"])

COMMAND_SECONDS = 120


@dataclass(frozen=True)
class Done:
    """What a command left: exit status and output."""

    status: int
    out: str
    err: str


def hsmkme(*arguments: object) -> Done:
    """Run a command of `hsmkme` in a process of its own."""
    return _done(_command, *arguments)


def script(path: Path, *arguments: object) -> Done:
    """Run a file of Python in a process of its own."""
    return _done(_file, path, *arguments)


def _done(run: Callable[[list[str]], object], *arguments: object) -> Done:
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=_run, args=(run, [str(argument) for argument in arguments], send))
    child.start()
    send.close()
    assert receive.poll(COMMAND_SECONDS), f"{arguments} does not end"
    done: Done = receive.recv()
    child.join(COMMAND_SECONDS)
    return done


def _command(arguments: list[str]) -> None:
    from hsmkme.cli import main

    main(arguments)


def _file(arguments: list[str]) -> None:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _run(run: Callable[[list[str]], object], arguments: list[str], send: Connection) -> None:
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    status = 0
    try:
        run(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except Exception:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        status = 1
    send.send(Done(status, sys.stdout.getvalue(), sys.stderr.getvalue()))
