"""What a KME asks of its store: every request, every duty, every message of peers, each as one call.

    python -m tests.verbs 1000 10000 100000

makes a store of each size and prints what each verb costs there, in microseconds of CPU and in steps of SQLite.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final
from unittest import mock
from uuid import UUID, uuid4

from rich.console import Console
from rich.table import Table

from hsmkme.audit import AuditChain
from hsmkme.errors import PoolFull, PoolShort
from hsmkme.identifiers import KeyIds
from hsmkme.messages.bodies import Announce, Assign, BlockTag, Hello, Place, Standing
from hsmkme.model import Clock, Demand, Entry, Relation
from hsmkme.states import BlockState
from hsmkme.store import Claim, Receipt, Store, database, migrate
from tests.blocks import claim, collect
from tests.exercise_store import LINKS, make_block
from tests.filler import fill

ENTRY: Final = Entry("test", "tester")
NO_LIMIT: Final = 1 << 40
HERE: Final = Relation.of("alice", ["bob"])
THERE: Final = Relation.of("alice", ["carol"])
ROUNDS: Final = 31
LIFE: Final = "0000000000000001peer"


@dataclass
class Steps:
    """Counts the steps of SQLite on every connection that is opened while it is `counting`."""

    taken: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        connect = database.connect

        def counted(path: Path) -> sqlite3.Connection:
            connection = connect(path)
            connection.set_progress_handler(self._step, 1)
            return connection

        with mock.patch.object(database, "connect", counted):
            yield

    def _step(self) -> None:
        self.taken += 1


class Bench:
    """The verbs of a store; ``now`` in seconds since the epoch."""

    def __init__(self, path: Path, now: Clock = time.time) -> None:
        self.path = path
        self.now = now
        self.messages = count(1)
        self.store = Store(path, AuditChain(), now)
        self.new_ids = KeyIds(now)

    def prepare(self, keys: int) -> None:
        """Put ``keys`` keys on a local link and on one to a peer, and some more that can be claimed."""
        self.store.epochs.admit(1, "0011223344", ENTRY)
        self.store.registry.admit_links(LINKS, ENTRY)
        for sae, kme in (("alice", "kme-1"), ("bob", "kme-1"), ("carol", "kme-2")):
            self.store.registry.add_sae(sae, kme, ENTRY)
        self.store.links.heard("far", Standing(verdict="good", incarnation=LIFE, log_rows=0, why="", ready={}))
        self.greeted()
        for link in ("local", "far"):
            fill(self.path, keys // 2, link, int(self.now()))
            for _ in range(8):
                self.deposit(link)

    # Requests -----------------------------------------------------------------------------------------

    def status(self) -> None:
        self.store.registry.known()
        self.store.blocks.veins("kme-1", 256)
        self.store.agreed.count(THERE, 256)

    def claim(self, number: int = 1) -> list[UUID]:
        demand = Demand(HERE, "kme-1", 256, self.new_ids(number))
        return [key.key_id for key in claim(self.store, demand, ENTRY)]

    def collect(self, key_ids: list[UUID]) -> None:
        self.store.keys.held(key_ids)
        collect(self.store, "bob", key_ids, ENTRY)

    def refused(self) -> None:
        try:
            claim(self.store, Demand(HERE, "kme-1", 1 << 40, self.new_ids(1)), ENTRY)
        except PoolShort:
            return

    def deposit(self, link: str = "local") -> None:
        self.store.blocks.deposit([make_block(128, link=link)], BlockState.READY, NO_LIMIT, ENTRY)

    def overflow(self) -> None:
        try:
            self.store.blocks.deposit([make_block(128)], BlockState.READY, 1, ENTRY)
        except PoolFull:
            return

    # The service starts -------------------------------------------------------------------------------

    def start(self) -> None:
        store = Store(self.path, AuditChain(), self.now)
        store.epochs.all()
        store.lineage.now()
        store.registry.admit_links(LINKS, ENTRY)
        store.keys.void_undelivered(ENTRY)
        store.registry.known()
        store.close()

    # Duties, when nothing is due ----------------------------------------------------------------------

    def tick(self) -> None:
        before = int(self.now()) - 3600
        self.store.log.last_seal()
        self.store.log.head()
        self.store.lineage.now()
        for duty in (self.store.keys.expire, self.store.keys.expire_agreed, self.store.sharing.expire):
            duty(before, ENTRY)
        self.store.keys.abandon(before, ENTRY)
        self.store.keys.retire(before, ENTRY)
        self.store.keys.erase_due(ENTRY)

    def round(self) -> None:
        self.store.links.hello("far", ["kme-peer/1"])
        self.store.links.block_size("far", 256)
        self.store.sharing.unconfirmed("far", "e")  # after the last that waits, before all others
        self.store.outbox.waiting("far", 16)
        self.store.agreed.thirsty("kme-2", self.now())

    # Peers --------------------------------------------------------------------------------------------

    def receipt(self) -> Receipt:
        return Receipt("far", uuid4(), next(self.messages), LIFE, b"")

    def greeted(self) -> None:
        hello = Hello(versions=["kme-peer/1"], sent=1, log_rows=1, why="", ready={})
        self.store.inbox.hello(self.receipt(), hello, ENTRY)

    def agree(self) -> None:
        demand = Demand(THERE, "kme-2", 256, self.new_ids(1), frozenset({"carol"}))
        offer = self.store.agreed.offer(demand, self.new_ids, ENTRY)
        self.store.agreed.settle(offer, demand, ENTRY)

    def draw(self) -> None:
        demand = Demand(THERE, "kme-2", 256, self.new_ids(1), frozenset({"carol"}))
        self.store.agreed.deliver(lambda: [Claim(demand, ENTRY, None)])

    def announced(self) -> None:
        block = BlockTag(block_id="never seen", count=1, bits=256, tag="0" * 32)
        self.store.inbox.announce(self.receipt(), Announce(blocks=[block]), ENTRY)

    def assigned(self) -> None:
        place = Place(block_id="never seen", first=0, count=1, own_epoch=0)
        assign = Assign(master="dave", slaves=["bob"], size=256, key_ids=uuid4().hex, places=[place])
        self.store.inbox.assign(self.receipt(), assign, 1, ENTRY)

    def verbs(self) -> dict[str, Callable[[], Any]]:
        """Each verb, ready to be called once; what it needs is made when this is called."""
        one, many = self.claim(1), self.claim(128)
        return {
            "status": self.status,
            "enc_keys, 1 key": self.claim,
            "enc_keys, 128 keys": partial(self.claim, 128),
            "enc_keys, too few": self.refused,
            "dec_keys, 1 key": partial(self.collect, one),
            "dec_keys, 128 keys": partial(self.collect, many),
            "deposit": self.deposit,
            "deposit, full": self.overflow,
            "start": self.start,
            "upkeep": self.tick,
            "liaison": self.round,
            "hello": self.greeted,
            "announce": self.announced,
            "assign": self.assigned,
            "agree": self.agree,
            "draw": self.draw,
        }


def steps_of(path: Path, keys: int, now: Clock = time.time) -> dict[str, int]:
    """How many steps of SQLite each verb takes in a new store of ``keys`` keys at ``path``."""
    migrate(path)
    Bench(path, now).prepare(keys)
    steps, taken = Steps(), {}
    with steps.counting():
        for name, verb in Bench(path, now).verbs().items():
            before = steps.taken
            verb()
            taken[name] = steps.taken - before
    return taken


def times_of(paths: Sequence[Path], rounds: int) -> list[dict[str, float]]:
    """Microseconds of CPU that each verb takes in each store, the medians of ``rounds`` in which they take turns."""
    benches = [Bench(path) for path in paths]
    times: list[dict[str, list[float]]] = [defaultdict(list) for _ in benches]
    for _ in range(rounds):
        for bench, taken in zip(benches, times, strict=True):
            for link in ("local", "local", "local", "far"):
                bench.deposit(link)
            bench.greeted()
            for name, verb in bench.verbs().items():
                before = time.thread_time()
                verb()
                taken[name].append((time.thread_time() - before) * 1e6)
            while bench.store.keys.expire_agreed(int(bench.now()) + 1, ENTRY):
                pass  # nobody draws them: each round would find more than the one before
    return [{name: statistics.median(values) for name, values in taken.items()} for taken in times]


def main(sizes: list[int]) -> None:
    """Print what the verbs cost in a store of each of ``sizes`` keys."""
    table = Table("verb", *(f"{size:,} keys" for size in sizes), title="microseconds of CPU / steps of SQLite")
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / f"{size}.sqlite" for size in sizes]
        steps = [steps_of(path, size) for path, size in zip(paths, sizes, strict=True)]
        times = times_of(paths, ROUNDS)
    for name in steps[0]:
        table.add_row(name, *(f"{t[name]:,.0f} / {s[name]:,}" for t, s in zip(times, steps, strict=True)))
    Console().print(table)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
