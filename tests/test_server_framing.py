"""Where does a request end? The answer may not depend on how its bytes arrive, nor differ from gunicorn's."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hsmkme.applications import application
from hsmkme.config import Config
from hsmkme.server import Server
from hsmkme.server.calling import HEAD_MOST, HEADS_MOST, Caller
from hsmkme.server.connection import REQUEST_SECONDS, Connection, Phase
from hsmkme.server.framing import HEAD_LIMIT, Framing, FramingError, refusal
from hsmkme.server.listener import listener_for_saes

LIMIT = 4096
"""Bytes of a body in these tests."""

REFUSED = -1
"""Stands for the end of a request that has none."""

REFUSED_LATE = -2
"""The same, seen only when the application reads the body."""

CONFIG = Config.model_validate(
    {
        "kme_id": "kme-1",
        "store": "store",
        "token": {"label": "t", "pin_file": "pin"},
        "server": {"certificate": "cert", "key": "key", "sae_ca": "ca"},
    }
)
GUNICORN = Server(listener_for_saes(CONFIG), application, {}).cfg
"""gunicorn as the product sets it up."""


def end_of(*pieces: bytes) -> int | None:
    """Where framing sees the first request end as ``pieces`` arrive: REFUSED, or None while it waits for more."""
    framing, buffer = Framing(LIMIT), bytearray()
    for piece in pieces:
        buffer += piece
        try:
            end = framing.end(buffer)
        except FramingError:
            return REFUSED
        if end is not None:
            return end
    return None


def end_by_gunicorn(data: bytes) -> int | None:
    """The same by gunicorn's own parser, its body read to the end."""
    parser: Any = RequestParser(GUNICORN, iter((data,)), ("127.0.0.1", 1))
    refusal = REFUSED
    try:
        body = next(parser).body
        announced, refusal = getattr(body.reader, "length", 0), REFUSED_LATE
        read = len(body.read())
    except ParseException:
        return refusal
    except (NoMoreData, StopIteration):
        return None
    rest = parser.unreader.read()
    return None if read < announced else len(data) - len(rest)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(bounds)]


# Valid requests -----------------------------------------------------------------------------------

PLACES = st.lists(st.integers(0, 20_000), max_size=12)
NAMES = st.sampled_from(["Host", "Accept", "X-Trace", "Content-Type", "Connection", "Expect", "User-Agent"])
VALUES = st.sampled_from(["", "a", "localhost:8443", "a:b: c", "application/json", "100-continue", "chunked", "5"])
TARGETS = st.sampled_from(["/", "/api/v1/keys/sae-2/enc_keys?number=1&size=256", "/%0d%0a%0d%0a", "http://x/y", "/:1"])
EXTENSIONS = st.sampled_from(["", ";a", ";a=b", " ; a=b;c", ';name="a value"'])
TELLING = [b"\r\n\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b'{"number":1}']
BODIES = st.binary(max_size=300) | st.sampled_from(TELLING)


@st.composite
def heads(draw: st.DrawFn, framing: str = "") -> bytes:
    chosen = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5, unique_by=lambda field: field[0]))
    fields = [f"{name}: {value}" for name, value in chosen if name != "Expect" or value == "100-continue"]
    if framing:
        fields.insert(draw(st.integers(0, len(fields))), framing)
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT"]))
    return "\r\n".join([f"{method} {draw(TARGETS)} HTTP/1.1", *fields, "", ""]).encode()


@st.composite
def with_length(draw: st.DrawFn) -> bytes:
    body = draw(BODIES)
    name, space = draw(st.sampled_from(["Content-Length", "content-length"])), draw(st.sampled_from(["", " ", "\t "]))
    return draw(heads(f"{name}:{space}{len(body)}")) + body


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    chunks = [chunk for chunk in draw(st.lists(BODIES, max_size=5)) if chunk]
    size = draw(st.sampled_from(["{:x}", "{:X}", "{:06x}"]))
    lines = [size.format(len(chunk)).encode() + draw(EXTENSIONS).encode() for chunk in [*chunks, b""]]
    body = b"".join(line + b"\r\n" + chunk + b"\r\n" for line, chunk in zip(lines, [*chunks, b""], strict=True))
    return draw(heads(f"Transfer-Encoding: {draw(st.sampled_from(['chunked', 'Chunked']))}")) + body


