"""Can clients that stall, dribble, vanish or crowd keep a good one from being served?"""

from __future__ import annotations

import resource
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

import pytest

from hsmkme.server.connection import ANSWER_SECONDS, HANDSHAKE_SECONDS, REQUEST_SECONDS
from hsmkme.server.worker import CONNECTIONS_MOST
from tests.hostile.game import Vitals, connections_to, open_files
from tests.hostile.honest import STATUS, Honest, Waits, context_of, stay, visits
from tests.hostile.moves import PREFIX, request
from tests.hostile.servers import serving
from tests.hostile.wire import Wire
from tests.world import Demo, start_demo, until

HALF_OPEN, DRIBBLING, HALF_SENT, NOT_READING = 500, 100, 100, 8
SLACK = 15.0
"""Seconds by which a deadline may be late on a busy machine."""

RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with start_demo(tmp_path_factory.mktemp("slow"), saes=2, keys=2000) as running:
        until(lambda: used(running), 60, "the workers have their files open")
        yield running


def used(kme: Demo) -> bool:
    """Give the workers much to do at once; whether they took no more files for it."""
    before, context = files(kme), context_of(kme)
    with ExitStack() as stack:
        wires = [Wire(kme.port, context) for _ in range(60)]
        for wire in wires:
            stack.callback(wire.close)
            wire.shake_hands()
            wire.send(STATUS * 10)
        for wire in wires:
            wire.answers(10)
    until(lambda: not connections_to(kme.port), 20, "every connection is gone")
    return files(kme) == before


@dataclass
class Stalled:
    """A connection whose client does not go on. ``kind`` tells where it stopped."""

    kind: str
    socket: socket.socket
    since: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def look(self) -> None:
        """Notice whether the server ended the connection."""
        with suppress(BlockingIOError):
            try:
                while self.socket.recv(65536):
                    pass
            except BlockingIOError:
                raise
            except OSError:
                pass
            self.ended = time.monotonic()


