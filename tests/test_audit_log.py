"""Does the audit log prove itself, and does it tell which row somebody changed?

The attacks on the database are made as somebody would who has the file: the triggers are dropped first. The log of
`site` has 20 rows, of which 8 and 16 are sealed.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsmkme import config as configuration
from hsmkme import verify
from hsmkme.audit import AuditChain, canonical, row_hash
from hsmkme.custody import Custody
from hsmkme.errors import AuditBroken, BlockConflict
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.tokens import sole
from hsmkme.model import BlockName, Demand, Entry, KeyMaterial, RawBlock, Relation
from hsmkme.states import BlockState
from hsmkme.store import Store, migrate
from hsmkme.upkeep import Upkeep
from tests.blocks import claim
from tests.conftest import PIN, FakeClock
from tests.exercise_store import demand_for, make_block
from tests.processes import Done, script
from tests.sites import Site, make_site

ROWS, SEALED = 20, (8, 16)
ODD_SAES = ("next\u2028line\u0085", "quote\"'\\slash", "key \U0001f511\U00010ffff", "tab\tnul\0\r\nline é e\u0301")

Alone = Callable[..., Done]


@pytest.fixture(scope="module")
def audited(address: TokenAddress, softhsm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on which real operations happened; tests work on copies of it."""
    token = Token(address, lambda: PIN)
    site = make_site(tmp_path_factory.mktemp("audited"), token, address.label, softhsm)
    site.change_config("[[link]]", "[audit]\nseal_rows = 5\nseal_seconds = 10\n[[link]]")
    site.public_key.write_bytes(token.audit_public_key())
    _operate(site)
    yield site
    token.close()


def _operate(site: Site) -> None:
    clock = FakeClock()
    store, custody = site.open(clock)
    for sae_id in ODD_SAES[:2]:
        store.registry.add_sae(sae_id, "kme-1", Entry("sae.add", f"operator:{sae_id}"))
    store.registry.allow(ODD_SAES[0], ODD_SAES[1], Entry("pair.allow", "operator"))
    assert custody.logbook.seal()
    for sae_id in ODD_SAES[2:]:
        store.registry.add_sae(sae_id, "kme-1", Entry("sae.add", f"operator:{sae_id}"))
    for number in range(2):
        raw = RawBlock(BlockName("local", f"block-{number}"), 256, KeyMaterial(bytes([number]) * 128))
        custody.deposit([raw], BlockState.READY, 1000, "device")
    with pytest.raises(BlockConflict):
        custody.deposit([RawBlock(raw.name, 256, KeyMaterial(bytes(32)))], BlockState.READY, 1000, "device")
    relation = Relation.of(ODD_SAES[0], ODD_SAES[1:3])
    keys = claim(store, Demand(relation, "kme-1", 256, demand_for(3, 256).key_ids), Entry("key.deliver", "sae"))
    for slave in relation.slaves:
        custody.collect(slave, [*store.keys.held([keys[0].key_id]).values()], f"sae:{slave}")
    assert custody.logbook.seal()
    store.keys.void([keys[1].key_id], Entry("key.void", "kme"))
    store.keys.expire(int(clock()) + 1, Entry("key.expire", "upkeep"))
    store.registry.revoke_sae(ODD_SAES[3], Entry("sae.revoke", "operator"))
    store.log.append(Entry("refused.dec_keys", f"sae:{ODD_SAES[2]}", {"rule": "KEY-ID-1"}))
    assert store.log.head()[0] == ROWS
    with store.log.snapshot() as snapshot:
        assert tuple(seal.seq for seal in snapshot.seals) == SEALED
    store.checkpoint()
    store.close()


@pytest.fixture
def site(audited: Site, tmp_path: Path) -> Site:
    shutil.copytree(audited.directory, tmp_path / "site")
    return Site(tmp_path / "site", audited.token)


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., Done]:
    """Runs a copy of `verify.py` where nothing else is, on the lines of an export."""
    directory = tmp_path / "alone"
    directory.mkdir()
    shutil.copy(str(verify.__file__), directory / "verify.py")

    def run(lines: list[str] | bytes, public_key: Path | bytes) -> Done:
        content = lines if isinstance(lines, bytes) else "".join(lines).encode()
        (directory / "export.jsonl").write_bytes(content)
        pem = public_key if isinstance(public_key, bytes) else public_key.read_bytes()
        (directory / "key.pem").write_bytes(pem)
        return script(directory / "verify.py", directory / "export.jsonl", directory / "key.pem")

    return run


