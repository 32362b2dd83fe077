"""Does a request get lost, or a key, when workers make way for others or the server ends?"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.hostile.game import connections_to
from tests.hostile.honest import ENC_KEYS, Honest, context_of
from tests.hostile.servers import Server, serving
from tests.hostile.wire import Wire
from tests.world import Demo, start_demo, until

CLIENTS = 6


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("restarts"), saes=2, keys=20_000) as running:
        yield running


class Load:
    """Clients that fetch a key after the other on kept connections, from entering to leaving the block.

    They go on as HTTP allows: a connection that was ended before an answer began is replaced by another. That is
    safe only if the server never works for a request whose answer it does not send: `lost` tells.
    """

    def __init__(self, kme: Demo, port: int) -> None:
        self._kme = kme
        self._context = context_of(kme)
        self._port = port
        self._stop = threading.Event()
        self._before = delivered(kme)
        self.statuses: list[int] = []
        self.connections = 0
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No more requests."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with Honest(self._port, self._context) as client:
            try:
                while not self._stop.wait(0.002):
                    self.statuses.append(client.ask(ENC_KEYS).status)
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failures.append(error)
            self.connections += client.connections

    def more(self, answers: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.statuses) + answers
        until(lambda: len(self.statuses) >= wanted or self.failures, 60, "answers come")

    @property
    def lost(self) -> int:
        """Deliveries that the audit log has and no client saw."""
        return delivered(self._kme) - self._before - self.statuses.count(200)


def delivered(kme: Demo) -> int:
    """How many Get key calls the audit log has."""
    with kme.database() as database:
        (count,) = database.execute("SELECT count(*) FROM log WHERE text LIKE '%key.deliver%'").fetchone()
    return int(count)


def nothing_was_lost(load: Load, server: Server) -> None:
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert load.lost == 0
    assert "Traceback" not in server.log.read_text()


def test_a_reload_loses_no_request_and_old_workers_leave_though_clients_stay_connected(kme: Demo) -> None:
    with serving(kme, workers=2) as server, Load(kme, server.port) as load:
        for _ in range(3):
            load.more(100)
            reload(server)
        load.more(100)
        load.stop()
        print(f"{len(load.statuses)} answers on {load.connections} connections through 3 reloads")
        nothing_was_lost(load, server)


def reload(server: Server) -> None:
    """Until there are new workers and no old ones."""
    old = set(server.workers())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: old.isdisjoint(server.workers()), 40, "old workers leave")
    until(lambda: len(server.workers()) == 2, 40, "new workers are there")


def test_workers_that_have_served_enough_make_way_without_losing_a_request(kme: Demo) -> None:
    options = {"max_requests": 150, "max_requests_jitter": 50}
    with serving(kme, workers=2, options=options) as server, Load(kme, server.port) as load:
        seen: set[int] = set()

        def changed() -> bool:
            seen.update(server.workers())
            return len(seen) >= 7

        until(changed, 120, "five workers made way")
        load.more(50)
        load.stop()
        print(f"{len(load.statuses)} answers on {load.connections} connections by {len(seen)} workers")
        nothing_was_lost(load, server)


def test_an_idle_client_does_not_keep_a_worker_from_leaving(kme: Demo) -> None:
    with serving(kme) as server, Honest(server.port, context_of(kme)) as idle:
        idle.ask()
        (old,) = server.workers()
        os.kill(old, signal.SIGTERM)
        until(lambda: old not in server.workers(), 15, "the worker leaves")
        until(server.answers, 40, "another takes its place")
        assert idle.ask().status == 200
        assert idle.connections == 2


def test_a_server_told_to_end_answers_what_it_has_begun(kme: Demo) -> None:
    context, before = context_of(kme), delivered(kme)
    with serving(kme) as server:
        wires = [Wire(server.port, context) for _ in range(30)]
        for wire in wires:
            wire.shake_hands()
        for wire in wires:
            wire.send(ENC_KEYS)
        until(lambda: delivered(kme) > before, 20, "work has begun")
        server.process.terminate()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda wire: wire.answers(1), wires))
        assert [answer.status for (answer,) in answers] == [200] * 30
        assert server.process.wait(timeout=40) == 0
    for wire in wires:
        wire.close()
    assert delivered(kme) - before == 30
    until(lambda: not connections_to(server.port), 20)


def test_a_server_told_to_quit_does_not_go_on_consuming_keys_for_clients_it_has_left(kme: Demo) -> None:
    context, before = context_of(kme), delivered(kme)
    with serving(kme) as server:
        wires = [Wire(server.port, context) for _ in range(150)]
        for wire in wires:
            wire.shake_hands()
        for wire in wires:
            wire.send(ENC_KEYS * 8)
        until(lambda: delivered(kme) > before, 20, "work has begun")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGQUIT)
        until(lambda: worker not in server.workers(), 20, "the worker has ended")
        answered = 0
        for wire in wires:
            wire.socket.settimeout(5)
            try:
                for _ in range(8):
                    answered += len(wire.answers(1))
            except OSError:
                continue
            finally:
                wire.close()
        assert 0 < delivered(kme) - before < 1200, "every waiting request was worked for"
        assert delivered(kme) - before - answered <= 2


@contextmanager
def half_written(path: Path) -> Iterator[None]:
    """As it looks to others while a careless program writes it."""
    whole, content = path.with_suffix(".whole"), path.read_bytes()
    path.rename(whole)
    path.write_bytes(content[: len(content) // 2])
    try:
        yield
    finally:
        whole.replace(path)


def test_a_worker_that_comes_while_a_certificate_is_half_written_waits_for_the_rest(kme: Demo) -> None:
    with serving(kme, workers=2) as server:
        old = server.workers()
        with half_written(kme.config.parent / "server" / "cert.pem"):
            os.kill(old[0], signal.SIGTERM)
            until(lambda: "waits for certificate files" in server.log.read_text(), 30, "a new worker waits")
            assert old[1] in server.workers()
            assert server.answers()
        os.kill(old[1], signal.SIGTERM)
        until(lambda: not set(old) & set(server.workers()), 30, "the last old worker leaves")
        until(server.answers, 30, "new ones serve")
        assert server.process.poll() is None


def test_a_server_that_is_started_with_half_a_certificate_says_so_and_ends(kme: Demo) -> None:
    with half_written(kme.config.parent / "server" / "cert.pem"):
        done = kme.cli("serve", check=False)
    assert done.returncode == 1
    assert b"the certificate files do not make a TLS context" in done.stderr
    assert b"Traceback" not in done.stderr
