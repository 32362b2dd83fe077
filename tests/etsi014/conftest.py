"""Clients of the running KME, certificates of SAEs that the demo does not make, and servers set up otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.etsi014.certificates import issue
from tests.etsi014.client import Client
from tests.world import Demo, free_port, start_demo, until

Serve = Callable[[Demo, str], AbstractContextManager[Client]]


@pytest.fixture(scope="session")
def kme(demo: Demo) -> Client:
    """The shared KME, with the SAEs sae-1 to sae-4, any two of which exchange keys."""
    return Client(demo, demo.port)


@pytest.fixture(scope="session")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A KME that began with two blocks, 200 keys of 256 bits."""
    with start_demo(tmp_path_factory.mktemp("scarce"), saes=4, keys=200) as running:
        yield Client(running, running.port)


@pytest.fixture(scope="session")
def enrol(demo: Demo) -> Callable[..., Path]:
    """Registers an SAE at the shared KME, allows its pairs, and gives the directory of its certificate."""

    def register(sae_id: str, *, slaves: tuple[str, ...] = (), masters: tuple[str, ...] = ()) -> Path:
        demo.cli("sae", "add", "--", sae_id)
        for slave in slaves:
            demo.cli("pair", "allow", "--", sae_id, slave)
        for master in masters:
            demo.cli("pair", "allow", "--", master, sae_id)
        return issue(demo, [x509.UniformResourceIdentifier(f"urn:qkd:sae:{sae_id}")])

    return register


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Starts one more server on a demo's store and token, with more lines in its configuration."""

    @contextmanager
    def start(demo: Demo, lines: str) -> Iterator[Client]:
        port = free_port()
        config = demo.config.with_name(f"variant-{port}.toml")
        kept = [line for line in demo.config.read_text().splitlines() if not line.startswith(("bind", "workers"))]
        server = kept.index("[server]") + 1
        kept[server:server] = [f'bind = ["127.0.0.1:{port}"]', "workers = 1"]
        config.write_text("\n".join([*kept, lines]))
        command = [sys.executable, "-m", "hsmkme", "--config", str(config), "serve"]
        with (demo.config.parent / "serve.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        client = Client(demo, port)
        try:
            until(lambda: _answers(client), 60, "the server answers")
            yield client
        finally:
            process.terminate()
            process.wait(timeout=60)

    return start


def _answers(client: Client) -> bool:
    try:
        with client.connection(None) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except OSError:
        return False
