"""Bounded load on a demo, what its clients hold afterwards, and what the audit log says of the same keys.

Keys are compared here, where pytest does not look into assertions, and are `KeyBytes`, which it cannot print.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any

import requests

from tests.world import Demo, until

SEED_VARIABLE = "HSMKME_TEST_SEED"
PAUSE_SECONDS = 0.005
"""Between two calls of one client: the machine is left some time to start processes."""


def new_seed() -> int:
    """A seed for a test's randomness, printed so that a failure can be repeated by setting HSMKME_TEST_SEED."""
    seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


@dataclass(frozen=True, slots=True)
class Relation:
    """Who may have a key."""

    master: str
    slaves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A key as its master got it."""

    key_id: str
    relation: Relation
    material: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Collected:
    """A key as one of its slaves got it."""

    key_id: str
    slave: str
    material: bytes = field(repr=False)


class Records:
    """What clients know: the keys they hold, the answers they got, the calls that got none."""

    def __init__(self) -> None:
        self.fetched: list[Fetched] = []
        self.collected: list[Collected] = []
        self.answers: Counter[tuple[str, int]] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.asked: set[tuple[str, str]] = set()
        """(slave, key_ID) of every dec_keys that was sent, answered or not."""
        self.refused: set[tuple[str, str]] = set()
        """(slave, key_ID) of every dec_keys that was answered 400."""
        self.untold: set[tuple[str, str]] = set()
        """(slave, key_ID) of every dec_keys that got no answer: the slave cannot know whether it was served."""
        self._news = threading.Condition()
        self._served = 0

    def answer(self, call: str, response: requests.Response) -> None:
        with self._news:
            self.answers[call, response.status_code] += 1
            self._served += response.status_code == 200
            self._news.notify_all()

    def silence(self, call: str) -> None:
        with self._news:
            self.unanswered[call] += 1

    @property
    def served(self) -> int:
        """How many calls were answered with keys."""
        return self._served

    @property
    def refusals(self) -> int:
        """How many calls were answered that the KME cannot serve them now."""
        return sum(times for (_, status), times in self.answers.items() if status == 503)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for answers until ``condition``, which is asked after each of them."""
        with self._news:
            came = self._news.wait_for(condition, seconds)
        assert came, f"not within {seconds} s; the answers so far: {dict(self.answers)}"

    def wait_for_more(self, calls: int, seconds: float = 30) -> None:
        """Wait until that many more calls were answered with keys."""
        wanted = self._served + calls
        self.wait_until(lambda: self._served >= wanted, seconds)


def burst(demo: Demo, calls: int) -> list[int]:
    """The statuses of calls made at once, each over a connection of its own, so that every worker gets some."""
    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(lambda _: demo.post("sae-1", "sae-2/enc_keys").status_code, range(calls)))


def wait_until_healed(demo: Demo) -> None:
    """Wait until no worker refuses."""
    until(lambda: {*burst(demo, 12), *burst(demo, 12)} == {200}, 30, "the service heals by itself")


class Client(threading.Thread):
    """An SAE that fetches keys for others, some of which collect them, until it is told to stop."""

    def __init__(self, demo: Demo, master: str, records: Records, dice: random.Random, stop: threading.Event) -> None:
        super().__init__(name=f"load-{master}")
        self._demo = demo
        self._master = master
        self._others = [sae_id for sae_id in demo.sae_ids if sae_id != master]
        self._records = records
        self._dice = dice
        self._stop_event = stop
        self._sessions: dict[str, requests.Session] = {}

    def run(self) -> None:
        try:
            while not self._stop_event.wait(PAUSE_SECONDS):
                self._turn()
        finally:
            for session in self._sessions.values():
                session.close()

    def _turn(self) -> None:
        slaves = self._dice.sample(self._others, self._dice.choice((1, 1, 1, 2, 3)))
        fetched = self._fetch(slaves)
        for slave in slaves if self._dice.random() < 0.6 else slaves[1:]:
            if fetched and self._dice.random() < 0.8:
                self._collect(slave, fetched)

    def _fetch(self, slaves: list[str]) -> list[str]:
        body: dict[str, Any] = {"number": self._dice.randint(1, 6)}
        if slaves[1:]:
            body["additional_slave_SAE_IDs"] = slaves[1:]
        response = self._call("enc_keys", self._master, slaves[0], body)
        if response is None or response.status_code != 200:
            return []
        relation = Relation(self._master, tuple(sorted(slaves)))
        keys = self._demo.keys(response)
        self._records.fetched += [Fetched(key_id, relation, material) for key_id, material in keys.items()]
        return list(keys)

    def _collect(self, slave: str, key_ids: list[str]) -> None:
        """As an application does it: a call that got no answer is made again once."""
        calls = {(slave, key_id) for key_id in key_ids}
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        for _ in range(2):
            self._records.asked |= calls
            response = self._call("dec_keys", slave, self._master, body)
            if response is not None:
                break
            self._records.untold |= calls
        else:
            return
        if response.status_code == 200:
            keys = self._demo.keys(response)
            self._records.collected += [Collected(key_id, slave, material) for key_id, material in keys.items()]
        elif response.status_code == 400:
            self._records.refused |= calls

    def _call(self, method: str, caller: str, target: str, body: Any) -> requests.Response | None:
        """The answer, or None if the connection broke before there was one."""
        if caller not in self._sessions:
            self._sessions[caller] = self._demo.session(caller, judged=False)  # the load is not slowed by it
        try:
            response = self._sessions[caller].post(self._demo.url(f"{target}/{method}", caller), json=body, timeout=60)
        except requests.Timeout:
            raise
        except requests.RequestException:
            self._records.silence(method)
            return None
        self._records.answer(method, response)
        return response


