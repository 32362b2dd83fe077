"""A malicious network between two KMEs, at the height of HTTP.

An `Interposer` stands where KME A expects B: it shows B's peer certificate, demands one of the peers' CA, and forwards
what it gets to B under A's certificate, byte for byte. Rules say which message meets which `Fate`; what no rule names
passes. For the other direction stand up another. What was seen is in ``log``: paths, statuses and fates, no content.

    with Interposer(shows=B_FILES, speaks_as=A_FILES, ca=CA, to="https://localhost:9444") as network:
        network.rule(DropAnswer(), "POST", "keys/assign", nth=2)
        ...  # A's configuration names network.url as the peer's
        network.wait(lambda log: len(log) == 3)
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

from tests.peering.wire import Ended, Raw, read

SECONDS = 60.0
"""How long a peer is waited for, and the threads at the end."""

Files = tuple[str, str]
"""Paths of a certificate and its key."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One message: what it was, what became of it; no status if its sender got no answer."""

    number: int
    method: str
    path: str
    fate: str
    status: int | None = None
    ended: bool = False


class Fate(Protocol):
    """What becomes of a message."""

    def __call__(self, exchange: Exchange, /) -> None: ...


@dataclass(slots=True)
class _Rule:
    fate: Fate
    applies: Callable[[str, str], bool]
    nth: range | None
    count: int = 0


class Gone(Exception):
    """The sender's connection is to end."""


class Exchange:
    """One request that came in, and what can be done with it."""

    def __init__(self, interposer: Interposer, number: int, request: Raw, connection: ssl.SSLSocket) -> None:
        self.interposer, self.number, self.request = interposer, number, request
        self._connection = connection
        self.status: int | None = None

    def forward(self, request: Raw | None = None) -> Raw:
        """Send a request, ours if none is given, to the receiver; its answer. Raises `Gone` if there is none."""
        try:
            return self.interposer.deliver(request or self.request)
        except (OSError, Ended):
            raise Gone from None

    def reply(self, answer: Raw) -> None:
        """Answer the sender."""
        self.status = answer.status
        self.write(answer.content)

    def write(self, content: bytes) -> None:
        """Bytes towards the sender, who may be gone."""
        try:
            self._connection.sendall(content)
        except OSError:
            raise Gone from None

    def hang_up(self) -> None:
        """End the sender's connection now."""
        _end(self._connection)

    def pause(self, seconds: float) -> None:
        """Wait; not longer than the interposer lives."""
        if self.interposer.stopping.wait(seconds):
            raise Gone


