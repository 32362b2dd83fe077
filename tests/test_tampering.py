"""What happens when somebody writes to the store, and what when the token fails: is one ever taken for the other?

Every byte of every value of a block, a key and an epoch is changed in turn; values are exchanged between rows; rows are
put back from an older copy. Right bytes or none are given, each to one relation; the row is kept apart with one alarm;
the token is not blamed, and what is not touched is still served.
"""

# ruff: noqa: S608 - every statement is of the test alone

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from hsmkme.audit import AuditChain
from hsmkme.custody import Custody
from hsmkme.epochs import LOOK_SECONDS
from hsmkme.errors import OperatorFault, StoreTampered, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.answers import CODES
from hsmkme.hsm.breaker import LONGEST_PAUSE_SECONDS
from hsmkme.hsm.tokens import sole
from hsmkme.policy import KeyRequest
from hsmkme.store import Store, migrate
from hsmkme.store.database import RowSeal
from hsmkme.store.schema import MIGRATIONS
from tests.conftest import PIN, FakeClock
from tests.shim import Shim
from tests.tampering import (
    BITS,
    BLOCKS,
    KEYS,
    SLAVES,
    Cell,
    Change,
    Seen,
    World,
    cells,
    flip,
    hand_on,
    make_kme,
    make_world,
    tampered,
    used,
)

BLOCK = "block_pk = 1"
KEY = "key_id = (SELECT min(key_id) FROM key)"
EPOCH = "epoch = 1"

ROWS = {"block": BLOCK, "segments": BLOCK, "taken": BLOCK, "key": KEY, "epoch": EPOCH}


@pytest.fixture(scope="module")
def fixed() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
def device(address: TokenAddress, fixed: FakeClock) -> Iterator[Token]:
    opened = Token(address, lambda: PIN, clock=fixed)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, device: Token, fixed: FakeClock) -> World:
    return make_world(tmp_path_factory.mktemp("world"), device, fixed)


Case = tuple[World, Path, Token, FakeClock]


def nothing(_: sqlite3.Connection) -> None:
    """Change nothing."""


@pytest.fixture
def case(world: World, tmp_path: Path, device: Token, fixed: FakeClock) -> Case:
    return world, tmp_path / "tampered.sqlite", device, fixed


def judged(case: Case, change: Change) -> Seen:
    """Use a store to which ``change`` was made; what must hold whatever it was."""
    world, path, device, clock = case
    seen = used(tampered(world, path, change), device, world, clock)
    for slave, key_id, value in seen.given:
        assert value in world.keys, "wrong bytes were given"
        assert seen.key_ids_of(value) == {key_id}, "a key was given twice"
        for name in SLAVES:
            if key_id == str(world.owed[name].key_id):
                assert (slave, value) == (name, world.owed[name].material.reveal())
    rows = [(alarm["event"], alarm.get("row"), alarm.get("block"), alarm.get("key_ID")) for alarm in seen.alarms]
    assert len(rows) == len(set(rows)), "a row alarmed twice"
    assert not device._runner._breaker.admit("looking"), "the token was blamed"
    return seen


def served(case: Case, seen: Seen) -> int:
    """How many deliveries are missing that there are on a store that nobody touched."""
    untouched = 2 * KEYS * len(BLOCKS) - len(SLAVES)
    return untouched - len(seen.given)


def test_a_store_that_nobody_touched_gives_everything_and_alarms_nothing(case: Case) -> None:
    seen = judged(case, nothing)
    assert (served(case, seen), seen.broken, seen.alarms) == (0, [], [])


# Every byte -------------------------------------------------------------------------------------------------


