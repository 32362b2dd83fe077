"""CPU time of processes with all their children, as Linux counts it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def family_seconds(pids: Iterable[int]) -> float:
    """CPU time until now of processes, of the children that each has, and of those that ended."""
    return sum(_ticks(pid) for pid in pids) / _TICKS


def _ticks(pid: int) -> int:
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile: its parent counts it now
        return 0
    return sum(map(int, times)) + sum(_ticks(int(child)) for child in children)
