"""Check an exported audit log, or a receipt of destruction, offline: ``python verify.py FILE PUBLIC_KEYS``.

Copy this one file to the machine that audits; it needs Python and the ``cryptography`` package and
shares no code with the service. Exit status 0: every row follows from the one before, the export is
whole, and every seal is the token's; or the receipt says that its subject is destroyed, and proves it.
1: it is not, and the first row that does not fit is named. 2: the arguments cannot be used.

An export has one JSON object on each line: first ``{"export", "signature"}``, then ``{"row", "hash"}`` and
``{"seal", "hash", "at", "signature"}``. Hashes are SHA-256, signatures ECDSA P-256 (r ‖ s, base64).

A receipt is one JSON object: ``{"receipt", "signature", "spans"}``. Its text names the subject and the rows that count;
each span has consecutive rows, the hash of the row before them, and the seal of the last one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

Keys = Sequence[ec.EllipticCurvePublicKey]
"""Of the tokens of a KME: any of them may sign."""


class BrokenError(Exception):
    """The export does not prove itself; ``row`` is the first row that does not fit."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row = row


def verify(lines: Iterator[str], keys: Keys) -> dict[str, Any]:
    """Read an export; returns its header with the numbers of rows and seals checked. Raises `BrokenError`."""
    header = _header(next(lines, ""), keys)
    seq, previous, seals, sealed = 0, bytes(32), 0, 0
    for number, line in enumerate(lines, start=2):
        record = _parsed(line, number, seq + 1)
        if "row" in record:
            if seq == header["rows"]:
                raise BrokenError(seq + 1, f"the first line of the export says that row {seq} is the last")
            previous = _row(record, seq + 1, previous)
            seq += 1
        else:
            _seal(record, seq, previous, keys)
            seals, sealed = seals + 1, seq
    if seq != header["rows"]:
        raise BrokenError(seq + 1, f"the export was cut: its first line says it has {header['rows']} rows")
    if previous.hex() != header["head"]:
        raise BrokenError(seq, "the last row is not the one that the first line of the export says")
    return {**header, "seals": seals, "sealed_through": sealed}