def columns() -> list[tuple[str, str]]:
    """Every column of the tables; a new one is in the matrix as soon as it is in the schema."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for migration in MIGRATIONS:
            connection.executescript(migration)
        return [(table, row[1]) for table in ROWS for row in connection.execute(f"PRAGMA table_info({table})")]


def cell_of(world: World, table: str, column: str) -> Cell | None:
    return next((cell for cell in cells(world.path, table, ROWS[table]) if cell.column == column), None)


@pytest.mark.parametrize(("table", "column"), [one for one in columns() if one[0] != "epoch"], ids=lambda name: name)
def test_a_changed_byte_keeps_its_row_apart_and_no_other(case: Case, table: str, column: str) -> None:
    cell = cell_of(case[0], table, column)
    if cell is None:  # the confirmation tag of a block that no peer shares
        assert (table, column) == ("block", "tag")
        return
    for position in range(cell.size):
        seen = judged(case, flip(cell, position))
        assert seen.broken == []
        lost = served(case, seen)
        assert lost <= 2 * KEYS - len(SLAVES), "more was lost than the block has"
        events = [alarm["event"] for alarm in seen.alarms]
        own = "alarm.key-tampered" if table == "key" else "alarm.block-tampered"
        if (column, lost) != ("live", 0):  # a count too small by less than it matters
            assert events.count(own) == 1 or (column == "block_pk" and own in events), (position, events)
        assert set(events) <= {own, "alarm.key-tampered"}


@pytest.mark.parametrize("column", [column for table, column in columns() if table == "epoch"])
def test_a_changed_byte_of_an_epoch_lets_nothing_start_and_alarms_once(case: Case, column: str) -> None:
    world, path, device, clock = case
    cell = cell_of(world, "epoch", column)
    if cell is None:
        return
    for position in range(cell.size):
        seen = judged(case, flip(cell, position))
        assert len(seen.broken) == 1
        assert [alarm["event"] for alarm in seen.alarms] == ["alarm.epochs-differ"]
        again = used(path, device, world, clock)
        assert (again.given, len(again.alarms)) == ([], 1)


@pytest.mark.parametrize("column", [column for table, column in columns() if table == "epoch"])
def test_a_changed_byte_of_an_epoch_stops_who_works_and_alarms_once(case: Case, column: str) -> None:
    world, path, device, clock = case
    cell = cell_of(world, "epoch", column)
    if cell is None:
        return
    store = Store(tampered(world, path, nothing), AuditChain(), clock)
    kme = make_kme(Custody(sole(device), store, clock), store, clock)
    with hand_on(path) as connection:
        flip(cell, cell.size - 1)(connection)
    clock.now += LOOK_SECONDS
    for _ in range(2):
        with pytest.raises(StoreTampered, match=r"the row of epoch \d+ was tampered with"):
            kme.get_key("alice", "bob", KeyRequest(1, BITS))
        with pytest.raises(StoreTampered, match=r"the row of epoch \d+ was tampered with"):
            kme.get_key_with_ids("bob", "alice", [world.owed["bob"].key_id])
    assert [json.loads(row.text)["event"] for row in store.log.latest(10, "alarm.")] == ["alarm.epochs-differ"]
    assert _states(path) == _states(world.path)
    store.close()


WHERE_NOTHING_WAS = {
    "tag": (f"UPDATE block SET tag = zeroblob(16) WHERE {BLOCK}", "block-tampered"),
    "proof": (f"UPDATE epoch SET proof = 1 WHERE {EPOCH}", "epochs-differ"),
    "served": (f"UPDATE key SET served = 2 WHERE {KEY}", "key-tampered"),
}


@pytest.mark.parametrize("name", WHERE_NOTHING_WAS)
def test_a_value_where_there_was_none_is_seen(case: Case, name: str) -> None:
    statement, event = WHERE_NOTHING_WAS[name]
    seen = judged(case, lambda connection: connection.execute(statement))
    assert [alarm["event"].removeprefix("alarm.") for alarm in seen.alarms] == [event]


# Rows without a seal ----------------------------------------------------------------------------------------

UNSEALED = {
    "block": (f"UPDATE block SET seal = NULL WHERE {BLOCK}", "block-tampered"),
    "epoch": (f"UPDATE epoch SET seal = NULL WHERE {EPOCH}", "epochs-differ"),
    "key": (f"UPDATE key SET seal = NULL WHERE {KEY}", "key-tampered"),
}


@pytest.mark.parametrize("table", UNSEALED)
@pytest.mark.parametrize("is_reset", [False, True], ids=["noted", "reset"])
def test_a_row_without_a_seal_is_not_sealed_whatever_the_store_says_of_its_rows(
    case: Case, table: str, is_reset: bool
) -> None:
    """That all rows were sealed once is told by the log."""
    statement, event = UNSEALED[table]

    def change(connection: sqlite3.Connection) -> None:
        connection.execute(statement)
        connection.execute("UPDATE lineage SET rows_sealed = ?", (not is_reset,))

    world, path, device, clock = case
    seen = judged(case, change)
    told = {alarm["event"].removeprefix("alarm.") for alarm in seen.alarms}
    assert told == ({event, "seals-reset"} if is_reset else {event})
    again = used(path, device, world, clock)
    assert len(again.alarms) == len(seen.alarms), "told of twice"


def to_schema_11(world: World, path: Path, key: bytes) -> Path:
    """The same store as it was before there were these seals: rows of keys alone are sealed, without the time."""
    with closing(sqlite3.connect(path)) as connection:
        for number, migration in enumerate(MIGRATIONS[:11], start=1):
            connection.executescript(f"{migration}\nPRAGMA user_version = {number};")
    rows = RowSeal()
    rows.use(key)
    with hand_on(path) as connection:
        connection.create_function("row_seal", -1, rows.seal)
        connection.execute("ATTACH ? AS newer", (str(world.path),))
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'move'").fetchall()
        for (table,) in tables:
            names = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"DELETE FROM main.{table}")
            connection.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM newer.{table}")
        connection.execute("DELETE FROM log WHERE instr(text, 'rows.seal')")
        connection.execute(
            "UPDATE key SET seal = row_seal(key_id, master, slaves, size, parts, mine, due)"
            " FROM relation WHERE relation.relation_id = key.relation_id"
        )
    return path


def test_a_store_of_before_there_were_seals_goes_on_delivering(case: Case) -> None:
    world, path, device, clock = case
    assert migrate(to_schema_11(world, path, device.row_key())) == [12]
    seen = used(path, device, world, clock)
    assert (served(case, seen), seen.broken, seen.alarms) == (0, [], [])
    store = Store(path, AuditChain(), clock)
    (sealed,) = [json.loads(row.text) for row in store.log.latest(1000, "rows.seal")]
    store.close()
    assert {name: sealed[name] for name in ("block", "copy", "epoch", "key")} == {
        "block": len(BLOCKS), "copy": 0, "epoch": 1, "key": len(SLAVES),
    }


def test_a_store_of_before_there_were_any_seals_goes_on_delivering(case: Case) -> None:
    world, path, device, clock = case
    to_schema_11(world, path, device.row_key())
    with hand_on(path) as connection:
        connection.execute("UPDATE key SET seal = NULL")
        connection.execute("UPDATE lineage SET row_key_check = NULL")
    migrate(path)
    seen = used(path, device, world, clock)
    assert (served(case, seen), seen.broken, seen.alarms) == (0, [], [])


@pytest.mark.parametrize("change", ["size = 128", "seal = NULL"])
def test_a_key_that_was_altered_before_there_were_more_seals_is_not_sealed_anew(case: Case, change: str) -> None:
    world, path, device, clock = case
    to_schema_11(world, path, device.row_key())
    with hand_on(path) as connection:
        connection.execute(f"UPDATE key SET {change} WHERE {KEY}")
    migrate(path)
    seen = used(path, device, world, clock)
    assert [alarm["event"] for alarm in seen.alarms] == ["alarm.key-tampered"]


def test_a_new_store_says_that_its_rows_are_sealed(case: Case) -> None:
    world, _, _, clock = case
    store = Store(world.path, AuditChain(), clock)
    assert len(store.log.latest(1000, "rows.seal")) == 1
    store.close()


# Values exchanged -------------------------------------------------------------------------------------------


def exchange(table: str, column: str, one: str, other: str) -> Change:
    def change(connection: sqlite3.Connection) -> None:
        read = f"SELECT {column} FROM {table} WHERE "
        first, second = (connection.execute(read + where).fetchone()[0] for where in (one, other))
        write = f"UPDATE {table} SET {column} = ? WHERE "
        connection.execute(write + other, (first,))
        connection.execute(write + one, (second,))

    return change


OTHER_BLOCK = "block_pk = 2"
OTHER_KEY = "key_id = (SELECT max(key_id) FROM key)"


def exchange_segments(connection: sqlite3.Connection) -> None:
    """The first two of a block."""
    connection.execute(
        "UPDATE segments SET sealed = CAST("
        "substr(sealed, 49, 48) || substr(sealed, 1, 48) || substr(sealed, 97) AS BLOB) WHERE block_pk = 1"
    )


def move_to_another_link(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE block SET link_id = 'other' WHERE block_pk = 1")
    connection.execute("INSERT INTO pool SELECT 'other', key_bits, 2, theirs, waiting FROM pool")


def move_to_an_epoch_that_is_not(connection: sqlite3.Connection, epoch: int = 7) -> None:
    """In column and header, so that they agree."""
    (wrapped,) = connection.execute("SELECT wrapped FROM block WHERE block_pk = 1").fetchone()
    forged = wrapped[:3] + epoch.to_bytes(4, "big") + wrapped[7:]
    connection.execute("UPDATE block SET epoch = ?, wrapped = ? WHERE block_pk = 1", (epoch, forged))


def give_a_key_to_another_relation(connection: sqlite3.Connection) -> None:
    connection.execute(f"UPDATE key SET relation_id = 3 - relation_id WHERE {KEY}")


def cut_a_key(connection: sqlite3.Connection) -> None:
    connection.execute(f"UPDATE key SET size = 128 WHERE {KEY}")


def put_a_key_elsewhere(connection: sqlite3.Connection) -> None:
    connection.execute(f"UPDATE key SET parts = '[[2,3,1]]' WHERE {KEY}")


def remove_the_block(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM segments WHERE block_pk = 1")
    connection.execute("DELETE FROM block WHERE block_pk = 1")


def promise_more(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pool SET ready = ready + 5")


EXCHANGED: dict[str, tuple[Change, set[str]]] = {
    "wrapped keys": (exchange("block", "wrapped", BLOCK, OTHER_BLOCK), {"block-tampered"}),
    "segments of blocks": (exchange("segments", "sealed", BLOCK, OTHER_BLOCK), {"block-tampered"}),
    "segments of a block": (exchange_segments, {"block-tampered"}),
    "relations of keys": (exchange("key", "relation_id", KEY, OTHER_KEY), {"key-tampered"}),
    "places of keys": (exchange("key", "parts", KEY, OTHER_KEY), {"key-tampered"}),
    "seals of keys": (exchange("key", "seal", KEY, OTHER_KEY), {"key-tampered"}),
    "link": (move_to_another_link, {"block-tampered"}),
    "epoch": (move_to_an_epoch_that_is_not, {"block-tampered"}),
    "relation": (give_a_key_to_another_relation, {"key-tampered"}),
    "size": (cut_a_key, {"key-tampered"}),
    "place": (put_a_key_elsewhere, {"key-tampered"}),
    "block removed": (remove_the_block, {"key-tampered", "pool-tampered"}),
    "pool": (promise_more, {"pool-tampered"}),
}


@pytest.mark.parametrize("name", EXCHANGED)
def test_what_is_put_in_anothers_place_is_not_taken_for_it(case: Case, name: str) -> None:
    change, events = EXCHANGED[name]
    seen = judged(case, change)
    assert seen.broken == []
    assert {alarm["event"].removeprefix("alarm.") for alarm in seen.alarms} == events


# Rows of an older copy --------------------------------------------------------------------------------------


def put_back(case: Case, *tables: str) -> Change:
    """Replace the first block's row in ``tables`` by what an older copy has."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("ATTACH ? AS older", (str(case[0].older),))
        for table in tables:
            connection.execute(f"DELETE FROM main.{table} WHERE {BLOCK}")
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM older.{table} WHERE {BLOCK}")

    return change


