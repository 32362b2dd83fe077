"""Is every old copy of the store worthless once the master key it was sealed under is destroyed?

The thief here has the copy, the token and the PIN, and needs none of the product's code.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, GCMParams, KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism

from hsmkme.hsm import Token, TokenAddress
from tests.conftest import FakeClock
from tests.rotating import KEYS, Kme, new_kme

STRIDE = 32 + 16


@pytest.fixture
def kme(own_address: TokenAddress, tmp_path: Path, clock: FakeClock) -> Iterator[Kme]:
    with new_kme(own_address, tmp_path, clock) as opened:
        yield opened


def opened_from(path: Path, token: Token) -> set[bytes]:
    """Every plain key that can be had from a copy of the store with all that the token has."""
    with closing(sqlite3.connect(path)) as connection:
        blocks = connection.execute(
            "SELECT link_id, block_id, key_bits, wrapped, sealed FROM block JOIN segments USING (block_pk)"
        ).fetchall()
    assert blocks
    return token.runner.run("stealing", lambda lane: {key for block in blocks for key in _opened(lane.session, *block)})


def _opened(session: Any, link: str, name: str, bits: int, wrapped: bytes, sealed: bytes) -> Iterator[bytes]:
    secret = {Attribute.CLASS: ObjectClass.SECRET_KEY}
    for master in [found for found in session.get_objects(secret) if isinstance(found, pkcs11.UnwrapMixin)]:
        try:
            block_key = master.unwrap_key(
                ObjectClass.SECRET_KEY,
                KeyType.AES,
                wrapped[7:],
                mechanism=Mechanism.AES_KEY_WRAP,
                capabilities=MechanismFlag.DECRYPT,
                template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
            )
        except pkcs11.PKCS11Error:
            continue
        for index in range(len(sealed) // STRIDE):
            segment = sealed[index * STRIDE : (index + 1) * STRIDE]
            try:
                yield block_key.decrypt(
                    segment, mechanism=Mechanism.AES_GCM, mechanism_param=_parameters(link, name, bits, index)
                )
            except pkcs11.PKCS11Error:
                continue  # erased
        block_key.destroy()


def _parameters(link: str, name: str, bits: int, index: int) -> GCMParams:
    parts = (b"hsmkme/segment/1", link.encode(), name.encode())
    bound = b"".join(struct.pack(">H", len(part)) + part for part in parts) + struct.pack(">II", bits, index)
    return GCMParams(index.to_bytes(12, "big"), bound)


def copies(kme: Kme, directory: Path) -> list[Path]:
    """The store as a thief may have it: file and WAL as they lie there, and a backup."""
    raw = directory / "raw.sqlite"
    shutil.copy(kme.site.path, raw)
    shutil.copy(f"{kme.site.path}-wal", f"{raw}-wal")
    backup = directory / "backup.sqlite"
    with closing(sqlite3.connect(kme.site.path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    return [raw, backup]


def plain_keys(kme: Kme) -> set[bytes]:
    return {plain[at : at + 32] for plain in kme.plain.values() for at in range(0, 32 * KEYS, 32)}


def test_nothing_in_a_copy_of_the_store_opens_once_its_epoch_is_destroyed(kme: Kme, tmp_path: Path) -> None:
    """Neither what ended since, nor what lives on: with the copy alone there is no way to a block key."""
    for name in ("ended", "living"):
        kme.deposit(name)
    taken = copies(kme, tmp_path)
    assert [opened_from(copy, kme.token) == plain_keys(kme) for copy in taken] == [True, True]  # else it proved nothing
    kme.collect(kme.fetch(KEYS))
    kme.rotation.rotate(because="test")
    kme.rotation.rewrap(1)
    assert [opened_from(copy, kme.token) == plain_keys(kme) for copy in taken] == [True, True]
    kme.rotation.shred(1)
    assert [len(opened_from(copy, kme.token)) for copy in taken] == [0, 0]
    assert len(opened_from(kme.site.path, kme.token)) == KEYS, "the store itself goes on"


def test_what_is_under_the_next_epoch_does_not_open_what_was_under_the_last(kme: Kme, tmp_path: Path) -> None:
    """Blobs of now do not help with segments of then, unless the block lives: its key is the same."""
    kme.deposit("ended")
    kme.deposit("living")
    (copy, _) = copies(kme, tmp_path)
    kme.collect(kme.fetch(KEYS))
    kme.turn_over()
    with closing(sqlite3.connect(kme.site.path)) as connection:
        now = connection.execute("SELECT block_id, wrapped FROM block").fetchall()
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("DROP TRIGGER block_moves")
        connection.executemany("UPDATE block SET wrapped = ? WHERE block_id = ?", [(blob, name) for name, blob in now])
    ended = {kme.plain["ended"][at : at + 32] for at in range(0, 32 * KEYS, 32)}
    only_living = opened_from(copy, kme.token) == plain_keys(kme) - ended
    assert only_living


def needles(kme: Kme, block_id: str) -> list[bytes]:
    """The sealed segments of a block, and its wrapped key, as they are stored now."""
    with kme.store.log._database.read() as connection:
        wrapped, sealed = connection.execute(
            "SELECT wrapped, sealed FROM block JOIN segments USING (block_pk) WHERE block_id = ?", (block_id,)
        ).fetchone()
    return [wrapped[7:], *(sealed[at : at + STRIDE] for at in range(0, len(sealed), STRIDE))]


def on_disk(kme: Kme, wanted: list[bytes]) -> list[bool]:
    """Which of ``wanted`` are anywhere in the files of the store: live rows, free pages, WAL, shared memory."""
    data = b"".join(path.read_bytes() for path in kme.site.directory.glob("store.sqlite*"))
    return [needle in data for needle in wanted]


def test_nothing_of_what_ended_or_moved_is_left_in_the_files_of_the_store(kme: Kme) -> None:
    for name in ("ended", "living"):
        kme.deposit(name)
    _, *ended = needles(kme, "ended")
    moved, *living = needles(kme, "living")
    assert on_disk(kme, [*ended, moved, *living]) == [True] * (1 + 2 * KEYS)
    kme.collect(kme.fetch(KEYS))
    kme.turn_over()
    assert on_disk(kme, [*ended, moved]) == [False] * (1 + KEYS)
    assert on_disk(kme, living) == [True] * KEYS, "the segments do not change"
