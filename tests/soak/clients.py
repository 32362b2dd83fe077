"""SAEs at both KMEs: masters that fetch keys for slaves anywhere, and tell those, who collect them sooner or later."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import Any

import requests

from tests.load import Collected, Fetched, Records, Relation
from tests.world import Demo

MEAN_PAUSE_SECONDS = 0.25
REFUSED_PAUSE_SECONDS = 1.0
"""How long an SAE leaves a KME alone that cannot serve it now."""

LATE_SECONDS = 60
"""The longest that a slave waits before it collects a key."""

BATCH = 64
SIZES = (256, 256, 256, 256, 256, 128, 512, 640)
"""Bits of the keys that are asked for."""


class Messages:
    """What masters tell slaves: which keys to collect from then on."""

    def __init__(self) -> None:
        self._order = count()
        self._lock = threading.Lock()
        self._due: dict[str, list[tuple[float, int, str, list[str]]]] = defaultdict(list)

    def put(self, slave: str, at: float, master: str, key_ids: list[str]) -> None:
        with self._lock:
            heapq.heappush(self._due[slave], (at, next(self._order), master, key_ids))

    def take(self, slave: str, now: float) -> tuple[str, list[str]] | None:
        """The next message that is due."""
        with self._lock:
            due = self._due[slave]
            if not due or due[0][0] > now:
                return None
            return heapq.heappop(due)[2:]


class Sae(threading.Thread):
    """One role of an SAE, until it is told to stop."""

    def __init__(self, crowd: Crowd, sae_id: str, role: str) -> None:
        super().__init__(name=f"{sae_id}-{role}")
        self._crowd = crowd
        self.sae_id = sae_id
        self._dice = random.Random(f"{crowd.seed}/{sae_id}/{role}")
        self._session: requests.Session | None = None

    def run(self) -> None:
        try:
            while not self._crowd.stopping.wait(self._dice.expovariate(1 / MEAN_PAUSE_SECONDS)):
                self.turn()
        except BaseException as error:
            self._crowd.faults.append(f"{self.name}: {type(error).__name__}: {error}")
            raise
        finally:
            self.close()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def turn(self) -> None:
        raise NotImplementedError

    def call(self, method: str, other: str, body: Any) -> requests.Response | None:
        """The answer, or None if the connection broke before there was one."""
        if self._session is None:
            self._session = self._crowd.demo.session(self.sae_id, judged=False)
        try:
            answer = self._session.post(self._crowd.demo.url(f"{other}/{method}", self.sae_id), json=body, timeout=60)
        except requests.Timeout:
            raise
        except requests.RequestException:
            self._crowd.records.silence(method)
            return None
        self._crowd.records.answer(method, answer)
        return answer

    def rest(self) -> None:
        self._crowd.stopping.wait(REFUSED_PAUSE_SECONDS)


class Master(Sae):
    """Fetches keys for one slave or several, at its own KME or at the other, and tells them."""

    def turn(self) -> None:
        others = [sae_id for sae_id in self._crowd.demo.sae_ids if sae_id != self.sae_id]
        slaves = self._dice.sample(others, self._dice.choice((1, 1, 1, 1, 2, 3)))
        body: dict[str, Any] = {"number": self._dice.randint(1, 4), "size": self._dice.choice(SIZES)}
        if slaves[1:]:
            body["additional_slave_SAE_IDs"] = slaves[1:]
        answer = self.call("enc_keys", slaves[0], body)
        if answer is None or answer.status_code != 200:
            self.rest()
            return
        relation = Relation(self.sae_id, tuple(sorted(slaves)))
        keys = Demo.keys(answer)
        self._crowd.records.fetched += [Fetched(key_id, relation, material) for key_id, material in keys.items()]
        for slave in slaves:
            late = self._dice.choice((0.0, 0.0, 0.0, 1.0)) * self._dice.uniform(0, LATE_SECONDS)
            self._crowd.messages.put(slave, time.monotonic() + late, self.sae_id, list(keys))


class Slave(Sae):
    """Collects what it was told of, as soon as it is due."""

    def turn(self) -> None:
        while not self._crowd.stopping.is_set():
            message = self._crowd.messages.take(self.sae_id, time.monotonic())
            if message is None:
                return
            if not self.collect(*message):
                self._crowd.messages.put(self.sae_id, time.monotonic() + 2 * REFUSED_PAUSE_SECONDS, *message)
                self.rest()

    def collect(self, master: str, key_ids: list[str]) -> bool:
        """Whether the KME served or refused them. A call that got no answer is made again once, then given up."""
        records = self._crowd.records
        calls = {(self.sae_id, key_id) for key_id in key_ids}
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        for _ in range(2):
            records.asked |= calls
            answer = self.call("dec_keys", master, body)
            if answer is not None:
                break
            records.untold |= calls
            self.rest()
        else:
            return True
        if answer.status_code == 200:
            keys = Demo.keys(answer)
            records.collected += [Collected(key_id, self.sae_id, material) for key_id, material in keys.items()]
        elif answer.status_code == 400:
            records.refused |= calls
        return answer.status_code in (200, 400)


class Crowd:
    """Every SAE of ``demo`` as master and as slave, from entering to leaving the block."""

    def __init__(self, demo: Demo, seed: int) -> None:
        self.demo = demo
        self.seed = seed
        self.records = Records()
        self.messages = Messages()
        self.stopping = threading.Event()
        self.faults: list[str] = []
        self._saes = [role(self, sae, role.__name__) for sae in demo.sae_ids for role in (Master, Slave)]

    def __enter__(self) -> Crowd:
        for sae in self._saes:
            sae.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for sae in self._saes:
            sae.join()

    def collect_the_rest(self) -> None:
        """Every slave asks for every key of its masters that it does not have; one by one where some are refused."""
        self.stopping.clear()
        for slave in self.demo.sae_ids:
            collector = Slave(self, slave, "last")
            for master, key_ids in _owed(self.records, slave).items():
                for batch in _batches(key_ids):
                    self._collect(collector, master, batch)
            collector.close()
        self.stopping.set()

    def _collect(self, collector: Slave, master: str, batch: list[str]) -> None:
        answer = collector.call("dec_keys", master, {"key_IDs": [{"key_ID": key_id} for key_id in batch]})
        if answer is not None and answer.status_code == 400 and len(batch) > 1:
            middle = len(batch) // 2
            self._collect(collector, master, batch[:middle])
            self._collect(collector, master, batch[middle:])
            return
        self.records.asked |= {(collector.sae_id, key_id) for key_id in batch}
        if answer is not None and answer.status_code == 200:
            keys = Demo.keys(answer)
            self.records.collected += [Collected(key_id, collector.sae_id, keys[key_id]) for key_id in keys]
            self.records.refused -= {(collector.sae_id, key_id) for key_id in keys}
        elif answer is not None and answer.status_code == 400:
            self.records.refused |= {(collector.sae_id, key_id) for key_id in batch}
        else:
            status = "no answer" if answer is None else f"HTTP {answer.status_code}"
            self.faults.append(f"{collector.sae_id} gets {status} for keys of {master} after everything ended")


def _owed(records: Records, slave: str) -> dict[str, list[str]]:
    """The keys that a slave may collect and has not, by master."""
    has = {key.key_id for key in records.collected if key.slave == slave}
    owed: dict[str, list[str]] = defaultdict(list)
    for key in records.fetched:
        if slave in key.relation.slaves and key.key_id not in has:
            owed[key.relation.master].append(key.key_id)
    return owed


def _batches(key_ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(key_ids), BATCH):
        yield key_ids[start : start + BATCH]

