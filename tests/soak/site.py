"""The KMEs of a soak: made as the demo makes them, their processes children of this one, a relay to each of them."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from hsmkme.demo.kme import DemoKme, program
from hsmkme.demo.readiness import wait_until_ready
from hsmkme.demo.world import World
from tests.processes import Done, hsmkme
from tests.soak.relay import Relay
from tests.world import Demo, children_of, free_ports

STOP_SECONDS = 40
KMES = 2


class Site:
    """Two KMEs. ``turn`` is held by whoever starts or stops a process, or gives a command to a KME."""

    def __init__(self, world: World, relays: dict[str, Relay]) -> None:
        self.world = world
        self.relays = relays
        """By the KME that is behind each."""
        self.turn = threading.RLock()
        self.faults: list[str] = []
        """What happened that nobody did."""
        self._running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    @property
    def members(self) -> list[DemoKme]:
        return self.world.members

    def demo(self) -> Demo:
        """The same as clients see it."""
        pids = {kme.kme_id: [self.pid(kme, command) for command in kme.commands] for kme in self.members}
        return Demo(self.world.directory, self.world.port, self.world.describe(pids))

    def pid(self, kme: DemoKme, command: str) -> int:
        return self._running[kme.kme_id, command].pid

    def workers(self, kme: DemoKme, command: str) -> list[int]:
        """The children that run now."""
        return children_of(self.pid(kme, command))

    def start(self, kme: DemoKme, command: str) -> None:
        """Start a process as the demo does."""
        with (kme.home / f"{command}.log").open("ab") as output:
            self._running[kme.kme_id, command] = subprocess.Popen(
                [*program(kme.config_path), command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start_all(self, kme: DemoKme) -> None:
        for command in kme.commands:
            self.start(kme, command)

    def kill(self, kme: DemoKme, command: str) -> None:
        """End a process and its children by kill -9."""
        process = self._running.pop((kme.kme_id, command))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)

    def stop_all(self, kme: DemoKme) -> None:
        """End the processes of a KME as the demo does."""
        running = {command: self._running.pop((kme.kme_id, command), None) for command in kme.commands}
        ending = {command: process for command, process in running.items() if process is not None}
        for process in ending.values():
            process.terminate()
        for command, process in ending.items():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.faults.append(f"{kme.kme_id}: {command} did not stop within {STOP_SECONDS} s")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(STOP_SECONDS)

    def revive(self) -> None:
        """Start again what ended by itself, which is a fault."""
        with self.turn:
            for kme in self.members:
                for command in kme.commands:
                    process = self._running.get((kme.kme_id, command))
                    if process is not None and process.poll() is not None:
                        self.faults.append(f"{kme.kme_id}: {command} ended by itself with status {process.returncode}")
                        self.start(kme, command)

    def command(self, kme: DemoKme, *arguments: str | Path) -> Done:
        """Give a command to a KME, as an operator does."""
        return hsmkme("--config", kme.config_path, *arguments)

    def told(self, kme: DemoKme, *arguments: str | Path) -> str:
        """The output of a command that must succeed."""
        done = self.command(kme, *arguments)
        assert done.status == 0, (kme.kme_id, arguments, done.err)
        return done.out

    def all_run(self) -> bool:
        return all(process.poll() is None for process in self._running.values())

    def query(self, kme: DemoKme, statement: str) -> list[Any]:
        """Look into the store behind the KME's back."""
        with closing(sqlite3.connect(store_of(kme), timeout=30)) as connection:
            return connection.execute(statement).fetchall()

    def copy_store(self, kme: DemoKme, to: Path) -> None:
        """A backup of a store that is in use."""
        with closing(sqlite3.connect(store_of(kme), timeout=30)) as live, closing(sqlite3.connect(to)) as copy:
            live.backup(copy)

    def put_back(self, kme: DemoKme, copy: Path) -> None:
        """Replace the store of a KME, all of whose processes are stopped."""
        store = store_of(kme)
        for ending in ("-wal", "-shm"):
            store.with_name(store.name + ending).unlink(missing_ok=True)
        shutil.copyfile(copy, store)


def store_of(kme: DemoKme) -> Path:
    return kme.home / "store.sqlite"


@contextmanager
def two_kmes(directory: Path, saes: int, keys: int, say: Callable[[str], None]) -> Iterator[Site]:
    """Two KMEs that are ready, with ``keys`` keys on each link; all their processes end with the block."""
    world = World(directory, free_ports(KMES), saes, keys, 2, say, KMES)
    world.prepare()
    with ExitStack() as stack:
        relays = {kme.kme_id: stack.enter_context(Relay(kme.peer_port)) for kme in world.members}
        for kme in world.members:
            text = kme.config_path.read_text()
            for peer in kme.peers:
                assert f'url = "{peer.peer_url}"' in text
                text = text.replace(f'url = "{peer.peer_url}"', f'url = "{relays[peer.kme_id].url}"')
            kme.config_path.write_text(text)
        site = Site(world, relays)
        try:
            for kme in site.members:
                site.start_all(kme)
            wait_until_ready(world, site.all_run)
            yield site
        finally:
            for kme in site.members:
                site.stop_all(kme)
