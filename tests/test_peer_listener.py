"""Whom does a KME let in as a peer, and what reaches which of its two listeners?"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.pki import DAY, Request, TestAuthority
from tests.processes import hsmkme
from tests.serving import connected_briefly, peers_served
from tests.world import Demo, until

BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
KME_2 = "urn:qkd:kme:kme-2"
NONE = "/kme-peer/v1/none"
"""A call that does not exist: 404 for a peer, 401 for others."""

BODY_LIMIT = 4096

_PEERING = """
[peering]
bind = ["127.0.0.1:PORT"]
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
crl = "{crl}"
max_body_bytes = {limit}

[[peer]]
id = "kme-2"
url = "https://localhost:1"
"""


@dataclass
class Side:
    """The listener for peers of the demo's KME, and the CA of peers."""

    demo: Demo
    authority: TestAuthority
    home: Path
    peer: tuple[str, str]
    url: str = ""

    @property
    def ca(self) -> str:
        return str(self.home / "ca.pem")

    @property
    def crl(self) -> Path:
        return self.home / "peers.crl"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def session(self, certificate: tuple[str, str] | None) -> requests.Session:
        """A keep-alive client that trusts the CA of peers, whatever the environment says."""
        client = requests.Session()
        client.trust_env, client.verify, client.cert = False, self.ca, certificate
        return client

    def ask(self, certificate: tuple[str, str] | None, path: str = NONE, **headers: str) -> requests.Response:
        with self.session(certificate) as client:
            return client.get(self.url + path, headers=headers, timeout=30)

    def is_refused(self, certificate: tuple[str, str]) -> bool:
        """Whether a new connection does not get through the handshake."""
        try:
            self.ask(certificate)
        except requests.ConnectionError:
            return True
        return False