class Crowd:
    """Clients that stall, all at once."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._context = context_of(demo)
        self._stack = ExitStack()
        self._stop = threading.Event()
        self.members: list[Stalled] = []
        self.not_reading: list[Wire] = []
        self._dribbling: list[Wire] = []

    def __enter__(self) -> Self:
        for _ in range(HALF_OPEN):
            wire = self._wire()
            wire.socket.sendall(wire.hello()[:100])
            self._stall("half a handshake", wire)
        for _ in range(HALF_SENT):
            wire = self._greeted()
            wire.send(request("POST", f"{PREFIX}sae-2/enc_keys", b"{" + b" " * 999)[:-900])
            self._stall("half a body", wire)
        for _ in range(DRIBBLING):
            wire = self._greeted()
            wire.send(STATUS[:20])
            self._dribbling.append(wire)
            self._stall("dribbling headers", wire)
        for _ in range(NOT_READING):
            wire = self._wire(buffer=4096)
            wire.shake_hands()
            wire.send(request("GET", "/openapi.json") * 400)
            self.not_reading.append(wire)
        self.complete_since = time.monotonic()
        dribbler = threading.Thread(target=self._dribble)
        dribbler.start()
        self._stack.callback(dribbler.join)
        self._stack.callback(self._stop.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _wire(self, buffer: int | None = None) -> Wire:
        wire = Wire(self._demo.port, self._context, buffer)
        self._stack.callback(wire.close)
        return wire

    def _greeted(self) -> Wire:
        wire = self._wire()
        wire.shake_hands()
        return wire

    def _stall(self, kind: str, wire: Wire) -> None:
        self.members.append(Stalled(kind, wire.socket))

    def _dribble(self) -> None:
        """One more header now and then: whoever does that has no more time than others."""
        while not self._stop.wait(0.5):
            for wire in self._dribbling:
                with suppress(OSError):
                    wire.socket.sendall(wire.sealed(b"X-More: 1\r\n"))

    def nobody_ended(self) -> bool:
        """Whether all are there still."""
        return time.monotonic() < self.members[0].since + HANDSHAKE_SECONDS - 1

    def watch(self, seconds: float) -> None:
        """Until the server has ended every one that stalls in sending."""
        for member in self.members:
            member.socket.setblocking(False)
        with selectors.DefaultSelector() as poll:
            for member in self.members:
                poll.register(member.socket, selectors.EVENT_READ, member)
            deadline = time.monotonic() + seconds
            while poll.get_map() and time.monotonic() < deadline:
                for key, _ in poll.select(1.0):
                    key.data.look()
                    if key.data.ended is not None:
                        poll.unregister(key.fileobj)


def lives(crowd: Crowd, kind: str) -> list[float]:
    """How long each of a kind was let wait."""
    found = [member for member in crowd.members if member.kind == kind]
    assert all(member.ended is not None for member in found), f"{kind}: some were never ended"
    return [member.ended - member.since for member in found if member.ended is not None]


def test_seven_hundred_stalled_clients_do_not_keep_a_good_one_waiting_and_end_in_time(kme: Demo) -> None:
    context = context_of(kme)
    anew, kept = visits(kme.port, context, 60), stay(kme.port, context, 200)
    until(lambda: not connections_to(kme.port), 10)
    before = Vitals.of(kme)
    with Crowd(kme) as crowd:
        anew_during = visits(kme.port, context, 60, crowd.nobody_ended)
        kept_during = stay(kme.port, context, 200, crowd.nobody_ended)
        print(f"a new connection each: {anew} before, {anew_during} among {len(crowd.members)} stalled clients")
        print(f"a kept connection: {kept} before, {kept_during} among them (median/p99)")
        crowd.watch(REQUEST_SECONDS + SLACK + 5)
        for kind, seconds in (
            ("half a handshake", HANDSHAKE_SECONDS),
            ("half a body", REQUEST_SECONDS),
            ("dribbling headers", REQUEST_SECONDS),
        ):
            lived = lives(crowd, kind)
            print(f"{kind}: {len(lived)} ended after {min(lived):.1f} to {max(lived):.1f} s")
            assert seconds - 1 < min(lived)
            assert max(lived) < seconds + SLACK
        until(lambda: files(kme) <= sum(before.files.values()) + 2, ANSWER_SECONDS + SLACK, "every file is closed")
        print(f"not reading: {NOT_READING} ended after {time.monotonic() - crowd.complete_since:.1f} s")
    not_slower(anew, anew_during)
    not_slower(kept, kept_during)
    assert Vitals.of(kme).memory.keys() == before.memory.keys()
    assert "Traceback" not in (kme.config.parent / "serve.log").read_text()


def files(kme: Demo) -> int:
    return sum(Vitals.of(kme).files.values())


def not_slower(before: Waits, during: Waits) -> None:
    """Not out of all proportion: the machine may be busy with something else."""
    assert during.median <= 10 * before.median + 0.5


# Leaving ------------------------------------------------------------------------------------------


def leave_before_accept(kme: Demo) -> None:
    """Data and a reset before the server has looked at the connection."""
    with socket.create_connection(("127.0.0.1", kme.port)) as client:
        client.sendall(b"\x16\x03\x01")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def leave_in_the_handshake(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme))
    wire.socket.sendall(wire.hello())
    wire.close(reset=True)


def leave_after_the_first_flight(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme))
    wire.socket.sendall(wire.hello())
    wire.socket.recv(100)
    wire.close(reset=True)


def leave_while_the_request_is_in_work(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme))
    wire.shake_hands()
    wire.send(STATUS)
    wire.close(reset=True)


def leave_in_the_answer(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme), buffer=4096)
    wire.shake_hands()
    wire.send(request("GET", "/openapi.json") * 3)
    wire.socket.recv(100)
    wire.close(reset=True)


def leave_without_a_word(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme))
    wire.shake_hands()
    wire.send(STATUS)
    wire.answers(1)
    wire.close()


def end_sending_only(kme: Demo) -> None:
    wire = Wire(kme.port, context_of(kme))
    wire.shake_hands()
    wire.send(STATUS)
    (answer,) = wire.last_answers(polite=False)
    assert answer.status == 200
    wire.close()


@pytest.mark.parametrize(
    ("leave", "times"),
    [
        (leave_before_accept, 500),
        (leave_in_the_handshake, 200),
        (leave_after_the_first_flight, 100),
        (leave_while_the_request_is_in_work, 100),
        (leave_in_the_answer, 100),
        (leave_without_a_word, 100),
        (end_sending_only, 100),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else "",
)
def test_clients_that_leave_rudely_cost_nothing(kme: Demo, leave: object, times: int) -> None:
    assert callable(leave)
    before, context = Vitals.of(kme), context_of(kme)
    with Honest(kme.port, context) as good:
        for number in range(times):
            leave(kme)
            if number % 10 == 0:
                assert good.ask().status == 200
        assert good.connections == 1
    assert visits(kme.port, context, 3).median < 10
    until(lambda: not connections_to(kme.port), 20, "every connection is gone")
    after = Vitals.of(kme)
    assert after.memory.keys() == before.memory.keys(), "a worker was lost"
    assert sum(after.files.values()) <= sum(before.files.values()) + 8
    assert "Traceback" not in (kme.config.parent / "serve.log").read_text()


# Crowding -----------------------------------------------------------------------------------------


class Flood:
    """Connects and does nothing, again and again, from entering to leaving the block; holds ``most`` at once."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._most = most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._sockets: deque[socket.socket] = deque()
        self.made = 0

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.made >= self._most, 120, "the flood is there")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._sockets.append(socket.create_connection(("127.0.0.1", self._port), timeout=60))
            self.made += 1
            if self.made > self._most:
                self._sockets.popleft().close()
                self._stop.wait(0.002)


