"""Does the SQLite store do what a store must, and what only SQLite can get wrong?"""

from __future__ import annotations

import itertools
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hsmkme.audit import AuditChain
from hsmkme.errors import AuditBroken, StoreError, StoreSchema, StoreUnavailable
from hsmkme.model import Entry, segment_bytes
from hsmkme.states import BlockState
from hsmkme.store import Claim, Store, migrate, schema
from hsmkme.store.database import Database, connect
from tests.conftest import FakeClock
from tests.exercise_store import ENTRY, EXERCISES, LINKS, NO_LIMIT, Subject, demand_for, exercise_store, make_block
from tests.processes import hsmkme


def open_subject(path: Path) -> Subject:
    """A new store at ``path``; its rows are read over a connection of their own."""
    migrate(path)
    clock = FakeClock()
    store = Store(path, AuditChain(), clock)
    store.epochs.admit(1, "0011223344", ENTRY)
    store.registry.admit_links(LINKS, ENTRY)
    beside = sqlite3.connect(path)
    return Subject(store, lambda query: beside.execute(query).fetchall(), clock)


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    opened = open_subject(tmp_path / "store.sqlite")
    yield opened
    opened.store.close()


@pytest.fixture
def path(subject: Subject, tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def tamper(path: Path, statement: str, *values: object) -> None:
    """Change the file as somebody would who is not the service."""
    with sqlite3.connect(path) as attacker:
        attacker.execute(statement, values)
    attacker.close()


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.__name__)
def test_the_sqlite_store(exercise: Callable[[Subject], None], subject: Subject) -> None:
    exercise(subject)


def test_the_suite_is_one_call_for_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Subject] = []
    ran: list[str] = []
    monkeypatch.setattr("tests.exercise_store.EXERCISES", [lambda s: ran.append(str(s.ready())) for _ in range(3)])

    def make() -> Subject:
        made.append(open_subject(tmp_path / f"{len(made)}.sqlite"))
        return made[-1]

    exercise_store(make)
    assert ran == ["0", "0", "0"]
    assert len({id(subject.store) for subject in made}) == 3
    for one in made:
        one.store.close()


# Transactions -------------------------------------------------------------------------------------------


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database(path, AuditChain(), FakeClock())
    yield opened
    opened.close()


def test_a_change_without_an_audit_row_is_refused_and_undone(database: Database, subject: Subject) -> None:
    before = subject.everything()
    with pytest.raises(StoreError, match="without an audit record"), database.write() as transaction:
        transaction.execute("INSERT INTO sae (sae_id, kme_id) VALUES ('eve', 'kme-1')")
    assert subject.everything() == before


def test_a_change_that_a_trigger_makes_needs_an_audit_row_too(database: Database, subject: Subject) -> None:
    block = subject.fill()
    before = subject.everything()
    with pytest.raises(StoreError, match="without an audit record"), database.write() as transaction:
        transaction.execute("UPDATE block SET next_index = 1 WHERE block_id = ?", (block.seal.name.block_id,))
    assert subject.everything() == before


def test_a_transaction_that_changes_nothing_needs_no_audit_row(database: Database, subject: Subject) -> None:
    before = subject.everything()
    with database.write() as transaction:
        transaction.execute("UPDATE sae SET revoked = 1 WHERE sae_id = 'nobody'")
    assert subject.everything() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, sqlite3.OperationalError])
def test_whatever_is_raised_inside_a_transaction_leaves_nothing(
    database: Database, subject: Subject, error: type[BaseException]
) -> None:
    before = subject.everything()

    def fail_after_writing() -> None:
        with database.write() as transaction:
            transaction.execute("INSERT INTO sae (sae_id, kme_id) VALUES ('eve', 'kme-1')")
            transaction.append(ENTRY)
            raise error("in the middle")

    with pytest.raises(StoreUnavailable if error is sqlite3.OperationalError else error):
        fail_after_writing()
    assert subject.everything() == before
    with database.write() as transaction:  # and the next one can begin
        transaction.append(ENTRY)


