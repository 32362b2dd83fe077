"""A TLS connection whose records and whose end are in our hands, and what a server answers on it."""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0
"""How long an answer is waited for."""

STATUSES = frozenset({200, 400, 401, 404, 405, 413, 431, 503})
"""Every status that the KME may answer with."""

_UNEXPECTED_END = "TLSV1_ALERT_DECODE_ERROR"
"""The alert by which OpenSSL says that the other side went without a word."""

_HEAD = re.compile(rb"HTTP/1\.[0-9] (\d{3}) [ -~]*\r\n((?:[!-9;-~]+: [ -~]*\r\n)*)\r\n")


class Malformed(Exception):
    """What came is no HTTP answer of this server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; it may hold keys, so it is not shown."""

    status: int
    headers: Mapping[str, str]
    content: Any

    def __repr__(self) -> str:
        return f"<{self.status}>" if self.status == 200 else f"<{self.status} {self.content}>"

    @property
    def closes(self) -> bool:
        """Whether nothing follows on the connection."""
        return self.headers["connection"] == "close"

    @property
    def keys(self) -> list[tuple[str, int]]:
        """key_ID and length in bytes of each key of a container, of any other answer none."""
        listed = self.content.get("keys", []) if self.status == 200 and isinstance(self.content, dict) else []
        return [(key["key_ID"], len(key["key"]) // 4 * 3 - key["key"].count("=")) for key in listed]


def answers_in(buffer: bytearray, *, whole: bool = False) -> list[Answer]:
    """Take every whole answer out of ``buffer``; raises `Malformed`. ``whole``: nothing more will come.

    An answer to HEAD announces a body and has none: every other body begins with a brace.
    """
    found: list[Answer] = []
    while buffer:
        if buffer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            del buffer[:25]
            continue
        if b"\r\n\r\n" not in buffer:
            break
        head = _HEAD.match(buffer)
        if head is None:
            raise Malformed(bytes(buffer[:200]))
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[2].decode().splitlines())
        }
        length, start = int(headers["content-length"]), head.end()
        if len(buffer) == start and not whole:
            break
        bodiless = buffer[start : start + 1] != b"{"
        if not bodiless and len(buffer) < start + length:
            break
        end = start if bodiless else start + length
        found.append(_checked(int(head[1]), headers, None if bodiless else bytes(buffer[start:end])))
        del buffer[:end]
    if whole and buffer:
        raise Malformed(b"half an answer: " + bytes(buffer[:30]))
    return found


def _checked(status: int, headers: Mapping[str, str], body: bytes | None) -> Answer:
    """An answer that keeps the rules for all answers."""
    content = None if body is None else json.loads(body)
    answer = Answer(status, headers, content)
    good = (
        status in STATUSES
        and headers["content-type"] == "application/json"
        and headers["cache-control"] == "no-store"
        and headers["connection"] in ("close", "keep-alive")
        and (status != 503 or int(headers["retry-after"]) > 0)
        and (status == 200 or body is None or (isinstance(content, dict) and bool(content["message"])))
        and (status == 200 or content is None or set(content) <= {"message", "details"})
    )
    if not good:
        raise Malformed(f"{answer} {dict(headers)}".encode())
    return answer


class Wire:
    """One TCP connection; TLS over it when `shake_hands` was called. ``buffer``: bytes that wait to be read."""

    def __init__(self, port: int, context: ssl.SSLContext, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(SECONDS)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._received = bytearray()

    def hello(self) -> bytes:
        """The first record of a handshake, not sent."""
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    def shake_hands(self) -> None:
        """Raises `OSError` if the server refuses; under TLS 1.3 a refusal comes later, as an answer that does not."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def sealed(self, data: bytes) -> bytes:
        """``data`` as records, not sent."""
        self._tls.write(data)
        return self._out.read()

    def send(self, *pieces: bytes) -> None:
        """Each piece in a record of its own."""
        for piece in pieces:
            if piece:
                self.socket.sendall(self.sealed(piece))

    def answers(self, count: int) -> Sequence[Answer]:
        """The next ``count`` answers, fewer if the server closes after them; raises `OSError` if they do not come."""
        found: list[Answer] = []
        while len(found) < count:
            found += answers_in(self._received)
            if len(found) < count and not self._receive():
                found += answers_in(self._received, whole=True)
                if not found or not found[-1].closes:
                    raise ConnectionResetError(f"{len(found)} of {count} answers came")
                break
        return found

    def last_answers(self, *, polite: bool) -> Sequence[Answer]:
        """End our side, with a word of TLS if ``polite``; then what still comes until the server ends its."""
        if polite:
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._flush()
        self.socket.shutdown(socket.SHUT_WR)
        try:
            while self._receive():
                pass
        except ssl.SSLError as error:
            if polite or error.reason != _UNEXPECTED_END:
                raise
        return answers_in(self._received, whole=True)

    def close(self, *, reset: bool = False) -> None:
        """End the connection without a word of TLS; with a TCP reset if asked."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _flush(self) -> None:
        if self._out.pending:
            self.socket.sendall(self._out.read())

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def _receive(self) -> bool:
        """Wait for more; False at the end."""
        while True:
            try:
                data = self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return False
            else:
                self._received += data
                return bool(data)