REQUESTS = heads() | with_length() | chunked()


@given(REQUESTS, st.binary(max_size=40), PLACES)
def test_a_valid_request_ends_where_it_ends_however_its_bytes_arrive(
    request_: bytes, rest: bytes, places: Sequence[int]
) -> None:
    assert end_of(*cut(request_, places)) == len(request_)
    assert end_of(request_ + rest) == len(request_)
    assert end_by_gunicorn(request_ + rest) == len(request_)


@given(REQUESTS)
def test_a_request_that_is_not_whole_is_waited_for(request_: bytes) -> None:
    framing, buffer = Framing(LIMIT), bytearray()
    for byte in request_[:-1]:
        buffer.append(byte)
        assert framing.end(buffer) is None
    assert end_of(request_) == len(request_)


@settings(max_examples=50)
@given(st.lists(REQUESTS, min_size=1, max_size=5), PLACES)
def test_requests_sent_in_one_go_are_given_one_by_one(requests_: Sequence[bytes], places: Sequence[int]) -> None:
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        connection = Connection(server, "", "", LIMIT, 0.0, proxied=True)
        seen: list[bytes] = []
        for piece in cut(b"".join(requests_), places):
            client.sendall(piece)
            request_ = connection.advance(0.0)
            while request_ is not None:
                seen.append(request_)
                assert connection.phase is Phase.WORK
                request_ = connection.answer(b"", 0.0, close=False)
        assert seen == list(requests_)
        assert connection.idle


# Requests that are not ----------------------------------------------------------------------------

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
NEXT = b"GET /next HTTP/1.1\r\n\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"

AMBIGUOUS = {
    "both length and chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks, then a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + CHUNKS,
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    "a length in other digits": POST + "Content-Length: ²\r\n\r\nabc".encode("latin-1"),
    "no length": POST + b"Content-Length:\r\n\r\nabc",
    "a length longer than any": POST + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\nabc",
    "a length with a space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "a length behind a folded line": POST + b"A: b\r\n Content-Length: 3\r\n\r\nabc",
    "a folded length": POST + b"Content-Length:\r\n 3\r\n\r\nabc",
    "a length behind a bare line feed": POST + b"A: b\nContent-Length: 3\r\n\r\nabc",
    "a length behind a bare carriage return": POST + b"A: b\rContent-Length: 3\r\n\r\nabc",
    "a length with a NUL": POST + b"Content-Length: 3\0\r\n\r\nabc",
    "a length with a vertical tab": POST + b"Content-Length: \x0b3\r\n\r\nabc",
    "a NUL in a name": POST + b"Content\0-Length: 3\r\n\r\nabc",
    "a length in the request line": b"CONTENT-LENGTH :3 HTTP/1.1\r\n\r\nabc",
    "chunks by a name like it": POST + b"Transfer_Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + CHUNKS,
    "chunks with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS,
    "chunks with a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "chunks in two headers": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
    "compressed chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "chunks that are not the last coding": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
}
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "a size with a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size with an underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "a size with a space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "a size with a space after": b"3 \r\nabc\r\n0\r\n\r\n",
    "a size with a NUL": b"3\0\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a size over the limit": b"fffffff\r\nabc\r\n0\r\n\r\n",
    "a size that ends in a bare line feed": b"3\nabc\r\n0\r\n\r\n",
    "an extension with a bare line feed": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "an extension with a bare carriage return": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "an extension without name": b"3;=a\r\nabc\r\n0\r\n\r\n",
    "an extension that goes on": b"3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
    "data longer than the size": b"3\r\nabcd\r\n0\r\n\r\n",
    "data shorter than the size": b"3\r\nab\r\n0\r\n\r\n",
    "data without an end of line": b"3\r\nabc0\r\n\r\n",
    "data that ends in bare line feeds": b"3\r\nabc\n\n0\r\n\r\n",
    "a trailer": b"3\r\nabc\r\n0\r\nA: b\r\n\r\n",
    "a length in the trailer": b"3\r\nabc\r\n0\r\nContent-Length: 30\r\n\r\n",
}