def test_a_reader_sees_one_moment(database: Database, subject: Subject) -> None:
    with database.read() as connection:
        (before,) = connection.execute("SELECT seq FROM log_head").fetchone()
        subject.store.log.append(ENTRY)
        (after,) = connection.execute("SELECT seq FROM log_head").fetchone()
    assert before == after


def test_a_writer_waits_for_another_and_then_goes_on(database: Database, subject: Subject) -> None:
    with database.write() as transaction:
        other = threading.Thread(target=lambda: subject.store.log.append(Entry("second", "tester")))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        transaction.append(Entry("first", "tester"))
    other.join(10)
    assert not other.is_alive()
    assert [row["event"] for row in subject.log()[-2:]] == ["first", "second"]


def test_a_deposit_on_a_full_disk_is_refused_as_passing(subject: Subject) -> None:
    connection = subject.store.blocks._database.writers.connected()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    before = subject.everything()
    with pytest.raises(StoreUnavailable, match="full"):
        subject.fill(1000)
    assert subject.everything() == before
    subject.fill(1000)  # the connection that failed was given up, and the limit with it


# The file -----------------------------------------------------------------------------------------------


def test_nobody_else_can_read_the_file(path: Path, subject: Subject) -> None:
    subject.fill()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_sealed_bytes_of_an_ended_key_are_nowhere_on_disk_after_a_checkpoint(path: Path, subject: Subject) -> None:
    block, stride = subject.fill(3), segment_bytes(256)
    whole = subject.fill(2)
    subject.collect("bob", subject.claim(2))
    subject.void(subject.claim(1))
    subject.collect("bob", subject.claim(2))
    subject.store.checkpoint()
    files = [file.read_bytes() for file in path.parent.iterdir()]
    gone = [*(block.segments[n * stride :][:stride] for n in range(3)), whole.segments[:stride]]
    assert not any(segment in file for segment in gone for file in files)


def test_the_write_ahead_log_is_empty_after_a_checkpoint(path: Path, subject: Subject) -> None:
    subject.fill()
    assert path.with_name("store.sqlite-wal").stat().st_size > 0
    subject.store.checkpoint()
    assert path.with_name("store.sqlite-wal").stat().st_size == 0


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store(path, AuditChain(), FakeClock()).log.head()


# Tampering ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM segments",
        "UPDATE segments SET sealed = substr(sealed, 1, 60)",
        "UPDATE segments SET sealed = x''",
    ],
)
def test_lost_segments_are_claimed_as_they_are_and_can_be_ended(statement: str, path: Path, subject: Subject) -> None:
    """The token then does not open them, and the block is frozen; no verb may fail for ever on such a row."""
    subject.fill(4)
    before = subject.claim(2)
    tamper(path, statement)
    after = subject.claim(1)
    assert all(len(part.sealed) < segment_bytes(256) for part in after[0].parts)
    assert len(subject.store.keys.held([before[1].key_id])) == 1
    assert len(subject.void([*before, *after])) == 3


def test_a_key_row_that_does_not_say_where_the_key_is_is_refused(path: Path, subject: Subject) -> None:
    subject.fill()
    (key,) = subject.claim()
    for parts in ("no JSON", "[1]", '[["x"]]', "[[99,0,1]]"):
        tamper(path, "DROP TRIGGER IF EXISTS key_stays")
        tamper(path, "UPDATE key SET parts = ?", parts)
        with pytest.raises(StoreError):
            subject.held(key)


def test_a_log_without_its_head_is_broken_and_takes_nothing(path: Path, subject: Subject) -> None:
    tamper(path, "DELETE FROM log_head")
    for act in (subject.store.log.head, subject.fill):
        with pytest.raises(AuditBroken):
            act()
    assert subject.rows("SELECT * FROM block") == []



@pytest.mark.parametrize(
    "statement", ["DELETE FROM segments", "DELETE FROM block", "UPDATE segments SET sealed = x'00'"]
)
def test_a_key_whose_block_was_tampered_with_ends_like_any_other(subject: Subject, path: Path, statement: str) -> None:
    subject.fill()
    keys = subject.claim(2)
    tamper(path, statement)
    assert subject.store.keys.void([key.key_id for key in keys], ENTRY) == [key.key_id for key in keys]
    assert {state for (state,) in subject.rows("SELECT state FROM key")} == {"void"}


