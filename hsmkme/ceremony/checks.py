"""Everything wrong with a ceremony, found before its first act: machine, library, token, objects, files.

Each check gives findings, one line each. What is wrong with the machine stops a real ceremony and is only
recorded where the token is marked test: rehearsals are held on ordinary machines.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsmkme.ceremony.plan import Plan
from hsmkme.errors import HsmkmeError
from hsmkme.hsm import initialising, module
from hsmkme.model import Clock


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters of the machine: swap areas, the limit of core files in bytes (-1: none), the time."""

    swaps: tuple[str, ...]
    core_limit: int
    now: datetime


def this_machine(clock: Clock) -> Machine:
    """The machine that this is."""
    areas = Path("/proc/swaps").read_text().splitlines()[1:]
    limit, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return Machine(tuple(area.split()[0] for area in areas), limit, datetime.fromtimestamp(clock(), UTC))


def of_machine(machine: Machine, plan: Plan, plan_file: Path) -> Iterator[str]:
    """Where keys could be written to disk, and a clock that is off."""
    if machine.swaps:
        yield f"swap is on ({', '.join(machine.swaps)}): swapoff -a"
    if machine.core_limit:
        yield "core dumps are on: ulimit -c 0"
    now = machine.now.isoformat(timespec="seconds")
    if not plan.begins <= machine.now <= plan.ends:
        yield f"the clock says {now}, the plan is for {plan.begins.isoformat()} to {plan.ends.isoformat()}"
    if plan_file.stat().st_mtime > machine.now.timestamp() + 60:
        yield f"the clock says {now}, and the plan was written later than that"


def of_files(plan: Plan, done: int, begun: int | None) -> Iterator[str]:
    """Outputs that exist already or cannot be written, inputs that cannot be read; ``done`` steps were done before.

    What is gone on with may be there: the transcript, and what the step ``begun`` left.
    """
    kept = {plan.transcript, *(plan.step[begun - 1].writes() if begun else ())}
    for path in (plan.transcript, *(path for step in plan.step[done:] for path in step.writes())):
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            yield f"{path} cannot be written: {path.parent} is no directory, or not writable"
        elif path.exists() and path not in kept:
            yield f"{path} exists: nothing is overwritten, name another file"
    for path in (*plan.absent.values(), *(path for step in plan.step[done:] for path in step.reads())):
        if not os.access(path, os.R_OK):
            yield f"{path} cannot be read"


def of_token(plan: Plan, *, begun: bool) -> Iterator[str]:
    """Library and token, as far as they show themselves without a login. ``begun``: the plan may have made it."""
    address = plan.token.address
    wrong = [
        *_attempt(lambda: module.refuse_shims(address.module)),
        *_attempt(lambda: module.check_digest(address.module, address.module_sha256)),
        *_attempt(lambda: module.refuse_other_libraries(address.module)),
    ]
    yield from wrong
    if not wrong:  # else it is not called
        yield from _attempt(lambda: _expect_token(plan, begun))


def _expect_token(plan: Plan, begun: bool) -> None:
    if not plan.initialises:
        initialising.require_token(plan.token.address)
    elif not begun:
        initialising.require_free_slot(plan.token.address)


def of_objects(plan: Plan, present: frozenset[str], done: int, begun: int | None) -> Iterator[str]:
    """What is on the token and should not be, or is not and should; ``done`` steps were done before."""
    made: frozenset[str] = frozenset()
    for step in plan.step[:done]:
        made = step.after(made)
    for label in sorted(made - present):
        yield f"the transcript says that {label} was made, and the token does not have it"
    for number, step in enumerate(plan.step[done:], start=done + 1):
        for label in step.needs():
            if label not in present and number != begun:
                yield f"step {number} ({step.do}) needs {label}, which the token does not have"
        for label in step.makes():
            if label in present and number != begun:
                yield f"step {number} ({step.do}) makes {label}, which the token has already"
        present = step.after(present)


def _attempt(act: Callable[[], object]) -> Iterator[str]:
    try:
        act()
    except HsmkmeError as error:
        yield str(error)
