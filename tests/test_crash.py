"""What is left of a KME's promises after a hundred kill -9 under load?"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from tests.load import Ledger, Load, Records, by_slave, check, check_same, new_seed
from tests.world import Demo, start_demo, until

KILLS = 100
WORKERS = 3
POOL = 120_000
UPKEEP_LIVES, KILLS_IN_A_LIFE = 5, 12
SPOOL_FILES, KEYS_IN_A_FILE = 20, 96


@dataclass
class Aftermath:
    """A KME that was killed a hundred times, and what clients, log and pool say of it."""

    demo: Demo
    records: Records
    ledger: Ledger
    stored: int


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    with start_demo(tmp_path_factory.mktemp("crash"), saes=8, keys=POOL, workers=WORKERS) as demo:
        seed = new_seed()
        with Load(demo, seed) as records:
            _storm(demo, records, random.Random(seed))
        until(lambda: len(demo.workers()) == WORKERS, 30, "every worker is back")
        with demo.upkeep():
            until(lambda: not _waiting(demo), 30, "what devices left in the spool is taken")
            after = Aftermath(demo, records, Ledger(demo.log_rows()), demo.stored("sae-1", "sae-2"))
            _report(after)
            yield after


def _storm(demo: Demo, records: Records, dice: random.Random) -> None:
    """Kill workers all the time; the upkeep a few times, then leave it dead; devices go on delivering."""
    numbers = count(1)
    os.kill(demo.upkeep_pid, signal.SIGKILL)
    for _ in range(UPKEEP_LIVES):
        with demo.upkeep() as upkeep:
            _kill_workers(demo, records, dice, KILLS_IN_A_LIFE)
            for _ in range(SPOOL_FILES // UPKEEP_LIVES):
                _deliver(demo, next(numbers))
            records.wait_for_more(dice.randint(1, 60))
            upkeep.kill()
    _kill_workers(demo, records, dice, KILLS - UPKEEP_LIVES * KILLS_IN_A_LIFE)


def _kill_workers(demo: Demo, records: Records, dice: random.Random, kills: int) -> None:
    """Mostly one, at times all. A blow falls at a random moment of the traffic, not at a time after the last."""
    while kills > 0:
        running = until(demo.workers, 30, "workers come back")
        for pid in running[:kills] if dice.random() < 0.1 else [dice.choice(running)]:
            os.kill(pid, signal.SIGKILL)
            kills -= 1
        records.wait_for_more(dice.randint(1, 50))


def _deliver(demo: Demo, number: int) -> None:
    """A device's file, renamed into the spool when it is whole."""
    part = demo.spool / f"device-{number}.part"
    part.write_bytes(os.urandom(KEYS_IN_A_FILE * 32))
    part.rename(part.with_suffix(".bin"))


def _waiting(demo: Demo) -> list[str]:
    return [path.name for path in demo.spool.glob("*.bin")]


def _report(after: Aftermath) -> None:
    ledger, records = after.ledger, after.records
    print(
        f"{KILLS} workers and {UPKEEP_LIVES + 1} upkeeps killed; {records.served} calls served "
        f"{dict(records.answers)}, {sum(records.unanswered.values())} broken; {len(ledger.deliveries)} keys delivered, "
        f"{len(records.collected)} collected, {len(ledger.burnt(records))} burnt in flight, {after.stored} left"
    )


def test_clients_saw_broken_connections_and_no_error_of_the_server(aftermath: Aftermath) -> None:
    answers = aftermath.records.answers
    assert aftermath.records.unanswered.total() > 0, "no kill hit a request: the test proved nothing"
    assert {status for call, status in answers if call == "enc_keys"} <= {200, 503}
    assert {status for call, status in answers if call == "dec_keys"} <= {200, 400, 503}


def test_clients_and_log_agree_and_no_key_was_given_wrongly_or_twice(aftermath: Aftermath) -> None:
    check(aftermath.records, aftermath.ledger)


def test_every_key_that_left_the_pool_is_in_the_log(aftermath: Aftermath) -> None:
    assert aftermath.ledger.deposited == POOL + SPOOL_FILES * KEYS_IN_A_FILE
    assert aftermath.stored == aftermath.ledger.left


def test_no_alarm_was_raised_and_no_key_was_voided(aftermath: Aftermath) -> None:
    assert aftermath.ledger.alarms == []
    assert aftermath.ledger.voided == []


def test_a_key_burnt_in_flight_was_in_an_answer_that_never_came(aftermath: Aftermath) -> None:
    """An answer holds at most six keys here, and each broken call loses at most one answer."""
    assert len(aftermath.ledger.burnt(aftermath.records)) <= 6 * aftermath.records.unanswered["enc_keys"]


def test_a_slave_was_refused_only_what_an_unanswered_call_had_taken(aftermath: Aftermath) -> None:
    records, collections = aftermath.records, set(aftermath.ledger.collections)
    assert records.refused <= records.untold
    assert records.refused <= collections


def test_every_key_nobody_asked_for_in_the_storm_can_be_collected_after_it(aftermath: Aftermath) -> None:
    demo, records = aftermath.demo, aftermath.records
    owed = by_slave(records.fetched)
    collected = 0
    for (slave, master), keys in owed.items():
        open_ones = {k: v for k, v in keys.items() if (slave, k) not in records.asked}
        for batch in _batches(list(open_ones)[:300], 100):
            check_same(demo.dec(slave, master, batch), {key_id: open_ones[key_id] for key_id in batch})
            collected += len(batch)
    assert collected > 0


def _batches(key_ids: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(key_ids), size):
        yield key_ids[start : start + size]


def test_the_service_is_healthy_and_its_log_good(aftermath: Aftermath) -> None:
    demo = aftermath.demo
    assert demo.health() == 200
    fetched = demo.enc("sae-1", "sae-2", number=3)
    check_same(demo.dec("sae-2", "sae-1", list(fetched)), fetched)
    assert b"good" in demo.cli("audit", "verify").stdout


def test_no_plain_key_is_left_in_the_spool(aftermath: Aftermath) -> None:
    done = [path for path in (aftermath.demo.spool / "done").iterdir() if path.stat().st_size]
    assert done == []
    assert list((aftermath.demo.spool / "refused").iterdir()) == []


def test_a_device_file_that_a_kill_left_half_done_is_erased_by_the_next_upkeep(aftermath: Aftermath) -> None:
    """The state between renaming a deposited file and erasing it, made by hand."""
    half_done = aftermath.demo.spool / "done" / "device-1.bin.half"
    half_done.write_bytes(os.urandom(KEYS_IN_A_FILE * 32))
    with aftermath.demo.upkeep():
        until(lambda: half_done.stat().st_size == 0, 20, "the upkeep finishes what was interrupted")
