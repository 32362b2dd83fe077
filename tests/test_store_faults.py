"""Does a store that cannot be written cost a key, or only time?"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest
import requests

from tests.load import Ledger, Load, Records, burst, check, check_same, new_seed, wait_until_healed
from tests.world import Demo, start_demo, until

WORKERS = 2
POOL = 20_000
ROUNDS = 2
CLIENTS = 4
BURST = 6
Fault = Callable[[Demo], AbstractContextManager[None]]


@contextmanager
def no_room(demo: Demo) -> Iterator[None]:
    """No process of the server may write a file, as on a full disk; those that start meanwhile inherit it."""
    limited = [demo.server_pid, *demo.workers()]
    _, most = resource.prlimit(limited[0], resource.RLIMIT_FSIZE)
    _limit(limited, (0, most))
    try:
        yield
    finally:
        _limit([demo.server_pid], (most, most))  # first: what it starts from now on is free
        _limit(demo.workers(), (most, most))


def _limit(pids: list[int], limits: tuple[int, int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def locked(demo: Demo) -> Iterator[None]:
    """Somebody else, a forgotten shell of an operator, holds the database in a transaction."""
    connection = sqlite3.connect(demo.store, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


@contextmanager
def read_only(demo: Demo) -> Iterator[None]:
    """The database's files cannot be written any more, also by those who have them open."""
    files = [demo.store, demo.store.with_name(demo.store.name + "-wal")]
    with ExitStack() as stack:
        for path in files:
            _run("chattr", "+i", str(path))
            stack.callback(_run, "chattr", "-i", str(path))
        yield


@contextmanager
def full_disk(demo: Demo) -> Iterator[None]:
    """The file system that the demo is on has no block left."""
    filler = demo.directory / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _can_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


def _can_set_immutable() -> bool:
    with tempfile.NamedTemporaryFile() as probe:
        able = subprocess.run(["chattr", "+i", probe.name], check=False, capture_output=True).returncode == 0
        if able:
            _run("chattr", "-i", probe.name)
        return able


FAULTS: list[Fault] = [no_room, locked]
# Nothing but these two keeps root from writing a file, and only root may do them.
FAULTS += [read_only] if _can_set_immutable() else []
FAULTS += [full_disk] if _can_mount() else []


@dataclass
class Place:
    """A running KME, and what can be done to its store."""

    demo: Demo
    fault: Fault


@pytest.fixture(scope="module", params=FAULTS, ids=[fault.__name__ for fault in FAULTS])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param.__name__)
    with ExitStack() as stack:
        if request.param is full_disk:
            _run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory))
            stack.callback(_run, "umount", "--lazy", str(directory))
        demo = stack.enter_context(start_demo(directory, saes=CLIENTS, keys=POOL, workers=WORKERS))
        yield Place(demo, request.param)


def test_what_cannot_be_recorded_is_refused_and_costs_nothing(place: Place) -> None:
    demo = place.demo
    owed = demo.enc("sae-1", "sae-2", number=100)
    waiting = list(owed)
    with place.fault(demo):
        _enc_until_refused(demo)
        _dec_until_refused(demo, owed, waiting)
        assert demo.get("sae-1", "sae-2/status").status_code == 200, "reading needs no room"
    wait_until_healed(demo)
    check_same(demo.dec("sae-2", "sae-1", waiting), {key_id: owed[key_id] for key_id in waiting})
    _check_count(demo)


def test_a_fault_that_comes_and_goes_under_load_loses_no_key(place: Place) -> None:
    demo = place.demo
    before = {key_id for key_id, _ in Ledger(demo.log_rows()).deliveries}
    with Load(demo, new_seed()) as records:
        for _ in range(ROUNDS):
            records.wait_for_more(60)
            refusals = records.refusals
            with place.fault(demo):
                records.wait_until(lambda seen=refusals: records.refusals >= seen + CLIENTS, 90)
        until(lambda: _serves_without_refusing(records), 60, "every thread of every worker heals")
    assert records.unanswered.total() == 0, "an answer is due, not a broken connection"
    assert {status for _, status in records.answers} == {200, 503}
    ledger = _check_count(demo)
    check(records, ledger)
    assert ledger.burnt(records) - before == set(), "what is refused takes no key"
    print(f"{records.served} calls served, {records.refusals} refused")


def _serves_without_refusing(records: Records) -> bool:
    refusals = records.refusals
    records.wait_for_more(150, 60)
    return records.refusals == refusals


def test_threads_that_first_came_to_the_store_during_the_fault_heal_too(place: Place) -> None:
    demo = place.demo
    _replace_workers(demo)
    until(lambda: demo.health() == 200)
    with place.fault(demo):
        _enc_until_refused(demo)
        assert set(burst(demo, BURST)) <= {200, 503}
    wait_until_healed(demo)
    assert [status for _ in range(5) for status in burst(demo, BURST) if status != 200] == [], "a thread stays broken"
    _check_count(demo)


def _replace_workers(demo: Demo) -> None:
    killed = demo.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(demo.workers()) - set(killed)) == WORKERS, 30, "workers come back")


def test_workers_that_start_during_the_fault_refuse_and_heal_by_themselves(place: Place) -> None:
    demo = place.demo
    owed = demo.enc("sae-1", "sae-2", number=3)
    with place.fault(demo):
        _replace_workers(demo)
        _enc_until_refused(demo)
    wait_until_healed(demo)
    check_same(demo.dec("sae-2", "sae-1", list(owed)), owed)
    _check_count(demo)


def _enc_until_refused(demo: Demo) -> None:
    """A disk is full only when what the database has in reserve is used up: the first calls may be served."""
    for _ in range(200):
        answer = demo.post("sae-1", "sae-2/enc_keys", {"number": 16})
        if answer.status_code != 200:
            _check_refusal(answer)
            return
    pytest.fail("every call was served: the fault is none")


def _dec_until_refused(demo: Demo, owed: dict[str, bytes], waiting: list[str]) -> None:
    """Collect keys one by one; leaves those in ``waiting`` that were not handed out."""
    while waiting:
        answer = demo.post("sae-2", "sae-1/dec_keys", {"key_IDs": [{"key_ID": waiting[-1]}]})
        if answer.status_code != 200:
            _check_refusal(answer)
            return
        key_id = waiting.pop()
        check_same(demo.keys(answer), {key_id: owed[key_id]})
    pytest.fail("every call was served: the fault is none")


def _check_refusal(answer: requests.Response) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json()) == ["message"]


def _check_count(demo: Demo) -> Ledger:
    """What can be delivered is what was deposited less what the log says was delivered; nothing was blamed."""
    ledger = Ledger(demo.log_rows())
    assert demo.stored("sae-1", "sae-2") == ledger.left
    assert ledger.alarms == []
    assert ledger.voided == []
    return ledger
