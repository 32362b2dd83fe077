"""Load on HTTPS servers from one process of its own: TLS 1.3 with client certificates, and every answer is kept.

Nothing of an answer is looked at but its length until the clock has stopped. `Generator` runs a `Plan` in a spawned
process, so that its CPU time and its garbage are not those of who measures.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import select
import socket
import ssl
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from enum import Enum, auto
from types import TracebackType
from typing import Final

from hsmkme.bench.families import family_seconds
from hsmkme.bench.plans import Answer, Clients, Outcome, Plan

PATIENCE_SECONDS: Final = 60.0
"""How long an answer is waited for after the last request."""

_READ: Final = 1 << 16
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSES: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Generator:
    """A process that runs plans, one after the other."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def run(self, plan: Plan) -> Outcome:
        """Run a plan; raises `OSError` if there is nobody to connect to."""
        return self._pool.submit(drive, plan).result()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._pool.shutdown()


def drive(plan: Plan) -> Outcome:
    """Run a plan in this process."""
    gc.collect()
    gc.disable()
    try:
        return _Drive(plan).run()
    finally:
        gc.enable()


class _Phase(Enum):
    HANDSHAKE = auto()
    SEND = auto()
    RECEIVE = auto()
    IDLE = auto()


class _Source:
    """The requests of some clients, and how to connect for them."""

    def __init__(self, number: int, clients: Clients) -> None:
        self.number = number
        self.clients = clients
        self._context = clients.identity.context()
        self._next = 0

    def take(self) -> bytes | None:
        """The next request; None after the last."""
        requests = self.clients.requests
        if self._next >= len(requests):
            if not self.clients.repeat:
                return None
            self._next = 0
        self._next += 1
        return requests[self._next - 1]

    def connect(self) -> ssl.SSLSocket:
        """A connection whose handshake is to be done."""
        plain = socket.create_connection(("127.0.0.1", self.clients.port), timeout=PATIENCE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped = self._context.wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False)
        wrapped.setblocking(False)
        return wrapped


class _Line:
    """One connection, or the next of a series of them."""

    __slots__ = ("due", "events", "phase", "received", "request", "socket", "source", "whole")

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.socket: ssl.SSLSocket | None = None
        self.events = 0
        self.phase = _Phase.IDLE
        self.request = self.received = b""
        self.whole = 0
        """Bytes of the whole answer; 0 while its head is not there."""
        self.due = 0.0


