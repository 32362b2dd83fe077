"""One soak: load and chaos for some time, one store restored in the middle, then peace, and the evidence."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hsmkme.demo.kme import DemoKme
from tests.soak.chaos import Chaos
from tests.soak.clients import Crowd
from tests.soak.device import Devices
from tests.soak.evidence import keep_log, keep_records, keep_stock
from tests.soak.site import Site, two_kmes

SAES, KEYS = 8, 2048
COPY_SECONDS = 60.0
"""How old the copy is that a store is replaced by; a third of a short soak."""

HEAL_SECONDS = 90
Say = Callable[[str], None]


@dataclass
class Soak:
    """``seconds`` of load in ``directory``, all of its randomness from ``seed``."""

    directory: Path
    seconds: float
    seed: int
    say: Say
    faults: list[str] = field(default_factory=list)

    @property
    def evidence(self) -> Path:
        return self.directory / "evidence"

    def run(self) -> Path:
        """Returns the directory of the evidence."""
        self.evidence.mkdir(parents=True)
        with two_kmes(self.directory / "demo", SAES, KEYS, self.say) as site:
            demo = site.demo()
            crowd, ending = Crowd(demo, self.seed), threading.Event()
            devices, chaos = Devices(site, self.seed, ending), Chaos(site, self.seed)
            devices.start()
            try:
                with crowd:
                    with chaos:
                        restored = self._storm(site)
                    healed = self._heal(site)
                    crowd.stopping.wait(3)
                crowd.collect_the_rest()
            finally:
                ending.set()
                devices.join()
            for kme in site.members:
                site.stop_all(kme)
            self.faults += [*site.faults, *crowd.faults, *devices.faults, *chaos.faults]
            self._keep(site, crowd, {"blows": dict(chaos.blows), "restored": restored, "healed_after": healed})
        return self.evidence

    def _storm(self, site: Site) -> dict[str, object]:
        """Wait out the time; the copy is taken so that it is as old as it should be in the middle."""
        dice = random.Random(f"{self.seed}/restore")
        kme, age = dice.choice(site.members), min(COPY_SECONDS, self.seconds / 3)
        started = time.monotonic()
        _wait_until(started + self.seconds / 2 - age)
        copy = self.directory / f"{kme.kme_id}.copy.sqlite"
        site.copy_store(kme, copy)
        self.say(f"a copy of the store of {kme.kme_id} is made")
        _wait_until(started + self.seconds / 2)
        how = dice.choice(("SIGTERM", "kill -9"))
        with site.turn:
            self._restore(site, kme, copy, how)
        self.say(f"the store of {kme.kme_id} is its copy of {age:.0f} s ago")
        _wait_until(started + self.seconds)
        return {"kme": kme.kme_id, "copy_seconds_old": age, "stopped_by": how}

    def _restore(self, site: Site, kme: DemoKme, copy: Path, how: str) -> None:
        for command in kme.commands if how == "kill -9" else ():
            site.kill(kme, command)
        site.stop_all(kme)
        keep_log(self.evidence, site, kme, "lost")
        site.put_back(kme, copy)
        site.start_all(kme)

    def _heal(self, site: Site) -> float | None:
        """Wait until every link is open and nothing waits to be said; returns after how many seconds, None if never."""
        site.revive()
        started = time.monotonic()
        while waiting := _unhealed(site):
            if time.monotonic() - started > HEAL_SECONDS:
                self.faults.append(f"not well {HEAL_SECONDS} s after the last blow: {'; '.join(waiting)}")
                return None
            time.sleep(0.5)
        return round(time.monotonic() - started, 1)

    def _keep(self, site: Site, crowd: Crowd, facts: dict[str, object]) -> None:
        keep_records(self.evidence, crowd.records, {sae: site.world.kme_of(sae) for sae in site.world.sae_ids})
        for kme in site.members:
            keep_log(self.evidence, site, kme)
            keep_stock(self.evidence, site, kme)
        run = {"seed": self.seed, "seconds": self.seconds, **facts, "faults": self.faults}
        (self.evidence / "run.json").write_text(json.dumps(run, indent=2) + "\n")


def _unhealed(site: Site) -> list[str]:
    found = []
    for kme in site.members:
        links = site.query(kme, "SELECT link_id, why FROM link WHERE state <> 'open'")
        found += [f"{kme.kme_id}: link {link_id} is frozen: {why}" for link_id, why in links]
        ((waiting,),) = site.query(kme, "SELECT count(*) FROM outbox")
        found += [f"{kme.kme_id}: {waiting} messages wait to be sent"] if waiting else []
    return found


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
