"""A small KME on a store that somebody writes to behind its back: no server, so that thousands of cases take seconds.

Two relations, `alice`→`bob` and `alice`→`carol`, and two blocks of three keys. Of the first block a key waits for each
slave and one is left.
"""

# ruff: noqa: S608 - every statement is of the tests alone

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from limits.storage import MemoryStorage

from hsmkme.audit import AuditChain
from hsmkme.config import FairUseSection, KeysSection
from hsmkme.custody import Custody
from hsmkme.errors import HsmkmeError, NotEnoughKeys
from hsmkme.fairuse import FairUse
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.identifiers import KeyIds
from hsmkme.kme import Kme
from hsmkme.model import BlockName, Entry, KeyMaterial, Link, OpenKey, RawBlock
from hsmkme.policy import KeyRequest
from hsmkme.states import BlockState
from hsmkme.store import Store, migrate

KEYS: Final = 3
BLOCKS: Final = ("one", "two")
BITS: Final = 256
SLAVES: Final = ("bob", "carol")
Change = Callable[[sqlite3.Connection], object]


@dataclass
class World:
    """A store as it was made, an older copy of it, and what is in its blocks: each key's bytes, by block and place."""

    path: Path
    older: Path
    keys: dict[bytes, tuple[str, int]]
    owed: dict[str, OpenKey]


@dataclass
class Seen:
    """What came of using a store: keys by slave and key_ID, refusals that an SAE may get, and what must not be."""

    given: list[tuple[str, str, bytes]] = field(default_factory=list)
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)

    def key_ids_of(self, value: bytes) -> set[str]:
        """Under which key_IDs these bytes were given."""
        return {key_id for _, key_id, given in self.given if given == value}


def make_world(directory: Path, token: Token, clock: Callable[[], float]) -> World:
    """Deposit and deliver, so that there is something to tamper with."""
    path, keys = directory / "made.sqlite", dict[bytes, tuple[str, int]]()
    migrate(path)
    store = Store(path, AuditChain(), clock)
    store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", "test"))
    store.registry.admit_links([Link("local", "kme-1"), Link("other", "kme-1")], Entry("link.admit", "test"))
    for sae in ("alice", *SLAVES):
        store.registry.add_sae(sae, "kme-1", Entry("sae.add", "test"))
    for slave in SLAVES:
        store.registry.allow("alice", slave, Entry("pair.allow", "test"))
    custody = Custody(sole(token), store, clock)
    for block_id in BLOCKS:
        name, made = BlockName("local", block_id), os.urandom(KEYS * BITS // 8)
        custody.deposit([RawBlock(name, BITS, KeyMaterial(made))], BlockState.READY, 1000, "test")
        keys |= {made[i * 32 : (i + 1) * 32]: (name.block_id, i) for i in range(KEYS)}
    store.checkpoint()
    older = Path(shutil.copy(path, directory / "older.sqlite"))
    kme = make_kme(custody, store, clock)
    owed = {slave: kme.get_key("alice", slave, KeyRequest(1, BITS))[0] for slave in SLAVES}
    store.checkpoint()
    store.close()
    return World(path, older, keys, owed)


def make_kme(custody: Custody, store: Store, clock: Callable[[], float]) -> Kme:
    fair_use = FairUse(FairUseSection(), MemoryStorage(), store.log.append, clock)
    return Kme("kme-1", custody, store, KeysSection(), fair_use, clock, KeyIds(clock))


@contextmanager
def hand_on(path: Path) -> Iterator[sqlite3.Connection]:
    """Write to the file as one can who has it: no check, no trigger and no foreign key hinders."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("BEGIN")
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, statement in triggers:
            connection.execute(statement)
        connection.execute("COMMIT")


def tampered(world: World, path: Path, change: Change) -> Path:
    """A copy of the store with ``change`` made to it."""
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    shutil.copy(world.path, path)
    with hand_on(path) as connection:
        change(connection)
    return path


def used(path: Path, token: Token, world: World, clock: Callable[[], float]) -> Seen:
    """Use the store as SAEs do: collect what is owed, draw keys and collect them until the pool is empty."""
    seen = Seen()
    store = Store(path, AuditChain(), clock)
    try:
        custody = Custody(sole(token), store, clock)
        kme = make_kme(custody, store, clock)
        for slave in SLAVES:
            _collect(kme, slave, world.owed[slave], seen)
        while len(seen.given) < 4 * KEYS * len(BLOCKS) and _draw(kme, SLAVES[len(seen.given) // 2 % 2], seen):
            pass
        store.examining.examine("test")
    except HsmkmeError as error:
        seen.broken.append(f"{type(error).__name__}: {error}")
    finally:
        rows = [json.loads(row.text) for row in store.log.latest(1000, "alarm.")]
        seen.alarms = rows
        store.close()
    return seen


def _collect(kme: Kme, slave: str, key: OpenKey, seen: Seen) -> None:
    for _ in range(2):  # who is refused comes again, and is refused again; who has it is refused then
        try:
            found = kme.get_key_with_ids(slave, "alice", [key.key_id])
            seen.given += [(slave, str(one.key_id), one.material.reveal()) for one in found]
        except HsmkmeError as error:
            _note(error, seen)


def _draw(kme: Kme, slave: str, seen: Seen) -> bool:
    try:
        (key,) = kme.get_key("alice", slave, KeyRequest(1, BITS))
    except NotEnoughKeys:
        return False
    except HsmkmeError as error:
        _note(error, seen)
        return False
    seen.given.append(("alice", str(key.key_id), key.material.reveal()))
    _collect(kme, slave, key, seen)
    return True


def _note(error: HsmkmeError, seen: Seen) -> None:
    if type(error).__name__ in ("BadRequest", "NotEntitled"):
        seen.refused += 1
    else:
        seen.broken.append(f"{type(error).__name__}: {error}")


# What can be changed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One value in the store."""

    table: str
    where: str
    column: str
    size: int


def cells(path: Path, table: str, where: str) -> list[Cell]:
    """Every value of one row that is not NULL."""
    with closing(sqlite3.connect(path)) as connection:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        row = connection.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}").fetchone()
    sized = zip(columns, row, strict=True)
    return [Cell(table, where, column, len(_bytes(value))) for column, value in sized if value is not None]


def flip(cell: Cell, position: int, mask: int = 1) -> Change:
    """Invert bits of one byte of a value; of a number, of its eight bytes."""

    def change(connection: sqlite3.Connection) -> None:
        read = f"SELECT {cell.column} FROM {cell.table} WHERE {cell.where}"
        (value,) = connection.execute(read).fetchone()
        raw = bytearray(_bytes(value))
        raw[position] ^= mask
        new: object = bytes(raw)
        if isinstance(value, int):
            new = int.from_bytes(raw, "big", signed=True)
        mark = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
        connection.execute(f"UPDATE {cell.table} SET {cell.column} = {mark} WHERE {cell.where}", (new,))

    return change


def _bytes(value: object) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(8, "big", signed=True)
    return value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload, no-any-return]