def verify_receipt(receipt: Any, keys: Keys) -> dict[str, Any]:
    """Read a receipt; returns its text with the check values of the master keys. Raises `BrokenError`."""
    try:
        text = json.loads(receipt["receipt"])
        subject, wanted = dict(text["subject"]), [int(seq) for seq in text["rows"]]
        if not _signed(keys, _digest(b"hsmkme/receipt/1", str(receipt["receipt"])), receipt["signature"]):
            raise BrokenError(0, "the receipt is not signed by this key")
        proved = dict(row for span in receipt["spans"] for row in _span(span, keys))
        rows = [proved[seq] for seq in wanted if seq in proved]
        if len(rows) != len(wanted):
            raise BrokenError(0, "the receipt lacks rows that it names")
        epochs, ends = _epochs(subject, rows), _ends(rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BrokenError(0, "the file is not a receipt") from None
    if not epochs:
        raise BrokenError(0, "the receipt has no subject")
    alive = sorted(epochs - ends.keys())
    if alive:
        raise BrokenError(0, f"the receipt does not show that epoch {alive[0]} was destroyed")
    return {**text, "check_values": {epoch: ends[epoch] for epoch in sorted(epochs)}}


def _ends(rows: list[dict[str, Any]]) -> dict[int, str]:
    """The check values of the master keys that are gone: each was given up with a key that it wrapped, by which the
    token showed later that nothing in it is that master key."""
    given_up = {row["epoch"]: row for row in rows if row["event"] == "epoch.give-up"}
    ends = {}
    for row in rows:
        if row["event"] == "epoch.destroy":
            before = given_up.get(row["epoch"], {"seq": row["seq"]})
            if before["seq"] >= row["seq"] or any(before[n] != row[n] for n in ("witness", "check_value")):
                raise BrokenError(row["seq"], f"the proof for epoch {row['epoch']} is not by a key that it wrapped")
            ends[row["epoch"]] = row["check_value"]
    return ends


def _span(span: Any, keys: Keys) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a span by their numbers, once they are bound to its seal."""
    rows = [dict(json.loads(text)) for text in span["rows"]]
    digest, seq = bytes.fromhex(span["before"]), int(rows[0]["seq"]) - 1
    for row, text in zip(rows, span["rows"], strict=True):
        seq += 1
        if row["seq"] != seq:
            raise BrokenError(seq, f"row {row['seq']} stands where row {seq} belongs")
        digest = _digest(b"hsmkme/log/1" + digest, text)
    _seal({**span["seal"], "seal": span["seal"]["seq"]}, seq, digest, keys)
    return ((row["seq"], row) for row in rows)


def _epochs(subject: dict[str, Any], rows: list[dict[str, Any]]) -> set[int]:
    """Every epoch that must be destroyed for the subject to be."""
    if "epoch" in subject:
        return {int(subject["epoch"])}
    if "block" in subject:
        return _epochs_of_block(str(subject["block"]), rows)
    named = [row for row in rows if str(subject["key"]) in row.get("key_IDs", [])]
    blocks = {name for row in named for name in _blocks(row)}
    return {epoch for name in blocks for epoch in _epochs_of_block(name, rows)}


def _blocks(row: dict[str, Any]) -> list[str]:
    return [f"{row['link']}/{row['block']}"] if row["event"] == "block.carry" else list(row.get("blocks", []))


def _epochs_of_block(name: str, rows: list[dict[str, Any]]) -> set[int]:
    """The epochs that a block's key was under, from its arrival to its end, none of its moves or copies left out."""
    came = [r for r in rows if r["event"] in ("block.deposit", "block.carry") and f"{r['link']}/{r['block']}" == name]
    ends = [row for row in rows if row["event"] == "block.destroy" and name in row["blocks"]]
    if len(came) != 1 or not ends:
        raise BrokenError(0, f"the receipt does not show how block {name} came and ended")
    under = {came[0]["epoch"], *came[0].get("also", [])}
    ever = set(under)
    for row in rows:
        if row["event"] == "block.rewrap" and name in row["blocks"]:
            if row["from"] not in under:
                raise BrokenError(row["seq"], f"the moves of block {name} do not follow from one another")
            under.remove(row["from"])
        if row["event"] in ("block.rewrap", "block.copy") and name in row["blocks"]:
            under.add(row["to"])
            ever.add(row["to"])
    last = {epoch for row in ends for epoch in (row["epoch"], *row.get("also", {}).get(name, []))}
    if under != last or under != {row["epoch"] for row in ends}:
        raise BrokenError(ends[-1]["seq"], f"block {name} does not end where its moves lead")
    return ever


def _parsed(line: str, number: int, row: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BrokenError(row, f"line {number} of the export is not JSON") from None
    if not isinstance(record, dict) or not ({"row", "seal"} & record.keys()):
        raise BrokenError(row, f"line {number} of the export is neither a row nor a seal")
    return record


def _header(line: str, keys: Keys) -> dict[str, Any]:
    try:
        record = json.loads(line)
        text, signature = record["export"], record["signature"]
        header = json.loads(text)
        rows, head = int(header["rows"]), str(header["head"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise BrokenError(0, "the first line is not the header of an export") from None
    if not _signed(keys, _digest(b"hsmkme/export/1", str(text)), signature):
        raise BrokenError(0, "the header of the export is not signed by this key")
    return {**header, "rows": rows, "head": head}


def _row(record: dict[str, Any], expected: int, previous: bytes) -> bytes:
    text, claimed = str(record["row"]), str(record.get("hash"))
    digest = _digest(b"hsmkme/log/1" + previous, text)
    try:
        seq = json.loads(text).get("seq")
    except (ValueError, AttributeError, RecursionError):
        raise BrokenError(expected, "the row is not JSON") from None
    if seq != expected:
        raise BrokenError(expected, f"row {seq} stands where row {expected} belongs")
    if digest.hex() != claimed:
        raise BrokenError(expected, "the row was altered, or a row before it was replaced")
    return digest


def _seal(record: dict[str, Any], seq: int, previous: bytes, keys: Keys) -> None:
    if record["seal"] != seq or record.get("hash") != previous.hex():
        raise BrokenError(seq, f"the seal of row {record['seal']} does not fit here")
    digest = hashlib.sha256(b"hsmkme/seal/1" + seq.to_bytes(8, "big") + previous).digest()
    if not _signed(keys, digest, record.get("signature")):
        raise BrokenError(seq, "the seal is not signed by this key")


def _digest(prefix: bytes, text: str) -> bytes:
    # Half a surrogate pair cannot have been in a row: it gets bytes that no row has.
    return hashlib.sha256(prefix + text.encode(errors="surrogatepass")).digest()


def _signed(keys: Keys, digest: bytes, signature: object) -> bool:
    """Whether one of the keys made the signature."""
    try:
        raw = base64.b64decode(str(signature), validate=True)
    except ValueError:
        return False
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    return len(raw) == 64 and any(_made(key, digest, utils.encode_dss_signature(r, s)) for key in keys)


def _made(key: ec.EllipticCurvePublicKey, digest: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def keys_in(pem: bytes) -> Keys:
    """The public keys in a file, PEM one after the other; raises ``ValueError``."""
    end = b"-----END PUBLIC KEY-----"
    found = [serialization.load_pem_public_key(part + end) for part in pem.split(end)[:-1]]
    keys = [key for key in found if isinstance(key, ec.EllipticCurvePublicKey)]
    if not keys or len(keys) != len(found):
        raise ValueError("the file has no public EC key, or another kind of key")
    return keys


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        keys = keys_in(Path(arguments[1]).read_bytes())
        with Path(arguments[0]).open(encoding="utf-8", errors="surrogateescape") as file:
            told = _of_receipt(file.read(), keys) if _is_receipt(file) else _of_export(file, keys)
    except BrokenError as error:
        print(f"BROKEN  {error}")
        return 1
    except (OSError, ValueError) as error:
        print(f"cannot read: {error}", file=sys.stderr)
        return 2
    print(f"good    {told}")
    return 0


def _is_receipt(file: TextIO) -> bool:
    """Whether a file begins as a receipt does, whatever its white space."""
    start = "".join(file.read(64).split())
    file.seek(0)
    return start.startswith('{"receipt"')


def _of_receipt(content: str, keys: Keys) -> str:
    try:
        receipt = json.loads(content)
    except (ValueError, RecursionError):
        raise BrokenError(0, "the file is not a receipt") from None
    report = verify_receipt(receipt, keys)
    ((kind, name),) = report["subject"].items()
    masters = ", ".join(f"{epoch} ({value})" for epoch, value in report["check_values"].items())
    return f"{kind} {name} of {report['kme']} is destroyed, with master keys {masters}; receipt of {report['at']}"


def _of_export(lines: TextIO, keys: Keys) -> str:
    report = verify(lines, keys)
    return f"{report['rows']} rows of {report['kme']}, {report['seals']} seals, exported {report['at']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
