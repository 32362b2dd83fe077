"""Two whole KMEs in one process: real token, real stores, real client and server of kme-peer/1, no sockets between.

What the network does to a message is said by a `Fault` (`line.py`). `Pair.judge` says whether I1, I2, I3 hold after
whatever happened.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message as Headers
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkme import bootstrap, verify
from hsmkme import config as configuration
from hsmkme.agreement import Agreement
from hsmkme.audit import AuditChain
from hsmkme.custody import Custody
from hsmkme.errors import HsmkmeError
from hsmkme.fairuse import FairUse
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.identifiers import KeyIds
from hsmkme.intake import Intake
from hsmkme.kme import Kme
from hsmkme.liaison import HELLO_SECONDS, Liaison
from hsmkme.messages.signing import Message, owner_of, signature_header
from hsmkme.model import BlockName, Entry, KeyMaterial, OpenKey, RawBlock, Relation
from hsmkme.peering import Peering
from hsmkme.peers import Peers
from hsmkme.policy import KeyRequest
from hsmkme.store import Store, migrate
from hsmkme.store.counters import Counters
from hsmkme.upkeep import Upkeep
from tests.conftest import FakeClock
from tests.peering.line import Line, Request
from tests.pki import Request as Paper
from tests.pki import TestAuthority

LINK = "far"
SAES = {"a1": "kme-1", "a2": "kme-1", "b1": "kme-2", "b2": "kme-2"}
BITS = 256
TOGETHER = ("a1", "b1"), ("b1", "a1")
"""A master and a slave, in both directions."""

_CONFIG = """\
kme_id = "{kme}"
store = "store.sqlite"
[token]
label = "both"
pin_file = "pin"
[server]
certificate = "{cert}"
key = "{key}"
sae_ca = "{ca}"
[keys]
uncollected_seconds = 600
[peering]
certificate = "{cert}"
key = "{key}"
ca = "{ca}"
[[peer]]
id = "{peer}"
url = "https://localhost:1"
[[link]]
id = "far"
peer = "{peer}"
[[link]]
id = "other"
peer = "{peer}"
[[link]]
id = "local"
peer = "{kme}"
"""


@dataclass(frozen=True)
class PeerPapers:
    """Certificates of both ends, for the TLS contexts that their clients build."""

    ca: Path
    pairs: dict[str, tuple[str, str]]

    @classmethod
    def issued(cls, directory: Path) -> PeerPapers:
        authority = TestAuthority()
        (directory / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        usage = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        pairs = {
            kme: authority.issue(directory / kme, Paper(uris=[f"urn:qkd:kme:{kme}"], dns=["localhost"], usage=usage))
            for kme in ("kme-1", "kme-2")
        }
        return cls(directory / "ca.pem", pairs)


class LinePeers(Peers):
    """The product's client, whose exchanges go over a `Line` in place of a connection."""

    line: Line

    def _exchange(
        self, peer: str, message: Message, signature: bytes
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {**message.headers(), "Signature": signature_header(signature)}
        reply = self.line.carry(Request(self._kme_id, peer, message.call, headers, message.body))
        given: Headers = http.client.HTTPMessage()
        for name, value in reply.headers.items():
            given[name] = value
        return reply.status, given, reply.body  # type: ignore[return-value]


@dataclass
class End:
    """One KME: what its processes have, in one."""

    kme_id: str
    directory: Path
    token: Token
    clock: FakeClock
    line: Line
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.config = configuration.load(self.directory / "hsmkme.toml")
        if not self.path.exists():
            migrate(self.path)
            store = Store(self.path, AuditChain(), self.clock)
            store.epochs.admit(1, self.token.check_value(1), Entry("epoch.activate", "ceremony"))
            for sae, kme in SAES.items():
                store.registry.add_sae(sae, kme, Entry("sae.add", "test"))
            for master, slave in itertools.permutations(SAES, 2):
                store.registry.allow(master, slave, Entry("pair.allow", "test"))
            store.registry.admit_links(self.config.links, Entry("link.admit", "config"))
            store.close()
        self.start()

    @property
    def path(self) -> Path:
        return self.config.store

    @property
    def peer(self) -> str:
        return self.config.peer[0].id

    # Life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As `hsmkme serve`, `serve-peers` and `upkeep` start."""
        self.store = Store(self.path, AuditChain(), self.clock)
        bootstrap.begin_on(self.store, self.config, void=True)
        self.custody = Custody(sole(self.token), self.store, self.clock)
        self.peers = LinePeers(self.config, self.custody.link_mac, self.clock, self.clock)
        self.peers.line = self.line
        self.agreement = Agreement(self.kme_id, self.custody, self.peers, self.new_ids, self.clock, self.sleep)
        self.peering = Peering(self.kme_id, self.config.links, self.custody, self.store, self.clock)
        self.liaison = Liaison(
            self.kme_id, self.config.links, self.store, self.peers, self.agreement, self.elsewhere, self.clock
        )
        counters = Counters(self.directory / "counters", self.clock)
        fair_use = FairUse(self.config.fair_use, counters, self.store.log.append, self.clock)
        self.kme = Kme(
            *(self.kme_id, self.custody, self.store, self.config.keys, fair_use, self.clock, self.new_ids),
            self.agreement,
        )
        self.intake = Intake(self.custody, self.kme_id, self.config.links, self.config.keys.max_key_count)
        # both ends have one token in common, which can remember one store only: see test_restore.py
        self.upkeep = Upkeep(self.config, self.custody, self.store, self.clock, lambda _: None)

    def stop(self) -> None:
        """As all three processes end: nothing but the file is left."""
        self.store.close()

    def crash(self) -> None:
        """kill -9 of all processes, and their start."""
        self.stop()
        self.start()

    def backup(self, name: str = "backup") -> Path:
        """A copy of the store as it is."""
        copy = self.directory / f"{name}.sqlite"
        copy.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(self.path)) as source, contextlib.closing(sqlite3.connect(copy)) as to:
            source.backup(to)
        return copy

    def restore(self, copy: Path) -> None:
        """An operator puts a copy in place of the store, and starts the KME."""
        self.stop()
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.write_bytes(copy.read_bytes())
        self.start()

    def new_ids(self, number: int) -> tuple[UUID, ...]:
        return KeyIds(self.clock)(number)

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def elsewhere(self, relation: Relation) -> frozenset[str]:
        return bootstrap.served_elsewhere(self.store, self.kme_id, relation)

    # What SAEs and the operator see -------------------------------------------------------------------------

    def enc(self, master: str, *slaves: str, number: int = 1, size: int = BITS) -> dict[str, bytes]:
        """Get key; key bytes by key_ID."""
        return opened(self.kme.get_key(master, slaves[0], KeyRequest(number, size, tuple(slaves[1:]))))

    def dec(self, slave: str, master: str, key_ids: Sequence[str]) -> dict[str, bytes]:
        """Get key with key IDs."""
        return opened(self.kme.get_key_with_ids(slave, master, [UUID(key_id) for key_id in key_ids]))

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(text) for (text,) in self.rows("SELECT text FROM log ORDER BY seq")]

    def events(self, prefix: str = "") -> list[str]:
        return [row["event"] for row in self.log() if row["event"].startswith(prefix)]

    @property
    def alarms(self) -> list[str]:
        return self.events("alarm.")

    def why(self, link: str = LINK) -> str:
        """Why a link is frozen here; empty if it is open."""
        return self.store.links.state(link).why

    def keys(self) -> dict[str, tuple[str, bool]]:
        """State of every key, and whether its master is here, by key_ID."""
        return {str(UUID(bytes=k)): (state, bool(mine)) for k, state, mine in self.rows(_KEYS)}

    def segments(self) -> Iterator[tuple[tuple[str, str, int], str, str, str]]:
        """(link, block, segment), key_ID, relation and state, for every segment of every key."""
        names = {pk: (link, block) for pk, link, block in self.rows("SELECT block_pk, link_id, block_id FROM block")}
        for key_id, master, slaves, parts, state in self.rows(_PARTS):
            for pk, first, count in json.loads(parts):
                for segment in range(first, first + count):
                    yield (*names[pk], segment), str(UUID(bytes=key_id)), f"{master}{slaves}", state

    def owned(self) -> dict[str, tuple[bool, int, str]]:
        """Owner, epoch of ownership and state of each block of the links to the peer."""
        rows = self.rows("SELECT link_id, block_id, mine, own_epoch, state FROM block WHERE tag IS NOT NULL")
        return {f"{link}/{block}": (bool(mine), epoch, state) for link, block, mine, epoch, state in rows}


