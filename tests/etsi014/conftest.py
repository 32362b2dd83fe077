"""Clients of the running KME, certificates of SAEs that the demo does not make, and servers set up otherwise."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.model import Entry
from tests.etsi014.certificates import issue
from tests.etsi014.client import Client
from tests.world import Demo, free_port, start_demo, until

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def kme(demo: Demo) -> Client:
    """The shared KME, with the SAEs sae-1 to sae-4, any two of which exchange keys."""
    return Client(demo, demo.port)


@pytest.fixture(scope="session")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A KME that began with two blocks, 200 keys of 256 bits."""
    with start_demo(tmp_path_factory.mktemp("scarce"), saes=4, keys=200) as running:
        yield Client(running, running.port)


def register(
    demo: Demo, sae_id: str, *, slaves: Sequence[str] = (), masters: Sequence[str] = (), kme: str = "kme-1"
) -> None:
    """Make an SAE known to a running KME, with these relations; ``kme`` serves it."""
    store = bootstrap.open_store(configuration.load(demo.config))
    store.registry.add_sae(sae_id, kme, Entry("sae.add", "test"))
    for master, slave in [(sae_id, slave) for slave in slaves] + [(master, sae_id) for master in masters]:
        store.registry.allow(master, slave, Entry("pair.allow", "test"))
    store.close()


@pytest.fixture(scope="session")
def enrol(demo: Demo) -> Callable[..., Path]:
    """Registers an SAE at the shared KME and gives the directory of its certificate."""

    def enrol_one(sae_id: str, slaves: Sequence[str] = (), masters: Sequence[str] = ()) -> Path:
        register(demo, sae_id, slaves=slaves, masters=masters)
        return issue(demo, [x509.UniformResourceIdentifier(f"urn:qkd:sae:{sae_id}")])

    return enrol_one


@contextmanager
def running(demo: Demo, command: str, lines: str, **changes: str) -> Iterator[None]:
    """One more process on a demo's store and token, with lines of the configuration changed and others added."""
    kept = [line for line in demo.config.read_text().splitlines() if line.partition(" ")[0] not in changes]
    server = kept.index("[server]") + 1
    kept[server:server] = [f"{name} = {value}" for name, value in changes.items()]
    config = demo.config.with_name(f"variant-{next(_NUMBERS)}.toml")
    config.write_text("\n".join([*kept, lines]))
    with (demo.config.parent / f"{command}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hsmkme", "--config", str(config), command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def serving(demo: Demo, lines: str, **changes: str) -> Iterator[Client]:
    """One more server, with these changes to its configuration."""
    client = Client(demo, free_port())
    with running(demo, "serve", lines, bind=f'["127.0.0.1:{client.port}"]', workers="1", **changes):
        until(lambda: _answers(client), 60, "the server answers")
        yield client


def _answers(client: Client) -> bool:
    try:
        with client.connection(None) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except OSError:
        return False
