"""Two whole KMEs, all processes of them, with a malicious network between: one pass for each thing that it can do.

What becomes of every message in every trouble, `test_messages.py` asks without a network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.peering import fates
from tests.peering.interposer import Fate, Interposer
from tests.serving import served
from tests.world import Demo, KeyBytes, start_demo, until

FEW = range(1, 4)
NUMBER = 100
"""More keys than are agreed on ahead of need: each request asks the peer."""


@dataclass
class Through:
    """Server and upkeep of kme-1 reach kme-2 through a network of ours; kme-2 reaches kme-1 without it."""

    demo: Demo
    network: Interposer
    url: str

    def enc(self, master: str, slave: str) -> dict[str, bytes] | int:
        """Key bytes by key_ID from kme-1, or the status of its refusal."""
        with self.demo.session(master) as client:
            answer = client.post(f"{self.url}{slave}/enc_keys", json={"number": NUMBER}, timeout=60)
        return self.demo.keys(answer) if answer.status_code == 200 else answer.status_code


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Through]:
    with start_demo(tmp_path_factory.mktemp("two"), kmes=2, saes=4, keys=16_000, workers=1) as demo:
        near, far = (demo.at(kme_id).kme for kme_id in ("kme-1", "kme-2"))
        shows, speaks_as = ((kme["peer_cert"], kme["peer_key"]) for kme in (far, near))
        ca = demo.description["peer_ca"]
        with Interposer(shows=shows, speaks_as=speaks_as, ca=ca, to=far["peer_url"]) as network:
            config = Path(near["config"])
            config.write_text(config.read_text().replace(far["peer_url"], network.url))
            os.kill(demo.upkeep_pid, signal.SIGTERM)
            with demo.upkeep(), served(demo.at("kme-1"), "") as url:
                yield Through(demo, network, url)


def is_open(demo: Demo) -> bool:
    """Whether both ends have their link open and nothing left to say."""
    for kme_id in ("kme-1", "kme-2"):
        with demo.at(kme_id).database() as database:
            (waits,) = database.execute("SELECT (SELECT count(*) FROM outbox) + count(*) FROM link WHERE why <> ''")
        if waits != (0,):
            return False
    return True


FATES: dict[str, Callable[[], Fate]] = {
    "drop request": fates.DropRequest,
    "drop answer": fates.DropAnswer,
    "duplicate": fates.Duplicate,
    "truncate request": partial(fates.TruncateRequest, 20),
    "truncate answer": partial(fates.TruncateAnswer, 9),
    "cut": fates.CutAnswer,
    "altered request": fates.AlterRequest,
    "altered answer": fates.AlterAnswer,
    "nonsense": fates.Nonsense,
}
FORGERIES = ("truncate answer", "altered answer", "nonsense")
"""Whole answers that are not those of the peer."""


@pytest.mark.parametrize("fate", FATES)
def test_keys_are_exchanged_again_after_the_network_did_its_worst(through: Through, fate: str) -> None:
    """Every call of kme-1 meets it a few times: assign, void, hello, announce."""
    demo, network = through.demo, through.network
    until(lambda: is_open(demo), 60, "both ends have open links")
    alarms, before = alarms_of(demo), len(network.log)
    network.rule(FATES[fate](), "POST", "", FEW)
    found = [through.enc(master, slave) for master, slave in (("sae-1", "sae-2"), ("sae-3", "sae-4"))]
    network.wait(lambda log: sum("Pass" not in seen.fate for seen in log[before:]) >= len(FEW))
    until(lambda: is_open(demo), 60, "all is well again")
    network.clear()
    assert (alarms_of(demo) > alarms) == (fate in FORGERIES), "an alarm for a forgery alone"
    for keys, (master, slave) in zip(found, (("sae-1", "sae-2"), ("sae-3", "sae-4")), strict=True):
        if isinstance(keys, dict):  # who got keys shares them with its slave
            assert demo.dec(slave, master, list(keys)) == keys
        else:
            assert keys == 503
    until(lambda: is_open(demo), 60, "both ends have open links")
    keys = until(lambda: got(through.enc("sae-1", "sae-4")), 30, "keys after the trouble")
    assert demo.dec("sae-4", "sae-1", list(keys)) == keys
    keys = demo.enc("sae-2", "sae-1", number=2)
    assert demo.dec("sae-1", "sae-2", list(keys)) == keys


def none_assigning(demo: Demo, kme_id: str) -> bool:
    with demo.at(kme_id).database() as database:
        (count,) = database.execute("SELECT count(*) FROM key WHERE state = 'assigning'").fetchone()
    return bool(count == 0)


def alarms_of(demo: Demo) -> int:
    return sum(row["event"] == "alarm.peer-answer" for row in demo.at("kme-1").log_now())


def got(answer: dict[str, KeyBytes] | dict[str, bytes] | int) -> dict[str, bytes]:
    return {} if isinstance(answer, int) else dict(answer)


def test_no_segment_is_of_two_keys_and_every_claim_ended_or_waits(through: Through) -> None:
    """After all of the above, and what the logs say proves itself."""
    demo = through.demo
    used: dict[tuple[str, int], str] = {}
    for kme_id in ("kme-1", "kme-2"):
        with demo.at(kme_id).database() as database:
            rows = database.execute(
                "SELECT block_id, part.value ->> '$[1]', part.value ->> '$[2]', hex(key_id) FROM key,"
                " json_each(parts) AS part JOIN block ON block_pk = part.value ->> '$[0]' WHERE tag IS NOT NULL"
            ).fetchall()
        for block_id, first, count, key_id in rows:
            for segment in range(first, first + count):
                assert used.setdefault((block_id, segment), key_id) == key_id
        until(partial(none_assigning, demo, kme_id), 60, "every offer ended")
        assert demo.at(kme_id).log_rows()
