"""What happens to keys and requests while the token is away, or when a row was tampered with?"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import requests

from tests.load import Ledger, Load, Records, check, check_same, new_seed, wait_until_healed
from tests.world import Demo, start_demo, until

WORKERS = 2
POOL = 20_000
CLIENTS = 4
FLAPS = 12
TRIES = 3
SEGMENT_BYTES = 48
NOT_FOUND = {"message": "one or more keys specified are not found on KME"}


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A KME of this module's own; each test leaves it healthy."""
    with start_demo(tmp_path_factory.mktemp("token"), saes=CLIENTS, keys=POOL, workers=WORKERS) as demo:
        yield demo


# The token is away ----------------------------------------------------------------------------------------


def all_tokens(kme: Demo) -> Path:
    """The directory in which SoftHSM looks for tokens."""
    return kme.config.parent / "tokens"


def the_token(kme: Demo) -> Path:
    """The token's own directory."""
    (found,) = (path for path in all_tokens(kme).iterdir() if path.is_dir())
    return found


Part = Callable[[Demo], Path]
PARTS: list[Part] = [all_tokens, the_token]


@pytest.fixture(params=PARTS, ids=[part.__name__ for part in PARTS])
def part(request: pytest.FixtureRequest) -> Part:
    """What is pulled."""
    chosen: Part = request.param
    return chosen


@contextmanager
def away(kme: Demo, part: Part) -> Iterator[None]:
    """The token is pulled, and put back."""
    path, elsewhere = part(kme), kme.directory / "pulled"
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


def test_the_service_refuses_while_the_token_is_away_and_heals_by_itself(kme: Demo, part: Part) -> None:
    workers, before = kme.workers(), Ledger(kme.log_now())
    owed = kme.enc("sae-1", "sae-2", number=100)
    with away(kme, part):
        # What a worker holds of the token may go on opening keys for a while: that is as good.
        until(lambda: _enc_is_refused(kme), 30, "the outage is noticed")
        answer = _dec(kme, list(owed))
        collected = kme.keys(answer) if answer.status_code == 200 else {}
        if not collected:
            _check_refusal(answer)
    wait_until_healed(kme)
    check_same(collected or kme.dec("sae-2", "sae-1", list(owed)), owed)
    _check_nobody_was_blamed(kme, before)
    assert kme.workers() == workers, "no process had to be started anew"


def test_workers_that_start_while_the_token_is_away_refuse_and_heal_by_themselves(kme: Demo, part: Part) -> None:
    before = Ledger(kme.log_now())
    owed = kme.enc("sae-1", "sae-2", number=3)
    with away(kme, part):
        _replace_workers(kme)
        assert _enc_is_refused(kme)
        _check_refusal(_dec(kme, list(owed)))
    wait_until_healed(kme)
    check_same(kme.dec("sae-2", "sae-1", list(owed)), owed)
    _check_nobody_was_blamed(kme, before)


def test_a_token_that_comes_and_goes_under_load_gives_no_wrong_key_and_blames_no_row(kme: Demo, part: Part) -> None:
    before, seed = Ledger(kme.log_now()), new_seed()
    dice = random.Random(seed)
    with Load(kme, seed) as records:
        for _ in range(FLAPS):
            wanted = records.answers.total() + dice.randint(1, 2 * CLIENTS)
            with away(kme, part):
                records.wait_until(lambda total=wanted: records.answers.total() >= total)
            records.wait_for_more(dice.randint(1, 2 * CLIENTS))
        until(lambda: _serves_without_refusing(records), 60, "every worker heals")
    assert records.unanswered.total() == 0, "an answer is due, not a broken connection"
    assert {status for _, status in records.answers} <= {200, 503}
    ledger = _check_nobody_was_blamed(kme, before)
    check(records, ledger)
    burnt = ledger.burnt(records) - {key_id for key_id, _ in before.deliveries}
    print(f"{records.served} calls served, {records.refusals} refused, {len(burnt)} keys burnt")
    assert burnt == set(ledger.voided) - set(before.voided), "a key that was claimed and did not open is void"


def test_an_outage_burns_the_claims_that_it_interrupts_and_no_more(kme: Demo, part: Part) -> None:
    """The token is asked before keys are claimed; each worker may have been told so just before the outage."""
    before = Ledger(kme.log_now())
    for _ in range(4 * WORKERS):
        kme.enc("sae-1", "sae-2")
    with away(kme, part):
        refusals = [kme.post("sae-1", "sae-2/enc_keys", {"number": 50}).status_code for _ in range(40)].count(503)
    wait_until_healed(kme)
    assert refusals > 10, "the outage was not noticed"
    burnt = len(Ledger(kme.log_now()).voided) - len(before.voided)
    assert burnt <= WORKERS * 50