_KEYS = "SELECT key_id, state, mine FROM key"
_PARTS = "SELECT key_id, master, slaves, parts, state FROM key JOIN relation USING (relation_id)"


def opened(keys: Sequence[OpenKey]) -> dict[str, bytes]:
    return {str(key.key_id): key.material.reveal() for key in keys}


@dataclass
class Pair:
    """Both ends, the line between, and what every SAE got."""

    a: End
    b: End
    line: Line
    clock: FakeClock
    masters: dict[str, list[tuple[str, tuple[str, ...], bytes]]] = field(default_factory=dict)
    slaves: dict[tuple[str, str], bytes] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=partial(itertools.count, 1))

    @classmethod
    def made(cls, directory: Path, clock: FakeClock, tokens: dict[str, Token], papers: PeerPapers) -> Pair:
        line = Line()
        for kme, peer in (("kme-1", "kme-2"), ("kme-2", "kme-1")):
            home = directory / kme
            home.mkdir()
            certificate, key = papers.pairs[kme]
            text = _CONFIG.format(kme=kme, peer=peer, cert=certificate, key=key, ca=papers.ca)
            (home / "hsmkme.toml").write_text(text)
        a, b = (End(kme, directory / kme, tokens[kme], clock, line) for kme in ("kme-1", "kme-2"))
        line.ends = {"kme-1": a, "kme-2": b}
        return cls(a, b, line, clock)

    @property
    def ends(self) -> tuple[End, End]:
        return self.a, self.b

    def serving(self, sae: str) -> End:
        return self.a if SAES[sae] == self.a.kme_id else self.b

    def close(self) -> None:
        for end in self.ends:
            end.stop()

    # What happens -------------------------------------------------------------------------------------------

    def deposit(
        self, *ends: End, keys: int = 4, owner: str | None = None, link: str = LINK, name: str | None = None
    ) -> str:
        """A block of random keys at each of ``ends``, or at both; gives its id."""
        while name is None:
            new = f"block-{next(self.names)}"
            name = new if owner in (None, owner_of(link, new, "kme-1", "kme-2")) else None
        material = os.urandom(keys * BITS // 8)
        for end in ends or self.ends:
            end.intake.take([RawBlock(BlockName(link, name), BITS, KeyMaterial(material))], "device")
        return name

    def fill(self, blocks: int, keys: int = 4, link: str = LINK) -> None:
        """So many blocks of each owner, at both ends."""
        for kme in ("kme-1", "kme-2"):
            for _ in range(blocks):
                self.deposit(keys=keys, owner=kme, link=link)

    def rounds(self, number: int = 3, step: float = HELLO_SECONDS) -> None:
        """Let both liaisons and upkeeps do what is due, while time goes by."""
        for _ in range(number):
            for end in self.ends:
                end.liaison.round()
                end.upkeep.tick()
            self.clock.now += step

    def enc(self, master: str, *slaves: str, number: int = 1, size: int = BITS) -> dict[str, bytes]:
        """Get key at the master's KME; what it got is remembered."""
        keys = self.serving(master).enc(master, *slaves, number=number, size=size)
        for key_id, value in keys.items():
            self.masters.setdefault(key_id, []).append((master, tuple(sorted(slaves)), value))
        return keys

    def dec(self, slave: str, master: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Get key with key IDs at the slave's KME; what it got is remembered."""
        found = self.serving(slave).dec(slave, master, keys)
        self.slaves.update({(key_id, slave): value for key_id, value in found.items()})
        return found

    def exchange(self, master: str, *slaves: str, number: int = 1, size: int = BITS) -> dict[str, bytes]:
        """Keys for the master, collected by every slave: the same bytes."""
        keys = self.enc(master, *slaves, number=number, size=size)
        assert len(keys) == number
        for slave in slaves:
            assert self.dec(slave, master, list(keys)) == keys
        return keys

    def refused(self, master: str, *slaves: str, number: int = 1) -> HsmkmeError | None:
        """Get key, which may be refused: the refusal, if it is."""
        try:
            self.enc(master, *slaves, number=number)
        except HsmkmeError as error:
            return error
        return None

    def heal(self) -> None:
        """The network works again, and time goes by until all is well."""
        self.line.heal()
        self.clock.now += 1
        self.rounds(4)
        assert [end.why() for end in self.ends] == ["", ""]

    # What must be true --------------------------------------------------------------------------------------

    def works(self) -> None:
        """Keys are exchanged in both directions."""
        for master, slave in TOGETHER:
            self.exchange(master, slave)

    def judge(self) -> None:
        """I1, I2 and I3, whatever happened. Time goes by until everything that waits has ended."""
        self._one_relation_for_each_key()
        self._slaves_get_what_masters_got()
        self.clock.now += 2 * self.a.config.keys.uncollected_seconds
        self.rounds(3, 61)
        for end in self.ends:
            self._everything_ended(end)
            prove(end)

    def _one_relation_for_each_key(self) -> None:
        for key_id, given in self.masters.items():
            assert len(given) == 1, f"{key_id} went to a master {len(given)} times"
        used: dict[tuple[str, str, int], tuple[str, str]] = {}
        for end in self.ends:
            for segment, key_id, relation, _ in end.segments():
                before = used.setdefault(segment, (key_id, relation))
                delivered = {key_id, before[0]} & self.masters.keys()
                assert before == (key_id, relation) or len(delivered) < 2, f"{segment} is of two keys"
        values = [value for given in self.masters.values() for _, _, value in given]
        assert len(set(values)) == len(values), "two keys are the same bytes"

    def _slaves_get_what_masters_got(self) -> None:
        alarmed = {key for end in self.ends for row in end.log() if row["event"].startswith("alarm.")
                   for key in row.get("key_IDs", ())}
        parts = [part for end in self.ends for part in end.segments()]
        for key_id, [(master, slaves, value)] in self.masters.items():
            blocks = {f"{link}/{block}" for (link, block, _), key, _, _ in parts if key == key_id}
            for slave in slaves:
                end = self.serving(slave)
                if not blocks <= end.owned().keys() and "alarm.store-restored" in end.alarms:
                    continue  # the copy was made before the block came: what it holds is gone, and an alarm says so
                if (key_id, slave) not in self.slaves and key_id not in alarmed:
                    self.dec(slave, master, [key_id])
                found = self.slaves.get((key_id, slave))
                assert found == value or key_id in alarmed, f"{slave} cannot have {key_id}, and nobody says so"
        for key_id, slave in self.slaves:
            assert key_id in self.masters, f"{slave} has {key_id}, which its master does not have"

    def _everything_ended(self, end: End) -> None:
        told = {key for row in end.log() for key in row.get("key_IDs", ())}
        for key_id, (state, _) in end.keys().items():
            assert state in ("consumed", "void"), f"{key_id} is {state} at {end.kme_id} for ever"
            assert key_id in told, f"no record of {key_id} at {end.kme_id}"
        for name, (_, _, state) in end.owned().items():
            assert state != "deposited", f"{name} waits for ever at {end.kme_id}"


def prove(end: End) -> None:
    """The audit log proves itself to the verifier that shares no code."""
    end.custody.logbook.seal()
    export, key = end.directory / "export.jsonl", end.directory / "audit.pem"
    export.write_text("".join(row + "\n" for row in end.custody.logbook.export(end.kme_id)))
    key.write_bytes(end.custody.logbook.public_keys())
    assert verify.main([str(export), str(key)]) == 0
