"""A master at one KME, slaves at three: do all get the same keys, and the master none that a slave cannot get?"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.peering import fates
from tests.peering.interposer import Fate, Interposer
from tests.serving import served
from tests.world import Demo, children_of, start_demo, until

MASTER = "sae-1"
SLAVES = ("sae-2", "sae-3", "sae-4")
"""At kme-2, kme-3 and kme-1, where the master is too."""

LINKS = ("kme-1.kme-2", "kme-1.kme-3")
ALWAYS = range(1, 1000)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Three KMEs, each linked with each; two SAEs at each."""
    with start_demo(tmp_path_factory.mktemp("three"), kmes=3, saes=6, keys=2000, workers=1) as running:
        yield running


@dataclass
class Through:
    """A server of kme-1 that reaches kme-3 through a network of ours, and nobody else through it."""

    demo: Demo
    network: Interposer
    url: str

    def ask(self, number: int = 1) -> requests.Response:
        with self.demo.session(MASTER) as client:
            return client.post(f"{self.url}sae-2/enc_keys", json=body(number), timeout=60)

    def meeting(self, fate: Fate, nth: int | range = ALWAYS) -> requests.Response:
        """The answer to a request whose carried keys meet ``fate``, while kme-3 is not being left alone."""
        until(lambda: self.ask().ok, 30, "kme-3 is asked again")
        self.network.rule(fate, "POST", "keys/carry", nth)
        try:
            return self.ask()
        finally:
            self.network.clear()


@pytest.fixture(scope="module")
def through(three: Demo) -> Iterator[Through]:
    near, far = (three.at(kme_id).kme for kme_id in ("kme-1", "kme-3"))
    shows, speaks_as = ((kme["peer_cert"], kme["peer_key"]) for kme in (far, near))
    with (
        Interposer(
            shows=shows, speaks_as=speaks_as, ca=three.description["peer_ca"], to=far["peer_url"]
        ) as network,
        served(three.at("kme-1"), "", replace=(far["peer_url"], network.url)) as url,
    ):
        settle(three)
        yield Through(three, network, url)


def body(number: int = 1, size: int = 256, slaves: tuple[str, ...] = SLAVES[1:]) -> dict[str, Any]:
    return {"number": number, "size": size, "additional_slave_SAE_IDs": list(slaves)}


def settle(demo: Demo) -> None:
    """Wait until every link of kme-1 is open and nothing is left to be said on it."""

    def settled() -> bool:
        with demo.at("kme-1").database() as database:
            (waits,) = database.execute("SELECT (SELECT count(*) FROM outbox) + count(*) FROM link WHERE why <> ''")
        return waits == (0,)

    until(settled, 60, "kme-1 has open links and an empty outbox")


def claimed(demo: Demo) -> list[str]:
    """The keys of the latest request, as the log of kme-1 has them."""
    rows = [row for row in demo.at("kme-1").log_now() if row["event"] == "key.claim" and "masks" not in row]
    key_ids: list[str] = rows[-1]["key_IDs"]
    return key_ids


def events_of(demo: Demo, kme_id: str, key_ids: list[str]) -> list[str]:
    """What became of keys, as the log of a KME has it, in order."""
    rows = (row for row in demo.at(kme_id).log_now() if set(key_ids) & set(row.get("key_IDs", [])))
    return [row["event"] for row in rows if row["event"].startswith("key.")]


def nobody_gets(demo: Demo, key_ids: list[str]) -> None:
    """The keys are void at all three KMEs that heard of them, and no slave can have one."""
    settle(demo)
    for kme_id in ("kme-1", "kme-2", "kme-3"):
        said = events_of(demo, kme_id, key_ids)
        assert "key.deliver" not in said
        assert said == [] or said[-1] == "key.void", (kme_id, said)
    for slave in SLAVES:
        wanted = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        assert demo.post(slave, f"{MASTER}/dec_keys", wanted).status_code == 400


@contextmanager
def away(demo: Demo) -> Iterator[None]:
    """A KME does not answer its peers."""
    halted = [demo.peers_pid, *children_of(demo.peers_pid)]
    for pid in halted:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)


# Everybody gets the same ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "size"), [(1, 256), (5, 256), (1, 128), (5, 128), (1, 1024), (5, 1024), (2, 72)])
def test_every_slave_collects_at_its_own_kme_what_the_master_got(three: Demo, number: int, size: int) -> None:
    keys = three.enc(MASTER, "sae-2", **body(number, size))
    assert (len(keys), {len(key) * 8 for key in keys.values()}) == (number, {size})
    for slave in SLAVES:
        assert three.dec(slave, MASTER, list(keys)) == keys
        again = three.post(slave, f"{MASTER}/dec_keys", {"key_IDs": [{"key_ID": key_id} for key_id in keys]})
        assert again.status_code == 400
    stranger = three.post("sae-5", f"{MASTER}/dec_keys", {"key_IDs": [{"key_ID": key_id} for key_id in keys]})
    assert stranger.status_code in (400, 401)


