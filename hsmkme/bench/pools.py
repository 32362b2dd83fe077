"""What the size of the store costs: the same small load on prepared KMEs, of which only one runs at a time.

They are demos that are down, in directories named by how many keys their stores hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkme import bootstrap
from hsmkme.bench.alone import side_by_side
from hsmkme.bench.loads import Call, Figures, Load
from hsmkme.bench.servers import serving
from hsmkme.bench.site import MASTER, Site
from hsmkme.bench.stand import POOL, Stand, alike
from hsmkme.demo import processes
from hsmkme.errors import OperatorFault

TICKS: Final = 5
_LOADS: Final = {
    "status_us": Load("status", POOL, Call.STATUS),
    "enc_keys_us": Load("enc-32", POOL, Call.ENC_KEYS),
    "dec_keys_us": Load("dec-32", POOL, Call.DEC_KEYS),
}


@dataclass(frozen=True, slots=True)
class Pool:
    """The prepared KME of ``directory``, whose store holds ``keys``."""

    directory: Path
    keys: int
    server: str = POOL

    @property
    def name(self) -> str:
        """What it is called."""
        return f"pool-{self.keys}"

    def keys_needed(self, seconds: float) -> int:
        """How many keys that open must be there for each round, before any that does not."""
        return sum(load.keys_needed(seconds) for load in _LOADS.values())

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Start it, load it, end it, and let upkeep look for what is due."""
        site = Site(processes.describe(self.directory))
        port, log = site.port(MASTER), stand.directory / f"{self.name}.log"
        command = [sys.executable, "-m", "hsmkme", "--config", str(site.config), "serve"]
        began = time.perf_counter()
        with serving(command, port, log) as pid:
            stand.servers[POOL] = alike(site, port, pid)
            Load("first", POOL, Call.STATUS, connections=1).measure(stand, 0)
            started = time.perf_counter() - began
            costs = {
                figure: load.measure(stand, seconds)["server_us_per_request"] for figure, load in _LOADS.items()
            }
        tick = side_by_side(tick_milliseconds, site.config, TICKS)
        return {"start_ms": 1e3 * started, "tick_ms": tick, **costs}


def prepared(directory: Path) -> Sequence[Pool]:
    """The KMEs in ``directory``, smallest first; raises `OperatorFault` if there is none."""
    named = sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())
    if not named:
        raise OperatorFault(
            f"{directory} has no prepared KMEs: make some with `hsmkme demo up {directory}/1000 --keys 1000` and "
            "`hsmkme demo down`, and fill their stores"
        )
    return [Pool(directory / str(keys), keys) for keys in named]


def tick_milliseconds(config: Path, ticks: float, ready: Callable[[], object]) -> float:
    """How long upkeep takes to find that no duty has anything to do: the mean of some times."""
    parts = bootstrap.open_parts(config)
    upkeep = bootstrap.upkeep_with_spools(parts)
    upkeep.tick()  # what is to be done is done
    ready()
    began = time.perf_counter()
    for _ in range(int(ticks)):
        for duty in upkeep.duties:
            duty.due = 0.0
        upkeep.tick()
    took = time.perf_counter() - began
    parts.tokens.close()
    return 1e3 * took / ticks