def test_a_token_file_that_a_killed_login_left_empty_is_put_back(kme: Demo) -> None:
    """At every login SoftHSM cuts ``token.object`` and then writes it again: a kill between would lose the token."""
    owed = kme.enc("sae-1", "sae-2", number=3)
    (the_token(kme) / "token.object").write_bytes(b"")
    _replace_workers(kme)
    wait_until_healed(kme)
    check_same(kme.dec("sae-2", "sae-1", list(owed)), owed)


def _dec(kme: Demo, key_ids: list[str]) -> requests.Response:
    return kme.post("sae-2", "sae-1/dec_keys", {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]})


def _enc_is_refused(kme: Demo) -> bool:
    answer = kme.post("sae-1", "sae-2/enc_keys", {"number": 100})
    if answer.status_code == 200:
        return False
    _check_refusal(answer)
    return True


def _check_refusal(answer: requests.Response) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json()) == ["message"]


def _replace_workers(kme: Demo) -> None:
    killed = kme.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(kme.workers()) - set(killed)) == WORKERS, 30, "workers come back")


def _serves_without_refusing(records: Records) -> bool:
    refusals = records.refusals
    records.wait_for_more(100, 60)
    return records.refusals == refusals


def _check_nobody_was_blamed(kme: Demo, before: Ledger) -> Ledger:
    ledger = _check_count(kme)
    assert len(ledger.alarms) == len(before.alarms), "an outage is not tampering"
    return ledger


def _check_count(kme: Demo) -> Ledger:
    """What can be delivered is what was deposited, less what the log says was delivered, less what is quarantined."""
    ledger = Ledger(kme.log_now())
    with kme.database() as connection:
        (frozen,) = connection.execute(
            "SELECT coalesce(sum(key_count - next_index), 0) FROM block WHERE state = 'frozen'"
        ).fetchone()
    assert kme.stored("sae-1", "sae-2") == ledger.left - frozen
    return ledger


# A row was tampered with ------------------------------------------------------------------------------------

Tampering = Callable[[sqlite3.Connection, int, int], None]
"""Changes what is stored of one key, given the number of its block and its place in it."""


def flip_segment(connection: sqlite3.Connection, block: int, index: int) -> None:
    """One bit of the sealed key."""
    _flip(connection, "segments", "sealed", block, index * SEGMENT_BYTES + 5)


def flip_tag(connection: sqlite3.Connection, block: int, index: int) -> None:
    """One bit of its authentication tag."""
    _flip(connection, "segments", "sealed", block, (index + 1) * SEGMENT_BYTES - 1)


def flip_block_key(connection: sqlite3.Connection, block: int, index: int) -> None:
    """One bit of the wrapped block key."""
    _flip(connection, "block", "wrapped", block, 20)


def flip_header(connection: sqlite3.Connection, block: int, index: int) -> None:
    """The version in the header of the wrapped block key."""
    _flip(connection, "block", "wrapped", block, 0)


def cut_segments(connection: sqlite3.Connection, block: int, index: int) -> None:
    """Nothing is left from the middle of the key on."""
    _set_segments(connection, block, "substr(sealed, 1, ?)", index * SEGMENT_BYTES + 7)


def remove_segments(connection: sqlite3.Connection, block: int, index: int) -> None:
    """The row of the segments is gone."""
    connection.execute("DELETE FROM segments WHERE block_pk = ?", (block,))


def swap_segments(connection: sqlite3.Connection, block: int, index: int) -> None:
    """The segments of another block, well sealed."""
    _set_segments(connection, block, "(SELECT sealed FROM segments WHERE block_pk = ?)", _other(connection))


def swap_block_key(connection: sqlite3.Connection, block: int, index: int) -> None:
    """The key of another block, well wrapped."""
    connection.execute(
        "UPDATE block SET wrapped = (SELECT wrapped FROM block WHERE block_pk = ?) WHERE block_pk = ?",
        (_other(connection), block),
    )


def _set_segments(connection: sqlite3.Connection, block: int, expression: str, parameter: int) -> None:
    statement = f"UPDATE segments SET sealed = {expression} WHERE block_pk = ?"  # noqa: S608 - ours alone
    assert connection.execute(statement, (parameter, block)).rowcount == 1


def _flip(connection: sqlite3.Connection, table: str, column: str, block: int, offset: int) -> None:
    read = f"SELECT {column} FROM {table} WHERE block_pk = ?"  # noqa: S608 - ours alone
    value = bytearray(connection.execute(read, (block,)).fetchone()[0])
    value[offset] ^= 1
    write = f"UPDATE {table} SET {column} = ? WHERE block_pk = ?"  # noqa: S608 - ours alone
    connection.execute(write, (bytes(value), block))


def _other(connection: sqlite3.Connection) -> int:
    """A block that is not in use."""
    return int(connection.execute("SELECT max(block_pk) FROM block WHERE state = 'ready'").fetchone()[0])


