"""Which TLS does a new client get, while files change and clients come and go?"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkme.config import Config
from hsmkme.server.listener import listener_for_peers, listener_for_saes
from hsmkme.server.tls import LOOK_SECONDS, SESSIONS_MOST, Contexts
from tests.conftest import FakeClock
from tests.pki import Request, TestAuthority

OLD, NEW = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Place:
    """The files of a server, and clients that trust its CA."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.authority = TestAuthority()
        self.ca = home / "ca.pem"
        self.ca.write_bytes(self.authority.certificate.public_bytes(Encoding.PEM))
        certificate, key = self.certify(Request(dns=["localhost"], usage=ExtendedKeyUsageOID.SERVER_AUTH))
        files = {"certificate": certificate, "key": key}
        self.config = Config.model_validate(
            {
                "kme_id": "kme-1",
                "store": "store.sqlite",
                "token": {"label": "token", "pin_file": "pin"},
                "server": {**files, "sae_ca": str(self.ca)},
                "peering": {**files, "ca": str(self.ca)},
            },
            context=home,
        )
        self.saes, self.peers = listener_for_saes(self.config), listener_for_peers(self.config)

    def certify(self, request: Request, name: str = "server") -> tuple[str, str]:
        return self.authority.issue(self.home / name, request)

    def client(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(*self.certify(Request(uris=["urn:qkd:sae:sae-1"]), "client"))
        return context


def visit(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """A handshake and a good end; the client's side."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(up, down, server_side=True)
    visitor = client.wrap_bio(down, up, server_hostname="localhost", session=session)
    for act in (visitor.do_handshake, served.do_handshake) * 3:
        with suppress(ssl.SSLWantReadError):
            act()
    assert served.getpeercert()
    for act in (visitor.unwrap, served.unwrap):
        with suppress(ssl.SSLWantReadError):
            act()
    return visitor


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_few_sessions_of_tls_1_2_are_kept_however_many_clients_come(place: Place, clock: FakeClock) -> None:
    contexts, client = Contexts(place.saes, clock), place.client(OLD)
    kept = 0
    for _ in range(3 * SESSIONS_MOST):
        visit(contexts.current(), client)
        kept = max(kept, contexts.current().session_stats()["number"])
    assert 0 < kept <= SESSIONS_MOST


def test_an_old_session_is_not_resumed(place: Place, clock: FakeClock) -> None:
    contexts, client = Contexts(place.saes, clock), place.client(OLD)
    session = visit(contexts.current(), client).session
    for _ in range(SESSIONS_MOST):
        visit(contexts.current(), client)
    assert not visit(contexts.current(), client, session).session_reused


def test_tls_1_3_keeps_no_session(place: Place, clock: FakeClock) -> None:
    contexts, client = Contexts(place.saes, clock), place.client(NEW)
    first = contexts.current()
    visitors = [visit(contexts.current(), client) for _ in range(5)]
    assert first.session_stats()["number"] == 0
    assert not any(visitor.session is not None and visitor.session.has_ticket for visitor in visitors)


@pytest.mark.parametrize("side", ["saes", "peers"])
def test_a_changed_certificate_is_served_within_a_second(place: Place, clock: FakeClock, side: str) -> None:
    contexts, client = Contexts(getattr(place, side), clock), place.client(NEW)
    before = visit(contexts.current(), client).getpeercert(binary_form=True)
    place.certify(Request(dns=["localhost"], usage=ExtendedKeyUsageOID.SERVER_AUTH))
    assert visit(contexts.current(), client).getpeercert(binary_form=True) == before
    clock.now += LOOK_SECONDS
    assert visit(contexts.current(), client).getpeercert(binary_form=True) != before


@pytest.mark.parametrize("content", [None, "", "half a file", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_that_cannot_be_read_change_nothing_until_they_can(
    place: Place, clock: FakeClock, content: str | None
) -> None:
    contexts, client = Contexts(place.saes, clock), place.client(OLD)
    good = place.saes.certificate.read_text()
    before = visit(contexts.current(), client).getpeercert(binary_form=True)
    place.saes.certificate.unlink()
    if content is not None:
        place.saes.certificate.write_text(content)
    for _ in range(2 * SESSIONS_MOST):
        clock.now += LOOK_SECONDS / 20
        assert visit(contexts.current(), client).getpeercert(binary_form=True) == before
    place.saes.certificate.write_text(good)
    clock.now += LOOK_SECONDS
    assert contexts.current().session_stats()["number"] == 0


def test_peers_come_with_a_certificate_over_tls_1_3_and_by_no_proxy(place: Place, clock: FakeClock) -> None:
    context = Contexts(place.peers, clock).current()
    assert (context.minimum_version, context.verify_mode) == (NEW, ssl.CERT_REQUIRED)
    assert (place.peers.plain, place.peers.trusted) == ((), ())
    with pytest.raises(ssl.SSLError):
        visit(context, place.client(OLD))
