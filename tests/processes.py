"""Processes that start quickly: a clean one, which has imported the product already, forks them.

Nothing of pytest's own process is shared with them, least of all the token's module.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["hsmkme.cli", "tests.exercise_store"])

COMMAND_SECONDS = 120


@dataclass(frozen=True)
class Done:
    """What a command left: exit status and output."""

    status: int
    out: str
    err: str


def hsmkme(*arguments: object) -> Done:
    """Run a command of `hsmkme` in a process of its own."""
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=_run, args=([str(argument) for argument in arguments], send))
    child.start()
    send.close()
    assert receive.poll(COMMAND_SECONDS), f"{arguments} does not end"
    done: Done = receive.recv()
    child.join(COMMAND_SECONDS)
    return done


def _run(arguments: list[str], send: Connection) -> None:
    from hsmkme.cli import main

    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    status = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    send.send(Done(status, sys.stdout.getvalue(), sys.stderr.getvalue()))
