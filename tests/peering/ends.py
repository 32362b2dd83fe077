"""Two ends of the link `far` in one process: real stores, the shared token, real messages; no network between them.

kme-1 has a master and two more links: `near`, to a kme-2 that says yes to everything. kme-3 is at the other end of
`far`. Both use one token, so what one sealed the other could open: a test of who may open what needs two.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from hsmkme.agreement import Agreement
from hsmkme.audit import AuditChain
from hsmkme.custody import Custody
from hsmkme.errors import PeerUnavailable
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.identifiers import KeyIds
from hsmkme.messages.bodies import Assigned, AssignResult, Standing, parsed
from hsmkme.messages.signing import VERSION, Envelope, Message, signature_header
from hsmkme.model import BlockName, Clock, Demand, Entry, KeyMaterial, Link, RawBlock, Relation
from hsmkme.peering import Answer, Peering
from hsmkme.states import BlockState
from hsmkme.store import Draft, Store, migrate
from tests.conftest import FakeClock

MASTER, AT_NEAR, AT_FAR, ALSO_AT_FAR, AT_HOME = "m", "s-near", "s-far", "t-far", "s-home"
SERVED = {MASTER: "kme-1", AT_HOME: "kme-1", AT_NEAR: "kme-2", AT_FAR: "kme-3", ALSO_AT_FAR: "kme-3"}
RELATION = Relation.of(MASTER, [AT_NEAR, AT_FAR, AT_HOME])


@dataclass
class End:
    """One KME: its store, and what works on it."""

    kme_id: str
    store: Store
    token: Token
    custody: Custody
    path: Path

    def deposit(self, block: RawBlock, *, mine: bool, tag: bytes) -> None:
        """A block that both ends have and have compared."""
        sealed = replace(self.token.seal(block, 1), mine=mine, tag=tag)
        self.store.blocks.deposit([sealed], BlockState.READY, 1_000_000, Entry("block.deposit", "device"))

    def state_of(self, key_id: UUID) -> str:
        return str(self.store.keys.held([key_id])[key_id].state)

    def events(self, prefix: str = "") -> list[str]:
        return [row.text for row in self.store.log.latest(1000, prefix)]

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with self.store.log._database.read() as connection:
            return list(connection.execute(statement, values))


@dataclass
class Wire:
    """Carries messages of kme-1: those of `near` are answered as ``near`` says, those of `far` by ``far``.

    ``lose``: how many answers of `far` are lost from now on; ``cut``: messages do not even get there.
    """

    home: End
    far: Peering
    clock: Clock
    near: AssignResult = "assigned"
    lose: int = 0
    cut: bool = False
    sent: list[Draft] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def send(self, draft: Draft) -> bytes:
        self.sent.append(draft)
        if draft.link_id == "near":
            return Assigned(result=self.near, log_rows=0).encoded()
        if self.cut:
            raise PeerUnavailable("cut")
        self.answers.append(self.say(draft))
        if self.lose:
            self.lose -= 1
            raise PeerUnavailable("the answer was lost")
        assert self.answers[-1].status == 200, self.answers[-1].body
        return self.answers[-1].body

    def say(self, draft: Draft, body: bytes | None = None) -> Answer:
        """Send a signed message; ``body``: what it is made into on the way, after it was signed."""
        envelope = Envelope(draft.link_id, "kme-1", draft.txid, draft.seq, draft.incarnation, int(self.clock()) + 30)
        message = Message(draft.call, envelope, draft.body)
        signature = signature_header(self.home.custody.link_mac(draft.link_id, message.covered()))
        headers = {**message.headers(), "Signature": signature}
        return self.far.answer("kme-1", draft.call, headers, draft.body if body is None else body)


@dataclass
class Ends:
    """kme-1 and kme-3 in touch, and eight keys of 256 bits on each link that kme-1 may assign."""

    home: End
    away: End
    wire: Wire
    clock: FakeClock
    block: RawBlock = field(init=False)

    @property
    def agreement(self) -> Agreement:
        return Agreement("kme-1", self.home.custody, self.wire, KeyIds(self.clock), self.clock, lambda _: None)

    def fill(self, link_id: str, block_id: str, keys: int = 8) -> RawBlock:
        """One more block that kme-1 may assign, at both ends of `far` or at this end of `near`."""
        block = RawBlock(BlockName(link_id, block_id), 256, KeyMaterial(os.urandom(32 * keys)))
        self.home.deposit(block, mine=True, tag=bytes(16))
        if link_id == "far":
            self.away.deposit(block, mine=False, tag=bytes(16))
        return block

    def demand(self, number: int = 1, size: int = 256, relation: Relation = RELATION) -> Demand:
        elsewhere = frozenset(sae for sae in relation.slaves if SERVED[sae] != "kme-1")
        return Demand(relation, "kme-2", size, KeyIds(self.clock)(number), elsewhere, ("kme-3",))

    def fetch(self, number: int = 1, size: int = 256) -> dict[UUID, bytes]:
        """What the master gets."""
        keys = self.agreement.release(self.demand(number, size), f"sae:{MASTER}")
        return {key.key_id: key.material.reveal() for key in keys}

    def collect(self, key_ids: list[UUID], slave: str = AT_FAR) -> dict[UUID, bytes]:
        """What a slave gets: at kme-3, or at kme-1."""
        end = self.away if SERVED[slave] == "kme-3" else self.home
        held = end.custody.held(key_ids)
        opened = end.custody.collect(slave, [held[key_id] for key_id in key_ids], f"sae:{slave}")
        return {key.key_id: key.material.reveal() for key in opened}


def made(directory: Path, token: Token, clock: FakeClock) -> Ends:
    """Both ends, in ``directory``."""
    home = _end("kme-1", [Link("near", "kme-2"), Link("far", "kme-3")], directory, token, clock)
    away = _end("kme-3", [Link("far", "kme-1")], directory, token, clock)
    peering = Peering("kme-3", [Link("far", "kme-1")], away.custody, away.store, clock)
    ends = Ends(home, away, Wire(home, peering, clock), clock)
    ends.block = ends.fill("far", "block-1")
    ends.fill("near", "block-1")
    greet(ends)
    return ends


def greet(ends: Ends) -> None:
    """The two ends, and the one that says yes, hear of each other now."""
    answer = ends.wire.say(ends.home.store.outbox.number("far", "hello", ends.home.store.links.hello("far", [VERSION])))
    assert answer.status == 200, answer.body
    for link_id in ("far", "near"):
        ends.home.store.links.heard(link_id, parsed(Standing, answer.body))


def _end(kme_id: str, links: list[Link], directory: Path, token: Token, clock: FakeClock) -> End:
    path = directory / f"{kme_id}.sqlite"
    migrate(path)
    store = Store(path, AuditChain(), clock)
    store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", "test"))
    store.registry.admit_links(links, Entry("link.admit", "test"))
    for sae_id, serving in SERVED.items():
        store.registry.add_sae(sae_id, serving, Entry("sae.add", "test"))
    for slave in SERVED.keys() - {MASTER}:
        store.registry.allow(MASTER, slave, Entry("pair.allow", "test"))
    return End(kme_id, store, token, Custody(sole(token), store, clock), path)
