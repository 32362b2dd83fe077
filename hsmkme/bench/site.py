"""The KMEs under load: a demo of one master and one slave, at one KME or at two."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.bench.plans import Identity
from hsmkme.bench.servers import free_ports
from hsmkme.demo import processes
from hsmkme.demo.kme import LOCAL_LINK, PEER_PORTS_ABOVE
from hsmkme.demo.world import World
from hsmkme.store import Store

WORKERS: Final = 2
MASTER: Final = "sae-1"
SLAVE: Final = "sae-2"

_CHANGES: Final = struct.Struct("=8xI")
"""Where the index of a WAL counts its commits (sqlite.org/walformat.html §2.1)."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Site:
    """What ``demo.json`` says of a demo that runs."""

    description: Mapping[str, Any]

    @property
    def config(self) -> Path:
        """The configuration of the master's KME."""
        return Path(self._kme_of(MASTER)["config"])

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of every KME; each may have children."""
        return tuple(pid for kme in self.description["kmes"] for pid in kme["pids"])

    def port(self, sae_id: str) -> int:
        """Where an SAE's KME serves it."""
        return int(self._kme_of(sae_id)["url"].rpartition(":")[2])

    @property
    def ports(self) -> Mapping[str, int]:
        """Where each SAE is served."""
        return {sae_id: self.port(sae_id) for sae_id in (MASTER, SLAVE)}

    def identity(self, sae_id: str) -> Identity:
        """The certificate of an SAE."""
        sae = self._sae(sae_id)
        return Identity(Path(self.description["ca"]), Path(sae["cert"]), Path(sae["key"]))

    def commits(self) -> int:
        """How many transactions the KMEs' stores have committed since somebody opened them."""
        indexes = (Path(kme["store"] + "-shm") for kme in self.description["kmes"])
        return sum(int(_CHANGES.unpack_from(index.read_bytes())[0]) for index in indexes if index.exists())

    def messages(self) -> int:
        """How many messages the KMEs have sent to each other."""
        return sum(int(link["sent"]) for kme in self.description["kmes"] for link in _asked(kme, _links))

    def stored(self) -> int:
        """How many keys the local link of the master's KME has in its pool."""
        pools = _asked(self._kme_of(MASTER), _pools)
        return sum(int(str(pool["ready"] or 0)) for pool in pools if pool["link"] == LOCAL_LINK)

    def _sae(self, sae_id: str) -> Mapping[str, str]:
        return _named(self.description["saes"], sae_id)

    def _kme_of(self, sae_id: str) -> Mapping[str, Any]:
        return _named(self.description["kmes"], self._sae(sae_id)["kme"])


@contextmanager
def running_site(directory: Path, kmes: int, keys: int, say: Say) -> Iterator[Site]:
    """A demo in ``directory``, with so many keys on each link if it is new; ended afterwards."""
    port = free_ports(*range(1, kmes), *range(PEER_PORTS_ABOVE, PEER_PORTS_ABOVE + kmes))
    description = processes.up(World(directory, port, 2, keys, WORKERS, say, kmes))
    try:
        yield Site(description)
    finally:
        processes.down(directory)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["id"] == name)


def _asked(kme: Mapping[str, Any], question: Callable[[Store], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the store of a KME says."""
    with closing(bootstrap.open_store(configuration.load(Path(kme["config"])))) as store:
        return question(store)


def _links(store: Store) -> list[dict[str, Any]]:
    return store.views.links()


def _pools(store: Store) -> list[dict[str, Any]]:
    return store.registry.pools()
