"""What a load on servers is, and what came of it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of a client: the CA of servers, its certificate, its key."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 on P-256."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        context.set_ecdh_curve("prime256v1")
        return context


@dataclass(frozen=True, slots=True)
class Clients:
    """``connections`` of one SAE to ``port`` on this machine: whichever is free makes the next of ``requests``.

    ``repeat``: after the last request comes the first again.
    """

    port: int
    identity: Identity
    connections: int
    requests: Sequence[bytes]
    repeat: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Load for ``seconds``, or until every request that is not repeated was made.

    ``fresh``: a new connection for each request. ``rate``: so many requests a second become due, whether a connection
    is free or not; without it each is due when a connection is free. ``watch``: processes, with their families, whose
    CPU time is taken while the clock runs.
    """

    clients: Sequence[Clients]
    seconds: float
    fresh: bool = False
    rate: float | None = None
    watch: tuple[int, ...] = ()


@dataclass(slots=True)
class Answer:
    """What came for one request: ``seconds`` after it was due; ``status`` 0 if the connection ended instead."""

    clients: int
    """Whose request: a place in the plan."""
    status: int
    seconds: float
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Outcome:
    """Every answer, in the order of arrival. ``seconds`` from the first timed request to the last answer."""

    early: list[Answer]
    """To the first request of each connection, before the clock ran; none if every connection is fresh."""
    seconds: float
    cpu_seconds: float
    """CPU time of the generator in that time."""
    watched_seconds: float
    """CPU time of the watched processes in that time."""
    unsent: int
    """Requests that were due and found no connection free."""
    answers: list[Answer]


def request(path: str, body: bytes = b"", *, close: bool = False) -> bytes:
    """A whole HTTP/1.1 request: a POST of JSON if it has a ``body``; ``close``: the last of its connection."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost"]
    lines += ["Connection: close"] if close else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join((*lines, "", "")).encode() + body
