"""The test stand: servers side by side on one machine, one generator, one ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hsmkme.bench.alone import deposit, side_by_side
from hsmkme.bench.generator import Generator
from hsmkme.bench.ledger import Ledger
from hsmkme.bench.servers import bare_command, free_ports, gthread_command, sampled_command, serving
from hsmkme.bench.site import MASTER, SLAVE, Say, Site, running_site

GTHREAD: Final = "gthread"
CEILING: Final = "ceiling"
KME: Final = "kme"
TWO_KMES: Final = "two KMEs"
SAMPLED: Final = "sampled"

_OWN_SHARE: Final = 2.5
"""How many keys a link needs for one that one of its ends may assign, and some to spare."""


@dataclass(frozen=True, slots=True)
class Server:
    """What is measured: where each SAE asks, and the processes whose CPU time counts."""

    site: Site
    ports: Mapping[str, int]
    pids: tuple[int, ...]


@dataclass(slots=True)
class Stand:
    """What scenarios are measured on: servers by name."""

    directory: Path
    servers: dict[str, Server]
    generator: Generator
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def site(self) -> Site:
        """The single KME, and what is beside it."""
        return self.servers[KME].site

    def fill(self, keys: int) -> None:
        """See to it that the pool of the single KME has so many keys."""
        missing = keys - self.site.stored()
        if missing > 0:
            side_by_side(deposit, self.site.config, missing)

    @contextmanager
    def sampled(self) -> Iterator[Path]:
        """A second server of the single KME, `SAMPLED`; gives the directory of its tallies."""
        port, tallies = free_ports(), self.directory / "tallies"
        tallies.mkdir(exist_ok=True)
        for old in tallies.iterdir():
            old.unlink()
        command = sampled_command(port, self.site.config, tallies)
        with serving(command, port, self.directory / "sampled.log") as pid:
            self.servers[SAMPLED] = _alike(self.site, port, pid)
            yield tallies
        del self.servers[SAMPLED]


@contextmanager
def stand(directory: Path, keys: int, keys_of_two: int, say: Say) -> Iterator[Stand]:
    """A stand in ``directory`` whose pool has so many keys to begin with; its processes end afterwards.

    ``keys_of_two``: how many one of two linked KMEs is to deliver; none means that there is no such pair.
    """
    with ExitStack() as stack:
        site = stack.enter_context(running_site(directory / "one", 1, keys, say))
        servers = {KME: Server(site, {sae_id: site.port(sae_id) for sae_id in (MASTER, SLAVE)}, site.pids)}
        if keys_of_two:
            two = stack.enter_context(running_site(directory / "two", 2, int(keys_of_two * _OWN_SHARE), say))
            servers[TWO_KMES] = Server(two, {sae_id: two.port(sae_id) for sae_id in (MASTER, SLAVE)}, two.pids)
        first = free_ports(1)
        commands = {
            GTHREAD: (first, gthread_command(first, site.config.parent / "server", Path(site.description["ca"]))),
            CEILING: (first + 1, bare_command(first + 1, site.config)),
        }
        for name, (port, command) in commands.items():
            pid = stack.enter_context(serving(command, port, directory / f"{name}.log"))
            servers[name] = _alike(site, port, pid)
        yield Stand(directory, servers, stack.enter_context(Generator()))


def _alike(site: Site, port: int, pid: int) -> Server:
    """A server that serves everybody at one port."""
    return Server(site, {MASTER: port, SLAVE: port}, (pid,))