def exported_from(site: Site) -> list[str]:
    """The lines of `hsmkme audit export`."""
    file = site.directory / "export.jsonl"
    file.unlink(missing_ok=True)
    done = site.hsmkme("audit", "export", file)
    assert done.status == 0, done.err
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


def attack_store(site: Site, *statements: str) -> None:
    """Change the database without the service."""
    connection = sqlite3.connect(site.path)
    connection.create_function("row_hash", 2, row_hash)
    connection.executescript("DROP TRIGGER log_is_append_only; DROP TRIGGER log_is_kept;")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def broken_at(done: Done) -> int:
    """The row that a command named as the first bad one."""
    assert done.status == 1, done
    said = done.out + done.err
    assert said.startswith("BROKEN  row "), said
    return int(said.removeprefix("BROKEN  row ").partition(":")[0])


# What was not changed -----------------------------------------------------------------------------------


def test_the_log_of_real_operations_proves_itself(site: Site, alone: Alone) -> None:
    done = site.hsmkme("audit", "verify")
    assert (done.status, done.out) == (0, f"good    {ROWS} rows, 2 seals, sealed through row 16\n")
    lines = exported_from(site)
    assert len(lines) == 1 + ROWS + 2
    done = alone(lines, site.public_key)
    assert done.status == 0
    assert done.out.startswith(f"good    {ROWS} rows of kme-1, 2 seals, exported ")


def test_verify_tells_programs_what_it_found(site: Site) -> None:
    report = json.loads(site.hsmkme("audit", "verify", "--json").out)
    assert (report["good"], report["rows"], report["seals"], report["sealed_through"]) == (True, ROWS, 2, 16)


