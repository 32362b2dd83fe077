"""HTTP/1.1 messages as the bytes they are: read whole from a stream, cut, altered."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import BinaryIO

MOST = 16 * 1024 * 1024
"""Longest message that is read, in bytes."""

_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:.*chunked[ \t]*\r$")
_CLOSE = re.compile(rb"(?im)^connection:[ \t]*close[ \t]*\r$")


class Ended(Exception):
    """The stream ended before a message did."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One request or answer; ``head`` ends with the empty line."""

    head: bytes
    body: bytes

    @property
    def line(self) -> list[str]:
        """The three parts of the first line."""
        return self.head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.line[1])

    @property
    def closes(self) -> bool:
        """Whether its sender says that nothing follows."""
        return _CLOSE.search(self.head) is not None

    @property
    def content(self) -> bytes:
        """All of it."""
        return self.head + self.body

    def cut(self, keep: int, *, mend: bool) -> Raw:
        """The first ``keep`` bytes of the body; ``mend``: Content-Length says so, otherwise it tells the old length."""
        body = self.body[:keep]
        head = _LENGTH.sub(b"Content-Length: %d\r" % len(body), self.head) if mend else self.head
        return Raw(head, body)

    def altered(self, at: int | None = None, header: str | None = None) -> Raw:
        """One bit of one byte changed: byte ``at`` (default: the middle) of the body, or of the value of ``header``."""
        if header is None:
            return replace(self, body=_flipped(self.body, at))
        found = re.search(rb"(?im)^" + re.escape(header.encode()) + rb":[ \t]*([^\r]+)", self.head)
        assert found is not None, f"no {header} in what was sent"
        return replace(self, head=self.head[: found.start(1)] + _flipped(found[1], at) + self.head[found.end(1) :])


def read(stream: BinaryIO) -> Raw:
    """The next message of a stream; raises `Ended` if it ends first."""
    head = _through(stream, b"\r\n\r\n")
    if _CHUNKED.search(head):
        return Raw(head, _chunks(stream))
    length = _LENGTH.search(head)
    return Raw(head, _exactly(stream, int(length[1])) if length else b"")


def plain(status: int, body: bytes, content_type: str = "application/json") -> Raw:
    """An answer of our own making."""
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Raw(head.encode(), body)


def _flipped(content: bytes, at: int | None) -> bytes:
    assert content, "there is nothing to alter"
    place = len(content) // 2 if at is None else at % len(content)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _through(stream: BinaryIO, end: bytes) -> bytes:
    content = b""
    while not content.endswith(end):
        line = stream.readline(MOST)
        if not line.endswith(b"\n") or len(content) > MOST:
            raise Ended
        content += line
    return content


def _exactly(stream: BinaryIO, length: int) -> bytes:
    assert length <= MOST
    content = stream.read(length)
    if len(content) < length:
        raise Ended
    return content


def _chunks(stream: BinaryIO) -> bytes:
    content = b""
    while True:
        size = _through(stream, b"\r\n")
        length = int(size.split(b";")[0], 16)
        content += size + _exactly(stream, length + 2 if length else 0)
        if length == 0:
            trailer = _through(stream, b"\r\n")
            content += trailer
            while trailer != b"\r\n":
                trailer = _through(stream, b"\r\n")
                content += trailer
            return content
