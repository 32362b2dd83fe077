"""Whom does the KME let in, and as whom?"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkme import config as configuration
from hsmkme.api.callers import Callers
from hsmkme.errors import NotEntitled
from tests.conftest import FakeClock
from tests.pki import DAY, Request, TestAuthority
from tests.serving import connected_briefly, served
from tests.world import Demo, free_port, start_demo, until

STATUS = "sae-2/status"
SAE_1 = "urn:qkd:sae:sae-1"


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("callers"), saes=3, keys=500) as running:
        yield running


@pytest.fixture
def authority(kme: Demo) -> TestAuthority:
    return TestAuthority(Path(kme.description["ca"]).parent)


def session(kme: Demo, certificate: tuple[str, str] | None) -> requests.Session:
    """A keep-alive client that trusts the demo's CA, whatever the environment says."""
    client = kme.session(None)
    client.cert, client.verify = certificate, kme.description["ca"]
    return client


def ask(kme: Demo, certificate: tuple[str, str] | None, url: str | None = None) -> requests.Response:
    with session(kme, certificate) as client:
        return client.get((url or kme.url("")) + STATUS, timeout=30)


@pytest.mark.parametrize(
    "request_",
    [
        Request(uris=[SAE_1], begins=-2 * DAY, ends=-DAY),
        Request(uris=[SAE_1], begins=DAY, ends=2 * DAY),
        Request(uris=[SAE_1], usage=ExtendedKeyUsageOID.SERVER_AUTH),
    ],
    ids=["expired", "not yet valid", "wrong extended key usage"],
)
def test_a_certificate_that_is_not_good_does_not_get_through_the_handshake(
    kme: Demo, authority: TestAuthority, tmp_path: Path, request_: Request
) -> None:
    with pytest.raises(requests.exceptions.ConnectionError):
        ask(kme, authority.issue(tmp_path, request_))


class Held:
    """An open connection whose client showed this certificate."""

    def __init__(self, certificate: str) -> None:
        self.certificate = x509.load_pem_x509_certificate(Path(certificate).read_bytes())

    def getpeercert(self, binary_form: bool = False) -> bytes:
        assert binary_form
        return self.certificate.public_bytes(Encoding.DER)


def test_a_certificate_is_good_from_its_first_second_to_its_last(
    kme: Demo, authority: TestAuthority, tmp_path: Path, clock: FakeClock
) -> None:
    certificate, _ = authority.issue(tmp_path, Request(uris=[SAE_1]))
    callers = Callers(configuration.load(kme.config), clock)
    held = Held(certificate)
    environ = {"gunicorn.socket": held}
    begins = held.certificate.not_valid_before_utc.timestamp()
    ends = held.certificate.not_valid_after_utc.timestamp()
    for now in (begins, (begins + ends) / 2, ends):
        clock.now = now
        assert callers.of(environ) == "sae-1"
    for now in (begins - 1, ends + 1):
        clock.now = now
        with pytest.raises(NotEntitled) as refusal:
            callers.of(environ)
        assert refusal.value.rule == "SAE-CERT-5"


