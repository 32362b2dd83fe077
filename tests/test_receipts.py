"""Does a receipt prove to somebody who has only the public key that a key is gone, and nothing else prove it?"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkme import verify
from hsmkme.config import EpochsSection
from hsmkme.errors import StoreError
from hsmkme.hsm import TokenAddress
from hsmkme.model import Entry
from hsmkme.receipts import Receipts
from tests.conftest import FakeClock
from tests.processes import killed
from tests.rotating import KEYS, Kme, new_kme
from tests.sealing import rewrite
from tests.tampering import hand_on

Receipt = dict[str, Any]


@pytest.fixture
def kme(own_address: TokenAddress, tmp_path: Path, clock: FakeClock) -> Iterator[Kme]:
    with new_kme(own_address, tmp_path, clock) as opened:
        opened.site.public_key.write_bytes(opened.token.audit_public_key())
        yield opened


@pytest.fixture
def receipts(kme: Kme) -> Receipts:
    return Receipts("kme-1", kme.custody, kme.store, kme.clock)


def public_key(kme: Kme) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(kme.token.audit_public_key())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def check(kme: Kme, receipt: str | Receipt) -> dict[str, Any]:
    return verify.verify_receipt(json.loads(receipt) if isinstance(receipt, str) else receipt, [public_key(kme)])


def live_through(kme: Kme, *, seal: bool = False) -> str:
    """A key in a block that outlives one epoch and ends under the next, which is destroyed too; its key_ID."""
    kme.deposit("one")
    claimed = kme.fetch(1)
    kme.turn_over()
    if seal:
        kme.custody.logbook.seal()
    kme.collect(claimed)
    kme.collect(kme.fetch(KEYS - 1))
    kme.turn_over()
    return str(claimed[0].key_id)


def test_a_key_is_destroyed_with_every_master_key_that_its_block_was_under(kme: Kme, receipts: Receipts) -> None:
    key_id = live_through(kme)
    check_values = {epoch.number: epoch.check_value for epoch in kme.store.epochs.all()[:2]}
    report = check(kme, receipts.of_key(UUID(key_id)))
    assert (report["subject"], report["check_values"]) == ({"key": key_id}, check_values)
    assert check(kme, receipts.of_block("local/one"))["check_values"] == check_values
    assert check(kme, receipts.of_epoch(1))["check_values"] == {1: check_values[1]}


def test_rows_under_several_seals_are_each_bound_to_theirs(kme: Kme, receipts: Receipts) -> None:
    receipt = json.loads(receipts.of_key(UUID(live_through(kme, seal=True))))
    assert len(receipt["spans"]) == 2
    check(kme, receipt)


def test_what_lives_or_could_be_opened_has_no_receipt(kme: Kme, receipts: Receipts) -> None:
    kme.deposit("one")
    claimed = kme.fetch(KEYS)
    kme.collect(claimed[:1])
    wanted = claimed[0].key_id
    with pytest.raises(StoreError, match="block local/one is not destroyed: it is under epoch 1"):
        receipts.of_key(wanted)
    kme.turn_over()
    with pytest.raises(StoreError, match="block local/one is not destroyed: it is under epoch 2"):
        receipts.of_key(wanted)  # the keys that live on keep its block key alive
    kme.collect(claimed[1:])
    with pytest.raises(StoreError, match="block local/one is not destroyed: it is under epoch 2"):
        receipts.of_block("local/one")
    with pytest.raises(StoreError, match="epoch 2 is not destroyed"):
        receipts.of_epoch(2)
    kme.turn_over()
    check(kme, receipts.of_key(wanted))


def test_what_was_never_here_has_no_receipt(receipts: Receipts) -> None:
    with pytest.raises(StoreError, match="it was never claimed here"):
        receipts.of_key(UUID("00000000-0000-7000-8000-000000000000"))
    with pytest.raises(StoreError, match="no block local/none ever came here"):
        receipts.of_block("local/none")


def test_the_command_prints_a_receipt_that_is_verified_where_hsmkme_is_not(kme: Kme, tmp_path: Path) -> None:
    key_id = live_through(kme)
    for arguments in ((key_id,), ("--block", "local/one"), ("--epoch", 2)):
        done = kme.site.hsmkme("prove-destroyed", *arguments)
        assert done.status == 0, done.err
        (tmp_path / "receipt.json").write_text(done.out)
        verifier = tmp_path / "alone" / "verify.py"
        verifier.parent.mkdir(exist_ok=True)
        verifier.write_bytes(Path(verify.__file__).read_bytes())
        command = [sys.executable, "-I", verifier, tmp_path / "receipt.json", kme.site.public_key]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (told.returncode, told.stdout[:7]) == (0, "good   "), told
    assert kme.site.hsmkme("prove-destroyed", "--epoch", 3).status == 1
    assert kme.site.hsmkme("prove-destroyed").status == 2


def test_killed_at_every_durable_step_and_asked_again_it_gives_the_receipt(kme: Kme) -> None:
    live_through(kme)
    for kill_at in range(1, 100):
        kme.store.log.append(Entry("test", "test"))  # something is to be sealed each time
        arguments = ("--config", kme.site.config, "prove-destroyed", "--block", "local/one")
        first = killed(kill_at, *arguments)
        assert first.status in (0, -signal.SIGKILL), first.err
        again = killed(0, *arguments)
        assert again.status == 0, again.err
        check(kme, again.out)
        if first.status == 0:
            assert json.loads(first.out)["spans"], "a seal that is there is used"
            break
    assert kill_at > 2
    assert kme.rows("alarm") == []


# What somebody wrote to the store ---------------------------------------------------------------------------

EPOCH_CELLS = ("since", "wraps", "proof", "check_value", "state")
BLOCK_CELLS = ("epoch", "deposited_at", "not_before", "wrapped", "state", "live", "next_index", "digest", "own_epoch")


def write_to(kme: Kme, statement: str, *values: object) -> None:
    """As somebody does who has the file."""
    kme.store.close()
    with hand_on(kme.site.path) as connection:
        connection.execute(statement, values)


def changed(kme: Kme, table: str, column: str, where: str) -> object:
    """Another value of the same kind."""
    with kme.store.log._database.read() as connection:
        (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()  # noqa: S608
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    others = {"retired": "exhausted", "destroyed": "deactivated"}
    return others.get(value, "0123456789") if isinstance(value, str) else int(value or 0) + 1


@pytest.mark.parametrize(
    ("table", "column"), [*(("epoch", name) for name in EPOCH_CELLS), *(("block", name) for name in BLOCK_CELLS)]
)
def test_a_receipt_rests_on_the_log_alone_whatever_is_written_to_the_rows(
    table: str, column: str, kme: Kme, receipts: Receipts
) -> None:
    key_id = UUID(live_through(kme))
    values = {epoch.number: epoch.check_value for epoch in kme.store.epochs.all()[:2]}
    where = "epoch = 1" if table == "epoch" else "block_id = 'one'"
    write_to(kme, f"UPDATE {table} SET {column} = ? WHERE {where}", changed(kme, table, column, where))  # noqa: S608
    for receipt in (receipts.of_key(key_id), receipts.of_block("local/one"), receipts.of_epoch(1)):
        assert check(kme, receipt)["check_values"].items() <= values.items()


@pytest.mark.parametrize(("column", "value"), [("state", "destroyed"), ("proof", 1), ("proof", None)])
def test_what_a_row_says_of_an_end_that_never_was_gives_no_receipt(
    column: str, value: object, kme: Kme, receipts: Receipts
) -> None:
    kme.deposit("one")
    kme.collect(kme.fetch(KEYS))
    kme.rotation.rotate(because="test")
    write_to(kme, f"UPDATE epoch SET {column} = ? WHERE epoch = 1", value)  # noqa: S608
    for wanted in (lambda: receipts.of_epoch(1), lambda: receipts.of_block("local/one")):
        with pytest.raises(StoreError, match="is not destroyed"):
            wanted()


def test_an_epoch_whose_row_is_put_back_is_proved_again_by_the_same_row_of_the_log(
    kme: Kme, receipts: Receipts
) -> None:
    """Its row of before it was proved was sealed, too."""
    live_through(kme)
    rewrite(kme.store, "epoch", "epoch = 1", proof="NULL")
    assert not kme.store.epochs.all()[0].proved
    kme.rotation.keep(EpochsSection())
    assert kme.store.epochs.all()[0].proved
    assert len(kme.rows("alarm.epoch-tampered")) == 1
    assert len([row for row in kme.rows("epoch.destroy") if '"epoch":1,' in row]) == 1
    check(kme, receipts.of_block("local/one"))


def test_a_log_in_which_a_proof_was_altered_gives_no_receipt(kme: Kme) -> None:
    """The witness of the proof is what the log said when the epoch was given up, and the chain says whether it is."""
    live_through(kme)
    kme.custody.logbook.seal()
    (row,) = [row for row in kme.store.log.latest(1000, "epoch.give-up") if '"epoch":1,' in row.text]
    witness = json.loads(row.text)["witness"]
    write_to(kme, "UPDATE log SET text = replace(text, ?, ?)", witness, "00" * 40)
    for arguments in (("--epoch", 1), ("--block", "local/one")):
        done = kme.site.hsmkme("prove-destroyed", *arguments)
        assert (done.status, done.out) == (1, "")
        assert "BROKEN" in done.err


# Forgeries --------------------------------------------------------------------------------------------------


def _rows(receipt: Receipt, event: str) -> Iterator[tuple[list[str], int, dict[str, Any]]]:
    for span in receipt["spans"]:
        for place, text in enumerate(span["rows"]):
            if json.loads(text)["event"] == event:
                yield span["rows"], place, json.loads(text)


def _edit(event: str, **changes: object) -> Callable[[Receipt], None]:
    def edit(receipt: Receipt) -> None:
        rows, place, row = next(_rows(receipt, event))
        rows[place] = json.dumps({**row, **changes}, sort_keys=True, separators=(",", ":"))

    return edit


def _text(**changes: object) -> Callable[[Receipt], None]:
    def edit(receipt: Receipt) -> None:
        receipt["receipt"] = json.dumps({**json.loads(receipt["receipt"]), **changes})

    return edit


def _drop_row(receipt: Receipt) -> None:
    rows, place, _ = next(_rows(receipt, "block.rewrap"))
    del rows[place]


def _drop_span(receipt: Receipt) -> None:
    del receipt["spans"][0]


def _other_seal(receipt: Receipt) -> None:
    receipt["spans"][0]["seal"]["signature"] = base64.b64encode(bytes(64)).decode()


def _other_start(receipt: Receipt) -> None:
    receipt["spans"][0]["before"] = "00" * 32


@pytest.mark.parametrize(
    "forge",
    [
        _edit("epoch.destroy", epoch=3),
        _edit("block.destroy", blocks=["local/other"]),
        _edit("block.rewrap", to=3),
        _text(subject={"epoch": 3}),
        _text(rows=[]),
        _drop_row,
        _drop_span,
        _other_seal,
        _other_start,
        lambda receipt: receipt.pop("signature"),
        lambda receipt: receipt.update(spans={}),
        lambda receipt: receipt.update(receipt="[]"),
    ],
)
def test_a_receipt_that_was_altered_proves_nothing(
    forge: Callable[[Receipt], None], kme: Kme, receipts: Receipts
) -> None:
    good = json.loads(receipts.of_key(UUID(live_through(kme))))
    check(kme, good)
    forged = copy.deepcopy(good)
    forge(forged)
    with pytest.raises(verify.BrokenError):
        check(kme, forged)


def test_a_receipt_that_leaves_out_what_counts_proves_nothing_though_it_is_signed(
    kme: Kme, receipts: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a key of the forger's own here; a KME that leaves out rows is found as well."""
    key = ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(kme.token, "sign", lambda digest: _signed(key, digest))
    receipt = json.loads(receipts.of_key(UUID(live_through(kme))))
    assert verify.verify_receipt(receipt, [key.public_key()])
    text = json.loads(receipt["receipt"])
    events = ("epoch.give-up", "epoch.destroy", "block.rewrap", "block.destroy")
    counts = [row for event in events for *_, row in _rows(receipt, event)]
    assert len(counts) == 6
    for row in counts:
        left = json.dumps({**text, "rows": [seq for seq in text["rows"] if seq != row["seq"]]})
        signature = _signed(key, hashlib.sha256(b"hsmkme/receipt/1" + left.encode()).digest())
        forged = {**receipt, "receipt": left, "signature": base64.b64encode(signature).decode()}
        with pytest.raises(verify.BrokenError):
            verify.verify_receipt(forged, [key.public_key()])


def test_another_key_does_not_verify(kme: Kme, receipts: Receipts) -> None:
    receipt = json.loads(receipts.of_key(UUID(live_through(kme))))
    with pytest.raises(verify.BrokenError, match="not signed by this key"):
        verify.verify_receipt(receipt, [ec.generate_private_key(ec.SECP256R1()).public_key()])


def _signed(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    r, s = utils.decode_dss_signature(key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()))))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
