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
POOL: Final = "pool"

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
            self.servers[SAMPLED] = alike(self.site, port, pid)
            yield tallies
        del self.servers[SAMPLED]


@contextmanager
def stand(directory: Path, keys: Mapping[str, int], rounds: int, say: Say) -> Iterator[Stand]:
    """A stand in ``directory`` for so many ``rounds``; its processes end afterwards.

    ``keys``: which servers are needed, and how many keys of each a round needs.
    """
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        if keys.keys() & {GTHREAD, CEILING, KME}:
            site = stack.enter_context(running_site(directory / "one", 1, keys.get(KME, 0), say))
            servers[KME] = Server(site, site.ports, site.pids)
            for name, command_of in {GTHREAD: gthread_command, CEILING: bare_command}.items():
                port = free_ports()
                pid = stack.enter_context(serving(command_of(port, site.config), port, directory / f"{name}.log"))
                servers[name] = alike(site, port, pid)
        if TWO_KMES in keys:
            of_link = int(keys[TWO_KMES] * rounds * _OWN_SHARE)
            two = stack.enter_context(running_site(directory / "two", 2, of_link, say))
            servers[TWO_KMES] = Server(two, two.ports, two.pids)
        yield Stand(directory, servers, stack.enter_context(Generator()))


def alike(site: Site, port: int, pid: int) -> Server:
    """A server that serves everybody at one port."""
    return Server(site, {MASTER: port, SLAVE: port}, (pid,))
