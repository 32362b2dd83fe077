"""One client connection that never blocks: handshake, request, answer, end, each with a deadline."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from enum import Enum, auto
from functools import cached_property
from typing import Any, Final

from hsmkme.api.certificates import PROXIED
from hsmkme.server.framing import Framing

HANDSHAKE_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 75.0
LINGER_SECONDS: Final = 2.0

_READ: Final = 65536
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Socket = socket.socket | ssl.SSLSocket
Address = tuple[str, int] | str


class Phase(Enum):
    """What a connection is waiting for."""

    HANDSHAKE = auto()
    REQUEST = auto()
    WORK = auto()
    ANSWER = auto()
    LINGER = auto()
    CLOSED = auto()


class Connection:
    """A client's connection. The event loop calls `advance` when it is readable or writable as it asked.

    ``since`` says how long it has been waiting for the same thing, ``deadline`` until when it may, both in the loop's
    clock; ``watched`` which events the loop waits for; ``proxied`` that a trusted proxy is at the other end.
    """

    def __init__(
        self, sock: Socket, peer: Address, server: Address, body_limit: int, now: float, *, proxied: bool
    ) -> None:
        self.socket = sock
        self.descriptor = sock.fileno()
        self.peer = peer
        self.server = server
        self.proxied = proxied
        self._certificate: bytes | None = None
        self.wants_write = False
        self.watched = 0
        self._body_limit = body_limit
        self._received = bytearray()
        self._framing = Framing(body_limit)
        self._answer = memoryview(b"")
        self._closing = False
        self._enter(Phase.HANDSHAKE if isinstance(sock, ssl.SSLSocket) else Phase.REQUEST, now, HANDSHAKE_SECONDS)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the WSGI environment of its requests has of the connection."""
        address, port = _address(self.peer)
        name, server_port = _address(self.server)
        return {
            "gunicorn.socket": self,
            PROXIED: self.proxied,
            "REMOTE_ADDR": address,
            "REMOTE_PORT": port,
            "SERVER_NAME": name,
            "SERVER_PORT": server_port,
        }

    def _enter(self, phase: Phase, now: float, seconds: float) -> None:
        self.phase, self.since, self.deadline = phase, now, now + seconds

    def advance(self, now: float) -> bytes | None:
        """Go on as far as possible without waiting; gives a whole request when there is one.

        Raises `FramingError` for a request that will not be waited for. ``phase`` is CLOSED when the client left.
        """
        try:
            match self.phase:
                case Phase.HANDSHAKE:
                    return self._shake_hands(now)
                case Phase.REQUEST:
                    return self._read(now)
                case Phase.ANSWER:
                    return self._write(now)
                case Phase.LINGER:
                    self._discard()
        except (ssl.SSLWantReadError, BlockingIOError):
            self.wants_write = False
        except ssl.SSLWantWriteError:
            self.wants_write = True
        except OSError:
            self.close()
        return None

    def answer(self, data: bytes, now: float, *, close: bool) -> bytes | None:
        """Send ``data``; afterwards wait for the next request, or end if ``close``. Gives a request already there."""
        self._answer, self._closing, self.wants_write = memoryview(data), close, True
        self._enter(Phase.ANSWER, now, ANSWER_SECONDS)
        return self.advance(now)

    @property
    def certified(self) -> bool:
        """Whether a trusted proxy, or the owner of a good certificate, is at the other end."""
        return self.proxied or self._certificate is not None

    def getpeercert(self, binary_form: bool) -> bytes | None:
        """The client's certificate, DER, as TLS verified it; None without one or without TLS."""
        return self._certificate if binary_form else None

    @property
    def idle(self) -> bool:
        """Whether nothing of a next request has arrived."""
        return self.phase is Phase.REQUEST and not self._received

    def close(self) -> None:
        """End at once; says so to a TLS client that listens."""
        self.phase = Phase.CLOSED
        self._say_goodbye()
        self.socket.close()

    def _shake_hands(self, now: float) -> bytes | None:
        assert isinstance(self.socket, ssl.SSLSocket)  # noqa: S101 - only TLS sockets begin in this phase
        self.socket.do_handshake()
        self._certificate, self.wants_write = self.socket.getpeercert(binary_form=True), False
        self._enter(Phase.REQUEST, now, REQUEST_SECONDS)
        return self._read(now)

    def _read(self, now: float) -> bytes | None:
        """Read until a request is whole or nothing more is there."""
        while True:
            request = self._whole_request()
            if request is not None:
                self.phase = Phase.WORK
                return request
            data = self.socket.recv(_READ)
            if not data:
                self.close()
                return None
            if not self._received:
                self._enter(Phase.REQUEST, now, REQUEST_SECONDS)
            self._received += data

    def _whole_request(self) -> bytes | None:
        if not self._received:
            return None
        end = self._framing.end(self._received)
        if end is None:
            if self._framing.wants_continue:
                self._framing.wants_continue = False
                self._invite()
            return None
        request = bytes(self._received[:end])
        self._closing = self._framing.oversized
        del self._received[:end]
        self._framing = Framing(self._body_limit)
        return request

    def _invite(self) -> None:
        """Ask for the body. A client that does not even read that is not waited for."""
        try:
            self.socket.send(_CONTINUE)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError) as full:
            raise ConnectionAbortedError from full

    @property
    def must_close(self) -> bool:
        """Whether the rest of the request in work was not waited for, so that nothing can follow it."""
        return self._closing

    def _write(self, now: float) -> bytes | None:
        while self._answer:
            self._answer = self._answer[self.socket.send(self._answer) :]
        self.wants_write = False
        if self._closing:
            self._enter(Phase.LINGER, now, LINGER_SECONDS)
            self._say_goodbye()
            self.socket.shutdown(socket.SHUT_WR)
            return None
        self._enter(Phase.REQUEST, now, REQUEST_SECONDS if self._received else IDLE_SECONDS)
        return self._read(now) if self._received or self._decrypted() else None

    def _decrypted(self) -> bool:
        """Whether TLS holds bytes that the kernel knows nothing of any more."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def _say_goodbye(self) -> None:
        """End what we send over TLS. The client may be sending still, be gone, or never have shaken hands."""
        if isinstance(self.socket, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self.socket.unwrap()

    def _discard(self) -> None:
        """Drop some of what the client still sends, so that the kernel does not cut off the answer with a reset.

        Not all at once: a client that never stops sending would stop everyone else.
        """
        if not socket.socket.recv(self.socket, _READ):
            self.close()


def _address(address: Address) -> tuple[str, str]:
    """Name and port; of a Unix socket, its path."""
    return (address, "") if isinstance(address, str) else (address[0], str(address[1]))