@pytest.mark.parametrize("tables", [("block",), ("block", "segments")], ids=" and ".join)
def test_a_block_that_is_put_back_gives_no_key_again(case: Case, tables: tuple[str, ...]) -> None:
    """Its cursor is where it was before: what it would give next was given already."""
    seen = judged(case, put_back(case, *tables))
    assert seen.broken == []
    assert [alarm["event"] for alarm in seen.alarms] == ["alarm.block-tampered"]


def test_a_consumed_key_that_is_put_back_does_not_open(case: Case) -> None:
    world, path, device, clock = case
    tampered(world, path, nothing)
    (row,) = cells(path, "key", KEY)[:1]
    with sqlite3.connect(path) as connection:
        before = connection.execute(f"SELECT state, served FROM key WHERE {row.where}").fetchone()
    connection.close()
    used(path, device, world, clock)
    again = World(path, world.older, world.keys, world.owed)
    seen = used(
        tampered(
            again,
            path.with_name("again.sqlite"),
            lambda connection: connection.execute(f"UPDATE key SET state = ?, served = ? WHERE {KEY}", before),
        ),
        *(device, world, clock),
    )
    assert seen.given == []
    assert {alarm["event"] for alarm in seen.alarms} <= {"alarm.block-tampered"}


# The token fails --------------------------------------------------------------------------------------------

