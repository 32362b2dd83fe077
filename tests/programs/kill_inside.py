"""Hold ceremonies in processes that are killed inside the token's library: kill_inside.py POINT PLAN ANSWERS ...

Run with ``killer.c`` loaded before the C library. Point 0: not killed; prints how many points there were, and the
exit status of each of the others.
"""

from __future__ import annotations

import ctypes
import os
import sys

from hsmkme.cli import ceremony as _ceremony  # noqa: F401 - imported once, for all of them
from hsmkme.cli import main

killer = ctypes.CDLL(None)


def hold(point: int, plan: str, answers: str) -> None:
    """In a process of its own."""
    said = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    killer.kill_before(ctypes.c_long(point))
    try:
        main(["ceremony", "run", plan, "--answers", answers], standalone_mode=False)
    finally:
        os.write(said, f"{killer.calls_passed()}\n".encode() if point == 0 else b"")


for point, plan, answers in zip(*(sys.argv[start::3] for start in (1, 2, 3)), strict=True):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            hold(int(point), plan, answers)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if point != "0":
        print(os.waitstatus_to_exitcode(status), flush=True)
