"""Does a KME with several tokens go on when one is lost, and does each token's epochs end by themselves?"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from hsmkme import config as configuration
from hsmkme import verify
from hsmkme.errors import (
    ConfigRefused,
    IllegalTransition,
    ObjectMissing,
    OperatorFault,
    PoolShort,
    RecordFault,
    StoreError,
    TokenUnavailable,
)
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.crossing import cross
from hsmkme.keeping import StoreKeeper
from hsmkme.model import BlockName, BlockSeal, OpenKey
from hsmkme.receipts import Receipts
from hsmkme.revocation import Revocation
from tests.blocks import flipped
from tests.conftest import FakeClock
from tests.paired import KEYS, Kme, away, bytes_of, healed, make_home, same, table_of
from tests.processes import hsmkme
from tests.rotating import labels
from tests.tampering import cells, flip, hand_on
from tests.tokens import PIN, made_another, made_pair
from tests.world import until

A, B, C = "pair-a", "pair-b", "pair-c"
LINKS = {"both": [A, B]}
CLIENTS = 3
REQUESTS = 40
Pair = tuple[TokenAddress, TokenAddress]


@pytest.fixture(scope="module")
def pair(softhsm: Path) -> Pair:
    """Two tokens of one KME, that these tests take away and put back."""
    return made_pair(A, B, softhsm)


@pytest.fixture
def home(pair: Pair, tmp_path: Path, clock: FakeClock) -> Path:
    """A KME whose link is on both tokens; epoch 1 is of the first, epoch 2 of the second."""
    return make_home(tmp_path, pair, LINKS, clock)


@pytest.fixture
def kme(home: Path, clock: FakeClock) -> Iterator[Kme]:
    """A process of it."""
    kme = Kme(home, clock)
    yield kme
    kme.close()


def fails(kme: Kme, token: str) -> bool:
    """Whether a token does not open what it is asked to."""
    try:
        kme.tokens[token].prove(kme.store.epochs.active()[token])
    except TokenUnavailable:
        return True
    return False


# One of them is lost -------------------------------------------------------------------------------------------


def test_a_block_is_wrapped_by_both_tokens_and_either_opens_it(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    plain = [kme.deposit(f"block-{number}") for number in range(5)]
    assert set(kme.wraps("block-0")) == {A, B}
    assert same(kme.fetch(), plain[0])
    for number, address in enumerate(pair):
        with away(address, tmp_path):
            assert same(kme.fetch(), plain[1 + 2 * number]), "noticed while keys are opened"
            assert fails(kme, address.label)
            assert same(kme.fetch(), plain[2 + 2 * number]), "known before keys are claimed"
        healed(kme)
        assert not fails(kme, address.label)
    assert kme.alarms() == []


def test_what_was_delivered_is_collected_while_the_token_that_opened_it_is_away(
    kme: Kme, pair: Pair, tmp_path: Path
) -> None:
    plain = kme.deposit("one")
    owed = kme.fetch()
    kme.tokens[A].forget()
    with away(pair[0], tmp_path):
        assert same(kme.collect(owed), plain)


def test_what_is_deposited_while_a_token_is_away_is_copied_to_it_when_it_is_back(
    kme: Kme, pair: Pair, tmp_path: Path
) -> None:
    plain = {}
    for address, other in (pair, pair[::-1]):
        with away(address, tmp_path):
            plain[other.label] = kme.deposit(f"while {address.label} is away")
            assert set(kme.wraps(f"while {address.label} is away")) == {other.label}
            with pytest.raises(TokenUnavailable):
                kme.spread()
        healed(kme)
    kme.spread()
    assert {name: set(kme.wraps(f"while {name} is away")) for name in (A, B)} == {A: {A, B}, B: {A, B}}
    assert len(kme.store.log.latest(100, "block.copy")) == 2
    with away(pair[1], tmp_path):
        assert same(kme.fetch(2 * KEYS), plain[B] + plain[A])


def test_a_process_that_starts_without_one_token_serves_and_takes_it_up_when_it_comes(
    home: Path, pair: Pair, clock: FakeClock, tmp_path: Path
) -> None:
    first = Kme(home, clock)
    plain = [first.deposit(f"block-{number}") for number in range(3)]
    first.close()
    for number, address in enumerate(pair):
        with away(address, tmp_path):
            started = Kme(home, clock)
            assert same(started.fetch(), plain[number])
            with pytest.raises(TokenUnavailable):
                started.tokens[address.label]
        healed(started)
        assert not fails(started, address.label)
        started.close()


def test_without_any_token_a_request_is_refused_and_costs_nothing(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    plain = kme.deposit("one")
    kme.clock.now += 10
    for token in (A, B):
        kme.tokens[token].runner._breaker._answered_at = None
    with away(pair[0], tmp_path), away(pair[1], tmp_path):
        for _ in range(2):
            with pytest.raises(TokenUnavailable):
                kme.fetch()
    healed(kme)
    assert same(kme.fetch(), plain)


def test_what_only_a_lost_token_opens_is_not_claimed_until_it_is_back(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    with away(pair[1], tmp_path):
        assert fails(kme, B)
        only_a = kme.deposit("only a")
    healed(kme)
    both = kme.deposit("both")
    with away(pair[0], tmp_path):
        assert fails(kme, A)
        assert same(kme.fetch(), both), "the older block is passed over"
        with pytest.raises(PoolShort):
            kme.fetch()
    healed(kme)
    assert same(kme.fetch(), only_a)


@pytest.mark.parametrize("lost", [0, 1], ids=[A, B])
def test_no_request_fails_while_a_token_comes_and_goes_under_load(
    kme: Kme, pair: Pair, lost: int, tmp_path: Path
) -> None:
    plain = [kme.deposit(f"block-{number}") for number in range(CLIENTS * REQUESTS * 2 // KEYS)]
    given, wrong, seen = list[OpenKey](), list[Exception](), threading.Condition()

    def client() -> None:
        try:
            for _ in range(REQUESTS):
                keys = kme.fetch(2)
                assert bytes_of(kme.collect(keys)) == bytes_of(keys)
                with seen:
                    given.extend(keys)
                    seen.notify_all()
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails the test
            wrong.append(error)
        kme.store._database.close_reader()

    def wait_for(count: int) -> None:
        with seen:
            assert seen.wait_for(lambda: len(given) >= count or bool(wrong), 60)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for number in range(1, 6):
        wait_for(number * 40)
        with away(pair[lost], tmp_path):
            wait_for(number * 40 + 20)
        healed(kme)
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert sorted(key.material.reveal() for key in given) == sorted(
        block[place : place + 32] for block in plain for place in range(0, len(block), 32)
    ), "each key once"
    assert kme.alarms() == []
    assert kme.store.log.latest(10_000, "key.void") == []


# A copy is altered ---------------------------------------------------------------------------------------------


def change_wrap(kme: Kme, table: str, change: Callable[[bytes], bytes]) -> None:
    with hand_on(kme.settings.store) as connection:
        (wrapped,) = connection.execute(f"SELECT wrapped FROM {table}").fetchone()  # noqa: S608 - ours
        connection.execute(f"UPDATE {table} SET wrapped = ?", (change(wrapped),))  # noqa: S608 - ours


@pytest.mark.parametrize("position", [0, 1, 2, 3, 6, 7, 26, 46])
def test_a_block_whose_own_wrapped_key_was_altered_is_quarantined_though_a_copy_would_open_it(
    kme: Kme, position: int
) -> None:
    kme.deposit("one")
    kme.store.close()
    change_wrap(kme, "block", lambda wrapped: flipped(wrapped, position))
    with pytest.raises(RecordFault):
        kme.fetch()
    assert len(kme.alarms()) == 1
    assert kme.store.epochs.live(1) == {"frozen": 1}


@pytest.mark.parametrize("position", [0, 1, 2, 3, 6, 7, 26, 46])
def test_an_altered_copy_is_quarantined_when_it_is_met(kme: Kme, pair: Pair, position: int, tmp_path: Path) -> None:
    kme.deposit("one")
    kme.store.close()
    change_wrap(kme, "copy", lambda wrapped: flipped(wrapped, position))
    with away(pair[0], tmp_path), pytest.raises(RecordFault):
        kme.fetch()
    healed(kme)
    assert len(kme.alarms()) == 1
    assert kme.store.epochs.live(1) == {"frozen": 1}


COPY_CELLS = ("block_pk", "epoch", "wrapped", "seal")


@pytest.mark.parametrize("column", COPY_CELLS)
@pytest.mark.parametrize("is_away", [False, True], ids=["both are there", "the other is needed"])
def test_a_changed_byte_of_a_copy_keeps_its_block_apart_with_one_alarm(
    kme: Kme, pair: Pair, column: str, is_away: bool, tmp_path: Path
) -> None:
    """One that is of no block any more is dropped, and made anew."""
    plain = kme.deposit("one")
    kme.store.checkpoint()
    kme.store.close()
    untouched = tmp_path / "untouched.sqlite"
    shutil.copy(kme.settings.store, untouched)
    (cell,) = [one for one in cells(kme.settings.store, "copy", "block_pk = 1") if one.column == column]
    for position in range(cell.size):
        for ending in ("", "-wal", "-shm"):
            kme.settings.store.with_name(kme.settings.store.name + ending).unlink(missing_ok=True)
        shutil.copy(untouched, kme.settings.store)
        with hand_on(kme.settings.store) as connection:
            flip(cell, position)(connection)
        with away(pair[0], tmp_path) if is_away else nullcontext(), suppress(RecordFault, PoolShort, TokenUnavailable):
            assert same(kme.fetch(1), plain[:32]), "wrong bytes were given"
        healed(kme)
        kme.store.examining.examine("test")
        kme.spread()
        events = [json.loads(alarm)["event"] for alarm in kme.alarms()]
        if column == "block_pk":
            assert events == ["alarm.copy-tampered"]
            assert set(kme.wraps("one")) == {A, B}, "upkeep made it anew"
        else:
            assert (events, kme.store.epochs.live(1)) == (["alarm.block-tampered"], {"frozen": 1})
        kme.store.close()


def test_a_copy_that_was_given_to_another_block_is_not_sealed_by_a_rewrap(kme: Kme) -> None:
    kme.deposit("one")
    kme.deposit("two")
    kme.store.close()
    with hand_on(kme.settings.store) as connection:
        connection.execute("DELETE FROM copy WHERE block_pk = 2")
        connection.execute("UPDATE copy SET block_pk = 2")
    rotation = kme.rotation(B)
    rotation.rotate(because="test")
    for _ in range(2):
        kme.store.examining.sound(lambda: rotation.rewrap(2))
    assert [json.loads(alarm)["event"] for alarm in kme.alarms()] == ["alarm.block-tampered"]
    assert kme.store.epochs.live(1) == {"ready": 1, "frozen": 1}


def test_a_copy_of_another_block_opens_nothing(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    kme.deposit("one")
    kme.deposit("two")
    kme.store.close()
    with hand_on(kme.settings.store) as connection:
        (two,) = connection.execute("SELECT wrapped FROM copy ORDER BY block_pk DESC").fetchone()
        connection.execute("UPDATE copy SET wrapped = ?", (two,))
    with away(pair[0], tmp_path), pytest.raises(RecordFault):
        kme.fetch()
    healed(kme)
    assert len(kme.alarms()) == 1


@pytest.mark.parametrize("table", ["block", "copy"])
def test_a_rewrap_quarantines_what_does_not_unwrap_in_either_token(kme: Kme, table: str) -> None:
    kme.deposit("one")
    kme.store.close()
    change_wrap(kme, table, lambda wrapped: flipped(wrapped, 20))
    token, epoch = {"block": (A, 1), "copy": (B, 2)}[table]
    rotation = kme.rotation(token)
    rotation.rotate(because="test")
    rotation.rewrap(epoch)
    assert len(kme.alarms()) == 1
    with pytest.raises(StoreError, match="quarantine"):
        rotation.shred(epoch)


def test_what_was_altered_is_not_copied_but_quarantined(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    with away(pair[1], tmp_path):
        kme.deposit("one")
    healed(kme)
    kme.store.close()
    change_wrap(kme, "block", lambda wrapped: flipped(wrapped, 20))
    kme.spread()
    assert set(kme.wraps("one")) == {A}
    assert len(kme.alarms()) == 1


# Epochs --------------------------------------------------------------------------------------------------------


def test_the_epochs_of_each_token_end_by_themselves(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    plain = kme.deposit("one")
    kme.turn_over(A)
    assert kme.store.epochs.active() == {A: 3, B: 2}
    kme.turn_over(B)
    assert kme.store.epochs.active() == {A: 3, B: 4}
    assert [labels(kme.tokens[name], "master/") for name in (A, B)] == [["master/3"], ["master/4"]]
    assert [(epoch.number, epoch.token, epoch.proved) for epoch in kme.store.epochs.all()] == [
        (1, A, True), (2, B, True), (3, A, False), (4, B, False)
    ]  # fmt: skip
    with away(pair[0], tmp_path):
        assert same(kme.fetch(), plain)


def test_an_epoch_is_not_given_up_while_a_copy_is_under_it(kme: Kme) -> None:
    kme.deposit("one")
    kme.rotation(B).rotate(because="test")
    with pytest.raises(StoreError, match="1 live blocks are under epoch 2"):
        kme.rotation(B).shred(2)
    with pytest.raises(IllegalTransition):
        kme.store.epochs.destroy(2, kme.rotation(B)._entry("epoch.give-up"))
    with pytest.raises(StoreError, match="is of the token pair-b"):
        kme.rotation(A).shred(2)


def test_a_token_turns_over_while_the_other_is_away(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    plain = kme.deposit("one")
    with away(pair[1], tmp_path):
        assert fails(kme, B)
        kme.turn_over(A)
    healed(kme)
    kme.turn_over(B)
    with away(pair[0], tmp_path):
        assert same(kme.fetch(), plain)


def test_a_ceremony_rotates_and_ends_the_epochs_of_its_token_alone(kme: Kme, home: Path, pair: Pair) -> None:
    plain = kme.deposit("one")
    kme.close()
    epochs = StoreKeeper(home / "store.sqlite", kme.clock).open(pair[1], lambda use: use(lambda: PIN))
    with pytest.raises(OperatorFault, match="the next epoch is 3, and the plan rotates to 4"):
        epochs.rotate(4, "ceremony")
    for _ in range(2):  # the second finds it done
        assert epochs.rotate(3, "ceremony")["epoch"] == 3
    assert epochs.end(2)["active"] == 3
    again = Kme(home, kme.clock)
    assert again.store.epochs.active() == {A: 1, B: 3}
    assert same(again.fetch(), plain)
    again.close()


def test_upkeep_makes_the_first_master_key_of_a_token(home: Path, pair: Pair, clock: FakeClock, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home / "store.sqlite")) as connection:
        connection.execute("DROP TRIGGER epoch_row_stays")
        connection.execute("DELETE FROM epoch WHERE epoch = 2")
        connection.commit()
    kme = Kme(home, clock)
    plain = kme.deposit("one")
    assert set(kme.wraps("one")) == {A}
    kme.rotation(B).keep(kme.settings.epochs)
    kme.spread()
    with away(pair[0], tmp_path):
        assert same(kme.fetch(), plain)
    kme.close()


def test_a_revoked_epoch_ends_the_blocks_that_were_under_it_and_no_other(
    pair: Pair, tmp_path: Path, clock: FakeClock
) -> None:
    kme = Kme(make_home(tmp_path, pair, {"one": [A], "two": [B], "both": [A, B]}, clock), clock)
    plain = {link: kme.deposit(f"on {link}", link) for link in ("one", "two", "both")}
    kme.turn_over(A)  # to epoch 3: the number 2 lies between, and is of the other token
    outcome = Revocation(kme.store, "officer", "seen").epoch(2, kme.rotation(B))
    assert outcome.blocks == 2
    assert same(kme.fetch(), plain["one"])
    with pytest.raises(PoolShort):
        kme.fetch(1)
    assert labels(kme.tokens[B], "master/") == ["master/4"]
    kme.close()


# The log and receipts --------------------------------------------------------------------------------------------


def keys_of(kme: Kme) -> verify.Keys:
    return verify.keys_in(kme.custody.logbook.public_keys())


def test_the_log_is_sealed_by_the_other_token_while_one_is_away(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    keys = keys_of(kme)
    assert len(keys) == 2
    kme.deposit("one")
    kme.custody.logbook.seal()
    with away(pair[0], tmp_path):
        kme.deposit("two")
        kme.custody.logbook.seal()
        lines = list(kme.custody.logbook.export("kme-1"))
    assert verify.verify(iter(lines), keys)["seals"] == 2
    for key in keys:
        with pytest.raises(verify.BrokenError, match="not signed by"):
            verify.verify(iter(lines), [key])


def lived(kme: Kme, pair: Pair, directory: Path) -> str:
    """A block that had a copy later than its deposit, and ended under both tokens; all its epochs are destroyed."""
    with away(pair[1], directory):
        kme.deposit("one")
    healed(kme)
    kme.spread()
    for token in (A, B):
        kme.turn_over(token)
    kme.collect(kme.fetch())
    return "both/one"


def test_a_block_is_destroyed_with_every_master_key_of_every_token_that_it_was_under(
    kme: Kme, pair: Pair, tmp_path: Path
) -> None:
    name, receipts = lived(kme, pair, tmp_path), Receipts("kme-1", kme.custody, kme.store, kme.clock)
    kme.turn_over(A)
    with pytest.raises(StoreError, match="under epoch 4"):
        receipts.of_block(name)
    kme.turn_over(B)
    report = verify.verify_receipt(json.loads(receipts.of_block(name)), keys_of(kme))
    assert sorted(report["check_values"]) == [1, 2, 3, 4]


def test_a_receipt_that_leaves_out_what_counts_of_a_copy_proves_nothing_though_it_is_signed(
    kme: Kme, pair: Pair, tmp_path: Path
) -> None:
    name, keys = lived(kme, pair, tmp_path), keys_of(kme)
    for token in (A, B):
        kme.turn_over(token)
    receipt = json.loads(Receipts("kme-1", kme.custody, kme.store, kme.clock).of_block(name))
    assert verify.verify_receipt(receipt, keys)
    text = json.loads(receipt["receipt"])
    for seq in text["rows"]:
        left = json.dumps({**text, "rows": [one for one in text["rows"] if one != seq]})
        signature = kme.tokens[A].sign(hashlib.sha256(b"hsmkme/receipt/1" + left.encode()).digest())
        forged = {**receipt, "receipt": left, "signature": base64.b64encode(signature).decode()}
        with pytest.raises(verify.BrokenError):
            verify.verify_receipt(forged, keys)


# Placement -----------------------------------------------------------------------------------------------------


def test_links_on_different_tokens_do_not_need_each_other(pair: Pair, tmp_path: Path, clock: FakeClock) -> None:
    kme = Kme(make_home(tmp_path, pair, {"one": [A], "two": [B]}, clock), clock)
    plain = {link: kme.deposit(f"on {link}", link) for link in ("one", "two")}
    assert [set(kme.wraps(f"on {link}")) for link in ("one", "two")] == [{A}, {B}]
    with away(pair[0], tmp_path):
        assert fails(kme, A)
        assert same(kme.fetch(), plain["two"])
        with pytest.raises(PoolShort):
            kme.fetch(1)
        with pytest.raises(TokenUnavailable):
            kme.deposit("another", "one")
    healed(kme)
    assert same(kme.fetch(), plain["one"])
    kme.close()


def test_a_key_of_two_blocks_on_different_tokens_is_joined(kme: Kme, pair: Pair, tmp_path: Path) -> None:
    with away(pair[0], tmp_path):
        assert fails(kme, A)
        plain = kme.deposit("on b")
    healed(kme)
    assert not fails(kme, A)
    plain += kme.deposit("on a")
    assert same(kme.fetch(2 * KEYS), plain)


def test_a_third_token_takes_the_place_of_one_that_is_lost(
    kme: Kme, pair: Pair, home: Path, softhsm: Path, tmp_path: Path, clock: FakeClock
) -> None:
    plain = [kme.deposit(f"block-{number}") for number in range(2)]
    kme.close()
    third = made_another(C, A, softhsm)
    text = (home / "hsmkme.toml").read_text().replace(f"['{A}', '{B}']", f"['{B}', '{C}']")
    (home / "hsmkme.toml").write_text(text + table_of(third))
    with away(pair[0], tmp_path):
        after = Kme(home, clock)
        after.rotation(C).keep(after.settings.epochs)
        with pytest.raises(TokenUnavailable):
            after.spread()
        assert set(after.wraps("block-0")) == {A, B, C}
        assert same(after.fetch(), plain[0])
        with away(pair[1], tmp_path):
            assert same(after.fetch(), plain[1]), "from the copy of a copy"
        after.close()


def test_a_link_that_moves_to_another_token_has_copies_there(
    kme: Kme, pair: Pair, home: Path, tmp_path: Path, clock: FakeClock
) -> None:
    with away(pair[1], tmp_path):
        plain = kme.deposit("one")
    kme.close()
    text = (home / "hsmkme.toml").read_text().replace(f"['{A}', '{B}']", f"['{B}']")
    (home / "hsmkme.toml").write_text(text)
    after = Kme(home, clock)
    after.spread()
    plain += after.deposit("two")
    assert [set(after.wraps(name)) for name in ("one", "two")] == [{A, B}, {B}]
    with away(pair[0], tmp_path):
        assert same(after.fetch(2 * KEYS), plain)
    after.close()


# Commands ------------------------------------------------------------------------------------------------------


def test_the_commands_tell_of_each_token(home: Path) -> None:
    config = ("--config", home / "hsmkme.toml")
    tokens = json.loads(hsmkme(*config, "hsm", "list", "--json").out)
    assert {row["label"]: row["links"] for row in tokens if row["configured"]} == {A: ["both"], B: ["both"]}
    report = json.loads(hsmkme(*config, "hsm", "check", "--token", B, "--json").out)
    assert (report["usable"], report["token"]["label"]) == (True, B)
    assert hsmkme(*config, "epoch", "rotate", "--token", B).status == 0
    epochs = json.loads(hsmkme(*config, "epoch", "list", "--json").out)
    assert [(row["epoch"], row["token"], row["state"]) for row in epochs] == [
        (1, A, "active"), (2, B, "deactivated"), (3, B, "active")
    ]  # fmt: skip
    assert hsmkme(*config, "epoch", "shred", "2").status == 0
    assert "no token 'pair-x' is configured" in hsmkme(*config, "epoch", "rotate", "--token", "pair-x").err
    assert hsmkme(*config, "audit", "key").out.count("BEGIN PUBLIC KEY") == 2
    assert hsmkme(*config, "audit", "verify").status == 0


def test_check_says_which_token_is_away(home: Path, pair: Pair, tmp_path: Path) -> None:
    with away(pair[1], tmp_path):
        told = hsmkme("--config", home / "hsmkme.toml", "check", "--json")
    assert told.status == 1
    findings = [finding for finding in json.loads(told.out)["findings"] if finding.startswith("token")]
    assert len(findings) == 1
    assert findings[0].startswith(f"token {B}: no token labelled {B!r}")


def test_upkeep_copies_and_rotates_when_a_token_is_back(kme: Kme, home: Path, pair: Pair, tmp_path: Path) -> None:
    config = home / "hsmkme.toml"
    config.write_text(config.read_text() + "[epochs]\nrotate_seconds = 0\nrotate_blocks = 1\n")
    with away(pair[1], tmp_path):
        plain = kme.deposit("one")
        with process("--config", config, "upkeep"):
            until(lambda: kme.store.epochs.active()[A] > 1, 60, "the token that is there is rotated")
            assert kme.store.epochs.active()[B] == 2
    with process("--config", config, "upkeep"):
        until(lambda: set(kme.wraps("one")) == {A, B}, 60, "the key is copied")
        until(lambda: kme.store.epochs.one(2).proved, 60, "the token that is back is rotated")
    healed(kme)
    with away(pair[0], tmp_path):
        assert same(kme.fetch(), plain)
    assert kme.alarms() == []


@contextmanager
def process(*arguments: object) -> Iterator[None]:
    """A command that runs until it is stopped."""
    running = subprocess.Popen([sys.executable, "-m", "hsmkme", *map(str, arguments)], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        assert running.wait(60) == 0


# What does not fit ---------------------------------------------------------------------------------------------


def test_a_token_that_does_not_share_the_bridge_gets_no_copy_and_no_row_is_blamed(kme: Kme, token: Token) -> None:
    kme.deposit("one")
    own = BlockSeal(BlockName("both", "one"), 1, 256, kme.wraps("one")[A])
    with pytest.raises(ObjectMissing, match="bridge"):
        cross([own], kme.tokens[A], token, 1)
    assert kme.alarms() == []


def test_a_token_with_another_digest_key_is_not_used(
    pair: Pair, address: TokenAddress, token: Token, tmp_path: Path, clock: FakeClock
) -> None:
    token.close()
    home = make_home(tmp_path, pair[:1], {"both": [A]}, clock)
    Kme(home, clock).close()
    with (home / "hsmkme.toml").open("a") as file:
        file.write(table_of(address))
    kme = Kme(home, clock)
    plain = kme.deposit("one")
    with pytest.raises(OperatorFault, match="digest key"):
        kme.tokens[address.label]
    assert same(kme.fetch(), plain)
    kme.close()


def test_a_token_that_blocks_are_under_stays_configured(home: Path, pair: Pair, clock: FakeClock) -> None:
    kme = Kme(home, clock)
    kme.deposit("one")
    kme.close()
    text = (home / "hsmkme.toml").read_text()
    (home / "hsmkme.toml").write_text(text.replace(table_of(pair[1]), "").replace(f", '{B}'", ""))
    with pytest.raises(OperatorFault, match="'pair-b', which is not configured"):
        Kme(home, clock)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((f"tokens = ['{A}', '{B}']", "tokens = ['pair-c']"), "link.0.tokens: no token 'pair-c' is configured"),
        ((f"tokens = ['{A}', '{B}']", f"tokens = ['{A}', '{A}']"), "link.0.tokens: a token is named twice"),
        ((f'label = "{B}"', f'label = "{A}"'), "token.1.label: another token has this label"),
        (('label = "pair-b"\nsofthsm_conf = "', 'label = "pair-b"\nsofthsm_conf = "/other'), "softhsm_conf"),
    ],
)
def test_what_does_not_fit_in_the_configuration_is_named(home: Path, change: tuple[str, str], told: str) -> None:
    path = home / "hsmkme.toml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigRefused, match=told):
        configuration.load(path)
