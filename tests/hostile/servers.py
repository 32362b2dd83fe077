"""A second server on a demo's store, set up as `tests/programs/serve.py` allows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.honest import Honest, context_of
from tests.hostile.moves import request
from tests.world import Demo, children_of, free_port, until

_PROGRAM = Path(__file__).parents[1] / "programs" / "serve.py"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    demo: Demo
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """Its workers now."""
        return children_of(self.process.pid)

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            with Honest(self.port, context_of(self.demo, None)) as client:
                return client.ask(request("GET", "/health")).status == 200
        except OSError:
            return False


@contextmanager
def serving(
    demo: Demo,
    *,
    workers: int = 1,
    files: int = 0,
    options: Mapping[str, int] | None = None,
    more: str = "",
    under: Sequence[str] = (),
) -> Iterator[Server]:
    """Start one, ``more`` added to its configuration; wait until it answers; end it by SIGTERM unless it has ended.

    ``under`` is a command that becomes the server, which is given as its last arguments.
    """
    port = free_port()
    config = demo.config.with_name(f"set-up-{port}.toml")
    text = demo.config.read_text().replace(str(demo.port), str(port))
    config.write_text(text.replace("workers = 2", f"workers = {workers}") + more)
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        command = [*under, sys.executable, str(_PROGRAM), str(config), json.dumps(options or {}), str(files)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    server = Server(demo, port, process, log)
    try:
        until(server.answers, 60, log.name)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)
