"""A KME whose master keys a test changes: what a working process has, and what rotates beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pkcs11 import Attribute, ObjectClass

from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.masters import MasterKeys
from hsmkme.identifiers import KeyIds
from hsmkme.model import BlockName, Demand, KeyMaterial, OpenKey, RawBlock, Relation
from hsmkme.rotation import Rotation
from hsmkme.states import BlockState
from tests.conftest import PIN, FakeClock
from tests.sites import Site, make_site

RELATION = Relation.of("sae-1", ["sae-2"])
KEYS = 4
"""Of a block."""


class Kme:
    """Service and rotation under one login: the token allows a process no second."""

    def __init__(self, site: Site, clock: FakeClock) -> None:
        self.site, self.clock, self.token = site, clock, site.token
        self.store, self.custody = site.open(clock)
        self.rotation = Rotation(site.token, self.store, clock, "officer")
        self.plain: dict[str, bytes] = {}

    def deposit(self, name: str, link: str = "local") -> None:
        self.plain[name] = os.urandom(32 * KEYS)
        block = RawBlock(BlockName(link, name), 256, KeyMaterial(self.plain[name]))
        self.custody.deposit([block], BlockState.READY, 1_000_000, "device")

    def fetch(self, number: int, relation: Relation = RELATION) -> list[OpenKey]:
        key_ids = KeyIds(self.clock)(number)
        return self.custody.release(Demand(relation, "kme-1", 256, key_ids), f"sae:{relation.master}")

    def collect(self, keys: list[OpenKey], slave: str = "sae-2") -> list[OpenKey]:
        held = self.custody.held([key.key_id for key in keys])
        return self.custody.collect(slave, [held[key.key_id] for key in keys], f"sae:{slave}")

    def are_of(self, keys: list[OpenKey], *blocks: str) -> bool:
        """Whether these are all the keys of the blocks, in order."""
        return b"".join(key.material.reveal() for key in keys) == b"".join(self.plain[name] for name in blocks)

    def states(self) -> dict[int, str]:
        return {epoch.number: str(epoch.state) for epoch in self.store.epochs.all()}

    def turn_over(self) -> None:
        """A whole rotation."""
        active = self.store.epochs.active()[self.token.name]
        self.rotation.rotate(because="test")
        self.rotation.rewrap(active)
        self.rotation.shred(active)

    def rows(self, event: str) -> list[str]:
        """Texts of the log's rows whose event begins so."""
        return [row.text for row in self.store.log.latest(10_000, event)]

    def masters(self) -> list[str]:
        return labels(self.token, "master/")


def same(one: list[OpenKey], other: list[OpenKey]) -> bool:
    """Whether both are the same keys."""
    return [(k.key_id, k.material.reveal()) for k in one] == [(k.key_id, k.material.reveal()) for k in other]


def labels(token: Token, prefix: str) -> list[str]:
    """The secret keys of a token whose labels begin so."""
    kind = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
    return token.runner.run(
        "listing", lambda lane: sorted(f.label for f in lane.session.get_objects(kind) if f.label.startswith(prefix))
    )


@contextmanager
def new_kme(address: TokenAddress, directory: Path, clock: FakeClock) -> Iterator[Kme]:
    """A KME that begins with epoch 1, on a token that the one before may have left with others."""
    token = Token(address, lambda: PIN)
    masters = MasterKeys(token.runner)
    for label in labels(token, "master/"):
        masters.destroy(int(label.removeprefix("master/")))
    masters.make(1)
    assert address.softhsm_conf is not None
    kme = Kme(make_site(directory, token, address.label, address.softhsm_conf), clock)
    yield kme
    kme.store.close()
    token.close()