class Interposer:
    """Between A and B; a context manager whose threads end with it."""

    def __init__(self, *, shows: Files, speaks_as: Files, ca: str, to: str) -> None:
        """``shows``: B's files, towards A. ``speaks_as``: A's files, towards B. ``to``: B's URL, https."""
        self._inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inward.verify_mode = ssl.CERT_REQUIRED
        self._outward = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context, files in ((self._inward, shows), (self._outward, speaks_as)):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(*files)
            context.load_verify_locations(ca)
        target = urlsplit(to)
        assert target.hostname is not None
        self._to = target.hostname, target.port or 443
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._rules: list[_Rule] = []
        self._log: list[Seen] = []
        self._requests: list[Raw] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    # What a test says and asks --------------------------------------------------------------------------

    def rule(self, fate: Fate, method: str = "", path: str = "", nth: int | range | None = None) -> None:
        """Messages of ``method`` whose path ends with ``path`` meet ``fate``: each, or the ``nth`` from now (1 …).

        The first rule that applies decides; every rule counts what it names, whoever decides.
        """
        chosen = range(nth, nth + 1) if isinstance(nth, int) else nth
        self.rule_where(fate, lambda m, p: method in ("", m) and p.partition("?")[0].endswith(path), chosen)

    def rule_where(self, fate: Fate, applies: Callable[[str, str], bool], nth: range | None = None) -> None:
        """The same with a predicate on method and path."""
        with self._changed:
            self._rules.append(_Rule(fate, applies, nth))

    def clear(self) -> None:
        """Everything passes again."""
        with self._changed:
            self._rules.clear()

    @property
    def log(self) -> list[Seen]:
        """What was seen, in the order it came."""
        with self._changed:
            return list(self._log)

    def wait(self, until: Callable[[list[Seen]], bool], seconds: float = SECONDS) -> None:
        """Wait until the log is as wanted; fails after ``seconds``."""
        with self._changed:
            assert self._changed.wait_for(lambda: until(list(self._log)), seconds), self._log

    def recorded(self, number: int) -> Raw:
        """The request with that number (the first is 0, -1 the newest) as it came."""
        with self._changed:
            return self._requests[number]

    def replay(self, number: int) -> int:
        """Send a recorded request to the receiver once more, now; the status of the answer."""
        return self.deliver(self.recorded(number)).status

    # What fates use -------------------------------------------------------------------------------------

    def deliver(self, request: Raw, *, whole: bool = True) -> Raw:
        """Forward a request on a connection of its own; `OSError` or `Ended` if no whole answer comes.

        Not ``whole``: nothing follows, though its head says so; no answer is looked at.
        """
        with socket.create_connection(self._to, SECONDS) as plain:
            connection = self._outward.wrap_socket(plain, server_hostname=self._to[0])
            with connection, self._kept(connection), connection.makefile("rb") as stream:
                connection.sendall(request.content)
                if whole:
                    return read(stream)
                # half closed, then read out: closing at once, with unread bytes, would reset what was sent
                socket.socket.shutdown(connection, socket.SHUT_WR)
                stream.read()
                raise Ended

    def wait_for_a_later_one(self, number: int, seconds: float) -> None:
        """Until a message that came after ``number`` has met its fate, or ``seconds`` have passed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.stopping.is_set() or any(seen.ended for seen in self._log[number + 1 :]), seconds
            )

    # Threads --------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self.stopping.set()
            self._changed.notify_all()
            left = list(self._open)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in left:
            _end(connection)
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), thread.name

    def _begin(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name=f"interposer {work.__name__}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(SECONDS)
        with suppress(OSError, Ended, Gone), plain, self._kept(plain):
            connection = self._inward.wrap_socket(plain, server_side=True)
            with connection, self._kept(connection), connection.makefile("rb") as stream:
                while not self.stopping.is_set():
                    request = read(stream)
                    self._meet(request, connection)
                    if request.closes:
                        return

    def _meet(self, request: Raw, connection: ssl.SSLSocket) -> None:
        method, path, _ = request.line
        with self._changed:
            number = len(self._log)
            fate = self._fate(method, path)
            self._log.append(Seen(number, method, path, type(fate).__name__))
            self._requests.append(request)
            self._changed.notify_all()
        exchange = Exchange(self, number, request, connection)
        try:
            fate(exchange)
        finally:
            with self._changed:
                before = self._log[number]
                self._log[number] = Seen(number, method, path, before.fate, exchange.status, ended=True)
                self._changed.notify_all()

    def _fate(self, method: str, path: str) -> Fate:
        chosen: Fate | None = None
        for rule in self._rules:
            if rule.applies(method, path):
                rule.count += 1
                if chosen is None and (rule.nth is None or rule.count in rule.nth):
                    chosen = rule.fate
        return chosen or Pass()

    def _kept(self, connection: socket.socket) -> _Kept:
        return _Kept(self._changed, self._open, connection, self.stopping)


class Pass:
    """Nothing happens to it."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(exchange.forward())


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection that is ended with the interposer."""

    lock: threading.Condition
    all: set[socket.socket]
    one: socket.socket
    stopping: threading.Event

    def __enter__(self) -> None:
        with self.lock:
            self.all.add(self.one)
            if self.stopping.is_set():
                raise Gone

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.all.discard(self.one)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of the TCP connection: no word of TLS
