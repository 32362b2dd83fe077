"""A directory like that of a KME: configuration, PIN file and store, on a token of the tests. Nothing runs in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hsmkme import config as configuration
from hsmkme.audit import AuditChain
from hsmkme.config import Config
from hsmkme.custody import Custody
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.intake import Intake
from hsmkme.model import Clock, Entry
from hsmkme.store import Store, migrate
from tests.conftest import PIN
from tests.processes import Done, hsmkme

_CONFIG = """\
kme_id = "kme-1"
store = "store.sqlite"
[token]
label = "{label}"
softhsm_conf = "{conf}"
pin_file = "pin"
[server]
certificate = "cert.pem"
key = "key.pem"
sae_ca = "ca.pem"
[[link]]
id = "local"
peer = "kme-1"
[[link]]
id = "far"
peer = "kme-2"
key_bits = 128
[peering]
certificate = "peer-cert.pem"
key = "peer-key.pem"
ca = "peer-ca.pem"
[[peer]]
id = "kme-2"
url = "https://localhost:9444"
"""


@dataclass(frozen=True)
class Site:
    """The directory, and the token that its configuration names."""

    directory: Path
    token: Token

    @property
    def config(self) -> Path:
        return self.directory / "hsmkme.toml"

    @property
    def path(self) -> Path:
        return self.directory / "store.sqlite"

    @property
    def public_key(self) -> Path:
        return self.directory / "audit.pem"

    @property
    def settings(self) -> Config:
        return configuration.load(self.config)

    def open(self, clock: Clock) -> tuple[Store, Custody]:
        store = Store(self.path, AuditChain(), clock)
        return store, Custody(sole(self.token), store, clock)

    def open_store(self, clock: Clock) -> Store:
        """The store alone: nobody looks at what the token remembers."""
        return Store(self.path, AuditChain(), clock)

    def intake(self, custody: Custody, limit: int = 1_000_000) -> Intake:
        return Intake(custody, "kme-1", self.settings.links, limit)

    def hsmkme(self, *arguments: object) -> Done:
        """Run a command of `hsmkme` here."""
        return hsmkme("--config", self.config, *arguments)

    def change_config(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new, 1))

    def enrol(self, needed: int, *names: str) -> None:
        """Make a key for each officer, in files of their names, and write them into the configuration."""
        for name in names:
            key = Ed25519PrivateKey.generate()
            (self.directory / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            (self.directory / name).chmod(0o400)
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            (self.directory / f"{name}.pub").write_bytes(public + b"\n")
        lines = ", ".join(f'{{ name = "{name}", key = "{name}.pub" }}' for name in names)
        self.change_config("[token]", f"[approvals]\nneeded = {needed}\nofficers = [{lines}]\n[token]")


def make_site(directory: Path, token: Token, label: str, softhsm_conf: Path) -> Site:
    """A site in ``directory`` whose store knows epoch 1 of ``token`` and the configured links."""
    site = Site(directory, token)
    site.config.write_text(_CONFIG.format(label=label, conf=softhsm_conf))
    (directory / "pin").write_text(PIN)
    (directory / "pin").chmod(0o400)
    migrate(site.path)
    store = Store(site.path, AuditChain(), lambda: 1_800_000_000.0)
    store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", "ceremony"))
    store.registry.admit_links(site.settings.links, Entry("link.admit", "config"))
    store.close()
    return site