def test_a_certificate_that_ends_is_refused_on_its_open_connection(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    with connected_briefly(kme.port, kme.description["ca"], authority, tmp_path, SAE_1) as ask_again:
        status = f"/api/v1/keys/{STATUS}"
        assert ask_again(status) in (200, 401)  # it may have ended meanwhile
        until(lambda: ask_again(status) == 401, 90)


def test_a_certificate_of_another_ca_does_not_get_through_the_handshake(kme: Demo, tmp_path: Path) -> None:
    with pytest.raises(requests.exceptions.ConnectionError):
        ask(kme, TestAuthority().issue(tmp_path, Request(uris=[SAE_1])))


@pytest.mark.parametrize(
    "request_",
    [
        Request(uris=[SAE_1], ca=True),
        Request(uris=["urn:qkd:kme:sae-1"]),
        Request(common_name="sae-1"),
        Request(uris=[SAE_1, "urn:qkd:sae:sae-3"]),
        Request(uris=["urn:qkd:sae:"]),
        Request(uris=["urn:qkd:sae:nobody"]),
        Request(dns=["sae-1"]),
    ],
    ids=["a CA", "a peer", "name in CN only", "two names", "empty name", "unknown SAE", "DNS only"],
)
def test_a_certificate_that_names_no_sae_gets_a_401_that_says_so(
    kme: Demo, authority: TestAuthority, tmp_path: Path, request_: Request
) -> None:
    answer = ask(kme, authority.issue(tmp_path, request_))
    assert answer.status_code == 401
    assert set(answer.json()) == {"message"}


def test_two_certificates_of_one_sae_work_at_the_same_time(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    new = authority.issue(tmp_path, Request(uris=[SAE_1]))
    with kme.session("sae-1") as old:
        assert old.get(kme.url(STATUS), timeout=30).status_code == 200
        assert ask(kme, new).status_code == 200
        assert old.get(kme.url(STATUS), timeout=30).status_code == 200


def test_revoking_an_sae_stops_its_open_connections_within_five_seconds(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    kme.cli("sae", "add", "sae-9")
    kme.cli("pair", "allow", "sae-9", "sae-2")
    certificate = authority.issue(tmp_path, Request(uris=["urn:qkd:sae:sae-9"]))
    with session(kme, certificate) as client:
        assert client.get(kme.url(STATUS), timeout=30).status_code == 200
        kme.cli("sae", "revoke", "sae-9")
        until(lambda: client.get(kme.url(STATUS), timeout=30).status_code == 401, 5)


def test_denying_a_pair_stops_it_within_five_seconds(kme: Demo) -> None:
    kme.cli("pair", "deny", "sae-3", "sae-1")
    with kme.session("sae-3") as client:
        until(lambda: client.get(kme.url("sae-1/status"), timeout=30).status_code == 401, 5)
    kme.cli("pair", "allow", "sae-3", "sae-1")


def test_a_revocation_list_is_read_again_when_it_changes(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    good = authority.issue(tmp_path / "good", Request(uris=[SAE_1]))
    bad = authority.issue(tmp_path / "bad", Request(uris=[SAE_1]))
    crl = tmp_path / "sae.crl"
    authority.revoke(crl)
    added = ('sae_ca = "../ca/ca.pem"', f'sae_ca = "../ca/ca.pem"\nsae_crl = "{crl}"')
    with served(kme, "", replace=added) as url, session(kme, bad) as kept:
        assert kept.get(url + STATUS, timeout=30).status_code == 200
        authority.revoke(crl, bad[0])
        # On the open connection it is a 401; a new one does not get through the handshake.
        until(lambda: kept.get(url + STATUS, timeout=30).status_code == 401, 20)
        until(lambda: all(_is_refused(kme, bad, url) for _ in range(12)), 20)  # by every worker
        assert ask(kme, good, url).status_code == 200
        crl.write_text("half a file")
        assert ask(kme, good, url).status_code == 200
        assert _is_refused(kme, bad, url)


def _is_refused(kme: Demo, certificate: tuple[str, str], url: str) -> bool:
    try:
        return ask(kme, certificate, url).status_code == 401
    except requests.exceptions.ConnectionError:
        return True


@pytest.mark.parametrize(("mode", "request_"), [
    ("dns", Request(dns=["sae-1"], uris=["urn:qkd:sae:sae-3"])),
    ("cn", Request(common_name="sae-1", uris=["urn:qkd:sae:sae-3"])),
])
def test_the_id_is_read_from_the_configured_field(
    kme: Demo, authority: TestAuthority, tmp_path: Path, mode: str, request_: Request
) -> None:
    with served(kme, f'\n[sae]\nidentity = "{mode}"\n') as url:
        answer = ask(kme, authority.issue(tmp_path, request_), url)
        assert answer.status_code == 200
        assert answer.json()["master_SAE_ID"] == "sae-1"


def test_a_forged_proxy_header_means_nothing_on_the_tls_side(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    pem = Path(authority.issue(tmp_path, Request(uris=[SAE_1]))[0]).read_text()
    forged = {"X-SSL-Client-Cert": quote(pem)}
    answer = requests.get(kme.url(STATUS), headers=forged, verify=kme.description["ca"], timeout=30)
    assert answer.status_code == 401
    with kme.session("sae-3") as client:
        assert client.get(kme.url(STATUS), headers=forged, timeout=30).json()["master_SAE_ID"] == "sae-3"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, as a proxy on the same machine speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _through_proxy(path: Path, header: dict[str, str]) -> int:
    connection = UnixConnection(path)
    connection.request("GET", f"/api/v1/keys/{STATUS}", headers=header)
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_proxy_on_a_unix_socket_says_who_the_client_is(
    kme: Demo, authority: TestAuthority, tmp_path: Path
) -> None:
    good = Path(authority.issue(tmp_path / "good", Request(uris=[SAE_1]))[0]).read_text()
    foreign = Path(TestAuthority().issue(tmp_path / "foreign", Request(uris=[SAE_1]))[0]).read_text()
    expired = Path(authority.issue(tmp_path / "old", Request(uris=[SAE_1], begins=-2 * DAY, ends=-DAY))[0]).read_text()
    door = Path(os.path.relpath(kme.directory / "door.sock"))
    with served(kme, f'\n[proxy]\nbind = ["unix:{door.resolve()}"]\n'):
        assert _through_proxy(door, {"X-SSL-Client-Cert": quote(good)}) == 200
        assert _through_proxy(door, {}) == 401
        assert _through_proxy(door, {"X-SSL-Client-Cert": quote(foreign)}) == 401
        assert _through_proxy(door, {"X-SSL-Client-Cert": quote(expired)}) == 401
        assert _through_proxy(door, {"X-SSL-Client-Cert": "nonsense%00"}) == 401


@pytest.mark.parametrize(("trusted", "works"), [("127.0.0.1", True), ("127.0.0.2", False)])
def test_a_proxy_at_an_address_is_heard_only_if_the_address_is_listed(
    kme: Demo, authority: TestAuthority, tmp_path: Path, trusted: str, works: bool
) -> None:
    pem = Path(authority.issue(tmp_path, Request(uris=[SAE_1]))[0]).read_text()
    port = free_port()
    with served(kme, f'\n[proxy]\nbind = ["127.0.0.1:{port}"]\ntrusted = ["{trusted}"]\n'):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", f"/api/v1/keys/{STATUS}", headers={"X-SSL-Client-Cert": quote(pem)})
            assert (connection.getresponse().status == 200) is works
        except OSError:
            assert not works
        finally:
            connection.close()
