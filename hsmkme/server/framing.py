"""Where a request ends: enough of HTTP/1.1 (RFC 9112 §6) to wait for a whole one, and no more.

gunicorn's parser reads the request itself afterwards, strictly. What is ambiguous here is refused: a
request whose end two readers could see in different places is an attack.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

HEAD_LIMIT: Final = 16384
"""Bytes of request line and headers."""

HEAD_END: Final = b"\r\n\r\n"
_CHUNK_LINE_LIMIT: Final = 256
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION: Final = rb"[ \t]*;[ \t]*" + _TOKEN + rb'(?:=(?:' + _TOKEN + rb'|"[\t !#-\[\]-~]*"))?'
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:" + _EXTENSION + rb")*")
"""A size, and extensions that nobody reads (RFC 9112 §7.1.1) as far as every reader agrees on their grammar."""

_ONE_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


class FramingError(Exception):
    """The end of the request cannot be found, or will not be waited for; ``status`` is the HTTP answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def refusal(status: int, message: str, *, close: bool = True) -> bytes:
    """A whole HTTP answer with an Error body (ETSI GS QKD 014 §6.5); a 503 says to come back in a second."""
    body = json.dumps({"message": message}).encode()
    fields = {
        "Connection": "close" if close else "keep-alive",
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "Content-Length": str(len(body)),
        **({"Retry-After": "1"} if status == 503 else {}),
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join((*lines, "", "")).encode() + body


class _Announced(NamedTuple):
    """What a head says of the body: its length in bytes, or that it is chunked, and whether it waits to be invited."""

    length: int
    chunked: bool
    invitation: bool


@lru_cache(maxsize=256)
def _announced(fields: bytes) -> _Announced:
    """Read the fields of a head, remembering those that clients send again and again. Raises `FramingError`."""
    pairs = [line.partition(b":") for line in fields.lower().split(b"\r\n")]
    lengths = [value.strip() for name, _, value in pairs if name.strip() == b"content-length"]
    codings = [value.strip() for name, _, value in pairs if name.strip() == b"transfer-encoding"]
    if codings and (lengths or codings != [b"chunked"]):
        raise FramingError(400, "Transfer-Encoding shall be chunked, and Content-Length absent then")
    if lengths and (len(lengths) > 1 or not _ONE_LENGTH.fullmatch(lengths[0])):
        raise FramingError(400, "Content-Length shall be one number")
    expected = [value.strip() for name, _, value in pairs if name.strip() == b"expect"]
    return _Announced(int(lengths[0]) if lengths else 0, bool(codings), b"100-continue" in expected)


class Framing:
    """Finds the end of one request as its bytes arrive; ``body_limit`` in bytes.

    Of what was looked at before, at most one chunk's size is looked at again: a request that comes byte by byte
    costs little more than one that comes at once.
    """

    def __init__(self, body_limit: int) -> None:
        self._body_limit = body_limit
        self._at = 0
        self._chunked = False
        self._body = 0
        self._body_at = 0
        self._head_done = False
        self.wants_continue = False
        self.oversized = False

    def end(self, buffer: bytearray) -> int | None:
        """How many bytes of ``buffer`` are the request, or None while it is not whole.

        An announced body over the limit is not waited for: the request ends with its head and is
        ``oversized``, so that the application can refuse it. Raises `FramingError`.
        """
        if not self._head_done and not self._read_head(buffer):
            return None
        if self.oversized:
            return self._at
        if self._chunked:
            return self._chunked_end(buffer)
        return self._at + self._body if len(buffer) >= self._at + self._body else None

    def _read_head(self, buffer: bytearray) -> bool:
        found = buffer.find(HEAD_END, self._at, HEAD_LIMIT)
        if found < 0:
            if len(buffer) >= HEAD_LIMIT:
                raise FramingError(431, f"the headers are longer than {HEAD_LIMIT} bytes")
            self._at = max(0, len(buffer) - len(HEAD_END) + 1)
            return False
        first, _, fields = bytes(buffer[:found]).partition(b"\r\n")
        announced = _announced(fields)
        self.wants_continue = announced.invitation and first.lower().endswith(b" http/1.1")
        self._chunked = announced.chunked
        self._body = announced.length
        self.oversized = self._body > self._body_limit
        self._at = self._body_at = found + len(HEAD_END)
        self._head_done = True
        return True

    def _chunked_end(self, buffer: bytearray) -> int | None:
        """Walk over the chunks that are there; remembers how far it came."""
        while True:
            line_end = buffer.find(b"\r\n", self._at, self._at + _CHUNK_LINE_LIMIT)
            if line_end < 0:
                if len(buffer) >= self._at + _CHUNK_LINE_LIMIT:
                    raise FramingError(400, "a chunk has no size")
                return None
            size = _CHUNK_SIZE.fullmatch(bytes(buffer[self._at : line_end]))
            if size is None:
                raise FramingError(400, "a chunk has no size")
            length = int(size[1], 16)
            if length == 0:
                return self._trailer_end(buffer, line_end + 2)
            self._check_size(length, line_end)
            end = line_end + 2 + length
            if len(buffer) < end + 2:
                return None
            if buffer[end : end + 2] != b"\r\n":
                raise FramingError(400, "a chunk is longer than it says")
            self._body += length
            self._at = end + 2

    def _check_size(self, length: int, line_end: int) -> None:
        """The body, and what the sizes of chunks take beside it, are within the limit."""
        if self._body + length > self._body_limit or line_end - self._body_at - self._body > self._body_limit:
            raise FramingError(413, f"the body is longer than {self._body_limit} bytes")

    def _trailer_end(self, buffer: bytearray, start: int) -> int | None:
        """Trailers are not accepted: the last chunk is followed by an empty line."""
        if len(buffer) < start + 2:
            return None
        if buffer[start : start + 2] != b"\r\n":
            raise FramingError(400, "trailers are not accepted")
        return start + 2
