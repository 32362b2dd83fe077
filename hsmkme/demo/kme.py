"""One KME of a demo: its directory, configuration, token and store. Made once, kept."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.ceremony.transcript import read
from hsmkme.demo import ceremonies
from hsmkme.demo.authority import Authority, write_private
from hsmkme.errors import OperatorFault
from hsmkme.store import Store, migrate

LOCAL_LINK: Final = "local"
PEER_PORTS_ABOVE: Final = 10
"""How far above the port for SAEs a KME's port for peers is."""

Say = Callable[[str], None]
"""Tells the user what was done."""

_CONFIG: Final = """\
# A demo KME, made by `hsmkme demo up`. Not for production: the PIN lies beside the token.
kme_id = "{kme}"
store = "store.sqlite"

[token]
profile = "softhsm-2.6"
label = "{label}"
softhsm_conf = "softhsm2.conf"
pin_file = "pin"

[server]
bind = {bind}
certificate = "server/cert.pem"
key = "server/key.pem"
sae_ca = "../ca/ca.pem"
workers = {workers}

[[link]]
id = "{link}"
peer = "{kme}"
key_bits = 256

[[spool]]
link = "{link}"
directory = "spool"
"""
_PEERING: Final = """
[peering]
bind = {bind}
certificate = "peer/cert.pem"
key = "peer/key.pem"
ca = "../peer-ca/ca.pem"
"""
_PEER: Final = """
[[peer]]
id = "{peer}"
url = "{url}"

[[link]]
id = "{link}"
peer = "{peer}"
key_bits = 256
"""


