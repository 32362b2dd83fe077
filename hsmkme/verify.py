"""Check an exported audit log offline: ``python verify.py EXPORT PUBLIC_KEY``.

Copy this one file to the machine that audits; it needs Python and the ``cryptography`` package and
shares no code with the service. Exit status 0: every row follows from the one before, the export is
whole, and every seal is the token's. 1: it is not, and the first row that does not fit is named.
2: the arguments cannot be used.

An export has one JSON object on each line: first ``{"export", "signature"}``, then ``{"row", "hash"}`` and
``{"seal", "hash", "at", "signature"}``. Hashes are SHA-256, signatures ECDSA P-256 (r ‖ s, base64).
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils


class BrokenError(Exception):
    """The export does not prove itself; ``row`` is the first row that does not fit."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row = row


def verify(lines: Iterator[str], key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    """Read an export; returns its header with the numbers of rows and seals checked. Raises `BrokenError`."""
    header = _header(next(lines, ""), key)
    seq, previous, seals, sealed = 0, bytes(32), 0, 0
    for number, line in enumerate(lines, start=2):
        record = _parsed(line, number, seq + 1)
        if "row" in record:
            if seq == header["rows"]:
                raise BrokenError(seq + 1, f"the first line of the export says that row {seq} is the last")
            previous = _row(record, seq + 1, previous)
            seq += 1
        else:
            _seal(record, seq, previous, key)
            seals, sealed = seals + 1, seq
    if seq != header["rows"]:
        raise BrokenError(seq + 1, f"the export was cut: its first line says it has {header['rows']} rows")
    if previous.hex() != header["head"]:
        raise BrokenError(seq, "the last row is not the one that the first line of the export says")
    return {**header, "seals": seals, "sealed_through": sealed}


def _parsed(line: str, number: int, row: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BrokenError(row, f"line {number} of the export is not JSON") from None
    if not isinstance(record, dict) or not ({"row", "seal"} & record.keys()):
        raise BrokenError(row, f"line {number} of the export is neither a row nor a seal")
    return record


def _header(line: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    try:
        record = json.loads(line)
        text, signature = record["export"], record["signature"]
        header = json.loads(text)
        rows, head = int(header["rows"]), str(header["head"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise BrokenError(0, "the first line is not the header of an export") from None
    if not _signed(key, _digest(b"hsmkme/export/1", str(text)), signature):
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


def _seal(record: dict[str, Any], seq: int, previous: bytes, key: ec.EllipticCurvePublicKey) -> None:
    if record["seal"] != seq or record.get("hash") != previous.hex():
        raise BrokenError(seq, f"the seal of row {record['seal']} does not fit here")
    digest = hashlib.sha256(b"hsmkme/seal/1" + seq.to_bytes(8, "big") + previous).digest()
    if not _signed(key, digest, record.get("signature")):
        raise BrokenError(seq, "the seal is not signed by this key")


def _digest(prefix: bytes, text: str) -> bytes:
    # Half a surrogate pair cannot have been in a row: it gets bytes that no row has.
    return hashlib.sha256(prefix + text.encode(errors="surrogatepass")).digest()


def _signed(key: ec.EllipticCurvePublicKey, digest: bytes, signature: object) -> bool:
    try:
        raw = base64.b64decode(str(signature), validate=True)
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        key.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except (ValueError, InvalidSignature):
        return False
    return len(raw) == 64


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        key = serialization.load_pem_public_key(Path(arguments[1]).read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the public key is not an EC key")
        with Path(arguments[0]).open(encoding="utf-8", errors="surrogateescape") as export:
            report = verify(export, key)
    except BrokenError as error:
        print(f"BROKEN  {error}")
        return 1
    except (OSError, ValueError) as error:
        print(f"cannot read: {error}", file=sys.stderr)
        return 2
    print(f"good    {report['rows']} rows of {report['kme']}, {report['seals']} seals, exported {report['at']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
