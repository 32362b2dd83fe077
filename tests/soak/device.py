"""QKD devices: the same new blocks at both ends of a link, one end after the other, before the pool runs dry."""

from __future__ import annotations

import random
import secrets
import threading
from pathlib import Path

from hsmkme.demo.authority import write_private
from hsmkme.demo.kme import LOCAL_LINK, DemoKme
from tests.soak.site import Site

LOW = 1500
"""Keys of a link at either end below which more are brought."""

BLOCKS, BLOCK_KEYS = 12, 128
LOOK_SECONDS = 1.0
TRIES = 5
_HELD = "SELECT link_id, sum(ready + theirs) FROM pool GROUP BY link_id"


class Devices(threading.Thread):
    """Bring keys to every link of ``site`` until told to stop."""

    def __init__(self, site: Site, seed: int, stopping: threading.Event) -> None:
        super().__init__(name="devices")
        self._site = site
        self._dice = random.Random(f"{seed}/devices")
        self._stopping = stopping
        self._next: dict[str, int] = {}
        self.faults: list[str] = []
        self._seeds = {name: site.world.directory / f"{name}.seed" for name in _devices(site)}
        for path in self._seeds.values():
            write_private(path, secrets.token_bytes(32))

    def run(self) -> None:
        try:
            while not self._stopping.wait(LOOK_SECONDS):
                self._look()
        except BaseException as error:
            self.faults.append(f"devices: {type(error).__name__}: {error}")
            raise
        finally:
            for path in self._seeds.values():
                path.unlink()

    def _look(self) -> None:
        for kme in self._site.members:
            with self._site.turn:
                held: dict[str, int] = dict(self._site.query(kme, _HELD))
            for link_id in kme.link_ids:
                if held.get(link_id, 0) < LOW:
                    ends = [kme] if link_id == LOCAL_LINK else self._site.members
                    self._bring(link_id, self._dice.sample(ends, len(ends)))

    def _bring(self, link_id: str, ends: list[DemoKme]) -> None:
        name = _device(ends[0], link_id)
        start = self._next.get(name, 0)
        self._next[name] = start + BLOCKS
        for kme in ends:
            self._deposit(kme, link_id, self._seeds[name], start)

    def _deposit(self, kme: DemoKme, link_id: str, seed: Path, start: int) -> None:
        """As a device that is told to try again: the same blocks twice are one deposit."""
        keys = str(BLOCKS * BLOCK_KEYS)
        flags = ("--link", link_id, "--keys", keys, "--seed-file", seed, "--start", str(start))
        for _ in range(TRIES):
            with self._site.turn:
                done = self._site.command(kme, "simulate", *flags)
            if done.status == 0:
                return
        self.faults.append(f"{kme.kme_id}: no deposit on {link_id}: {done.err.strip()[-300:]}")


def _device(kme: DemoKme, link_id: str) -> str:
    """What brings keys to a link: the same at both ends, but every local link has its own."""
    return f"{kme.kme_id}.{link_id}" if link_id == LOCAL_LINK else link_id


def _devices(site: Site) -> set[str]:
    return {_device(kme, link_id) for kme in site.members for link_id in kme.link_ids}