# The registry -------------------------------------------------------------------------------------------


def test_what_another_process_changes_in_the_registry_is_known_at_once_and_read_once(
    subject: Subject, path: Path
) -> None:
    other = Store(path, AuditChain(), FakeClock())
    assert not other.registry.known().saes
    for sae_id in ("alice", "bob"):
        subject.store.registry.add_sae(sae_id, "kme-1", ENTRY)
        assert sae_id in other.registry.known().saes
    subject.store.registry.allow("alice", "bob", ENTRY)
    assert other.registry.known().allowed("alice", ["bob"]) == {"bob"}
    subject.store.registry.revoke_sae("bob", ENTRY)
    assert other.registry.known().saes["bob"].revoked
    subject.store.registry.deny("alice", "bob", ENTRY)
    assert not other.registry.known().pairs
    before = other.registry.known()
    subject.fill()
    assert other.registry.known() is before
    other.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sae SET revoked = 1",
        "UPDATE sae SET kme_id = 'kme-2'",
        "DELETE FROM sae WHERE sae_id = 'bob'",
        "INSERT OR REPLACE INTO sae VALUES ('alice', 'kme-1', 1)",
        "DELETE FROM pair",
        "UPDATE pair SET slave = 'carol'",
        "INSERT INTO pair (master, slave) VALUES ('bob', 'alice')",
    ],
)
def test_no_change_of_the_registry_goes_unseen_whoever_makes_it(subject: Subject, path: Path, statement: str) -> None:
    for sae_id in ("alice", "bob", "carol"):
        subject.store.registry.add_sae(sae_id, "kme-1", ENTRY)
    subject.store.registry.allow("alice", "bob", ENTRY)
    before = subject.store.registry.known()
    tamper(path, statement)
    now = subject.store.registry.known()
    assert (now.saes, now.pairs) != (before.saes, before.pairs)


def test_a_registry_that_does_not_say_its_version_admits_nobody(subject: Subject, path: Path) -> None:
    subject.store.registry.add_sae("alice", "kme-1", ENTRY)
    assert subject.store.registry.known().saes
    tamper(path, "DELETE FROM registry")
    with pytest.raises(StoreError, match="version"):
        subject.store.registry.known()


# Migrations ---------------------------------------------------------------------------------------------