def test_the_verifier_runs_where_hsmkme_is_not(site: Site, tmp_path: Path) -> None:
    (tmp_path / "export.jsonl").write_text("".join(exported_from(site)))
    shutil.copy(str(verify.__file__), tmp_path / "verify.py")
    program = (
        "import sys, runpy\n"
        "sys.modules['hsmkme'] = None\n"  # importing it fails
        f"sys.argv = ['verify.py', 'export.jsonl', {str(site.public_key)!r}]\n"
        "runpy.run_path('verify.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_odd_names_are_in_the_export_as_they_were_given(site: Site) -> None:
    lines = exported_from(site)
    assert all(line.isascii() for line in lines)
    rows = [json.loads(json.loads(line)["row"]) for line in lines if '"row"' in line]
    added = [row for row in rows if row["event"] == "sae.add"]
    assert [row["sae"] for row in added] == list(ODD_SAES)
    assert [row["actor"] for row in added] == [f"operator:{sae_id}" for sae_id in ODD_SAES]


def test_an_export_does_not_overwrite_a_file(site: Site) -> None:
    existing = site.directory / "export.jsonl"
    existing.write_text("precious")
    assert site.hsmkme("audit", "export", existing).status == 2
    assert existing.read_text() == "precious"


def test_the_printed_public_key_is_the_one_that_verifies(site: Site) -> None:
    assert site.hsmkme("audit", "key").out.encode() == site.public_key.read_bytes()


def test_an_empty_log_proves_itself(site: Site, alone: Alone) -> None:
    store = Store(site.directory / "empty.sqlite", AuditChain(), FakeClock())
    migrate(site.directory / "empty.sqlite")
    lines = [line + "\n" for line in _export_of(site.token, store)]
    assert alone(lines, site.public_key).out.startswith("good    0 rows")
    store.close()


def _export_of(token: Token, store: Store) -> list[str]:
    """An export without the checks of `Custody`, whose store knows an epoch."""
    store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", "test"))
    custody = Custody(sole(token), store, FakeClock())
    store.close()
    connection = sqlite3.connect(store._database.path)
    connection.executescript(
        "DROP TRIGGER log_is_kept; DELETE FROM log; UPDATE log_head SET seq = 0, hash = zeroblob(32);"
    )
    connection.close()
    return list(custody.logbook.export("kme-1"))


# The database was changed -------------------------------------------------------------------------------

_RECHAIN = (
    "WITH RECURSIVE chain(seq, hash) AS ("
    " SELECT seq, hash FROM log WHERE seq = 4"
    " UNION ALL SELECT log.seq, row_hash(chain.hash, log.text) FROM log JOIN chain ON log.seq = chain.seq + 1)"
    " UPDATE log SET hash = (SELECT hash FROM chain WHERE chain.seq = log.seq) WHERE seq > 4"
)
_HEAD = "UPDATE log_head SET (seq, hash) = (SELECT seq, hash FROM log ORDER BY seq DESC LIMIT 1)"
_SHIFT = "UPDATE log SET seq = -seq + {} WHERE seq < 0"
_EDIT = "UPDATE log SET text = replace(text, 'custody', 'nobody') WHERE seq = 5"

ATTACKS = {
    "a row was edited": (5, [_EDIT]),
    "a row was edited and its own hash made to fit": (
        6,
        [_EDIT, "UPDATE log SET hash = row_hash((SELECT hash FROM log WHERE seq = 4), text) WHERE seq = 5"],
    ),
    "a row's hash was edited": (5, ["UPDATE log SET hash = zeroblob(32) WHERE seq = 5"]),
    "a row is not JSON any more": (5, ["UPDATE log SET text = '' WHERE seq = 5"]),
    "a row is not an object any more": (5, ["UPDATE log SET text = '[5]' WHERE seq = 5"]),
    "a row is not UTF-8 any more": (5, ["UPDATE log SET text = CAST(x'ff' || text AS TEXT) WHERE seq = 5"]),
    "a row was deleted": (5, ["DELETE FROM log WHERE seq = 5"]),
    "a row was deleted and the others renumbered": (
        5,
        ["DELETE FROM log WHERE seq = 5", "UPDATE log SET seq = -seq WHERE seq > 5", _SHIFT.format(-1)],
    ),
    "the first row was deleted": (1, ["DELETE FROM log WHERE seq = 1"]),
    "two rows were swapped": (
        5,
        [
            "UPDATE log SET seq = 99 WHERE seq = 5",
            "UPDATE log SET seq = 5 WHERE seq = 6",
            "UPDATE log SET seq = 6 WHERE seq = 99",
        ],
    ),
    "a row was inserted in the middle": (
        6,
        [
            "UPDATE log SET seq = -seq WHERE seq >= 5",
            _SHIFT.format(1),
            """INSERT INTO log SELECT 5, '{"seq":5}', row_hash(hash, '{"seq":5}') FROM log WHERE seq = 4""",
        ],
    ),
    "a row was added at the end": (
        21,
        ["""INSERT INTO log SELECT 21, '{"seq":21}', row_hash(hash, '{"seq":21}') FROM log WHERE seq = 20"""],
    ),
    "the last row was cut off": (20, ["DELETE FROM log WHERE seq = 20"]),
    "all rows were deleted": (1, ["DELETE FROM log"]),
    "the end was cut off, and the head made to fit, before the last seal": (
        16,
        ["DELETE FROM log WHERE seq > 15", _HEAD],
    ),
    "the head has another hash": (20, ["UPDATE log_head SET hash = zeroblob(32)"]),
    "the head has a lower number": (19, ["UPDATE log_head SET seq = 18"]),
    "the head has a higher number": (21, ["UPDATE log_head SET seq = 25"]),
    "the head is gone": (0, ["DELETE FROM log_head"]),
    "everything was computed anew after an edit": (8, [_EDIT, _RECHAIN, _HEAD]),
    "everything was computed anew, the seals' hashes too": (
        8,
        [_EDIT, _RECHAIN, _HEAD, "UPDATE log_seal SET hash = (SELECT hash FROM log WHERE log.seq = log_seal.seq)"],
    ),
    "everything was computed anew and the first seal taken away": (
        16,
        [_EDIT, _RECHAIN, _HEAD, "DELETE FROM log_seal WHERE seq = 8"],
    ),
    "a seal was moved": (9, ["UPDATE log_seal SET seq = 9 WHERE seq = 8"]),
    "a seal has another signature": (8, ["UPDATE log_seal SET signature = zeroblob(64) WHERE seq = 8"]),
    "a seal has the signature of another": (
        8,
        ["UPDATE log_seal SET signature = (SELECT signature FROM log_seal WHERE seq = 16)"],
    ),
    "a seal's signature was cut": (8, ["UPDATE log_seal SET signature = substr(signature, 1, 32) WHERE seq = 8"]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_change_of_the_database_is_found_at_its_row(attack: str, site: Site, alone: Alone) -> None:
    row, statements = ATTACKS[attack]
    attack_store(site, *statements)
    done = site.hsmkme("audit", "verify")
    assert broken_at(done) == row, done.err
    file = site.directory / "export.jsonl"
    exported = site.hsmkme("audit", "export", file)
    if exported.status == 0:
        assert broken_at(alone(file.read_bytes(), site.public_key)) == row
    else:  # what cannot even be exported was said to be broken
        assert broken_at(exported) == row


def test_a_log_cut_and_made_to_fit_throughout_is_found_by_an_older_export_alone(site: Site, alone: Alone) -> None:
    """Who can write the database can also take rows, seals and head back together to an earlier moment; and can
    compute everything anew once no seal is left. Nothing inside the database can tell: the token signs what it is
    shown. Exports kept elsewhere can: the log may only grow from what they say.
    """
    older = json.loads(json.loads(exported_from(site)[0])["export"])
    attack_store(site, "DELETE FROM log_seal WHERE seq > 8", "DELETE FROM log WHERE seq > 10", _HEAD)
    assert site.hsmkme("audit", "verify").status == 0
    newer = json.loads(json.loads(exported_from(site)[0])["export"])
    assert alone(exported_from(site), site.public_key).status == 0
    assert newer["rows"] < older["rows"]


def test_a_log_rewritten_after_its_seals_were_taken_is_found_by_an_older_export_alone(site: Site) -> None:
    older = exported_from(site)
    attack_store(site, "DELETE FROM log_seal", _EDIT, _RECHAIN, _HEAD)
    done = site.hsmkme("audit", "verify")
    assert done.out == f"good    {ROWS} rows, 0 seals, sealed through row 0\n"  # what it says of seals is the hint
    newer = exported_from(site)
    assert json.loads(older[-1])["hash"] != json.loads(newer[-1])["hash"]


# The export was changed ---------------------------------------------------------------------------------
# Line 0 is the header, rows 1 to 8 are lines 1 to 8, the seal of row 8 is line 9, row 9 is line 10.

Lines = list[str]


def _edited(lines: Lines, number: int, change: Callable[[dict[str, Any]], None]) -> Lines:
    record = json.loads(lines[number])
    change(record)
    return [*lines[:number], json.dumps(record) + "\n", *lines[number + 1 :]]


def _rechained(lines: Lines) -> Lines:
    """Row 5 edited, and every hash after it computed anew."""
    previous, made = bytes(32), []
    for number, line in enumerate(lines):
        record = json.loads(line)
        if "row" in record:
            text = record["row"].replace("custody", "nobody") if number == 5 else record["row"]
            previous = row_hash(previous, text)
            record = {"row": text, "hash": previous.hex()}
        elif "seal" in record:
            record["hash"] = previous.hex()
        made.append(json.dumps(record) + "\n")
    return made


def _header(lines: Lines, **changes: object) -> Lines:
    record = json.loads(lines[0])
    header = {**json.loads(record["export"]), **changes}
    return [json.dumps({**record, "export": canonical(header)}) + "\n", *lines[1:]]


def _chained(last: str, text: str) -> str:
    """The line of a row that fits after the ``last`` one."""
    return json.dumps({"row": text, "hash": row_hash(bytes.fromhex(json.loads(last)["hash"]), text).hex()})


def _replace(name: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({name: record[name].replace(old, new)})


FORGERIES: dict[str, tuple[int, Callable[[Lines], Lines]]] = {
    "a row was edited": (5, lambda lines: _edited(lines, 5, _replace("row", "custody", "nobody"))),
    "half a surrogate pair stands in a row": (5, lambda lines: _edited(lines, 5, _replace("row", "o", "\ud800"))),
    "a row's hash was edited": (5, lambda lines: _edited(lines, 5, lambda r: r.update(hash="00" * 32))),
    "a row has no hash": (5, lambda lines: _edited(lines, 5, lambda r: r.pop("hash"))),
    "a row is a number": (5, lambda lines: _edited(lines, 5, lambda r: r.update(row=5))),
    "a row was deleted": (5, lambda lines: lines[:5] + lines[6:]),
    "two rows were swapped": (5, lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]]),
    "a row stands twice": (6, lambda lines: lines[:6] + lines[5:]),
    "a row was inserted": (5, lambda lines: [*lines[:5], json.dumps({"row": "{}", "hash": "00"}) + "\n", *lines[5:]]),
    "a line is not JSON": (5, lambda lines: [*lines[:5], "seal\n", *lines[5:]]),
    "a line is neither row nor seal": (5, lambda lines: [*lines[:5], '{"note": 1}\n', *lines[5:]]),
    "a line is nested without end": (5, lambda lines: [*lines[:5], "[" * 100_000 + "\n", *lines[5:]]),
    "the last row was cut off": (20, lambda lines: lines[:-1]),
    "the last line was cut in half": (20, lambda lines: [*lines[:-1], lines[-1][:40]]),
    "everything but the header was cut off": (1, lambda lines: lines[:1]),
    "a row was added at the end": (
        21,
        lambda lines: [*lines, _chained(lines[-1], '{"seq":21}')],
    ),
    "there is nothing": (0, lambda _: []),
    "the header was cut off": (0, lambda lines: lines[1:]),
    "the header says fewer rows": (0, lambda lines: _header(lines, rows=19)[:-1]),
    "the header says another KME": (0, lambda lines: _header(lines, kme="kme-2")),
    "the header says infinitely many rows": (0, lambda lines: _edited(lines, 0, _replace("export", "20", "1e999"))),
    "the header has no signature": (0, lambda lines: _edited(lines, 0, lambda r: r.pop("signature"))),
    "the header has the signature of a seal": (
        0,
        lambda lines: _edited(lines, 0, lambda r: r.update(signature=json.loads(lines[9])["signature"])),
    ),
    "everything was computed anew after an edit": (8, _rechained),
    "everything was computed anew, the header too": (
        0,
        lambda lines: _header(_rechained(lines), head=json.loads(_rechained(lines)[-1])["hash"]),
    ),
    "a seal was moved": (9, lambda lines: [*lines[:9], lines[10], lines[9], *lines[11:]]),
    "a seal has the signature of another": (
        8,
        lambda lines: _edited(lines, 9, lambda r: r.update(signature=json.loads(lines[18])["signature"])),
    ),
    "a seal's signature is not base64": (8, lambda lines: _edited(lines, 9, lambda r: r.update(signature="?"))),
    "a seal has no signature": (8, lambda lines: _edited(lines, 9, lambda r: r.pop("signature"))),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_change_of_an_export_is_found_at_its_row(forgery: str, audited: Site, alone: Alone, exported: Lines) -> None:
    row, forge = FORGERIES[forgery]
    assert json.loads(exported[9])["seal"] == 8
    assert json.loads(exported[18])["seal"] == 16
    assert broken_at(alone(forge(exported), audited.public_key)) == row


@pytest.fixture(scope="module")
def exported(audited: Site, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    file = tmp_path_factory.mktemp("exported") / "export.jsonl"
    assert audited.hsmkme("audit", "export", file).status == 0
    return file.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("byte", [b"\xff", b"\x00", b"\xc3", b"\x80"])
def test_a_byte_that_is_not_text_is_found_at_its_row(
    byte: bytes, audited: Site, alone: Alone, exported: Lines
) -> None:
    content = "".join(exported).encode()
    place = content.index(b"custody", content.index(exported[5].encode()))
    assert broken_at(alone(content[:place] + byte + content[place + 1 :], audited.public_key)) == 5


def test_an_export_without_its_seals_is_still_bound_by_its_header(
    audited: Site, alone: Alone, exported: Lines
) -> None:
    """Seals serve who has the database only. The header of an export is signed over its last row's hash."""
    rows = [line for line in exported if '"seal"' not in line]
    assert alone(rows, audited.public_key).status == 0
    assert broken_at(alone(_rechained(rows), audited.public_key)) == ROWS


def test_another_key_does_not_verify(audited: Site, alone: Alone, exported: Lines) -> None:
    assert broken_at(alone(exported, _pem(ec.generate_private_key(ec.SECP256R1())))) == 0


def _pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_what_is_no_key_of_the_right_kind_is_wrong_usage(audited: Site, alone: Alone, exported: Lines) -> None:
    for pem in (b"no key", _pem(rsa.generate_private_key(65537, 2048))):
        done = alone(exported, pem)
        assert (done.status, done.err.startswith("cannot read: ")) == (2, True)


def test_a_forger_with_a_key_of_his_own_is_not_believed(audited: Site, alone: Alone, exported: Lines) -> None:
    """A whole export forged and signed anew is good under the forger's key and under no other."""
    forger = ec.generate_private_key(ec.SECP256R1())
    lines = _resigned(_rechained(exported), forger)
    assert alone(lines, _pem(forger)).status == 0
    assert broken_at(alone(lines, audited.public_key)) == 0


def _resigned(lines: Lines, key: ec.EllipticCurvePrivateKey) -> Lines:
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    from hsmkme.audit import export_digest, seal_digest

    def sign(digest: bytes) -> str:
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(SHA256()))))
        return base64.b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()

    made = []
    for line in _header(lines, head=json.loads(lines[-1])["hash"]):
        record = json.loads(line)
        if "export" in record:
            record["signature"] = sign(export_digest(record["export"]))
        elif "seal" in record:
            record["signature"] = sign(seal_digest(record["seal"], bytes.fromhex(record["hash"])))
        made.append(json.dumps(record) + "\n")
    return made


# Seals on a clock ---------------------------------------------------------------------------------------


@pytest.fixture
def sealing(site: Site, clock: FakeClock) -> Iterator[tuple[Upkeep, Store]]:
    """Upkeep that seals after 5 rows or 10 seconds, on a log that is sealed through its last row."""
    store, custody = site.open(clock)
    custody.logbook.seal()
    yield Upkeep(configuration.load(site.config), custody, store, clock, lambda _: None), store
    store.close()


def sealed_row(store: Store) -> int:
    seal = store.log.last_seal()
    return seal.seq if seal else 0


def test_the_log_is_sealed_after_so_many_rows(sealing: tuple[Upkeep, Store], clock: FakeClock) -> None:
    upkeep, store = sealing
    for row in range(1, 6):
        store.log.append(Entry("event", "tester"))
        clock.now += 1
        upkeep.tick()
        assert sealed_row(store) == (ROWS + 5 if row == 5 else ROWS)


def test_the_log_is_sealed_after_so_many_seconds(sealing: tuple[Upkeep, Store], clock: FakeClock) -> None:
    upkeep, store = sealing
    store.log.append(Entry("event", "tester"))
    for second in range(1, 11):
        clock.now += 1
        upkeep.tick()
        assert sealed_row(store) == (ROWS + 1 if second == 10 else ROWS)


def test_nothing_is_sealed_twice(sealing: tuple[Upkeep, Store], clock: FakeClock, site: Site) -> None:
    upkeep, store = sealing
    for _ in range(5):
        clock.now += 100
        upkeep.tick()
    with store.log.snapshot() as snapshot:
        assert [seal.seq for seal in snapshot.seals] == [*SEALED, ROWS]
    _, custody = site.open(clock)
    assert custody.logbook.seal() is None


def test_a_log_that_was_cut_is_not_sealed_over(sealing: tuple[Upkeep, Store], site: Site, clock: FakeClock) -> None:
    upkeep, store = sealing
    attack_store(site, "DELETE FROM log WHERE seq > 15", _HEAD)
    _, custody = site.open(clock)
    with pytest.raises(AuditBroken, match="row 20 was sealed and row 15 is the last"):
        custody.logbook.seal()
    for _ in range(10):
        store.log.append(Entry("event", "tester"))
    clock.now += 100
    upkeep.tick()
    assert broken_at(site.hsmkme("audit", "verify")) == 16


def test_a_seal_made_in_the_service_is_one_that_verifies(sealing: tuple[Upkeep, Store], site: Site) -> None:
    _, store = sealing
    store.blocks.deposit([make_block()], BlockState.READY, 100, Entry("block.deposit", "test"))
    done = site.hsmkme("audit", "verify")
    assert done.out == f"good    {ROWS + 1} rows, 3 seals, sealed through row {ROWS}\n"
