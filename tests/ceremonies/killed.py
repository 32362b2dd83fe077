"""A ceremony whose process is killed before the n-th thing that it does durably."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsmkme.ceremony import hands
from hsmkme.ceremony.transcript import Transcript
from hsmkme.hsm import initialising, templates
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.masters import MasterKeys
from hsmkme.hsm.officer import Officer
from hsmkme.store.epochs import Epochs

DURABLE = [
    (Cryptoki, "init_token"),
    (initialising, "_set_user_pin"),
    (initialising, "change_pin"),
    *((hands, name) for name in ("make_backup", "write_private", "write_backup", "restore_backup")),
    (Path, "unlink"),  # a sheet was written, and printed
    (templates, "verify_object"),  # an object was made, and nobody looked at it yet
    *((Officer, name) for name in ("make_master", "make_digest_key", "make_audit_key", "make_anchor", "_brought")),
    *((Officer, name) for name in ("destroy", "note", "sign")),
    *((MasterKeys, name) for name in ("make", "destroy", "prove_destroyed")),
    *((Epochs, name) for name in ("prepare", "activate", "rewrapped", "destroy", "prove")),
]
LINES = ("begin", "step", "done", "removed", "end", "signature")


def run_killed(point: int, reached: Path, *arguments: object) -> None:
    """Run a command of `hsmkme`, killed before point ``point``; 0: not killed. ``reached`` tells of each point."""
    points = 0

    def pass_by(name: str) -> None:
        nonlocal points
        points += 1
        with reached.open("a") as file:
            file.write(f"{name}\n")
        if points == point:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in DURABLE:
        setattr(owner, name, _watched(getattr(owner, name), name, pass_by))
    Transcript.record = _watched_lines(Transcript.record, pass_by)  # type: ignore[method-assign]
    from hsmkme.cli import main

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    main([str(argument) for argument in arguments])


def _watched(act: Callable[..., Any], name: str, pass_by: Callable[[str], None]) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        pass_by(name)
        return act(*arguments, **options)

    return watched


def _watched_lines(record: Callable[..., Any], pass_by: Callable[[str], None]) -> Callable[..., Any]:
    def watched(transcript: Transcript, what: str, facts: Any) -> None:
        if what in LINES:
            pass_by(f"the line {what}")
        record(transcript, what, facts)

    return watched