class Load:
    """Clients for as many SAEs of ``demo`` as there are, from entering to leaving the block."""

    def __init__(self, demo: Demo, seed: int) -> None:
        self.records = Records()
        self._stop = threading.Event()
        self._clients = [
            Client(demo, sae_id, self.records, random.Random(f"{seed}/{sae_id}"), self._stop) for sae_id in demo.sae_ids
        ]

    def __enter__(self) -> Records:
        for client in self._clients:
            client.start()
        return self.records

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()


class Ledger:
    """What the audit log says became of every key."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.deposited = 0
        self.deliveries: list[tuple[str, Relation]] = []
        self.collections: list[tuple[str, str]] = []
        """(slave, key_ID)."""
        self.voided: list[str] = []
        self.alarms: list[dict[str, Any]] = []
        for row in rows:
            self._read(row)

    def _read(self, row: dict[str, Any]) -> None:
        event = row["event"]
        if event == "block.deposit":
            self.deposited += row["keys"]
        elif event == "key.deliver":
            relation = Relation(row["master"], tuple(row["slaves"]))
            self.deliveries += [(key_id, relation) for key_id in row["key_IDs"]]
        elif event == "key.collect":
            slave = row["actor"].removeprefix("sae:")
            self.collections += [(slave, key_id) for key_id in row["key_IDs"]]
        elif event == "key.void":
            self.voided += row["key_IDs"]
        elif event.startswith("alarm."):
            self.alarms.append(row)

    @property
    def left(self) -> int:
        """How many keys the pool must still have, if no block is frozen."""
        return self.deposited - len(self.deliveries)

    def burnt(self, records: Records) -> set[str]:
        """Keys that count as delivered and never reached their master."""
        return {key_id for key_id, _ in self.deliveries} - {key.key_id for key in records.fetched}


def check(records: Records, ledger: Ledger) -> None:
    """The clients' records and the log tell the same story, in which no key was given to the wrong party or twice."""
    relations = dict(ledger.deliveries)
    assert repeated(key_id for key_id, _ in ledger.deliveries) == [], "a key_ID was delivered twice"
    assert repeated(key.key_id for key in records.fetched) == [], "a master got a key twice"
    assert len({key.material for key in records.fetched}) == len(records.fetched), "two key_IDs with the same bytes"
    assert repeated((key.slave, key.key_id) for key in records.collected) == [], "a slave got a key twice"
    assert repeated(ledger.collections) == [], "a key was collected twice by one slave"
    for key in records.fetched:
        assert relations.get(key.key_id) == key.relation, f"the log does not know {key.key_id} of {key.relation}"
    masters = {key.key_id: key for key in records.fetched}
    collections = set(ledger.collections)
    for collected in records.collected:
        master = masters[collected.key_id]
        assert collected.slave in master.relation.slaves
        assert collected.material == master.material, f"{collected.slave} got other bytes for {collected.key_id}"
        assert (collected.slave, collected.key_id) in collections, f"not in the log: {collected.slave} got a key"


def check_same(got: Mapping[Any, bytes], due: Mapping[Any, bytes]) -> None:
    """Both are the same keys."""
    assert got.keys() == due.keys(), f"{len(got)} keys came where {len(due)} are due, or others"
    different = [key_id for key_id in due if got[key_id] != due[key_id]]
    assert different == [], f"other bytes came for {different}"


def repeated(values: Iterable[Any]) -> list[Any]:
    """Those that occur more than once."""
    return [value for value, times in Counter(values).items() if times > 1]


def by_slave(keys: Iterable[Fetched]) -> dict[tuple[str, str], dict[str, bytes]]:
    """What each (slave, master) should get: bytes by key_ID."""
    due: dict[tuple[str, str], dict[str, bytes]] = {}
    for slave, key in chain.from_iterable(((slave, key) for slave in key.relation.slaves) for key in keys):
        due.setdefault((slave, key.relation.master), {})[key.key_id] = key.material
    return due
