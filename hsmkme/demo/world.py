"""What a demo directory holds: CA, SAEs, and a KME with its own token and store. Made once, kept."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.ceremony import steps
from hsmkme.ceremony.transcript import Transcript
from hsmkme.demo.authority import Authority, write_private
from hsmkme.drivers.simulator import Simulator
from hsmkme.errors import OperatorFault
from hsmkme.model import Entry
from hsmkme.store import Store, migrate

LINK: Final = "local"
ACTOR: Final = "demo"

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


@dataclass(frozen=True, slots=True)
class World:
    """A demo in ``directory``: KME ``kme-1`` and SAEs ``sae-1`` … ``sae-<saes>``, any two of which exchange keys."""

    directory: Path
    port: int
    saes: int
    keys: int
    workers: int
    say: Say

    kme_id: str = "kme-1"

    @property
    def kme_directory(self) -> Path:
        """Where the KME keeps everything of its own."""
        return self.directory / self.kme_id

    @property
    def config_path(self) -> Path:
        """The KME's configuration."""
        return self.kme_directory / "hsmkme.toml"

    @property
    def description_path(self) -> Path:
        """``demo.json``: the stable interface for programs."""
        return self.directory / "demo.json"

    @property
    def url(self) -> str:
        """Where SAEs reach the KME."""
        return f"https://localhost:{self.port}"

    @property
    def sae_ids(self) -> list[str]:
        """The SAEs."""
        return [f"sae-{number}" for number in range(1, self.saes + 1)]

    def prepare(self) -> None:
        """Make what is missing. Each step leaves what it made whole, so an interrupted run can be repeated."""
        self.kme_directory.mkdir(parents=True, exist_ok=True)
        authority = Authority(self.directory / "ca")
        if not (self.kme_directory / "server" / "cert.pem").exists():
            authority.issue_server(self.kme_id, self.kme_directory / "server")
            self.say("development CA and server certificate made")
        self._write_settings()
        store = self._open_store()
        if not store.registry.epochs():
            self._first_ceremony(store)
            self._first_deposit()
        self._enrol(authority, store)
        store.close()

    def _write_settings(self) -> None:
        tokens = self.kme_directory / "tokens"
        tokens.mkdir(exist_ok=True, mode=0o700)
        (self.kme_directory / "softhsm2.conf").write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\n"
            "log.level = ERROR\nslots.removable = false\nlibrary.reset_on_fork = true\n"
        )
        bind = [f"127.0.0.1:{self.port}"]
        if Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text().strip():
            bind.append(f"[::1]:{self.port}")
        self.config_path.write_text(
            _CONFIG.format(
                kme=self.kme_id, label=self.token_label, bind=json.dumps(bind), workers=self.workers, link=LINK
            )
        )
        for name in ("pin", "so-pin"):
            if not (self.kme_directory / name).exists():
                write_private(self.kme_directory / name, secrets.token_hex(8).encode())

    @property
    def token_label(self) -> str:
        """The label of the KME's token."""
        return f"hsmkme-{self.kme_id}"

    def _open_store(self) -> Store:
        settings = configuration.load(self.config_path)
        if migrate(settings.store):
            self.say("store created")
        return bootstrap.open_store(settings)

    def _first_ceremony(self, store: Store) -> None:
        settings = configuration.load(self.config_path)
        transcript = Transcript(self.kme_directory / f"ceremony-first-{int(time.time())}.jsonl", time.time)
        try:
            keys = steps.first(
                bootstrap.token_address(settings.token),
                bootstrap.pin_source(self.kme_directory / "so-pin"),
                bootstrap.pin_source(settings.token.pin_file),
                transcript,
            )
        except OperatorFault as fault:
            raise OperatorFault(f"{fault}. An earlier start was interrupted: remove {self.directory}") from fault
        bootstrap.admit_first_epoch(store, keys.check_value, transcript.digest)
        self.say(f"first ceremony: token {self.token_label}, master/1 {keys.check_value}, audit key; {transcript.path}")

    def _first_deposit(self) -> None:
        if not self.keys:
            return
        parts = bootstrap.open_parts(self.config_path)
        started = time.monotonic()
        device = Simulator(LINK, secrets.token_bytes(32), 256, parts.config.keys.block_keys, self.keys)
        tally = parts.intake().run(device)
        parts.token.close()
        parts.store.close()
        self.say(f"{tally.keys} keys deposited in {time.monotonic() - started:.1f} s, sealed by the token")

    def _enrol(self, authority: Authority, store: Store) -> None:
        for sae_id in self.sae_ids:
            home = self.directory / "saes" / sae_id
            if not (home / "bundle.pem").exists():
                for stale in ("cert.pem", "key.pem"):
                    (home / stale).unlink(missing_ok=True)
                certificate, key = authority.issue_sae(sae_id, home)
                write_private(home / "bundle.pem", certificate.read_bytes() + key.read_bytes())
            store.registry.add_sae(sae_id, self.kme_id, Entry("sae.add", ACTOR))
        for master in self.sae_ids:
            for slave in self.sae_ids:
                if master != slave:
                    store.registry.allow(master, slave, Entry("pair.allow", ACTOR))

    def describe(self, pids: list[int]) -> dict[str, Any]:
        """The content of ``demo.json``."""
        kme = {
            "id": self.kme_id,
            "url": self.url,
            "config": str(self.config_path),
            "store": str(self.kme_directory / "store.sqlite"),
            "token_label": self.token_label,
            "softhsm_conf": str(self.kme_directory / "softhsm2.conf"),
            "pids": pids,
        }
        saes = [
            {"id": sae_id, "kme": self.kme_id}
            | {name: str(self.directory / "saes" / sae_id / f"{file}.pem") for name, file in _FILES}
            for sae_id in self.sae_ids
        ]
        return {"ca": str(self.directory / "ca" / "ca.pem"), "kmes": [kme], "saes": saes}


_FILES: Final = (("cert", "cert"), ("key", "key"), ("bundle", "bundle"))
