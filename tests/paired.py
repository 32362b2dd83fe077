"""A KME with two tokens, `a` and `b`, one of which a test takes away; what works with them is in the test's process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.audit import AuditChain
from hsmkme.custody import Custody
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.breaker import Breaker
from hsmkme.hsm.masters import MasterKeys
from hsmkme.identifiers import KeyIds
from hsmkme.model import BlockName, Demand, Entry, KeyMaterial, Link, OpenKey, RawBlock, Relation
from hsmkme.rotation import Rotation
from hsmkme.spreading import Spreading
from hsmkme.states import BlockState
from hsmkme.store import Store, migrate
from tests.conftest import FakeClock
from tests.rotating import labels
from tests.tokens import PIN

RELATION = Relation.of("sae-1", ["sae-2"])
KEYS = 4
"""Of a block."""
_NUMBERS = itertools.count(1)
_CONFIG = """\
kme_id = "kme-1"
store = "store.sqlite"
{tokens}
[server]
certificate = "cert.pem"
key = "key.pem"
sae_ca = "ca.pem"
{links}
"""
_TOKEN = """
[[token]]
label = "{label}"
softhsm_conf = "{conf}"
pin_file = "pin"
"""
_LINK = """
[[link]]
id = "{link}"
peer = "kme-1"
tokens = {tokens}
"""


@dataclass
class Kme:
    """A process of a KME: it has a login of its own on each token."""

    directory: Path
    clock: FakeClock

    def __post_init__(self) -> None:
        self.settings = configuration.load(self.directory / "hsmkme.toml")
        self.tokens = bootstrap.open_tokens(self.settings)
        self.store = Store(self.settings.store, AuditChain(), self.clock)
        self.custody = Custody(self.tokens, self.store, self.clock)
        self.spreading = Spreading(self.tokens, self.store, "upkeep")

    def close(self) -> None:
        self.store.close()
        self.tokens.close()

    def rotation(self, token: str) -> Rotation:
        return Rotation(self.tokens[token], self.store, self.clock, "officer")

    def spread(self) -> None:
        self.spreading.keep(self.settings.links, 10_000)

    def turn_over(self, token: str) -> None:
        """A whole rotation of a token."""
        rotation, old = self.rotation(token), self.store.epochs.active()[token]
        rotation.rotate(because="test")
        rotation.rewrap(old)
        rotation.shred(old)

    def deposit(self, name: str, link: str = "both", keys: int = KEYS) -> bytes:
        plain = os.urandom(32 * keys)
        block = RawBlock(BlockName(link, name), 256, KeyMaterial(plain))
        self.custody.deposit([block], BlockState.READY, 1_000_000, "device")
        return plain

    def fetch(self, number: int = KEYS) -> list[OpenKey]:
        demand = Demand(RELATION, "kme-1", 256, KeyIds(self.clock)(number))
        return self.custody.release(demand, "sae:sae-1")

    def collect(self, keys: Sequence[OpenKey]) -> list[OpenKey]:
        held = self.custody.held([key.key_id for key in keys])
        return self.custody.collect("sae-2", [held[key.key_id] for key in keys], "sae:sae-2")

    def wraps(self, name: str) -> dict[str, bytes]:
        """The wrapped keys of a block, by the token that has the master key."""
        with self.store._database.read() as connection:
            return dict(
                connection.execute(
                    "SELECT token, wrapped FROM block JOIN epoch USING (epoch) WHERE block_id = :name UNION ALL"
                    " SELECT token, copy.wrapped FROM copy JOIN block USING (block_pk)"
                    " JOIN epoch ON epoch.epoch = copy.epoch WHERE block_id = :name",
                    {"name": name},
                ).fetchall()
            )

    def alarms(self) -> list[str]:
        return [row.text for row in self.store.log.latest(1000, "alarm")]


def bytes_of(keys: Sequence[OpenKey]) -> bytes:
    return b"".join(key.material.reveal() for key in keys)


def same(keys: Sequence[OpenKey], plain: bytes) -> bool:
    """Whether these are the bytes; asked so that nothing prints them."""
    return bytes_of(keys) == plain


def table_of(address: TokenAddress) -> str:
    """A token in the configuration."""
    return _TOKEN.format(label=address.label, conf=address.softhsm_conf)


def make_home(
    directory: Path, addresses: Sequence[TokenAddress], links: Mapping[str, Sequence[str]], clock: FakeClock
) -> Path:
    """A configuration and a store that knows the first master key; each token has an epoch."""
    tokens = "".join(table_of(one) for one in addresses)
    tables = "".join(_LINK.format(link=link, tokens=list(names)) for link, names in links.items())
    (directory / "hsmkme.toml").write_text(_CONFIG.format(tokens=tokens, links=tables))
    (directory / "pin").write_text(PIN)
    (directory / "pin").chmod(0o400)
    migrate(directory / "store.sqlite")
    store = Store(directory / "store.sqlite", AuditChain(), clock)
    store.registry.admit_links([Link(link, "kme-1") for link in links], Entry("link.admit", "config"))
    for number, address in enumerate(addresses, start=1):
        store.epochs.admit(number, _only_master(address, number), Entry("epoch.activate", "test"), address.label)
    store.close()
    return directory


def _only_master(address: TokenAddress, epoch: int) -> str:
    """A new master key on a token that the test before may have left with others; gives its check value."""
    token = Token(address, lambda: PIN)
    masters = MasterKeys(token.runner)
    for label in labels(token, "master/"):
        masters.destroy(int(label.removeprefix("master/")))
    check_value = masters.make(epoch)
    token.close()
    return check_value


@contextmanager
def away(address: TokenAddress, directory: Path) -> Iterator[None]:
    """A token is pulled, and put back."""
    assert address.softhsm_conf is not None
    found = address.softhsm_conf.parent.glob("tokens/*/token.object")
    (path,) = (one.parent for one in found if address.label.encode() in one.read_bytes())
    elsewhere = directory / f"pulled-{next(_NUMBERS)}"
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


def healed(kme: Kme) -> None:
    """As after the pauses: every token is tried at once."""
    for seat in kme.tokens._seats.values():
        for breaker in (seat._breaker, seat.token and seat.token.runner._breaker):
            if isinstance(breaker, Breaker) and breaker._until is not None:
                breaker._until = 0.0
