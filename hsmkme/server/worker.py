"""The gunicorn worker: one thread serves all connections, and runs all requests in turns (``ops/adr/0007``).

Handshakes, slow requests and slow readers cost a file descriptor and a deadline; only a whole request is given to the
application, in a greenlet. One that waits, for a commit, a device or a peer, lets the others go on.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from heapq import nsmallest
from types import FrameType
from typing import Any, Final, cast

from gunicorn.workers.base import Worker

from hsmkme.server.calling import Caller
from hsmkme.server.connection import Connection, Phase
from hsmkme.server.framing import FramingError, refusal
from hsmkme.server.listener import Listener
from hsmkme.server.tls import Contexts
from hsmkme.server.turns import Turns
from hsmkme.waiting import share

TICK_SECONDS: Final = 1.0
ACCEPT_AT_ONCE: Final = 64
CONNECTIONS_MOST: Final = 4000
"""Connections of one worker; fewer if the limit of open files is lower."""

FILES_SPARED: Final = 128
"""Open files kept for everything that is not a connection: token, store, logs."""

GARBAGE_MOST: Final = 20_000
"""After how many new objects it is searched for garbage: every search stops all requests."""

ARRIVALS_AT_ONCE: Final = 64
"""How many connections are looked at before requests go on that were taken on: refusing others must not stop them."""

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
STOP_SECONDS: Final = 2.0
"""How long a stopping worker waits for a request that a client may be sending on an idle connection, and a worker
that ends at once for answers to what it cannot undo."""


class EventWorker(Worker):
    """Serves the application of a `Listener`. gunicorn's settings are made of it: see ``server.Server``."""

    def init_process(self) -> None:
        """Set up what must not be shared with other processes, then run."""
        listener: Listener = cast("Any", self.app).listener
        self._body_limit = listener.max_body_bytes
        self._waiting_most, self._waiting = listener.waiting, 0
        self._plain_binds, self._proxies = set(listener.plain), set(listener.trusted)
        self._connections: set[Connection] = set()
        self._poll = selectors.DefaultSelector()
        self._turns = Turns(threads=listener.waiting)
        self._stopping_since: float | None = None
        self._leaving = False
        self._look_at = 0.0
        self._connections_most = min(CONNECTIONS_MOST, _allow_many_files())
        super().init_process()

    def load_wsgi(self) -> None:
        """Build the application once the certificate files can be used.

        They may be half written now. A worker that ended here would end the server: gunicorn takes it for a defect
        that every worker has.
        """
        while self.alive and os.getppid() == self.ppid:
            try:
                self._contexts = Contexts(cast("Any", self.app).listener)
            except OSError as error:
                self.log.error("this worker waits for certificate files that can be used: %s", error)
                self.notify()
                time.sleep(TICK_SECONDS)
            else:
                super().load_wsgi()
                self._caller = Caller(self.wsgi, self.cfg)
                return
        sys.exit(0)

    def run(self) -> None:
        """The loop: until stopped, and then until what was begun is answered."""
        share(self._turns)
        gc.freeze()  # what is here now stays; and what requests leave is mostly no garbage that needs a search
        gc.set_threshold(GARBAGE_MOST, 20, 20)
        self._poll.register(self._turns.wake, selectors.EVENT_READ, self._turns.clear_wake)
        self._poll.register(self.PIPE[0], selectors.EVENT_READ, self._on_signal)
        self._listen(True)
        while not self._finished():
            self.notify()
            for number, (key, _) in enumerate(self._poll.select(self._turns.seconds_left(TICK_SECONDS)), 1):
                key.data()
                if number % ARRIVALS_AT_ONCE == 0:
                    self._turns.run()
            self._turns.run()
            self._end_overdue(time.monotonic())
            if os.getppid() != self.ppid:
                self.alive = False
        self._finish_begun()
        for connection in list(self._connections):
            self._end(connection)
        self._turns.close()

    def _finish_begun(self) -> None:
        """Answer those requests that cannot be undone any more; the others are dropped or refused."""
        self._leaving = True
        self._turns.hurry()
        until = time.monotonic() + STOP_SECONDS
        while self._waiting and time.monotonic() < until:
            self._poll.select(self._turns.seconds_left(TICK_SECONDS))
            self._turns.run()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signals call it
        """End at once, by SIGQUIT or SIGINT."""
        self._leaving = True
        self.alive = False

    # Waiting ----------------------------------------------------------------------------------------

    def _listen(self, listening: bool) -> None:
        for listener in self.sockets:
            if listening:
                listener.setblocking(False)
                self._poll.register(listener, selectors.EVENT_READ, partial(self._on_accept, listener))
            else:
                self._poll.unregister(listener)

    def _finished(self) -> bool:
        if self.alive or self._leaving:
            return self._leaving
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            self._listen(False)
        for connection in self._connections:
            if connection.idle:
                connection.deadline = min(connection.deadline, now + STOP_SECONDS)
        return not self._connections or now - self._stopping_since > self.cfg.graceful_timeout

    def _on_accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            if len(self._connections) >= self._connections_most:
                self._make_room()
            try:
                accepted, peer = listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room()
                return
            self._admit(accepted, peer, listener.getsockname())

    def _admit(self, accepted: socket.socket, peer: Any, server: Any) -> None:
        """Take a connection: TLS, or plain from a proxy that the configuration names."""
        plain = _bind_name(server) in self._plain_binds
        if plain and not isinstance(server, str) and peer[0] not in self._proxies:
            accepted.close()
            return
        wrapped: socket.socket = accepted
        try:
            accepted.setblocking(False)
            if not isinstance(server, str):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not plain:
                wrapped = self._contexts.current().wrap_socket(
                    accepted, server_side=True, do_handshake_on_connect=False
                )
        except OSError:  # the client left before it was looked at
            accepted.close()
            return
        connection = Connection(wrapped, peer or "", server, self._body_limit, time.monotonic(), proxied=plain)
        self._connections.add(connection)
        self._go_on(connection, connection.advance)

    def _make_room(self) -> None:
        """End those that have been waiting longest, first of all those without a certificate.

        Several at once: to look for each would cost more than the flood of connections costs its sender.
        """
        waiting = (connection for connection in self._connections if connection.phase is not Phase.WORK)
        for connection in nsmallest(ACCEPT_AT_ONCE, waiting, key=lambda c: (c.certified, c.since)):
            self._end(connection)

    def _on_ready(self, connection: Connection) -> None:
        if connection.phase is Phase.WORK:  # what comes meanwhile stays in the kernel
            self._watch(connection, 0)
        elif connection.phase is not Phase.CLOSED:  # it may have made room since select saw it
            self._go_on(connection, connection.advance)

    def _go_on(self, connection: Connection, step: Callable[[float], bytes | None]) -> None:
        """Take a step of a connection; begin its request, if there is a whole one, or wait for the next step."""
        try:
            request = step(time.monotonic())
        except FramingError as error:
            request = connection.answer(refusal(error.status, error.message), time.monotonic(), close=True)
        if request is not None:
            self._begin(connection, request)
        elif connection.phase is Phase.CLOSED:
            self._forget(connection)
        else:
            self._watch(connection, selectors.EVENT_WRITE if connection.wants_write else selectors.EVENT_READ)

    def _watch(self, connection: Connection, event: int) -> None:
        """Wait for ``event``, or for nothing. What is waited for already costs no call."""
        if connection.watched == event:
            return
        if not event:
            self._poll.unregister(connection.descriptor)
        elif connection.watched:
            self._poll.modify(connection.descriptor, event, partial(self._on_ready, connection))
        else:
            self._poll.register(connection.descriptor, event, partial(self._on_ready, connection))
        connection.watched = event

    def _begin(self, connection: Connection, request: bytes) -> None:
        """Let a request take its turn; when too many are waiting, refuse it at once instead of queueing.

        The refusal takes its turn too: a client may have sent a thousand requests in one go.
        """
        if self._waiting >= self._waiting_most:
            close = connection.must_close
            self._turns.begin(partial(self._answer, connection, refusal(503, "the KME is busy", close=close), close))
            return
        self._waiting += 1
        self._turns.begin(partial(self._work, connection, request))

    def _on_signal(self) -> None:
        os.read(self.PIPE[0], 64)

    def _end_overdue(self, now: float) -> None:
        if now < self._look_at:
            return
        self._look_at = now + TICK_SECONDS
        for connection in list(self._connections):
            if connection.phase is not Phase.WORK and connection.deadline < now:
                self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._watch(connection, 0)
        connection.close()
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._watch(connection, 0)
        self._connections.discard(connection)

    # Working ----------------------------------------------------------------------------------------

    def _work(self, connection: Connection, request: bytes) -> None:
        """In a greenlet: answer one request. The edge of the process: nothing escapes."""
        if not self._leaving:  # otherwise nobody would get the answer
            try:
                self._count()
                data, close = self._caller.call(connection, request, last=not self.alive)
            except Exception:
                self.log.exception("a request ended unexpectedly")
                data, close = refusal(500, "the KME cannot answer now"), True
            self._answer(connection, data, close)
        self._waiting -= 1

    def _answer(self, connection: Connection, data: bytes, close: bool) -> None:
        self._go_on(connection, lambda now: connection.answer(data, now, close=close))

    def _count(self) -> None:
        """After so many requests the worker makes way for a new one: the token's library leaks a little."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("worker served %d requests and makes way for a new one", self.nr)
            self.alive = False


def _bind_name(address: Any) -> str:
    """A listener's address as the configuration writes it."""
    if isinstance(address, bytes | str):
        return "unix:" + (address.decode() if isinstance(address, bytes) else address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _allow_many_files() -> int:
    """Raise the limit of open files as far as it goes; returns how many of them connections may take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return CONNECTIONS_MOST if hard == resource.RLIM_INFINITY else max(hard - FILES_SPARED, 1)