@pytest.mark.parametrize("limit", [400, 0], ids=["few open files", "as many files as there may be"])
def test_more_connections_than_a_worker_holds_do_not_lock_out_a_good_client(kme: Demo, limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    crowd = 700 if limit else min(CONNECTIONS_MOST + 300, hard - 1000)
    context, nobody = context_of(kme), context_of(kme, None)
    with serving(kme, files=limit) as server, Honest(server.port, context) as early, ExitStack() as stack:
        (worker,) = server.workers()
        before = visits(server.port, context, 20)
        early.ask()
        for _ in range(50):
            anonymous = Wire(server.port, nobody)
            stack.callback(anonymous.close)
            anonymous.shake_hands()
        with Flood(server.port, crowd) as flood:
            during, most = visits(server.port, context, 40), open_files(worker)
            assert early.ask().status == 200
            assert early.connections == 1, "a client with a certificate was ended for the sake of the crowd"
            print(f"new connections: {before} before, {during} among {flood.made} that a worker with {most} files saw")
            assert most <= (limit or CONNECTIONS_MOST + 128)
        not_slower(before, visits(server.port, context, 20))
        assert server.workers() == [worker]
        assert "Traceback" not in server.log.read_text()


def test_a_thousand_requests_in_one_go_to_a_busy_worker_are_each_answered(kme: Demo) -> None:
    """Most by a refusal at once: those may neither pile up on one another nor keep others waiting."""
    many, context = 1000, context_of(kme)
    with serving(kme, more="\n[fair_use]\nwaiting = 1\n") as server, ExitStack() as stack:
        (worker,) = server.workers()
        wires = [Wire(server.port, context) for _ in range(3)]
        for wire in wires:
            stack.callback(wire.close)
            wire.shake_hands()
        for wire in wires:
            wire.send(request("GET", "/health") * many)
        statuses = [answer.status for wire in wires for answer in wire.answers(many)]
        print(f"{statuses.count(200)} served, {statuses.count(503)} refused as the worker was busy")
        assert len(statuses) == len(wires) * many
        assert set(statuses) == {200, 503}
        assert server.workers() == [worker]
        assert "Traceback" not in server.log.read_text()