def assert_nothing_is_smuggled(data: bytes) -> None:
    """Both readers see the first request end at the same byte, or one of them refuses it: then the connection ends."""
    framing = Framing(LIMIT)
    try:
        end = framing.end(bytearray(data))
    except FramingError:
        return
    if end is None:
        assert end_by_gunicorn(data) in (None, REFUSED, REFUSED_LATE), "framing waits for what has come"
    elif not framing.oversized:
        assert end_by_gunicorn(data[:end]) in (end, REFUSED), "gunicorn would not get a whole request"
        assert end_by_gunicorn(data) in (end, REFUSED), "two readers see the request end in different places"


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_is_refused(data: bytes) -> None:
    end = end_of(data + NEXT)
    assert end == REFUSED or end_by_gunicorn((data + NEXT)[:end]) == REFUSED
    assert_nothing_is_smuggled(data + NEXT)


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_a_chunk_that_two_readers_could_read_differently_is_refused(chunks: bytes) -> None:
    assert end_of(CHUNKED + chunks + NEXT) == REFUSED
    assert end_of(*(bytes([byte]) for byte in CHUNKED + chunks + NEXT)) == REFUSED


SPARKS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\x0b", b"\x0c", b"\x85", b"\xa0", b"\xb2"),
    *(b":", b";", b",", b"+", b"-", b"_", b'"', b"\\", b"0", b"0x", b"fffffffff", b"99999999999999999999"),
    *(b"\r\n\r\n", b"0\r\n\r\n", b";a=b", b" folded\r\n", b"HTTP/1.0", b"HTTP/2.0", b"GET / HTTP/1.1\r\n"),
    *(b"Content-Length: 5\r\n", b"content-length:7\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Valid requests in which something was inserted, replaced, repeated or left out."""
    data = bytearray(b"".join(draw(st.lists(REQUESTS, min_size=1, max_size=2))))
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 0, 1, 2, 10]))
        spark = draw(st.sampled_from(SPARKS) | st.binary(max_size=3) | st.just(bytes(data[place : place + 20])))
        data[place : place + length] = spark
    return bytes(data)


@settings(max_examples=600)
@given(mutated() | st.binary(max_size=200))
@example(b"\r\nGET / HTTP/1.1\r\n\r\n")
@example(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\n\r\n\r\n\r\n")
@example(b"\r\nCONTENT-LENGTH :3://x HTTP/1.1\r\n\r\nabc")
@example(b"GET /\r\n\r\n")
@example(b"GET / HTTP/1.0\n\n")
def test_no_byte_is_read_as_part_of_another_request_than_gunicorn_would(data: bytes) -> None:
    assert_nothing_is_smuggled(data)


@settings(max_examples=200)
@given(mutated(), PLACES)
def test_what_is_wrong_with_a_request_does_not_depend_on_how_it_arrives(data: bytes, places: Sequence[int]) -> None:
    assert end_of(*cut(data, places)) == end_of(data) == end_of(*(bytes([byte]) for byte in data))


def test_a_body_over_the_limit_is_not_waited_for_and_nothing_can_follow_it() -> None:
    head = POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (LIMIT + 1)
    framing = Framing(LIMIT)
    assert framing.end(bytearray(head + NEXT)) == len(head)
    assert framing.oversized
    assert end_of(POST + b"Content-Length: %d\r\n\r\n" % LIMIT) is None


def test_a_head_that_does_not_end_is_refused() -> None:
    long = POST + b"A: " + b"a" * HEAD_LIMIT
    assert end_of(long) == end_of(*cut(long, [5000, 10_000, 16_000])) == REFUSED
    assert end_of(long[: HEAD_LIMIT - 1]) is None
    fitting = POST + b"A: " + b"a" * (HEAD_LIMIT - len(POST) - 7) + b"\r\n\r\n"
    assert len(fitting) == HEAD_LIMIT
    assert end_of(fitting) == HEAD_LIMIT


@pytest.mark.parametrize(
    ("expect", "version", "wanted"),
    [
        (b"100-continue", b"1.1", True),
        (b"100-Continue", b"1.1", True),
        (b"200-ok", b"1.1", False),
        (b"100-continue", b"1.0", False),
    ],
)
def test_a_client_that_waits_for_an_invitation_is_known(expect: bytes, version: bytes, wanted: bool) -> None:
    framing = Framing(LIMIT)
    head = b"POST / HTTP/%s\r\nContent-Length: 3\r\nExpect: %s\r\n\r\n" % (version, expect)
    assert framing.end(bytearray(head)) is None
    assert framing.wants_continue is wanted


# What it costs ------------------------------------------------------------------------------------


class Watched(bytearray):
    """Counts the bytes that are looked at."""

    looked_at = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start, end)
        last = min(len(self), end) if found < 0 else found + len(sub)
        self.looked_at += max(0, last - start)
        return found

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self.looked_at += len(value) if isinstance(key, slice) else 1
        return value


