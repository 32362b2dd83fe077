"""Does the database itself refuse what `states.py` does not allow, and keep its counters right?"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import pytest

from hsmkme.errors import IllegalTransition, KeyNotHeld, PoolFull, PoolShort
from hsmkme.model import SealedBlock, SealedKey
from hsmkme.states import BLOCK_MOVES, EPOCH_MOVES, KEY_MOVES, BlockState, EpochState, KeyState
from hsmkme.store.database import connect, spoken
from tests.exercise_store import Subject, make_block
from tests.test_store import open_subject

MOVES: Mapping[str, Mapping[StrEnum, frozenset[StrEnum]]] = {
    "epoch": EPOCH_MOVES,
    "block": BLOCK_MOVES,
    "key": KEY_MOVES,
}
PAIRS = [
    pytest.param(kind, was, becomes, id=f"{kind}-{was}-{becomes}")
    for kind, moves in MOVES.items()
    for was, becomes in itertools.product(moves, moves)
    if was != becomes
]


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    opened = open_subject(tmp_path / "store.sqlite")
    yield opened
    opened.store.close()


@pytest.fixture
def raw(subject: Subject, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """SQL without the verbs, on a connection with the product's settings."""
    connection = connect(tmp_path / "store.sqlite")
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], sqlite3.Connection]:
    """Gives copies, in memory, of a store with one epoch, block and key; their triggers are the product's."""
    subject = open_subject(tmp_path_factory.mktemp("pristine") / "store.sqlite")
    subject.fill(4)
    subject.claim(1, slaves=("bob", "carol"))
    subject.store.checkpoint()
    original = subject.store.log._database.connection

    def copy() -> sqlite3.Connection:
        made = sqlite3.connect(":memory:", isolation_level=None)
        original.backup(made)
        return made

    return copy


def put(connection: sqlite3.Connection, kind: str, state: StrEnum) -> None:
    """Set a state whatever it was, as if the row had come there by itself."""
    (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (f"{kind}_moves",)).fetchone()
    connection.execute(f"DROP TRIGGER {kind}_moves")
    connection.execute(f"UPDATE {kind} SET state = ?", (state,))  # noqa: S608 - one of three words
    connection.execute(trigger)


# The state tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "was", "becomes"), PAIRS)
def test_the_database_allows_what_the_state_table_allows(
    kind: str, was: StrEnum, becomes: StrEnum, pristine: Callable[[], sqlite3.Connection]
) -> None:
    connection = pristine()
    put(connection, "block", BlockState.RETIRED)  # else no epoch ends
    put(connection, kind, was)
    allowed = becomes in MOVES[kind][was]
    update = f"UPDATE {kind} SET state = ?"  # noqa: S608 - one of three words
    if allowed:
        connection.execute(update, (becomes,))
    else:
        with pytest.raises(IllegalTransition), spoken():
            connection.execute(update, (becomes,))
    assert connection.execute(f"SELECT state FROM {kind}").fetchall() == [(becomes if allowed else was,)]  # noqa: S608
    connection.close()


def test_the_databases_own_table_is_the_state_table_row_for_row(raw: sqlite3.Connection) -> None:
    in_code = {
        (kind, str(was), str(becomes))
        for kind, moves in MOVES.items()
        for was, allowed in moves.items()
        for becomes in allowed
    }
    assert set(raw.execute("SELECT kind, was, becomes FROM move")) == in_code


@pytest.mark.parametrize(("kind", "states"), [("epoch", EpochState), ("block", BlockState), ("key", KeyState)])
def test_every_state_has_its_row_and_no_other_word_is_one(
    kind: str, states: type[StrEnum], pristine: Callable[[], sqlite3.Connection]
) -> None:
    assert set(MOVES[kind]) == set(states)
    connection = pristine()
    put(connection, "block", BlockState.RETIRED)  # else no epoch ends
    for state in states:
        put(connection, kind, state)
    connection.execute(f"DROP TRIGGER {kind}_moves")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute(f"UPDATE {kind} SET state = 'lost'")  # noqa: S608 - one of three words
    connection.close()


