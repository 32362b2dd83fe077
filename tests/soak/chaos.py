"""What happens to two KMEs during a soak: kill -9, cut connections, a store that is an old copy. Counted by kind."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from hsmkme.demo.kme import DemoKme
from tests.soak.relay import Cut
from tests.soak.site import Site

KILL_PAUSE_SECONDS = 4.0
CUT_PAUSE_SECONDS = 8.0
CUT_SECONDS = (1.0, 6.0)
DOWN_SECONDS = 2.0
"""Means, and the longest that a killed process is missed before it is started again."""

CUTS: tuple[Cut, ...] = ("refuse", "swallow", "no answers")


class Chaos:
    """Strikes at random times from entering to leaving the block; everything runs and is connected afterwards."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._strike, args=(act, random.Random(f"{seed}/{act.__name__}"), mean))
            for act, mean in ((self._kill, KILL_PAUSE_SECONDS), (self._cut, CUT_PAUSE_SECONDS))
        ]
        self.blows: Counter[str] = Counter()
        self.faults: list[str] = []

    def __enter__(self) -> Chaos:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _strike(self, act: Callable[[random.Random], None], dice: random.Random, mean: float) -> None:
        try:
            while not self._stopping.wait(dice.expovariate(1 / mean)):
                act(dice)
        except BaseException as error:
            self.faults.append(f"{act.__name__}: {type(error).__name__}: {error}")
            raise

    def _cut(self, dice: random.Random) -> None:
        """Both directions, or one; nothing gets through for seconds."""
        relays = list(self._site.relays.values())
        struck = relays if dice.random() < 0.7 else [dice.choice(relays)]
        how = dice.choice(CUTS)
        for relay in struck:
            relay.cut(how)
        self.blows[f"cut: {how}"] += 1
        self._stopping.wait(dice.uniform(*CUT_SECONDS))
        for relay in struck:
            relay.mend()

    def _kill(self, dice: random.Random) -> None:
        self._site.revive()
        kme = dice.choice(self._site.members)
        blows, weights = zip(*_BLOWS, strict=True)
        (blow,) = dice.choices(blows, weights)
        with self._site.turn:
            blow(self, kme, dice)

    def _kill_worker(self, kme: DemoKme, dice: random.Random) -> None:
        self._kill_one(kme, "serve", dice)

    def _kill_peer_worker(self, kme: DemoKme, dice: random.Random) -> None:
        self._kill_one(kme, "serve-peers", dice)

    def _kill_one(self, kme: DemoKme, command: str, dice: random.Random) -> None:
        workers = self._site.workers(kme, command)
        if workers:
            with suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
                self.blows[f"kill -9: worker of {command}"] += 1

    def _kill_upkeep(self, kme: DemoKme, dice: random.Random) -> None:
        self._kill_whole(kme, "upkeep", dice)

    def _kill_peers(self, kme: DemoKme, dice: random.Random) -> None:
        self._kill_whole(kme, "serve-peers", dice)

    def _kill_serve(self, kme: DemoKme, dice: random.Random) -> None:
        self._kill_whole(kme, "serve", dice)

    def _kill_whole(self, kme: DemoKme, command: str, dice: random.Random) -> None:
        self._site.kill(kme, command)
        self.blows[f"kill -9: {command}"] += 1
        self._stopping.wait(dice.uniform(0, DOWN_SECONDS))
        self._site.start(kme, command)


_BLOWS: tuple[tuple[Callable[[Chaos, DemoKme, random.Random], None], int], ...] = (
    (Chaos._kill_worker, 9),
    (Chaos._kill_peer_worker, 4),
    (Chaos._kill_upkeep, 4),
    (Chaos._kill_peers, 2),
    (Chaos._kill_serve, 1),
)
