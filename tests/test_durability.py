"""Is a key on the disk before its answer is on the way? A kill -9 cannot tell, for the kernel lives on: calls can.

A server runs under strace. The row of the audit log that names the key lies in a page that was written to the WAL; a
sync of the WAL must have begun after that page was written, and have returned before the answer was.
"""

from __future__ import annotations

import os
import re
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.honest import ENC_KEYS, context_of
from tests.hostile.moves import PREFIX, request
from tests.hostile.servers import Server, serving
from tests.hostile.wire import Wire
from tests.world import Demo, start_demo

WIRES, ROUNDS = 5, 4
"""So many requests at once, of masters and then of slaves; all their pages have room in one WAL."""

PAGE = 4096
_CALL = re.compile(r"(\d+) +(?:(\w+)\(\d+<([^>]*)>(.*)|<\.\.\. (\w+) resumed>(.*))")
_SOCKET = re.compile(r"(socket|TCP\w*):\[")


@dataclass(frozen=True)
class Told:
    """An answer: the ``number``-th of a connection, which was the ``wire``-th; and the log's words of its key."""

    wire: int
    number: int
    row: bytes


@dataclass(frozen=True)
class Evidence:
    """What clients were told, the WAL as it was then, and the server's calls."""

    told: Sequence[Told]
    wal: bytes
    trace: Sequence[str]


class Calls:
    """The calls of a trace, each known by the number of its line."""

    def __init__(self, trace: Sequence[str]) -> None:
        self.durable: dict[int, int] = {}
        """When the page at an offset of the WAL was synced, by the call's return; the first page written there."""
        self.sent: dict[str, list[int]] = defaultdict(list)
        """When writing to each socket began."""
        self._written: list[int] = []
        self._syncing: dict[str, list[int]] = {}
        for line, text in enumerate(trace):
            if call := _CALL.match(text):
                self._read(line, *call.groups(default=""))

    def _read(self, line: int, task: str, call: str, file: str, rest: str, resumed: str, ending: str) -> None:
        if call == "write" and _SOCKET.match(file):
            self.sent[file].append(line)
        elif call == "pwrite64" and file.endswith("-wal"):
            self._written.append(int(rest.rpartition(", ")[2].split(")")[0].split()[0]))
        elif call in ("fsync", "fdatasync") and file.endswith("-wal"):
            self._syncing[task], self._written = self._written, []
            self._synced(line, task, rest)
        elif resumed in ("fsync", "fdatasync"):
            self._synced(line, task, ending)

    def _synced(self, line: int, task: str, ending: str) -> None:
        if ending.endswith("= 0"):
            for offset in self._syncing.pop(task, []):
                self.durable.setdefault(offset, line)


def early(evidence: Evidence) -> list[Told]:
    """The answers that were on the way before the disk had the page with their row."""
    calls = Calls(evidence.trace)
    sockets = list(calls.sent)[-2 * WIRES :]
    never = len(evidence.trace)
    found = []
    for told in evidence.told:
        durable = calls.durable.get(page_of(told.row, evidence.wal), never)
        if durable >= calls.sent[sockets[told.wire]][1 + told.number]:  # the first is the handshake's
            found.append(told)
    return found


def page_of(row: bytes, wal: bytes) -> int:
    """Where the first page with ``row`` is in a WAL (sqlite.org/fileformat2.html §4.1)."""
    at = wal.index(row)
    return at - (at - 32 - 24) % (24 + PAGE)


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("durable"), saes=2, keys=500) as running:
        os.kill(running.upkeep_pid, signal.SIGKILL)  # it would empty the WAL
        with running.database() as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        yield running


@pytest.fixture(scope="module")
def evidence(kme: Demo) -> Evidence:
    """Of masters who fetch keys, several at a time, and slaves who collect them."""
    trace = kme.directory / "trace"
    strace = ["strace", "-D", "-f", "-y", "-s", "0", "-e", "trace=pwrite64,write,fsync,fdatasync", "-o", str(trace)]
    with serving(kme, under=strace) as server:
        told = _asked(server)
        wal = Path(f"{kme.store}-wal").read_bytes()
    return Evidence(told, wal, trace.read_text().splitlines())


def _asked(server: Server) -> list[Told]:
    told: list[Told] = []
    with ExitStack() as stack:
        wires: list[Wire] = []
        for sae_id in ("sae-1", "sae-2"):
            for _ in range(WIRES):
                wires.append(Wire(server.port, context_of(server.demo, sae_id)))
                stack.callback(wires[-1].close)
                wires[-1].shake_hands()
        masters, slaves = list(enumerate(wires))[:WIRES], list(enumerate(wires))[WIRES:]
        for number in range(ROUNDS):
            for _, wire in masters:
                wire.send(ENC_KEYS)
            key_ids = [_answered(told, *master, number, "key.deliver") for master in masters]
            for (_, wire), key_id in zip(slaves, key_ids, strict=True):
                wire.send(request("GET", f"{PREFIX}sae-1/dec_keys?key_ID={key_id}"))
            assert [_answered(told, *slave, number, "key.collect") for slave in slaves] == key_ids
    return told


def _answered(told: list[Told], wire: int, connection: Wire, number: int, event: str) -> str:
    """Wait for an answer with one key; its key_ID."""
    (answer,) = connection.answers(1)
    ((key_id, _),) = answer.keys
    told.append(Told(wire, number, f'"event":"{event}","key_IDs":["{key_id}"]'.encode()))
    return key_id


def test_a_sync_returned_before_every_answer_that_a_restart_must_not_forget(evidence: Evidence) -> None:
    calls = Calls(evidence.trace)
    print(f"{len(evidence.told)} answers, {len(set(calls.durable.values()))} syncs")
    assert len(evidence.told) == 2 * WIRES * ROUNDS
    assert early(evidence) == []


def test_requests_at_once_shared_a_sync(evidence: Evidence) -> None:
    """So one that was in work while another's commit was synced could have been answered too early."""
    calls = Calls(evidence.trace)
    assert len({calls.durable[page_of(told.row, evidence.wal)] for told in evidence.told}) < len(evidence.told)


def test_an_answer_without_a_sync_would_have_been_noticed(evidence: Evidence) -> None:
    unsynced = [line for line in evidence.trace if "fdatasync" not in line]
    assert early(Evidence(evidence.told, evidence.wal, unsynced)) == evidence.told


def test_an_answer_before_the_sync_returned_would_have_been_noticed(evidence: Evidence) -> None:
    """Each sync is made to return where the next write to a socket does."""
    late: list[str] = []
    held: list[str] = []
    for line in evidence.trace:
        if "fdatasync(" in line and line.endswith("= 0"):
            late.append(re.sub(r"\) += 0$", " <unfinished ...>", line))
            held.append(f"{line.split()[0]} <... fdatasync resumed>) = 0")
            continue
        late.append(line)
        if _SOCKET.search(line):
            late += held
            held.clear()
    noticed = early(Evidence(evidence.told, evidence.wal, late))
    assert len({told.wire for told in noticed}) > 1