FAILING = {
    "every decryption": partial(Shim.fail, function="C_Decrypt", code=CODES["GENERAL_ERROR"]),
    "one decryption": partial(Shim.fail, function="C_Decrypt", code=CODES["GENERAL_ERROR"], times=1),
    "two decryptions": partial(Shim.fail, function="C_Decrypt", code=CODES["ENCRYPTED_DATA_INVALID"], times=2),
    "every unwrapping": partial(Shim.fail, function="C_UnwrapKey", code=CODES["WRAPPED_KEY_INVALID"]),
    "one unwrapping": partial(Shim.fail, function="C_UnwrapKey", code=CODES["WRAPPED_KEY_INVALID"], times=1),
    "the device": partial(Shim.fail, function="C_DecryptInit", code=CODES["DEVICE_ERROR"]),
    "the device once": partial(Shim.fail, function="C_DecryptInit", code=CODES["DEVICE_ERROR"], times=1),
    "its memory": partial(Shim.fail, function="C_UnwrapKey", code=CODES["HOST_MEMORY"], times=3),
    "sessions": partial(Shim.fail, function="C_DecryptInit", code=CODES["SESSION_HANDLE_INVALID"]),
    "a vendor's answer": partial(Shim.fail, function="C_Decrypt", code=0x8000_0011),
    "logins": Shim.forget_login,
    "presence": Shim.remove,
    "objects": Shim.lose_objects,
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_token_blames_no_row_and_what_it_owes_is_given_afterwards(
    case: Case, shimmed: Token, shim: Shim, clock: FakeClock, name: str
) -> None:
    world, path, _, _ = case
    store = Store(tampered(world, path, nothing), AuditChain(), clock)
    kme = make_kme(Custody(sole(shimmed), store, clock), store, clock)
    FAILING[name](shim)
    got = {}
    for slave in SLAVES:
        with suppress(TokenUnavailable, OperatorFault):
            (got[slave],) = kme.get_key_with_ids(slave, "alice", [world.owed[slave].key_id])
        with suppress(TokenUnavailable, OperatorFault):
            kme.get_key("alice", slave, KeyRequest(1, BITS))
    shim.restore()
    clock.now += LONGEST_PAUSE_SECONDS
    for slave in set(SLAVES) - set(got):
        (got[slave],) = kme.get_key_with_ids(slave, "alice", [world.owed[slave].key_id])
    assert all(got[slave].material.reveal() == world.owed[slave].material.reveal() for slave in SLAVES)
    assert store.log.latest(10, "alarm.") == []
    assert "frozen" not in _states(path)
    store.close()


def _states(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [state for (state,) in connection.execute("SELECT state FROM block")]


def test_an_unknown_state_of_an_epoch_is_said_in_words(case: Case) -> None:
    world, path, device, clock = case
    cell = cell_of(world, "epoch", "state")
    assert cell is not None
    store = Store(tampered(world, path, flip(cell, 0)), AuditChain(), clock)
    with pytest.raises(StoreTampered, match="the row of an epoch was tampered with"):
        Custody(sole(device), store, clock)
    store.close()
