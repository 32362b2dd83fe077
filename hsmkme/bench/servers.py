"""Servers that are measured: their commands, and how they are started, waited for and ended."""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from hsmkme import config as configuration
from hsmkme.errors import OperatorFault

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 40.0


def gthread_command(port: int, config: Path) -> list[str]:
    """Stock gunicorn, as people run it, with the empty endpoint behind mutual TLS as in ``config``."""
    server = configuration.load(config).server
    return [
        *(sys.executable, "-m", "gunicorn", "hsmkme.bench.bare:create_app()"),
        *("--bind", f"127.0.0.1:{port}", "--workers", str(server.workers), "--threads", "8"),
        *("--worker-class", "gthread", "--no-control-socket"),
        *("--certfile", str(server.certificate), "--keyfile", str(server.key)),
        *("--ca-certs", str(server.sae_ca), "--cert-reqs", str(int(ssl.CERT_REQUIRED))),
    ]


def bare_command(port: int, config: Path) -> list[str]:
    """The empty endpoint on the product's own worker class, with the listener of ``config``."""
    return [sys.executable, "-m", "hsmkme.bench.bare", str(config), str(port)]


def sampled_command(port: int, config: Path, tallies: Path) -> list[str]:
    """The KME of ``config``, which keeps in ``tallies`` where its time goes."""
    return [sys.executable, "-m", "hsmkme.bench.sampled", str(config), str(port), str(tallies)]


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """The pid of a server started by ``command`` and listening on ``port``; what it says goes to ``log``."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_until_listening(process, port, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise OperatorFault(f"a server to be measured does not start; its log {log} ends:\n{end}")
        time.sleep(0.05)


def free_ports(*offsets: int) -> int:
    """A port that is free with those at ``offsets`` above it, and that the system gives to no connection."""
    first_of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_240, max(first_of_connections - 64, 12_000))  # noqa: S311 - no secret
        with suppress(OSError), ExitStack() as stack:
            for offset in (0, *offsets):
                stack.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port