@pytest.mark.parametrize("kind", MOVES)
def test_nothing_leads_back_to_a_state_in_which_keys_could_be_handed_out_again(kind: str) -> None:
    moves = MOVES[kind]

    def reach(state: StrEnum, seen: frozenset[StrEnum] = frozenset()) -> frozenset[StrEnum]:
        for after in moves[state] - seen:
            seen = reach(after, seen | {after})
        return seen

    assert not {state for state in moves if state in reach(state)}


# What else does not change ------------------------------------------------------------------------------


def refused(connection: sqlite3.Connection, statement: str) -> None:
    with pytest.raises(IllegalTransition), spoken():
        connection.execute(statement)


def test_a_cursor_moves_right_only(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill(6)
    subject.claim(3)
    for cursor in range(3):
        refused(raw, f"UPDATE block SET next_index = {cursor}")  # noqa: S608 - a number
    raw.execute("UPDATE block SET next_index = 4")
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute("UPDATE block SET next_index = 7")


def test_a_collected_key_stays_collected(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    keys = subject.claim(1, slaves=("bob", "carol", "dave"))
    subject.collect("carol", keys)
    for served in (0b000, 0b001, 0b101):
        refused(raw, f"UPDATE key SET served = {served}")  # noqa: S608 - a number
    raw.execute("UPDATE key SET served = 3")


@pytest.mark.parametrize(
    "change",
    [
        *("key_id = randomblob(16)", "relation_id = 2", "size = 64", "parts = '[]'", "size = size", "seal = NULL"),
        *("claimed_at = 1", "claimed_at = claimed_at + 1, state = 'void'"),
    ],
)
def test_what_a_key_is_does_not_change(change: str, subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    subject.claim(1)
    subject.claim(1, slaves=("carol",))
    subject.store.lineage.seal_rows(b"key")
    refused(raw, f"UPDATE key SET {change}")  # noqa: S608 - from the list above


def test_a_live_key_is_not_deleted_and_a_tombstone_can_be(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    live, ended = subject.claim(2)
    subject.collect("bob", [ended])
    refused(raw, "DELETE FROM key")
    raw.execute("DELETE FROM key WHERE state = 'consumed'")
    assert raw.execute("SELECT key_id FROM key").fetchall() == [(live.key_id.bytes,)]


def test_a_live_key_is_not_replaced(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    subject.claim(1)
    refused(raw, "REPLACE INTO key SELECT key_id, relation_id, state, 64, parts, 0, claimed_at, 1, -1, seal FROM key")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE log SET text = '{}' WHERE seq = 1",
        "UPDATE log SET seq = 99 WHERE seq = 1",
        "DELETE FROM log WHERE seq = (SELECT max(seq) FROM log)",
        "DELETE FROM log",
        "REPLACE INTO log SELECT seq, '{}', hash FROM log WHERE seq = 1",
    ],
)
def test_the_log_is_append_only(change: str, subject: Subject, raw: sqlite3.Connection) -> None:
    before = subject.rows("SELECT * FROM log")
    refused(raw, change)
    assert subject.rows("SELECT * FROM log") == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET live = -1",
        "UPDATE block SET live = key_count + 1",
        "UPDATE block SET key_bits = 100",
        "UPDATE block SET epoch = 9",
        "UPDATE block SET link_id = 'nowhere'",
        "DELETE FROM block",
        "UPDATE pool SET ready = -1",
        "INSERT INTO log_head VALUES (2, 0, zeroblob(32))",
        "UPDATE key SET relation_id = 99",
        "INSERT INTO segments VALUES (99, x'')",
        "UPDATE segments SET sealed = 'text'",
    ],
)
def test_a_row_that_makes_no_sense_is_refused(statement: str, subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    subject.claim(1)
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute(statement)


# Epochs ---------------------------------------------------------------------------------------------------


OPEN_ANOTHER = (
    "INSERT INTO epoch (epoch, state, check_value) VALUES (2, 'preactivation', '0011223345');"
    "UPDATE epoch SET state = 'deactivated' WHERE epoch = 1; UPDATE epoch SET state = 'active' WHERE epoch = 2;"
)


def test_an_epoch_ends_when_no_live_block_is_under_it(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    raw.executescript(OPEN_ANOTHER)
    end = "UPDATE epoch SET state = 'destroyed' WHERE epoch = 1"
    for state in set(BlockState) - {BlockState.RETIRED}:
        put(raw, "block", state)
        refused(raw, end)
    put(raw, "block", BlockState.RETIRED)
    raw.execute(end)


def test_a_block_goes_under_the_active_epoch_alone(subject: Subject, raw: sqlite3.Connection) -> None:
    raw.executescript(OPEN_ANOTHER)
    with pytest.raises(IllegalTransition, match="a block goes under the active epoch"):
        subject.fill()
    assert subject.rows("SELECT wraps FROM epoch ORDER BY epoch") == [(0,), (0,)]


def test_a_block_moves_to_the_active_epoch_and_never_back(subject: Subject, raw: sqlite3.Connection) -> None:
    subject.fill()
    raw.executescript(OPEN_ANOTHER)
    refused(raw, "UPDATE block SET epoch = 3")
    raw.execute("UPDATE block SET epoch = 2")
    refused(raw, "UPDATE block SET epoch = 1")
    put(raw, "block", BlockState.RETIRED)
    refused(raw, "UPDATE block SET epoch = 2")


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM epoch",
        "UPDATE epoch SET check_value = '9911223344'",
        "UPDATE epoch SET epoch = 3",
        "UPDATE epoch SET proof = 1",
    ],
)
def test_what_an_epoch_is_does_not_change(change: str, subject: Subject, raw: sqlite3.Connection) -> None:
    refused(raw, change)


def test_the_time_before_which_a_block_is_not_released_does_not_change(
    subject: Subject, raw: sqlite3.Connection
) -> None:
    subject.deposit(make_block(2, 256), BlockState.READY)
    refused(raw, "UPDATE block SET not_before = 5")


# The counter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_counter_is_right_after_anything(seed: int, subject: Subject, raw: sqlite3.Connection) -> None:
    """`Subject` compares the counters with a count of every segment after each verb."""
    chance = random.Random(seed)
    blocks: list[SealedBlock] = []
    keys: list[SealedKey] = []

    def deposit() -> None:
        bits = chance.choice((64, 128, 256, 512))
        block = make_block(chance.randint(1, 9), bits, chance.choice(("local", "second", "far")))
        blocks.append(block)
        subject.deposit(block, chance.choice((BlockState.READY, BlockState.READY, BlockState.DEPOSITED)), 60)

    def claim() -> None:
        peer = chance.choice(("kme-1", "kme-1", "kme-2"))
        size = chance.choice((64, 128, 256, 352, 1024))
        keys.extend(subject.claim(chance.randint(1, 6), size, peer=peer, slaves=("bob", "carol")[: 1 + seed % 2]))

    def some() -> list[SealedKey]:
        return chance.sample(keys, min(len(keys), chance.randint(1, 3)))

    def move() -> None:
        name = chance.choice(blocks).seal.name
        becomes = chance.choice(list(BlockState))
        with spoken():
            raw.execute("UPDATE block SET state = ? WHERE block_id = ?", (becomes, name.block_id))
        subject.check_counts()

    verbs: list[Callable[[], object]] = [
        *(deposit, deposit, claim, claim, claim),
        lambda: subject.collect(chance.choice(("bob", "carol")), some()),
        lambda: subject.void(some()),
        lambda: subject.freeze(chance.choice(blocks)),
        move,
    ]
    deposit()
    done = 0
    for _ in range(120):
        try:
            chance.choice(verbs)()
            done += 1
        except (PoolShort, PoolFull, KeyNotHeld, IllegalTransition):
            subject.check_counts()
    assert done > 40
    assert keys
