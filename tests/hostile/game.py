"""Many hostile clients at one KME, and what must be true of it afterwards."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.hostile.player import Contexts, Identity, Player, Tally
from tests.pki import DAY, Request, TestAuthority
from tests.world import Demo, until

PROCESSES: Final = 2
THREADS: Final = 4
WARM_UP: Final = 0.2
"""The part of the requests after which memory and descriptors are looked at first."""

LATE_FILES: Final = 12
"""What four threads of a worker open that come to the store only after that: three files each."""

SEGMENT_BYTES: Final = 32
"""A demo's keys are stored in pieces of 256 bits."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the server's workers take, by pid: resident memory in KiB, open files."""

    memory: dict[int, int]
    files: dict[int, int]

    @classmethod
    def of(cls, demo: Demo) -> Vitals:
        pids = demo.workers()
        return cls({pid: resident(pid) for pid in pids}, {pid: open_files(pid) for pid in pids})


@dataclass(frozen=True, slots=True)
class Outcome:
    """A game that is over: what the clients saw, and what the KME says of itself."""

    demo: Demo
    seconds: float
    tally: Tally
    started: Vitals
    warm: Vitals
    ended: Vitals
    stored: tuple[int, int]
    """``stored_key_count`` before and after."""
    rows: Sequence[dict[str, Any]]
    """The audit log, proved."""

    def report(self) -> str:
        """The figures."""
        tally, statuses = self.tally, Counter[int]()
        for (_, status), times in self.tally.answers.items():
            statuses[status] += times
        unread = statuses.pop(0, 0)
        memory = ", ".join(
            f"{pid}: {self.started.memory.get(pid)} / {self.warm.memory.get(pid)} / {kib} KiB"
            for pid, kib in self.ended.memory.items()
        )
        return (
            f"{tally.requests} requests on {tally.connections} connections in {self.seconds:.0f} s; answers "
            f"{dict(sorted(statuses.items()))}, {unread} left unread; {len(tally.deliveries)} answers with "
            f"{sum(map(len, tally.deliveries))} fresh keys, {len(tally.collections)} with collected ones; memory of "
            f"workers at start / after the warm-up / at the end: {memory}; files {self.ended.files}"
        )


def play(demo: Demo, directory: Path, requests: int, seed: int) -> Outcome:
    """Play ``requests``; certificates of strangers are made in ``directory``."""
    arena = Arena.of(demo, directory)
    stored, started = demo.stored("sae-1", "sae-2"), Vitals.of(demo)
    begin = time.monotonic()
    tally = arena.play(f"{seed}/warm-up", int(requests * WARM_UP))
    warm = settled(demo)
    tally.add(arena.play(f"{seed}/game", requests - tally.requests))
    seconds = time.monotonic() - begin
    ended = settled(demo)
    return Outcome(
        demo, seconds, tally, started, warm, ended, (stored, demo.stored("sae-1", "sae-2")), demo.log_rows()
    )


@dataclass(frozen=True, slots=True)
class Arena:
    """What a process needs to let clients play."""

    port: int
    ca: str
    identities: Sequence[Identity]

    @classmethod
    def of(cls, demo: Demo, directory: Path) -> Arena:
        own, foreign = TestAuthority(Path(demo.description["ca"]).parent), TestAuthority()
        sae_1 = ["urn:qkd:sae:sae-1"]
        expired = Request(uris=sae_1, begins=-2 * DAY, ends=-DAY)
        saes = [Identity(sae["id"], sae["id"], (sae["cert"], sae["key"])) for sae in demo.description["saes"]]
        others = [
            Identity("nobody", "", None),
            Identity("a stranger", "", own.issue(directory / "stranger", Request(uris=["urn:qkd:sae:stranger"]))),
            Identity("an authority", "", own.issue(directory / "authority", Request(uris=sae_1, ca=True))),
            Identity("expired", "", own.issue(directory / "expired", expired), is_let_in=False),
            Identity("foreign", "", foreign.issue(directory / "foreign", Request(uris=sae_1)), is_let_in=False),
        ]
        return cls(demo.port, demo.description["ca"], [*saes, *others])

    def play(self, seed: str, requests: int) -> Tally:
        """Share ``requests`` among processes."""
        total = Tally()
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            shares = [pool.submit(self.play_here, f"{seed}/{n}", requests // PROCESSES) for n in range(PROCESSES)]
            for share in shares:
                total.add(share.result())
        return total

    def play_here(self, seed: str, requests: int) -> Tally:
        """Share ``requests`` among threads of this process."""
        contexts, total = Contexts(self.ca, self.identities), Tally()
        players = [Player(self.port, contexts, Random(f"{seed}/{number}")) for number in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda player: player.play(-(-requests // THREADS)), players))
        for player in players:
            total.add(player.tally)
        return total


def settled(demo: Demo) -> Vitals:
    """The workers when every connection of clients has ended."""
    until(lambda: not connections_to(demo.port), 40, "the server ends every connection")
    return Vitals.of(demo)


def connections_to(port: int) -> int:
    """TCP connections whose server side is not closed; what only waits out its time does not count."""
    gone = {"06", "0A"}  # TIME_WAIT, LISTEN
    lines = chain.from_iterable(Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6"))
    fields = (line.split() for line in lines)
    return sum(int(field[1].rpartition(":")[2], 16) == port and field[3] not in gone for field in fields)


def resident(pid: int) -> int:
    """Resident memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def open_files(pid: int) -> int:
    """Open files; where only root may count those of a process that cannot be dumped, its table's size."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except PermissionError:
        found = re.search(r"FDSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1])


# What must be true --------------------------------------------------------------------------------


def clients_saw_nothing_that_must_not_be(outcome: Outcome) -> None:
    """No status but those of the KME, 503 only with Retry-After, no answer missing, no key for a stranger."""
    assert outcome.tally.complaints == [], "\n".join(outcome.tally.complaints)


def every_kind_of_answer_was_seen(outcome: Outcome) -> None:
    """The game was one: otherwise it proved nothing."""
    statuses = {status for _, status in outcome.tally.answers}
    assert statuses >= {200, 400, 401, 404, 405, 413, 431}
    assert len(outcome.tally.deliveries) > outcome.tally.requests / 100
    assert outcome.tally.collections


def the_log_has_no_traceback_and_no_error(outcome: Outcome) -> None:
    """Refusals are information; an error is a fault of the KME."""
    lines = (outcome.demo.config.parent / "serve.log").read_text(errors="replace").splitlines()
    wrong = [line for line in lines if re.search(r"Traceback|Exception|\b(ERROR|CRITICAL|WARNING)\b", line)]
    assert wrong == [], "\n".join(wrong[:20])


def a_refused_request_consumed_no_key(outcome: Outcome) -> None:
    """The audit log and the pool know of the keys that the clients hold, and of no other."""
    logged = [row["key_IDs"] for row in outcome.rows if row["event"] == "key.deliver"]
    _are_the_same(logged, [[key_id for key_id, _ in keys] for keys in outcome.tally.deliveries])
    lengths = [length for _, length in chain.from_iterable(outcome.tally.deliveries)]
    before, after = outcome.stored
    due = before - sum(-(-length // SEGMENT_BYTES) for length in lengths)
    assert after == due, f"{after} keys are left in the pool where there should be {due}"
    ended = [row for row in outcome.rows if row["event"].startswith(("key.void", "alarm."))]
    assert ended == [], str(ended[:5])


def a_refused_request_collected_no_key(outcome: Outcome) -> None:
    """The same of dec_keys."""
    _are_the_same([row["key_IDs"] for row in outcome.rows if row["event"] == "key.collect"], outcome.tally.collections)


def _are_the_same(logged: Sequence[Sequence[str]], seen: Sequence[Sequence[str]]) -> None:
    """Each call that the log has was answered, and each answer is in the log, with the same key_IDs."""
    in_log, in_hand = Counter(map(tuple, logged)), Counter(map(tuple, seen))
    unseen, unlogged = in_log - in_hand, in_hand - in_log
    assert not unseen, f"{unseen.total()} calls of the log have no answer: {list(unseen)[:5]}"
    assert not unlogged, f"{unlogged.total()} answers are not in the log: {list(unlogged)[:5]}"


def no_worker_was_lost(outcome: Outcome) -> None:
    """The workers at the end are those of the start."""
    lives = [sorted(vitals.memory) for vitals in (outcome.started, outcome.warm, outcome.ended)]
    assert lives[0] == lives[1] == lives[2], str(lives)


def memory_and_files_did_not_grow(outcome: Outcome) -> None:
    """After the warm-up; the allocator is given some room."""
    for pid, kib in outcome.ended.memory.items():
        assert kib <= 1.3 * outcome.warm.memory[pid], f"{pid}: {outcome.warm.memory[pid]} KiB, then {kib} KiB"
        files = outcome.warm.files[pid], outcome.ended.files[pid]
        assert files[1] <= files[0] + LATE_FILES, f"{pid}: {files[0]} open files, then {files[1]}"


def the_service_is_healthy(outcome: Outcome) -> None:
    """A key goes from a master to its slave."""
    assert outcome.demo.health() == 200
    fetched = outcome.demo.enc("sae-1", "sae-2", number=2)
    collected = outcome.demo.dec("sae-2", "sae-1", list(fetched))
    assert list(fetched) == list(collected)
    assert not [key_id for key_id in fetched if fetched[key_id] != collected[key_id]]


CHECKS: Final[Sequence[Callable[[Outcome], None]]] = (
    clients_saw_nothing_that_must_not_be,
    every_kind_of_answer_was_seen,
    the_log_has_no_traceback_and_no_error,
    a_refused_request_consumed_no_key,
    a_refused_request_collected_no_key,
    no_worker_was_lost,
    memory_and_files_did_not_grow,
    the_service_is_healthy,
)
