"""A process that is killed with -9 at one of its durable moments: around each commit and each act on the token."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def watch(kill_at: int) -> None:
    """Kill this process at its ``kill_at``-th durable moment; with 0 at none."""
    from hsmkme.hsm import masters
    from hsmkme.store.database import Database

    moments = 0

    def moment() -> None:
        nonlocal moments
        moments += 1
        if moments == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(owner: Any, name: str) -> None:
        verb = getattr(owner, name)

        def act(*arguments: Any) -> Any:
            moment()
            result = verb(*arguments)
            moment()
            return result

        setattr(owner, name, act)

    write = Database.write

    @contextmanager
    def watched_write(self: Database, **options: Any) -> Iterator[Any]:
        with write(self, **options) as transaction:
            yield transaction
            moment()
        moment()

    Database.write = watched_write  # type: ignore[method-assign, assignment]
    watched(masters, "generate_master")
    watched(masters.MasterKeys, "destroy")


def command(arguments: list[str]) -> None:
    """A command of `hsmkme`, killed at the moment that the first argument says."""
    from hsmkme.cli import main

    watch(int(arguments[0]))
    main(arguments[1:])