@dataclass(frozen=True, slots=True)
class DemoKme:
    """KME ``kme-<number>`` of ``kmes`` in ``directory``; ``port`` is the one of ``kme-1`` for SAEs."""

    directory: Path
    number: int
    kmes: int
    port: int
    say: Say

    @property
    def kme_id(self) -> str:
        """What it is called."""
        return f"kme-{self.number}"

    @property
    def home(self) -> Path:
        """Where it keeps everything of its own."""
        return self.directory / self.kme_id

    @property
    def config_path(self) -> Path:
        """Its configuration."""
        return self.home / "hsmkme.toml"

    @property
    def sae_port(self) -> int:
        """Where it serves SAEs."""
        return self.port + self.number - 1

    @property
    def peer_port(self) -> int:
        """Where it serves peers, if it has any."""
        return self.sae_port + PEER_PORTS_ABOVE

    @property
    def ports(self) -> list[int]:
        """Every port that it needs."""
        return [self.sae_port, self.peer_port] if self.peers else [self.sae_port]

    @property
    def url(self) -> str:
        """Where SAEs reach it."""
        return f"https://localhost:{self.sae_port}"

    @property
    def peer_url(self) -> str:
        """Where peers reach it."""
        return f"https://localhost:{self.peer_port}"

    @property
    def token_label(self) -> str:
        """The label of its token."""
        return f"test-{self.kme_id}"

    @property
    def commands(self) -> list[str]:
        """The commands of its processes, in the order of their pids in ``demo.json``."""
        return ["serve", "upkeep", *(["serve-peers"] if self.peers else [])]

    @property
    def peers(self) -> list[DemoKme]:
        """The other KMEs of the demo; a link leads to each."""
        others = (number for number in range(1, self.kmes + 1) if number != self.number)
        return [DemoKme(self.directory, number, self.kmes, self.port, self.say) for number in others]

    def link_to(self, peer: DemoKme) -> str:
        """What both ends call their link: ``<lower>.<higher>``."""
        lower, higher = sorted((self, peer), key=lambda kme: kme.number)
        return f"{lower.kme_id}.{higher.kme_id}"

    @property
    def link_ids(self) -> list[str]:
        """Its local link and those to its peers."""
        return [LOCAL_LINK, *(self.link_to(peer) for peer in self.peers)]

    # Making it -------------------------------------------------------------------------------------------

    def found(self, authority: Authority, peer_authority: Authority | None, workers: int) -> None:
        """Certificates, PINs, settings and an empty store, as far as they are missing. Settings are always new."""
        (self.home / "tokens").mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.home / "server" / "cert.pem").exists():
            authority.issue_server(self.kme_id, self.home / "server")
        if peer_authority is not None and not (self.home / "peer" / "cert.pem").exists():
            peer_authority.issue_peer(self.kme_id, self.home / "peer")
        for name in ("pin", "so-pin"):
            if not (self.home / name).exists():
                write_private(self.home / name, secrets.token_hex(8).encode())
        (self.home / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.home / 'tokens'}\nobjectstore.backend = file\n"
            "log.level = ERROR\nslots.removable = false\nlibrary.reset_on_fork = true\n"
        )
        self.config_path.write_text(self._configuration(workers))
        migrate(configuration.load(self.config_path).store)

    def _configuration(self, workers: int) -> str:
        facts = {"kme": self.kme_id, "label": self.token_label, "workers": workers, "link": LOCAL_LINK}
        text = _CONFIG.format(bind=json.dumps(_addresses(self.sae_port)), **facts)
        if self.peers:
            text += _PEERING.format(bind=json.dumps(_addresses(self.peer_port)))
        for peer in self.peers:
            text += _PEER.format(peer=peer.kme_id, url=peer.peer_url, link=self.link_to(peer))
        return text

    def open_store(self) -> Store:
        """Its store."""
        return bootstrap.open_store(configuration.load(self.config_path))

    @property
    def began_ceremony(self) -> bool:
        """Whether its ceremony began."""
        return self._transcript.exists()

    def hold_ceremony(self, components: Mapping[str, Path]) -> None:
        """Make the token and its keys, those of links too, unless that was done; ``components`` by link.

        An interrupted one is gone on with, by the plan that it began with.
        """
        if read(self._transcript).digest is not None:
            return
        plan, answers = (self._transcript.with_name(name) for name in ("plan.toml", "answers.toml"))
        if not plan.exists():
            plan.parent.mkdir(exist_ok=True)
            address = bootstrap.token_address(configuration.load(self.config_path).token[0])
            plan.write_text(ceremonies.plan(address, [*components], self._transcript.name))
        so_pin, user_pin = (bootstrap.pin_source(self.home / name)() for name in ("so-pin", "pin"))
        links = {link: ceremonies.read_components(path) for link, path in components.items()}
        answers.unlink(missing_ok=True)
        write_private(answers, ceremonies.answers(so_pin, user_pin, links).encode())
        try:
            self._run("ceremony", "run", plan, "--answers", answers)
        finally:
            answers.unlink()

    @property
    def _transcript(self) -> Path:
        return self.home / "ceremony" / "transcript.jsonl"

    def deposit(self, link_id: str, seed: Path, keys: int) -> None:
        """Deposit ``keys`` keys of a simulated device on a link; what was deposited already stays as it is."""
        self._run("simulate", "--link", link_id, "--keys", str(keys), "--seed-file", seed)

    def _run(self, *arguments: str | Path) -> None:
        """Give a command as an operator does: one process can look at the tokens of one KME only."""
        command: Sequence[str | Path] = [*program(self.config_path), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip().removeprefix("hsmkme: ")
            raise OperatorFault(
                f"{self.kme_id}: {arguments[0]}: {why}\n"
                f"If an earlier start was interrupted: remove {self.directory} and start again"
            )
        self.say(f"{self.kme_id}: {done.stdout.splitlines()[0]}")

    def describe(self, pids: list[int]) -> dict[str, Any]:
        """Its entry in ``demo.json``."""
        entry = {
            "id": self.kme_id,
            "url": self.url,
            "config": str(self.config_path),
            "store": str(self.home / "store.sqlite"),
            "token_label": self.token_label,
            "softhsm_conf": str(self.home / "softhsm2.conf"),
            "pids": pids,
        }
        if self.peers:
            entry["peer_url"] = self.peer_url
            entry["peer_cert"], entry["peer_key"] = (str(self.home / "peer" / f"{n}.pem") for n in ("cert", "key"))
        return entry


def program(config_path: Path) -> list[str]:
    """The command line of `hsmkme` for a configuration, without its command."""
    return [sys.executable, "-m", "hsmkme", "--config", str(config_path)]


def _addresses(port: int) -> list[str]:
    """This machine's own addresses, as the configuration has them."""
    interfaces = Path("/proc/net/if_inet6")
    has_ipv6 = interfaces.exists() and interfaces.read_text().strip()
    return [f"127.0.0.1:{port}", *([f"[::1]:{port}"] if has_ipv6 else [])]