@pytest.mark.parametrize("master", ["sae-2", "sae-3", "sae-6"])
def test_any_of_the_three_kmes_may_have_the_master(three: Demo, master: str) -> None:
    first, *others = (sae for sae in ("sae-1", "sae-2", "sae-3", "sae-4") if sae != master)
    keys = three.keys(three.post(master, f"{first}/enc_keys", body(2, slaves=tuple(others))))
    for slave in (first, *others):
        assert three.dec(slave, master, list(keys)) == keys


def test_each_kme_writes_down_what_it_did(three: Demo) -> None:
    keys = list(three.enc(MASTER, "sae-2", **body(2)))
    for slave in SLAVES:
        three.dec(slave, MASTER, keys)
    assert events_of(three, "kme-1", keys) == ["key.claim", "key.deliver", "key.collect"]
    assert events_of(three, "kme-2", keys) == ["key.assign", "key.collect"]
    assert events_of(three, "kme-3", keys) == ["key.carry", "key.collect"]
    assert three.at("kme-3").log_rows()


def test_one_key_costs_one_on_each_link(three: Demo) -> None:
    before = {slave: three.stored(MASTER, slave) for slave in SLAVES[:2]}
    three.enc(MASTER, "sae-2", **body(3))
    assert {slave: three.stored(MASTER, slave) for slave in before} == {s: count - 3 for s, count in before.items()}


def test_nothing_of_the_keys_stands_in_a_store(three: Demo) -> None:
    keys = three.enc(MASTER, "sae-2", **body(5))
    for kme_id in three.kme_ids:
        content = b"".join(path.read_bytes() for path in three.at(kme_id).store.parent.glob("store.sqlite*"))
        assert not any(key in content for key in keys.values())


# Nothing without everybody --------------------------------------------------------------------------------


def test_while_one_kme_is_away_nobody_gets_anything_and_afterwards_all_do(three: Demo) -> None:
    settle(three)
    with away(three.at("kme-3")):
        refused = three.post(MASTER, "sae-2/enc_keys", body(2))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        key_ids = claimed(three)
        until(lambda: events_of(three, "kme-2", key_ids)[-1] == "key.void", 30, "kme-2 hears that the keys are void")
        assert events_of(three, "kme-1", key_ids) == ["key.claim", "key.void"]
        assert three.enc(MASTER, "sae-2"), "kme-2 is served as ever"
    nobody_gets(three, key_ids)
    keys = three.enc(MASTER, "sae-2", **body(2))
    assert [three.dec(slave, MASTER, list(keys)) for slave in SLAVES] == [keys] * 3


def test_an_answer_that_is_lost_costs_nothing(through: Through) -> None:
    demo = through.demo
    keys = demo.keys(through.meeting(fates.DropAnswer(), nth=1))
    assert [demo.dec(slave, MASTER, list(keys)) for slave in SLAVES] == [keys] * 3
    assert events_of(demo, "kme-3", list(keys)) == ["key.carry", "key.collect"]


def test_answers_that_are_always_lost_end_the_keys_everywhere(through: Through) -> None:
    assert through.meeting(fates.DropAnswer()).status_code == 503
    key_ids = claimed(through.demo)
    assert events_of(through.demo, "kme-3", key_ids)[0] == "key.carry"
    nobody_gets(through.demo, key_ids)
    assert events_of(through.demo, "kme-3", key_ids) == ["key.carry", "key.void"]


@pytest.mark.parametrize("together", [False, True], ids=["one after the other", "together"])
def test_a_message_that_comes_twice_is_acted_upon_once(through: Through, together: bool) -> None:
    demo = through.demo
    keys = demo.keys(through.meeting(fates.Duplicate(together=together)))
    assert [demo.dec(slave, MASTER, list(keys)) for slave in SLAVES] == [keys] * 3
    assert events_of(demo, "kme-3", list(keys)) == ["key.carry", "key.collect"]


def test_a_message_that_is_altered_is_refused_and_the_keys_end(through: Through) -> None:
    assert through.meeting(fates.AlterRequest()).status_code == 503
    key_ids = claimed(through.demo)
    nobody_gets(through.demo, key_ids)
    assert events_of(through.demo, "kme-3", key_ids) == []


def test_an_answer_that_is_altered_is_an_alarm_and_the_keys_end(through: Through) -> None:
    assert through.meeting(fates.AlterAnswer()).status_code == 503
    nobody_gets(through.demo, claimed(through.demo))
    alarms = [row for row in through.demo.at("kme-1").log_now() if row["event"] == "alarm.peer-answer"]
    assert [alarm["link"] for alarm in alarms] == [LINKS[1]]


def test_a_message_that_is_replayed_later_changes_nothing(through: Through) -> None:
    demo = through.demo
    keys = demo.keys(through.meeting(fates.Pass()))
    number = len(through.network.log) - 1
    assert [demo.dec(slave, MASTER, list(keys)) for slave in SLAVES] == [keys] * 3
    assert through.network.replay(number) == 200
    assert events_of(demo, "kme-3", list(keys)) == ["key.carry", "key.collect"]


def test_the_message_says_nothing_of_the_key(through: Through) -> None:
    keys = through.demo.keys(through.meeting(fates.Pass()))
    carry = json.loads(through.network.recorded(-1).body)
    assert carry["pads"]["key_ids"] == "".join(keys).replace("-", "")
    assert set(carry) == {"pads", "masked"}
