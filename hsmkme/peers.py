"""The client side of kme-peer/1: signed messages over mutual TLS, answers that are checked before they are believed."""

from __future__ import annotations

import hmac
import http.client
import logging
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from hsmkme.config import Config, PeeringSection
from hsmkme.errors import PeerRefused, PeerUnavailable
from hsmkme.messages.bodies import Refusal, parsed
from hsmkme.messages.signing import (
    LIFE_SECONDS,
    PREFIX,
    Envelope,
    Message,
    answer_covered,
    answer_parameters,
    content_digest,
    signature_header,
    signature_of,
)
from hsmkme.model import Clock
from hsmkme.store import Draft
from hsmkme.waiting import aside

log = logging.getLogger(__name__)

CALL_SECONDS: Final = 3.0
"""How long a whole exchange with a peer may take."""

PAUSE_SECONDS: Final = 0.5
"""How long a peer that did not answer is left alone: what comes meanwhile is refused at once."""

ANSWER_MOST: Final = 8 << 20
"""Bytes of the longest answer that is read."""

_URI: Final = "urn:qkd:kme:"
_BROKEN: Final = (OSError, http.client.HTTPException)

Mac = Callable[[str, bytes], bytes]
"""Link id and data to what the token makes of them by the key of the link."""


class Peers:
    """Sends messages to the peers of ``config``; ``clock`` in seconds from any beginning, ``wall`` the time of day."""

    def __init__(self, config: Config, mac: Mac, wall: Clock, clock: Clock) -> None:
        self._kme_id = config.kme_id
        self._peer_of = {link.link_id: link.peer for link in config.links}
        self._addresses = {peer.id: urlsplit(peer.url) for peer in config.peer}
        self._context = client_context(config.required_peering())
        self._mac = mac
        self._wall = wall
        self._clock = clock
        self._local = threading.local()
        self._away_until: dict[str, float] = {}

    def send(self, draft: Draft) -> bytes:
        """Send a message to the other end of its link; gives the body of the answer.

        Raises `PeerUnavailable` when nothing is known of what became of it, `PeerRefused` when the peer refuses it or
        its answer is not to be believed.
        """
        return aside(lambda: self._send(draft))

    def _send(self, draft: Draft) -> bytes:
        peer = self._peer_of[draft.link_id]
        if self._clock() < self._away_until.get(peer, 0.0):
            raise PeerUnavailable(f"{peer} did not answer a moment ago", asked=False)
        expires = int(self._wall()) + LIFE_SECONDS
        envelope = Envelope(draft.link_id, self._kme_id, draft.txid, draft.seq, draft.incarnation, expires)
        message = Message(draft.call, envelope, draft.body)
        signature = self._mac(draft.link_id, message.covered())
        try:
            status, headers, body = self._exchange(peer, message, signature)
        except _BROKEN as error:
            self._away_until[peer] = self._clock() + PAUSE_SECONDS
            raise PeerUnavailable(f"{peer} does not answer {draft.call}: {error or type(error).__name__}") from error
        self._check(peer, draft.link_id, status, headers, body, signature)
        if status != 200:
            raise PeerRefused(f"{peer} refuses {draft.call}: {parsed(Refusal, body).message}", alarm=False)
        return body

    def _check(
        self, peer: str, link_id: str, status: int, headers: http.client.HTTPMessage, body: bytes, request: bytes
    ) -> None:
        """An answer without signature says nothing of the message; one with a wrong signature is an attack."""
        given = {name: headers.get(name, "") for name in ("Signature-Input", "Content-Digest", "Signature")}
        if not given["Signature"] and status != 200:
            raise PeerUnavailable(f"{peer} answers HTTP {status}")
        due = self._mac(link_id, answer_covered(link_id, status, body, request))
        fits = given["Signature-Input"] == "kme=" + answer_parameters(link_id)
        fits &= given["Content-Digest"] == content_digest(body)
        if not (hmac.compare_digest(signature_of(given), due) and fits):
            raise PeerRefused(f"the answer of {peer} is not signed by the key of link {link_id}", alarm=True)

    def _exchange(
        self, peer: str, message: Message, signature: bytes
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request and its answer, on the connection that this thread has to the peer, or on a new one."""
        headers = {**message.headers(), "Signature": signature_header(signature), "Content-Type": "application/json"}
        kept = self._connections().pop(peer, None)
        if kept is not None:
            try:
                return self._ask(peer, kept, message, headers)
            except _BROKEN:
                log.debug("the connection to %s was over", peer)
        return self._ask(peer, self._connected(peer), message, headers)

    def _ask(
        self, peer: str, connection: http.client.HTTPSConnection, message: Message, headers: dict[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        with _Deadline(connection), ExitStack() as undo:
            undo.callback(connection.close)
            connection.request("POST", PREFIX + message.call, message.body, headers)
            answer = connection.getresponse()
            body = answer.read(ANSWER_MOST + 1)
            undo.pop_all()
        if len(body) > ANSWER_MOST or answer.length:  # what is cut short is no forgery: it is asked for again
            connection.close()
            raise http.client.HTTPException("the answer is too long, or not whole")
        if not answer.will_close:
            self._connections()[peer] = connection
        return answer.status, answer.headers, body

    def _connections(self) -> dict[str, http.client.HTTPSConnection]:
        if not hasattr(self._local, "connections"):
            self._local.connections = {}
        connections: dict[str, http.client.HTTPSConnection] = self._local.connections
        return connections

    def _connected(self, peer: str) -> http.client.HTTPSConnection:
        """A connection to ``peer``, whose certificate says that it is this KME and no other."""
        connection = _connection(self._addresses[peer], self._context)
        connection.connect()
        certificate: Any = connection.sock.getpeercert() or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        if uris != [_URI + peer]:
            connection.close()
            raise http.client.HTTPException(f"the certificate there is not that of {peer}")
        return connection


class _Deadline:
    """Ends the exchange on a connection that takes too long, however slowly its bytes come."""

    def __init__(self, connection: http.client.HTTPSConnection) -> None:
        self._timer = threading.Timer(CALL_SECONDS, self._end, (connection,))
        self._timer.daemon = True

    def _end(self, connection: http.client.HTTPSConnection) -> None:
        try:
            connection.sock.shutdown(2)
        except (OSError, AttributeError):
            log.debug("the connection was over already")

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def certificate_at(section: PeeringSection, url: str) -> bytes:
    """The certificate, DER, of who serves peers at ``url``, whoever that is, provided that it takes ours too.

    Raises `PeerUnavailable` if nobody answers, `PeerRefused` if one of the two certificates is not accepted.
    """
    connection = _connection(urlsplit(url), client_context(section))
    try:
        with _Deadline(connection):
            connection.connect()
            certificate = bytes(connection.sock.getpeercert(binary_form=True) or b"")
            connection.request("GET", "/health")  # in TLS 1.3 a client learns only now whether it was accepted
            connection.getresponse().read(ANSWER_MOST)
    except ssl.SSLCertVerificationError as error:
        raise PeerRefused(f"the certificate at {url} is not accepted: {error.verify_message}", alarm=False) from error
    except ssl.SSLError as error:
        raise PeerRefused(f"{url} does not accept the certificate of this KME: {error.reason}", alarm=False) from error
    except _BROKEN as error:
        raise PeerUnavailable(f"{url} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    return certificate


def _connection(address: SplitResult, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(str(address.hostname), address.port, timeout=CALL_SECONDS, context=context)


def client_context(section: PeeringSection) -> ssl.SSLContext:
    """TLS 1.3, this KME's certificate, the CA of peers. Who the peer is, its URI says, not its host name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_cert_chain(section.certificate, section.key)
    context.load_verify_locations(section.ca)
    return context