def test_a_migration_is_applied_once(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    assert migrate(path) == list(range(1, len(schema.MIGRATIONS) + 1))
    before = path.read_bytes()
    assert migrate(path) == []
    assert path.read_bytes() == before


def test_a_store_that_needs_a_migration_is_refused_with_the_instruction(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.touch()
    with pytest.raises(StoreSchema, match="run `hsmkme migrate`"):
        Store(path, AuditChain(), FakeClock()).log.head()
    migrate(path)
    store = Store(path, AuditChain(), FakeClock())
    assert store.log.head() == (0, bytes(32))
    store.close()


def test_a_store_of_a_newer_version_is_refused(subject: Subject, path: Path) -> None:
    tamper(path, f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    newer = Store(path, AuditChain(), FakeClock())
    with pytest.raises(StoreSchema, match="newer version"):
        newer.log.head()
    with pytest.raises(StoreSchema, match="newer version"):
        migrate(path)


def test_the_next_migration_keeps_what_is_stored(
    subject: Subject, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = subject.fill()
    (key,) = subject.claim()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later (one INTEGER) STRICT;"))
    with pytest.raises(StoreSchema, match="run `hsmkme migrate`"):
        Store(path, AuditChain(), FakeClock()).log.head()
    assert migrate(path) == [len(schema.MIGRATIONS)]
    migrated = Store(path, AuditChain(), FakeClock())
    assert migrated.keys.held([key.key_id])[key.key_id].key == key
    assert subject.segments(block) == block.segments
    migrated.close()


def test_a_migration_counts_what_waited_before_anybody_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        migrate(path)
    tamper(path, "INSERT INTO link (link_id, peer) VALUES ('far', 'kme-2')")
    tamper(path, "INSERT INTO epoch VALUES (1, 'active', '0011223344')")
    for number, (state, mine) in enumerate((("deposited", 1), ("deposited", 0), ("ready", 1), ("ready", 0))):
        tamper(
            path,
            "INSERT INTO block (link_id, block_id, state, epoch, key_bits, key_count, live, wrapped, digest,"
            " deposited_at, mine) VALUES ('far', ?, ?, 1, 256, ?, 9, x'', ?, 0, ?)",
            *(str(number), state, 10 + number, bytes([number]), mine),
        )
    migrate(path)
    with sqlite3.connect(path) as connection:
        pool = connection.execute("SELECT key_bits, ready, theirs, waiting FROM pool").fetchall()
    connection.close()
    assert pool == [(256, 12, 13, 21)]


def test_a_migration_that_fails_leaves_nothing(path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject.everything()
    broken = "CREATE TABLE half (one INTEGER) STRICT; INSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(StoreUnavailable, match="nowhere"):
        migrate(path)
    assert subject.everything() == before
    assert subject.rows("SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert subject.rows("PRAGMA user_version") == [(len(schema.MIGRATIONS) - 1,)]


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "store.sqlite", tmp_path):
        with pytest.raises(StoreUnavailable):
            migrate(path)


def test_two_that_migrate_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    applied: list[list[int]] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        applied.append(migrate(path))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied, key=len) == [[], [], [], list(range(1, len(schema.MIGRATIONS) + 1))]


def test_a_migration_is_run_by_command(tmp_path: Path) -> None:
    config = tmp_path / "hsmkme.toml"
    config.write_text(
        'kme_id = "kme-1"\nstore = "new.sqlite"\n[token]\nlabel = "none"\npin_file = "pin"\n'
        '[server]\ncertificate = "cert.pem"\nkey = "key.pem"\nsae_ca = "ca.pem"\n'
    )

    def run(*arguments: str) -> tuple[int, str]:
        done = hsmkme("--config", config, *arguments)
        return done.status, done.out + done.err

    status, said = run("sae", "list")
    assert (status, "run `hsmkme migrate`" in said) == (1, True)
    numbers = ", ".join(str(number) for number in range(1, len(schema.MIGRATIONS) + 1))
    assert run("migrate") == (0, f"{tmp_path}/new.sqlite: applied {numbers}\n")
    assert run("migrate") == (0, f"{tmp_path}/new.sqlite: nothing to do\n")
    assert run("sae", "list", "--json") == (0, "[]\n")


def test_every_connection_has_the_settings_the_guarantees_need(path: Path, subject: Subject) -> None:
    connection = connect(path)
    settings = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "recursive_triggers")
    }
    connection.close()
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
        "recursive_triggers": 1,
    }


def test_counting_and_claiming_cost_the_same_whatever_the_size_of_the_pool(subject: Subject) -> None:
    database = subject.store.blocks._database
    connections = (database.connection, database.writers.connected())

    def steps(verb: Callable[[], object]) -> int:
        """How many instructions SQLite's machine runs for ``verb``."""
        count = itertools.count()
        for connection in connections:
            connection.set_progress_handler(lambda: next(count) * 0, 1)
        verb()
        for connection in connections:
            connection.set_progress_handler(None, 0)
        return next(count)

    def measured() -> tuple[int, int]:
        claim = partial(subject.store.blocks.claim, lambda: [Claim(demand_for(1, 256), ENTRY, None)])
        return steps(lambda: subject.store.blocks.veins("kme-1", 256)), steps(claim)

    subject.fill(2)
    measured()
    subject.fill(2)
    counting, claiming = measured()
    for _ in range(150):  # exhausted blocks before the one that is claimed from, ready ones behind it
        subject.store.blocks.deposit([make_block(2)], BlockState.READY, NO_LIMIT, ENTRY)
    subject.claim(150)
    counting_later, claiming_later = measured()
    assert counting_later == counting
    assert claiming_later < claiming * 1.5