TAMPERINGS: list[Tampering] = [
    *(flip_segment, flip_tag, flip_block_key, flip_header),
    *(cut_segments, remove_segments, swap_segments, swap_block_key),
]


@pytest.fixture(params=TAMPERINGS, ids=[tampering.__name__ for tampering in TAMPERINGS])
def tampering(request: pytest.FixtureRequest) -> Tampering:
    """What is done to the row."""
    chosen: Tampering = request.param
    return chosen


def test_a_tampered_block_is_quarantined_and_the_sae_gets_keys_of_another(kme: Demo, tampering: Tampering) -> None:
    alarms = _alarms(kme)
    tampered = _tamper_with_next(kme, 1, tampering)
    _check_exchange(kme)
    _check_quarantined(kme, tampered, alarms)


def test_requests_that_meet_at_a_tampered_block_are_all_served_and_it_alarms_once(kme: Demo) -> None:
    alarms = _alarms(kme)
    tampered = _tamper_with_next(kme, 1, flip_block_key)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: kme.post("sae-1", "sae-2/enc_keys", {"number": 8}), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    _check_quarantined(kme, tampered, alarms)


def test_as_many_tampered_blocks_as_a_request_tries_but_one_are_not_noticed_by_the_sae(kme: Demo) -> None:
    alarms = _alarms(kme)
    tampered = _tamper_with_next(kme, TRIES - 1, flip_segment)
    _check_exchange(kme)
    _check_quarantined(kme, tampered, alarms)


def test_more_tampered_blocks_than_a_request_tries_cost_one_refusal(kme: Demo) -> None:
    alarms = _alarms(kme)
    tampered = _tamper_with_next(kme, TRIES, flip_segment)
    _check_refusal(kme.post("sae-1", "sae-2/enc_keys"))
    _check_exchange(kme)
    _check_quarantined(kme, tampered, alarms)


def test_a_key_tampered_with_after_delivery_is_not_found_and_alarms_once(kme: Demo, tampering: Tampering) -> None:
    alarms = _alarms(kme)
    key_id, neighbour = _two_keys_of_one_block(kme)
    block, index = _place_of(kme, key_id)
    with kme.database() as connection:
        tampering(connection, block, index)
    for wanted in (key_id, key_id, neighbour):
        answer = _dec(kme, [wanted])
        assert (answer.status_code, answer.json()) == (400, NOT_FOUND)
    _check_exchange(kme)
    _check_quarantined(kme, [block], alarms)


def _alarms(kme: Demo) -> int:
    return len(Ledger(kme.log_now()).alarms)


def _tamper_with_next(kme: Demo, blocks: int, tampering: Tampering) -> list[int]:
    """Tamper with the keys that are to be claimed next, in so many blocks; gives the numbers of the blocks."""
    with kme.database() as connection:
        found = connection.execute(
            "SELECT block_pk, next_index FROM block WHERE state = 'ready' ORDER BY block_pk LIMIT ?", (blocks,)
        ).fetchall()
        for block, index in found:
            tampering(connection, block, index)
    return [block for block, _ in found]


def _two_keys_of_one_block(kme: Demo) -> tuple[str, str]:
    while True:
        first, second = kme.enc("sae-1", "sae-2", number=2)
        if _place_of(kme, first)[0] == _place_of(kme, second)[0]:
            return first, second


def _place_of(kme: Demo, key_id: str) -> tuple[int, int]:
    """The number of the key's block, and its place in it."""
    with kme.database() as connection:
        (parts,) = connection.execute("SELECT parts FROM key WHERE key_id = ?", (UUID(key_id).bytes,)).fetchone()
    ((block, index, _),) = json.loads(parts)
    return block, index


def _check_exchange(kme: Demo) -> None:
    fetched = kme.enc("sae-1", "sae-2", number=5)
    check_same(kme.dec("sae-2", "sae-1", list(fetched)), fetched)


def _check_quarantined(kme: Demo, tampered: list[int], alarms_before: int) -> None:
    """Those blocks are frozen and raised one alarm each; no other block was, and no key is unaccounted for."""
    marks = ",".join("?" * len(tampered))
    with kme.database() as connection:
        statement = f"SELECT block_id, state FROM block WHERE block_pk IN ({marks}) ORDER BY block_pk"  # noqa: S608
        blocks = connection.execute(statement, tampered).fetchall()
    assert [state for _, state in blocks] == ["frozen"] * len(tampered)
    alarms = _check_count(kme).alarms[alarms_before:]
    assert [alarm["event"] for alarm in alarms] == ["alarm.block-tampered"] * len(tampered)
    assert sorted(alarm["block"] for alarm in alarms) == sorted(block_id for block_id, _ in blocks)


def test_the_log_of_all_this_proves_itself(kme: Demo) -> None:
    assert kme.log_rows() == kme.log_now()