@pytest.fixture(scope="module")
def side(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    home = tmp_path_factory.mktemp("peers")
    authority = TestAuthority()
    (home / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    own = Request(uris=["urn:qkd:kme:kme-1"], dns=["localhost"], usage=BOTH_USAGES)
    certificate, key = authority.issue(home / "own", own)
    side = Side(demo, authority, home, authority.issue(home / "peer", Request(uris=[KME_2], usage=BOTH_USAGES)))
    authority.revoke(side.crl)
    text = _PEERING.format(certificate=certificate, key=key, ca=side.ca, crl=side.crl, limit=BODY_LIMIT)
    with peers_served(demo, text, side.ca, side.peer) as url:
        side.url = url
        yield side


def test_it_says_which_kme_it_is_of(side: Side) -> None:
    answer = side.ask(side.peer, "/health")
    assert (answer.status_code, answer.json()) == (200, {"kme": "kme-1"})


@pytest.mark.parametrize("path", [NONE, "/kme-peer/v2/hello", "/", "/api/v1/keys/sae-2/status"])
def test_what_is_not_there_is_a_404_that_says_so(side: Side, path: str) -> None:
    answer = side.ask(side.peer, path)
    assert (answer.status_code, set(answer.json())) == (404, {"message"})


# Who does not get through the handshake


def test_nobody_comes_without_a_certificate(side: Side) -> None:
    for path in ("/health", NONE):
        with pytest.raises(requests.ConnectionError):
            side.ask(None, path)


def test_an_sae_gets_nothing_from_the_listener_for_peers(side: Side) -> None:
    sae = side.demo.description["saes"][0]
    for path in ("/health", "/api/v1/keys/sae-2/status"):
        with pytest.raises(requests.ConnectionError):
            side.ask((sae["cert"], sae["key"]), path)


def test_a_peer_gets_nothing_from_the_listener_for_saes(side: Side) -> None:
    for uri in (KME_2, "urn:qkd:sae:sae-1"):
        with side.demo.session(None) as client:
            client.cert = side.authority.issue(side.home / "to-saes", Request(uris=[uri], usage=BOTH_USAGES))
            with pytest.raises(requests.ConnectionError):
                client.get(side.demo.url("sae-2/status"), timeout=30)


@pytest.mark.parametrize(
    "request_",
    [
        Request(uris=[KME_2], usage=ExtendedKeyUsageOID.SERVER_AUTH),
        Request(uris=[KME_2], begins=-2 * DAY, ends=-DAY),
        Request(uris=[KME_2], begins=DAY, ends=2 * DAY),
    ],
    ids=["no client by its extended key usage", "expired", "not yet valid"],
)
def test_a_certificate_that_is_not_good_does_not_get_through(side: Side, tmp_path: Path, request_: Request) -> None:
    with pytest.raises(requests.ConnectionError):
        side.ask(side.authority.issue(tmp_path, request_))


def test_a_certificate_of_another_ca_does_not_get_through(side: Side, tmp_path: Path) -> None:
    with pytest.raises(requests.ConnectionError):
        side.ask(TestAuthority().issue(tmp_path, Request(uris=[KME_2], usage=BOTH_USAGES)))


def test_peers_speak_tls_1_3_and_nothing_older(side: Side) -> None:
    context = ssl.create_default_context(cafile=side.ca)
    context.load_cert_chain(*side.peer)
    plain = socket.create_connection(("localhost", side.port), 30)
    with context.wrap_socket(plain, server_hostname="localhost") as secured:
        assert secured.version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("localhost", side.port), 30) as plain, pytest.raises(ssl.SSLError) as refusal:
        context.wrap_socket(plain, server_hostname="localhost")
    assert refusal.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


# Who gets through it and is no peer


@pytest.mark.parametrize(
    "request_",
    [
        Request(uris=["urn:qkd:kme:kme-3"]),
        Request(uris=["urn:qkd:kme:kme-1"]),
        Request(uris=["urn:qkd:kme:"]),
        Request(uris=[KME_2, "urn:qkd:kme:kme-3"]),
        Request(uris=[KME_2, KME_2]),
        Request(uris=[KME_2, "urn:qkd:sae:sae-1"]),
        Request(uris=["urn:qkd:sae:kme-2"]),
        Request(uris=["URN:QKD:KME:kme-2"]),
        Request(common_name="kme-2"),
        Request(dns=["kme-2"]),
        Request(uris=[KME_2], ca=True),
    ],
    ids=[
        *("unknown", "ourselves", "empty", "two KMEs", "twice", "an SAE too", "an SAE", "upper case", "CN", "DNS"),
        "a CA",
    ],
)
def test_a_certificate_that_names_no_peer_gets_a_401_that_says_so(
    side: Side, tmp_path: Path, request_: Request
) -> None:
    request_.usage = BOTH_USAGES
    certificate = side.authority.issue(tmp_path, request_)
    answer = side.ask(certificate)
    assert (answer.status_code, answer.json()) == (401, {"message": "the KME is not authorised"})
    forged = quote(Path(side.peer[0]).read_text())
    assert side.ask(certificate, **{"X-SSL-Client-Cert": forged}).status_code == 401


# What changes while a connection is open


def test_a_certificate_that_ends_is_refused_on_its_open_connection(side: Side, tmp_path: Path) -> None:
    with connected_briefly(side.port, side.ca, side.authority, tmp_path, KME_2) as ask_again:
        assert ask_again(NONE) in (404, 401)
        until(lambda: ask_again(NONE) == 401, 90)


def test_a_revoked_certificate_is_refused_on_its_open_connection_and_on_new_ones(side: Side, tmp_path: Path) -> None:
    lost = side.authority.issue(tmp_path, Request(uris=[KME_2], usage=BOTH_USAGES))
    with side.session(lost) as kept:
        assert kept.get(side.url + NONE, timeout=30).status_code == 404
        side.authority.revoke(side.crl, lost[0])
        until(lambda: kept.get(side.url + NONE, timeout=30).status_code == 401, 30)
    until(lambda: side.is_refused(lost), 30)
    assert side.ask(side.peer).status_code == 404


# The rest


def test_the_rest_of_a_body_beyond_the_limit_is_not_waited_for(side: Side) -> None:
    for size, end in ((BODY_LIMIT, "keep-alive"), (BODY_LIMIT + 1, "close")):
        with side.session(side.peer) as client:
            answer = client.post(side.url + NONE, data=b" " * size, timeout=30)
        assert answer.headers["Connection"] == end


def test_without_peering_it_does_not_start_and_says_what_to_configure(demo: Demo) -> None:
    assert "[peering]" not in demo.config.read_text()
    done = hsmkme("--config", demo.config, "serve-peers")
    assert done.status == 1
    assert done.err == "[peering] is not configured; it needs certificate, key and ca: see ops/config.md\n"