def drip(data: Iterator[int] | bytes, limit: int = LIMIT) -> tuple[Watched, int | None]:
    """Byte by byte until there is an end."""
    framing, buffer = Framing(limit), Watched()
    for byte in data:
        buffer.append(byte)
        try:
            end = framing.end(buffer)
        except FramingError:
            return buffer, REFUSED
        if end is not None:
            return buffer, end
    return buffer, None


def test_a_head_that_comes_byte_by_byte_is_not_searched_again_for_every_byte() -> None:
    head = POST + b"A: " + b"a" * 16_000 + b"\r\n\r\n"
    buffer, end = drip(head)
    assert end == len(head)
    assert buffer.looked_at < 10 * len(head)


def test_a_body_that_comes_byte_by_byte_is_not_searched_at_all() -> None:
    buffer, end = drip(POST + b"Content-Length: 4000\r\n\r\n" + b"a" * 4000)
    assert end == len(buffer)
    assert buffer.looked_at < 1000


@pytest.mark.parametrize("size", [1, 100, 4000])
def test_chunks_that_come_byte_by_byte_are_not_walked_again_from_the_first(size: int) -> None:
    body = (b"%x\r\n" % size + b"\r" * size + b"\r\n") * (min(4000 // size, 500)) + b"0\r\n\r\n"
    buffer, end = drip(CHUNKED + body)
    assert end == len(buffer)
    assert buffer.looked_at < 30 * len(buffer)


@dataclass
class Endless:
    """A request that never ends."""

    head: bytes
    more: bytes

    def __iter__(self) -> Iterator[int]:
        yield from self.head
        while True:
            yield from self.more


@pytest.mark.parametrize(
    "request_",
    [
        Endless(POST, b"A: b\r\n"),
        Endless(b"", b"\r\n\0"),
        Endless(b"GET /", b"a"),
        Endless(CHUNKED, b"1\r\na\r\n"),
        Endless(CHUNKED, b"1;" + b"a" * 250 + b"\r\na\r\n"),
        Endless(CHUNKED, b"1" + b";a=b" * 60 + b"\r\na\r\n"),
        Endless(CHUNKED, b"0"),
        Endless(CHUNKED + b"1000\r\n", b"\r\n"),
        Endless(CHUNKED + b"0\r\n", b"A: b\r\n"),
    ],
    ids=lambda request_: str(request_.more[:6]),
)
def test_a_request_takes_no_more_memory_than_the_limits_allow(request_: Endless) -> None:
    buffer, end = drip(iter(request_))
    assert end == REFUSED
    assert len(buffer) <= HEAD_LIMIT + 2 * LIMIT + 300


# The connection around it -------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    """A client's socket and the server's side of it."""
    client, server = socket.socketpair()
    client.settimeout(10)
    server.setblocking(False)
    with client, server:
        yield client, Connection(server, "", "", LIMIT, 0.0, proxied=True)


def test_half_a_request_after_an_answer_has_the_time_of_a_request_and_not_of_an_idle_client(
    pair: tuple[socket.socket, Connection],
) -> None:
    client, connection = pair
    client.sendall(NEXT + NEXT[:5])
    assert connection.advance(0.0) == NEXT
    assert connection.answer(b"answer", 100.0, close=False) is None
    assert connection.deadline == 100.0 + REQUEST_SECONDS
    assert not connection.idle


def test_a_client_is_invited_once_to_send_its_body(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    client.sendall(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert connection.advance(0.0) is None
    client.sendall(b"a")
    assert connection.advance(0.0) is None
    assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"bc")
    assert (connection.advance(0.0) or b"").endswith(b"\r\n\r\nabc")


def test_a_client_that_reads_nothing_is_not_invited_but_left(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    client.sendall(NEXT)
    connection.advance(0.0)
    fill(connection.socket)
    client.sendall(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert connection.answer(b"", 0.0, close=False) is None
    assert connection.advance(0.0) is None
    assert connection.phase is Phase.CLOSED


def test_what_comes_after_a_refusal_is_dropped_a_little_at_a_time(pair: tuple[socket.socket, Connection]) -> None:
    """A client that never stops sending must not keep the event loop for itself."""
    client, connection = pair
    client.sendall(NEXT)
    connection.advance(0.0)
    connection.answer(refusal(400, "no"), 0.0, close=True)
    assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
    client.setblocking(False)
    fill(client)
    sent = waiting(connection)
    connection.advance(0.0)
    assert sent - 65536 <= waiting(connection) < sent
    client.close()
    while connection.phase is Phase.LINGER:
        connection.advance(0.0)
    assert connection.phase is Phase.CLOSED


def fill(sender: socket.socket) -> None:
    """Send until the other side would have to read."""
    with suppress(BlockingIOError):
        while True:
            sender.send(b"x" * 65536)


def waiting(connection: Connection) -> int:
    """How many bytes the client sent that nobody has read."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.socket, termios.FIONREAD, b"\0" * 4))
    return int(count)


# What is remembered of heads ----------------------------------------------------------------------


class Echo:
    """An application that answers what it was asked, and keeps it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read()
        told = {name: value for name, value in environ.items() if name not in ("wsgi.input", "gunicorn.socket")}
        self.asked.append({**told, "body": body})
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]


def call(caller: Caller, request_: bytes) -> tuple[bytes, bool]:
    """The answer, but for its date, to a request of a connection of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, ("127.0.0.1", 5), ("127.0.0.1", 8443), LIMIT, 0.0, proxied=False)
        data, close = caller.call(connection, request_, last=False)
    return re.sub(rb"\r\nDate: [^\r]*", b"", data), close


ODD_TARGETS = st.sampled_from(["/a?b", "/%7e/c%2fd?e=f?g", "//h", "/#i", "*", "j:1", "/" * 8177, "/" * 8178])


def framed(data: bytes) -> bytes | None:
    """The first request of ``data`` as the worker hands it on, if there is one."""
    end = end_of(data)
    return None if end in (None, REFUSED) else data[:end]


@settings(max_examples=300)
@given(mutated() | REQUESTS, TARGETS | ODD_TARGETS)
def test_a_head_that_is_known_is_read_as_if_it_was_new(data: bytes, target: str) -> None:
    """The same fields with another target and another body: gunicorn's parser and the memory of it agree."""
    method, _, rest = data.partition(b" ")
    known = framed(b" ".join([method, b"/known", rest.partition(b" ")[2]]))
    asked = framed(b" ".join([method, target.encode(), rest.partition(b" ")[2]]))
    if known is None or asked is None:
        return
    fresh, used = Echo(), Echo()
    memory = Caller(used, GUNICORN)
    call(memory, known)
    used.asked.clear()
    assert call(memory, asked) == call(Caller(fresh, GUNICORN), asked)
    assert used.asked == fresh.asked


def test_heads_that_never_come_again_are_forgotten() -> None:
    caller = Caller(Echo(), GUNICORN)
    for number in range(3 * HEADS_MOST):
        call(caller, b"GET / HTTP/1.1\r\nX: %d\r\n\r\n" % number)
        assert len(caller._heads) <= HEADS_MOST
    call(caller, b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_MOST + b"\r\n\r\n")
    assert max(map(len, caller._heads)) <= HEAD_MOST
