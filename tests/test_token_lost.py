"""Does a KME with two tokens answer every request while one of them comes and goes? With workers and upkeep."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkme.hsm import TokenAddress
from hsmkme.model import Entry
from tests.conftest import FakeClock
from tests.paired import Kme, away, make_home
from tests.pki import Request, TestAuthority
from tests.tokens import made_pair
from tests.world import free_port, until

LABELS = ("lost-a", "lost-b")
BLOCKS = 12
CLIENTS = 4
FLAPS = 4


@pytest.fixture(scope="module")
def pair(softhsm: Path) -> tuple[TokenAddress, TokenAddress]:
    return made_pair(*LABELS, softhsm)


@dataclass
class Site:
    """A KME with keys on a link that both tokens hold, and the certificates of its SAEs."""

    home: Path
    port: int
    saes: dict[str, tuple[str, str]]

    def ask(self, session: requests.Session, caller: str, path: str, body: object = None) -> requests.Response:
        """GET, or POST if there is a ``body``."""
        session.trust_env, session.cert, session.verify = False, self.saes[caller], str(self.home / "ca.pem")
        method = "GET" if body is None else "POST"
        return session.request(method, f"https://localhost:{self.port}/api/v1/keys/{path}", json=body, timeout=60)

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A command that runs until it is stopped, its output in a file."""
        with (self.home / f"{command}.log").open("wb") as output:
            arguments = [sys.executable, "-m", "hsmkme", "--config", str(self.home / "hsmkme.toml"), command]
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Seen:
    """Statuses of answers, and keys as master and slave got them."""

    statuses: Counter[int] = field(default_factory=Counter)
    keys: dict[str, bytes] = field(default_factory=dict)
    collected: dict[str, bytes] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    enough: bool = False

    def note(self, answer: requests.Response, keys: dict[str, bytes]) -> list[str]:
        """Keep what came; gives the key_IDs."""
        with self.changed:
            self.statuses[answer.status_code] += 1
            found = answer.json().get("keys", [])
            new = {one["key_ID"]: base64.b64decode(one["key"]) for one in found}
            assert not new.keys() & keys.keys(), "given twice"
            keys |= new
            self.changed.notify_all()
        return list(new)

    def wait_for_more(self, answers: int) -> None:
        with self.changed:
            wanted = self.statuses.total() + answers
            assert self.changed.wait_for(lambda: self.statuses.total() >= wanted, 60)


@pytest.fixture
def site(pair: tuple[TokenAddress, TokenAddress], tmp_path: Path, clock: FakeClock) -> Site:
    home, port, authority = make_home(tmp_path, pair, {"both": LABELS}, clock), free_port(), TestAuthority()
    (home / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    authority.issue(home, Request(dns=["localhost"], usage=ExtendedKeyUsageOID.SERVER_AUTH))
    saes = {sae: authority.issue(home / sae, Request(uris=[f"urn:qkd:sae:{sae}"])) for sae in ("sae-1", "sae-2")}
    text = (home / "hsmkme.toml").read_text()
    (home / "hsmkme.toml").write_text(text.replace("[server]", f'[server]\nbind = ["127.0.0.1:{port}"]'))
    kme = Kme(home, clock)
    for sae in saes:
        kme.store.registry.add_sae(sae, "kme-1", Entry("sae.add", "test"))
    kme.store.registry.allow("sae-1", "sae-2", Entry("pair.allow", "test"))
    for number in range(BLOCKS):
        kme.deposit(f"block-{number}", keys=128)
    kme.close()
    return Site(home, port, saes)


def exchange(site: Site, seen: Seen) -> None:
    """Keys for the master, and the same for its slave, until it is enough."""
    with requests.Session() as master, requests.Session() as slave:
        while not seen.enough:
            answer = site.ask(master, "sae-1", "sae-2/enc_keys", {"number": 2, "size": 256})
            key_ids = seen.note(answer, seen.keys)
            if key_ids:
                wanted = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
                seen.note(site.ask(slave, "sae-2", "sae-1/dec_keys", wanted), seen.collected)


@pytest.mark.parametrize("lost", [0, 1], ids=LABELS)
def test_every_request_is_answered_while_one_token_comes_and_goes(
    site: Site, pair: tuple[TokenAddress, TokenAddress], lost: int, tmp_path: Path
) -> None:
    seen = Seen()
    with site.running("serve"), site.running("upkeep"):
        until(lambda: _answers(site), 60, "the server answers")
        clients = [threading.Thread(target=exchange, args=(site, seen)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(FLAPS):
            seen.wait_for_more(60)
            with away(pair[lost], tmp_path):
                seen.wait_for_more(60)
        seen.enough = True
        for client in clients:
            client.join(60)
    assert set(seen.statuses) == {200}, seen.statuses
    assert seen.keys == seen.collected
    assert len(set(seen.keys.values())) == len(seen.keys), "the same bytes under two key_IDs"
    log = Kme(site.home, FakeClock())
    assert log.alarms() == []
    assert log.store.log.latest(10_000, "key.void") == []
    log.close()


def _answers(site: Site) -> bool:
    try:
        with requests.Session() as session:
            return site.ask(session, "sae-1", "sae-2/status").ok
    except requests.RequestException:
        return False
