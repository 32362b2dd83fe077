"""What a demo directory holds: CAs, SAEs, and KMEs with tokens, stores and links of their own. Made once, kept."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hsmkme.demo.authority import Authority, write_private
from hsmkme.demo.kme import LOCAL_LINK, DemoKme, Say
from hsmkme.hsm.objects import LINK_KEY_BYTES
from hsmkme.model import Entry

ACTOR: Final = "demo"
_FILES: Final = (("cert", "cert"), ("key", "key"), ("bundle", "bundle"))


@dataclass(frozen=True, slots=True)
class World:
    """A demo in ``directory``: KMEs ``kme-1`` …, each linked with each, and SAEs ``sae-1`` ….

    Any two SAEs exchange keys. SAE *i* is served by the KME whose turn it is; KME *i* serves SAEs at
    ``port`` + *i* - 1, and peers ten ports above. A pool of ``keys`` keys is on every link that SAEs can use.
    """

    directory: Path
    port: int
    saes: int
    keys: int
    workers: int
    say: Say
    kmes: int = 1

    def as_made(self) -> World:
        """The same with as many KMEs as the directory has, if it has any."""
        made = len(list(self.directory.glob("kme-*")))
        if made in (0, self.kmes):
            return self
        self.say(f"{self.directory} has {made} KME{'s' if made > 1 else ''}, and keeps them")
        return replace(self, kmes=made)

    @property
    def members(self) -> list[DemoKme]:
        """The KMEs."""
        return [DemoKme(self.directory, n, self.kmes, self.port, self.say) for n in range(1, self.kmes + 1)]

    @property
    def description_path(self) -> Path:
        """``demo.json``: the stable interface for programs."""
        return self.directory / "demo.json"

    @property
    def ca(self) -> Path:
        """The CA of SAEs, and of what KMEs show to SAEs."""
        return self.directory / "ca" / "ca.pem"

    @property
    def sae_ids(self) -> list[str]:
        """The SAEs."""
        return [f"sae-{number}" for number in range(1, self.saes + 1)]

    def kme_of(self, sae_id: str) -> str:
        """Which KME serves an SAE."""
        return f"kme-{self.sae_ids.index(sae_id) % self.kmes + 1}"

    def prepare(self) -> None:
        """Make what is missing. Each step leaves what it made whole, so an interrupted run can be repeated."""
        for kme in self.members:
            kme.home.mkdir(parents=True, exist_ok=True)
        if not self.ca.exists():
            self.say("making a development CA, certificates, tokens and stores")
        authority = Authority(self.directory / "ca")
        peer_authority = Authority(self.directory / "peer-ca", "of peers") if self.kmes > 1 else None
        for kme in self.members:
            kme.found(authority, peer_authority, self.workers)
        self._draw_shared_secrets()
        with ThreadPoolExecutor(self.kmes) as beside:
            for done in [beside.submit(self._complete, kme) for kme in self.members]:
                done.result()
        self._forget_shared_secrets()
        self._enrol(authority)

    # Links -----------------------------------------------------------------------------------------------

    def _components(self, link_id: str) -> Path:
        return self.directory / "links" / f"{link_id}.components"

    def _seed(self, kme: DemoKme, link_id: str) -> Path:
        """Of the simulated device: the same file at both ends of a link."""
        return self.directory / "links" / f"{kme.kme_id + '.' if link_id == LOCAL_LINK else ''}{link_id}.seed"

    def _shared_secrets(self) -> Iterator[Path]:
        """What both ends of a link must get: files of mode 0400 from here until each of them has it."""
        for kme in self.members:
            for peer in kme.peers:
                yield self._components(kme.link_to(peer))
            for link_id in kme.link_ids:
                yield self._seed(kme, link_id)

    def _draw_shared_secrets(self) -> None:
        """Before a ceremony begins anywhere: from then on it is for both ends to get them, in whatever run."""
        if any(kme.began_ceremony for kme in self.members):
            return
        self._forget_shared_secrets()
        (self.directory / "links").mkdir(mode=0o700, exist_ok=True)
        for kme in self.members:
            for peer in (peer for peer in kme.peers if peer.number > kme.number):
                write_private(self._components(kme.link_to(peer)), _two_components())
                write_private(self._seed(kme, kme.link_to(peer)), secrets.token_bytes(32))
            write_private(self._seed(kme, LOCAL_LINK), secrets.token_bytes(32))

    def _forget_shared_secrets(self) -> None:
        for path in self._shared_secrets():
            path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.directory / "links").rmdir()

    def _complete(self, kme: DemoKme) -> None:
        """Ceremony and first deposits of one KME, as far as they are due."""
        kme.hold_ceremony({kme.link_to(peer): self._components(kme.link_to(peer)) for peer in kme.peers})
        for link_id in kme.link_ids:
            seed = self._seed(kme, link_id)
            if seed.exists() and self.keys and (link_id != LOCAL_LINK or self._serves_a_pair(kme)):
                kme.deposit(link_id, seed, self.keys)

    def _serves_a_pair(self, kme: DemoKme) -> bool:
        return sum(self.kme_of(sae_id) == kme.kme_id for sae_id in self.sae_ids) >= 2

    # SAEs ------------------------------------------------------------------------------------------------

    def _enrol(self, authority: Authority) -> None:
        """A certificate for each SAE; every KME knows all of them, and any two may exchange keys."""
        for sae_id in self.sae_ids:
            home = self.directory / "saes" / sae_id
            if not (home / "bundle.pem").exists():
                for stale in ("cert.pem", "key.pem"):
                    (home / stale).unlink(missing_ok=True)
                certificate, key = authority.issue_sae(sae_id, home)
                write_private(home / "bundle.pem", certificate.read_bytes() + key.read_bytes())
        for kme in self.members:
            store = kme.open_store()
            for sae_id in self.sae_ids:
                store.registry.add_sae(sae_id, self.kme_of(sae_id), Entry("sae.add", ACTOR))
            for master, slave in itertools.permutations(self.sae_ids, 2):
                store.registry.allow(master, slave, Entry("pair.allow", ACTOR))
            store.close()

    def describe(self, pids: Mapping[str, list[int]]) -> dict[str, Any]:
        """The content of ``demo.json``; ``pids`` by KME, in the order of their commands."""
        kmes = [kme.describe(pids[kme.kme_id]) for kme in self.members]
        saes = [
            {"id": sae_id, "kme": self.kme_of(sae_id)}
            | {name: str(self.directory / "saes" / sae_id / f"{file}.pem") for name, file in _FILES}
            for sae_id in self.sae_ids
        ]
        peer_ca = {"peer_ca": str(self.directory / "peer-ca" / "ca.pem")} if self.kmes > 1 else {}
        return {"ca": str(self.ca), **peer_ca, "kmes": kmes, "saes": saes}


def _two_components() -> bytes:
    """Of a link key, a line of hex digits each."""
    return "\n".join(secrets.token_hex(LINK_KEY_BYTES) for _ in range(2)).encode()
