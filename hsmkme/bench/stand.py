"""The test stand: servers side by side on one machine, one generator, one ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hsmkme.bench.generator import Generator, Identity
from hsmkme.bench.ledger import Ledger
from hsmkme.bench.servers import Running, ceiling_command, free_ports, gthread_command, serving
from hsmkme.demo import processes
from hsmkme.demo.kme import PEER_PORTS_ABOVE
from hsmkme.demo.world import World

WORKERS: Final = 2
MASTER: Final = "sae-1"
SLAVE: Final = "sae-2"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Site:
    """A demo that runs: its description, and its processes."""

    description: Mapping[str, Any]
    kmes: Mapping[str, Running]

    def serving(self, sae_id: str) -> Running:
        """The KME that serves an SAE."""
        return self.kmes[next(sae["kme"] for sae in self.description["saes"] if sae["id"] == sae_id)]

    def identity(self, sae_id: str) -> Identity:
        """The certificate of an SAE."""
        sae = next(sae for sae in self.description["saes"] if sae["id"] == sae_id)
        return Identity(Path(self.description["ca"]), Path(sae["cert"]), Path(sae["key"]))


@dataclass(slots=True)
class Stand:
    """What scenarios are measured on."""

    site: Site
    bare: Mapping[str, Running]
    """The servers of the empty endpoint, by name."""
    generator: Generator
    ledger: Ledger = field(default_factory=Ledger)


@contextmanager
def stand(directory: Path, keys: int, say: Say) -> Iterator[Stand]:
    """A stand in ``directory`` with so many keys in its pool to begin with; its processes end afterwards."""
    with ExitStack() as stack:
        site = stack.enter_context(running_site(directory / "one", 1, keys, say))
        home = directory / "one" / "kme-1"
        ca = Path(site.description["ca"])
        first, second = (port := free_ports(1)), port + 1
        commands = {
            "gthread": gthread_command(first, home / "server", ca),
            "ceiling": ceiling_command(second, home / "hsmkme.toml"),
        }
        bare = {
            name: stack.enter_context(serving(command, port, directory / f"{name}.log"))
            for (name, command), port in zip(commands.items(), (first, second), strict=True)
        }
        yield Stand(site, bare, stack.enter_context(Generator()))


@contextmanager
def running_site(directory: Path, kmes: int, keys: int, say: Say) -> Iterator[Site]:
    """A demo of two SAEs, at one KME or at two; ended afterwards."""
    port = free_ports(*range(1, kmes), *range(PEER_PORTS_ABOVE, PEER_PORTS_ABOVE + kmes))
    description = processes.up(World(directory, port, 2, keys, WORKERS, say, kmes))
    try:
        running = {kme["id"]: Running(_port_of(kme["url"]), tuple(kme["pids"])) for kme in description["kmes"]}
        yield Site(description, running)
    finally:
        processes.down(directory)


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
