"""Starting a demo's processes in the background, and ending them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hsmkme.demo.kme import DemoKme, program
from hsmkme.demo.readiness import wait_until_ready
from hsmkme.demo.world import World
from hsmkme.errors import OperatorFault

STOP_SECONDS: Final = 40


def up(world: World) -> dict[str, Any]:
    """Make what is missing, start what does not run, return when it is ready; the content of ``demo.json``."""
    running = pids_of(world.directory)
    if running and running == _started(world.directory):
        world.say(f"runs already: pids {running}")
        return describe(world.directory)
    if running:
        world.say(f"only pids {running} are left of it: starting it again")
        down(world.directory)
    world = world.as_made()
    _refuse_taken_ports([port for kme in world.members for port in kme.ports])
    world.prepare()
    pids = {kme.kme_id: [_start(kme, command) for command in kme.commands] for kme in world.members}
    description = world.describe(pids)
    _write(world.description_path, description)
    try:
        wait_until_ready(world, lambda: pids_of(world.directory) == _started(world.directory))
    except (OperatorFault, KeyboardInterrupt):
        down(world.directory)
        raise
    return description


def down(directory: Path) -> list[int]:
    """End the processes of the demo in ``directory``, and only those; returns their pids."""
    pids = pids_of(directory)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for pid in pids:
        while _runs(pid, directory):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
    if (directory / "demo.json").exists():
        description = describe(directory)
        for kme in description["kmes"]:
            kme["pids"] = []
        _write(directory / "demo.json", description)
    return pids


def describe(directory: Path) -> dict[str, Any]:
    """The content of ``demo.json``; raises `OperatorFault` where there is no demo."""
    try:
        content: dict[str, Any] = json.loads((directory / "demo.json").read_text())
    except OSError as error:
        raise OperatorFault(f"{directory} holds no demo: run `hsmkme demo up {directory}`") from error
    return content


def pids_of(directory: Path) -> list[int]:
    """The processes of the demo in ``directory`` that run."""
    return [pid for pid in _started(directory) if _runs(pid, directory)]


def _started(directory: Path) -> list[int]:
    """The processes that `up` started, whether they still run or not."""
    if not (directory / "demo.json").exists():
        return []
    return [pid for kme in describe(directory)["kmes"] for pid in kme["pids"]]


def _runs(pid: int, directory: Path) -> bool:
    """Whether ``pid`` is one of ours still: the number may belong to another process by now."""
    with suppress(ChildProcessError):  # started by an earlier command
        os.waitpid(pid, os.WNOHANG)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # A process has no command line for a moment while it is being started.
    return state != "Z" and (not command or str(directory).encode() in command)


def _start(kme: DemoKme, command: str) -> int:
    with (kme.home / f"{command}.log").open("ab") as output:
        process = subprocess.Popen(
            [*program(kme.config_path), command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives this command on purpose; do not warn about it
    return process.pid


def _refuse_taken_ports(ports: list[int]) -> None:
    taken = [str(port) for port in sorted(ports) if _taken(port)]
    if taken:
        which = f"port {taken[0]} is" if len(taken) == 1 else f"ports {', '.join(taken)} are"
        raise OperatorFault(f"{which} taken: stop what uses it or name another with --port")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _write(path: Path, description: dict[str, Any]) -> None:
    """Replace the file whole: a reader never sees half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(description, indent=2) + "\n")
    new.replace(path)