class _Drive:
    """A plan being run: as many requests at once as there are connections."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._poll = select.epoll()
        self._lines: dict[int, _Line] = {}
        sources = [_Source(number, clients) for number, clients in enumerate(plan.clients)]
        self._idle = deque(_Line(source) for source in sources for _ in range(source.clients.connections))
        self._busy = 0
        self._raw: list[tuple[int, float, bytes]] = []
        self._next_due = self._end = 0.0

    def run(self) -> Outcome:
        """Let the clock run while there is something to do."""
        early = [] if self._plan.fresh else self._connect_all()
        watched, cpu, start = family_seconds(self._plan.watch), time.process_time(), time.perf_counter()
        self._next_due, self._end = start, start + self._plan.seconds
        self._serve()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        watched = family_seconds(self._plan.watch) - watched
        for line in list(self._lines.values()):
            self._drop(line)
        self._poll.close()
        rate = self._plan.rate
        unsent = max(0, int((self._end - self._next_due) * rate)) if rate else 0
        return Outcome(early, seconds, cpu, watched, unsent, self._taken())

    def _connect_all(self) -> list[Answer]:
        """Every connection with a request on it: there are servers that spend a thread on each until it makes one."""
        for _ in range(len(self._idle)):
            self._begin_next(time.perf_counter())
        self._serve()
        return self._taken()

    def _taken(self) -> list[Answer]:
        raw, self._raw = self._raw, []
        return [_parsed(*one) for one in raw]

    def _serve(self) -> None:
        while True:
            now = time.perf_counter()
            wait = self._launch(now)
            if not self._busy and (wait >= PATIENCE_SECONDS or now >= self._end):
                return
            ready = self._poll.poll(wait)
            if not ready and wait >= PATIENCE_SECONDS:
                for line in [line for line in self._lines.values() if line.phase is not _Phase.IDLE]:
                    self._fail(line)
            for descriptor, _ in ready:
                if descriptor in self._lines:  # its connection may have ended since
                    self._advance(self._lines[descriptor])

    def _launch(self, now: float) -> float:
        """Make the requests that are due; gives how long to wait for what happens next."""
        rate, idle = self._plan.rate, self._idle
        while idle and now < self._end and (rate is None or self._next_due <= now):
            self._begin_next(self._next_due if rate else now)
            self._next_due += 1 / rate if rate else 0.0
        if rate is None or not idle or self._next_due >= self._end:
            return PATIENCE_SECONDS
        return max(0.0, self._next_due - now)

    def _begin_next(self, due: float) -> None:
        """Let the connection that has been idle longest make its next request; one that has none left ends."""
        line = self._idle.popleft()
        request = line.source.take()
        if request is None:
            return
        line.request, line.received, line.whole, line.due = request, b"", 0, due
        self._busy += 1
        if line.socket is None:
            self._connect(line)
        else:
            line.phase = _Phase.SEND
        self._advance(line)

    def _connect(self, line: _Line) -> None:
        line.socket = line.source.connect()
        line.phase, line.events = _Phase.HANDSHAKE, select.EPOLLIN
        self._lines[line.socket.fileno()] = line
        self._poll.register(line.socket.fileno(), select.EPOLLIN)

    def _advance(self, line: _Line) -> None:
        """Go on with a connection as far as possible without waiting."""
        sock = line.socket
        assert sock is not None  # noqa: S101 - whoever is told of its events has one
        try:
            if line.phase is _Phase.HANDSHAKE:
                sock.do_handshake()
                line.phase = _Phase.SEND
            if line.phase is _Phase.SEND:
                line.request = line.request[sock.send(line.request) :]
                if line.request:
                    return
                line.phase = _Phase.RECEIVE
                self._want(line, select.EPOLLIN)
                return
            self._receive(line, sock.recv(_READ))
        except ssl.SSLWantReadError:
            self._want(line, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._want(line, select.EPOLLOUT)
        except OSError:
            self._fail(line)

    def _want(self, line: _Line, events: int) -> None:
        if line.events != events and line.socket is not None:
            line.events = events
            self._poll.modify(line.socket.fileno(), events)

    def _receive(self, line: _Line, data: bytes) -> None:
        if not data or line.phase is _Phase.IDLE:  # the end, or what nobody asked for
            self._fail(line)
            return
        received = line.received + data if line.received else data
        line.received = received
        if not line.whole:
            end = received.find(_HEAD_END)
            if end < 0:
                return
            length = _LENGTH.search(received, 0, end)
            line.whole = end + len(_HEAD_END) + (int(length[1]) if length else 0)
        if len(received) >= line.whole:
            self._finish(line, received)
            if self._plan.fresh or _CLOSES.search(received, 0, line.whole):
                self._drop(line)

    def _finish(self, line: _Line, received: bytes) -> None:
        """Keep what came; the connection is free for the next request."""
        self._raw.append((line.source.number, time.perf_counter() - line.due, received))
        self._busy -= 1
        line.phase = _Phase.IDLE
        self._idle.append(line)

    def _fail(self, line: _Line) -> None:
        """The connection is gone, with its answer if one was due."""
        if line.phase is not _Phase.IDLE:
            self._finish(line, b"")
        self._drop(line)

    def _drop(self, line: _Line) -> None:
        if line.socket is not None:
            del self._lines[line.socket.fileno()]
            line.socket.close()
            line.socket = None


def _parsed(clients: int, seconds: float, raw: bytes) -> Answer:
    head, _, body = raw.partition(_HEAD_END)
    return Answer(clients, int(head[9:12] or 0), seconds, body)
