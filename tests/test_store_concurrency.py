"""Is a key handed out once whoever claims at the same time, and whoever is killed meanwhile?"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from hsmkme.audit import AuditChain, row_hash
from hsmkme.errors import KeyNotHeld, PoolShort
from hsmkme.model import SealedKey
from hsmkme.states import BlockState
from hsmkme.store import Store
from tests.blocks import claim, collect
from tests.exercise_store import ENTRY, NO_LIMIT, Subject, demand_for, make_block, places
from tests.processes import processes
from tests.test_store import open_subject

PROCESSES = 4
THREADS = 4
KILLS = 20
WAIT_SECONDS = 120

def open_store(path: Path) -> Store:
    return Store(path, AuditChain(), time.time)


def in_threads(path: Path, barrier: Barrier, results: Connection, work: str, *arguments: object) -> None:
    """Runs ``work`` in threads that begin together with those of the other processes; sends what they return."""
    done: list[object] = []
    store = open_store(path)

    def run() -> None:
        barrier.wait(WAIT_SECONDS)
        try:
            done.append(WORK[work](store, *arguments))
        except Exception as error:  # noqa: BLE001 - any error at all is a finding
            done.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.send(done)


def claim_until_dry(store: Store) -> tuple[list[tuple[UUID, tuple[str, int]]], float]:
    """Every key this thread got with its place, and the longest it waited for one."""
    got, longest = [], 0.0
    while True:
        started = time.monotonic()
        try:
            (key,) = claim(store, demand_for(1, 256), ENTRY)
        except PoolShort:
            return got, longest
        longest = max(longest, time.monotonic() - started)
        got.append((key.key_id, places(key)[0]))


def collect_all(store: Store, key_ids: list[UUID]) -> tuple[list[UUID], float]:
    """Those of ``key_ids`` that this thread collected for bob; every thread tries every key."""
    mine = []
    for key_id in key_ids:
        try:
            collect(store, "bob", [key_id], ENTRY)
        except KeyNotHeld:
            continue
        mine.append(key_id)
    return mine, 0.0


WORK = {"claim": claim_until_dry, "collect": collect_all}


def race(path: Path, work: str, *arguments: object) -> list[object]:
    """What each of ``PROCESSES × THREADS`` threads returned."""
    barrier = processes.Barrier(PROCESSES * THREADS)
    pipes = [processes.Pipe(duplex=False) for _ in range(PROCESSES)]
    children = [
        processes.Process(target=in_threads, args=(path, barrier, send, work, *arguments)) for _, send in pipes
    ]
    for child in children:
        child.start()
    results = []
    for receive, _ in pipes:
        assert receive.poll(WAIT_SECONDS), "a process does not answer"
        results.extend(receive.recv())
    for child in children:
        child.join(WAIT_SECONDS)
    assert all(not isinstance(result, str) for result in results), results
    assert len(results) == PROCESSES * THREADS
    return results


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return open_subject(tmp_path / "store.sqlite")


def test_every_key_is_claimed_once_and_none_is_lost(subject: Subject, tmp_path: Path) -> None:
    blocks = [subject.fill(keys) for keys in (1, 7, 128, 64, 400)]
    expected = {(block.seal.name.block_id, number) for block in blocks for number in range(block.key_count)}
    results = race(tmp_path / "store.sqlite", "claim")
    claimed = [one for got, _ in results for one in got]
    assert len({key_id for key_id, _ in claimed}) == len(claimed) == len(expected)
    assert {place for _, place in claimed} == expected
    shares = sorted(len(got) for got, _ in results)
    print(f"longest wait {max(wait for _, wait in results) * 1000:.0f} ms, shares {shares}")
    subject.check_counts()
    check_chain(tmp_path / "store.sqlite")


def test_a_key_that_many_collect_at_once_is_collected_once(subject: Subject, tmp_path: Path) -> None:
    subject.fill(40)
    keys = subject.claim(40)
    results = race(tmp_path / "store.sqlite", "collect", [key.key_id for key in keys])
    collected = Counter(key_id for mine, _ in results for key_id in mine)
    assert collected == {key.key_id: 1 for key in keys}
    assert subject.rows("SELECT count(*) FROM segments") == [(0,)]


def test_one_block_deposited_by_many_is_stored_once(subject: Subject, tmp_path: Path) -> None:
    block = make_block()
    stores = [open_store(tmp_path / "store.sqlite") for _ in range(4)]
    outcomes: list[str] = []
    start = threading.Barrier(len(stores))

    def deposit(store: Store) -> None:
        start.wait()
        outcomes.extend(store.blocks.deposit([block], BlockState.READY, NO_LIMIT, ENTRY))
        store.close()

    threads = [threading.Thread(target=deposit, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already"] * 3 + ["taken"]
    subject.check_counts()


# Killed in the middle -------------------------------------------------------------------------------------


def write_for_ever(path: Path, seed: int, acknowledged: Connection) -> None:
    """All kinds of write transactions; each is told about after its commit."""
    store, chance = open_store(path), random.Random(seed)
    held: list[SealedKey] = []
    while True:
        what = chance.choice(("deposit", "claim", "claim", "collect", "void", "expire"))
        told: list[object] = []
        if what == "deposit":
            block = make_block(chance.randint(1, 6))
            store.blocks.deposit([block], BlockState.READY, NO_LIMIT, ENTRY)
            told = [block.seal.name.block_id]
        elif what == "claim":
            try:
                keys = claim(store, demand_for(chance.randint(1, 4), chance.choice((256, 512))), ENTRY)
            except PoolShort:
                continue
            held += keys
            told = [(key.key_id, places(key)) for key in keys]
        elif what == "expire":
            store.keys.expire(int(time.time()) + 10, ENTRY, limit=1)
        elif held:
            key = held.pop(chance.randrange(len(held)))
            if what == "collect":
                told = [*collect_all(store, [key.key_id])[0]]
            else:
                told = [*store.keys.void([key.key_id], ENTRY)]
        acknowledged.send((what, told))


def test_a_process_killed_in_the_middle_of_writing_leaves_whole_transactions(subject: Subject, tmp_path: Path) -> None:
    path, chance = tmp_path / "store.sqlite", random.Random(20)
    known: dict[str, list[object]] = {}
    for seed in range(KILLS):
        receive, send = processes.Pipe(duplex=False)
        child = processes.Process(target=write_for_ever, args=(path, seed, send))
        child.start()
        send.close()
        for _ in range(chance.randint(1, 40)):
            assert receive.poll(WAIT_SECONDS), "the writer does not write"
            remember(known, *receive.recv())
        child.kill()
        child.join(WAIT_SECONDS)
        assert child.exitcode == -9
        while told := next_of(receive):
            remember(known, *told)
        check_all(subject, path, known)
    subject.store.log.append(ENTRY)
    print(", ".join(f"{len(one)} × {what}" for what, one in sorted(known.items())))


def remember(known: dict[str, list[object]], what: str, told: list[object]) -> None:
    known.setdefault(what, []).extend(told)


def next_of(receive: Connection) -> tuple[str, list[object]] | None:
    """What was told before the end; None at the end, or at what the kill cut short."""
    try:
        told: tuple[str, list[object]] = receive.recv()
        return told
    except (EOFError, OSError):
        return None


def check_all(subject: Subject, path: Path, known: dict[str, list[object]]) -> None:
    """Counters and chain are right, what was acknowledged is there, no segment was given twice."""
    subject.check_counts()
    check_chain(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        blocks = dict(connection.execute("SELECT block_pk, block_id FROM block"))
        rows = connection.execute("SELECT key_id, state, parts FROM key").fetchall()
    connection.close()
    states = {UUID(bytes=key_id): state for key_id, state, _ in rows}
    given = {
        UUID(bytes=key_id): [(blocks[pk], first + i) for pk, first, count in json.loads(parts) for i in range(count)]
        for key_id, _, parts in rows
    }
    assert set(known.get("deposit", [])) <= set(blocks.values())
    assert all(given[key_id] == placed for key_id, placed in known.get("claim", []))
    assert all(states[key_id] == "consumed" for key_id in known.get("collect", []))
    assert all(states[key_id] == "void" for key_id in known.get("void", []))
    each = [place for placed in given.values() for place in placed]
    assert len(set(each)) == len(each)


def check_chain(path: Path) -> None:
    """Every row of the log follows from the one before, and the head is the last."""
    connection = sqlite3.connect(path)
    previous, seq = bytes(32), 0
    for number, text, digest in connection.execute("SELECT seq, text, hash FROM log ORDER BY seq"):
        assert (number, digest) == (seq + 1, row_hash(previous, text))
        previous, seq = digest, number
    assert connection.execute("SELECT seq, hash FROM log_head").fetchall() == [(seq, previous)]
    connection.close()


def test_a_killed_writer_does_not_keep_the_others_waiting(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=hold_the_turn, args=(path, send))
    child.start()
    assert receive.poll(WAIT_SECONDS)
    waiting = threading.Thread(target=lambda: subject.store.log.append(ENTRY))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    child.kill()
    waiting.join(WAIT_SECONDS)
    assert not waiting.is_alive()
    child.join(WAIT_SECONDS)
    assert "half" not in {sae_id for (sae_id,) in subject.rows("SELECT sae_id FROM sae")}
    check_chain(path)


def hold_the_turn(path: Path, ready: Connection) -> None:
    """Begins a transaction, writes, says so, and never ends it."""
    database = open_store(path).log._database
    with database.write() as transaction:
        transaction.execute("INSERT INTO sae (sae_id, kme_id) VALUES ('half', 'kme-1')")
        ready.send(uuid4())
        threading.Event().wait()
