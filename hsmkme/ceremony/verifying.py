"""Check the transcript of a ceremony offline: ``python verifying.py TRANSCRIPT [AUDIT_PUBLIC_KEY]``.

Copy this one file to the machine that audits; it needs Python and the ``cryptography`` package and shares no
code with what writes transcripts. Exit status 0: every line follows from the one before, the plan that the first
line holds was carried out to its end, every object was reported as the plan expects, and every signature is right.
1: it is not so, and the first bad line is named. 2: the arguments cannot be used.

Without a public key the token's signature is checked with the key that the transcript itself names: that proves the
lines are those of one ceremony, and not on which token it was.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

Line = dict[str, Any]

GENERATED = {"LOCAL": True, "NEVER_EXTRACTABLE": True, "ALWAYS_SENSITIVE": True}
KEPT = {"EXTRACTABLE": False, "MODIFIABLE": False, "COPYABLE": False}
SIGNED = b"hsmkme/transcript-signature/1"
MADE_TO_LEAVE = {"LOCAL": True, "ALWAYS_SENSITIVE": True, "MODIFIABLE": False, "COPYABLE": False}
_REMARKS = frozenset({"confirmed", "compared", "wrong-input", "abort", "failed", "resumed", "removed"})


class BrokenError(Exception):
    """The transcript does not prove itself; ``line`` is the first that does not fit."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass
class Report:
    """What a transcript proves. ``digest`` stands for all of it up to its end, hex."""

    ceremony: str
    plan_sha256: str
    token: str
    began: str
    ended: str = ""
    digest: str = ""
    signed_by: list[str] = field(default_factory=list)


def chained(lines: Iterable[str]) -> Iterator[tuple[bytes, Line]]:
    """Each line's hash and what it says; raises `BrokenError` at the first that does not follow from the one before."""
    previous, moment = bytes(32), ""
    for number, raw in enumerate(lines, start=1):
        try:
            record = json.loads(raw)
            text, claimed = str(record["line"]), str(record["hash"])
            line = json.loads(text)
            at, facts = str(line["at"]), dict(line["facts"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BrokenError(number, "not a line of a transcript") from None
        previous = hashlib.sha256(b"hsmkme/transcript/2" + previous + text.encode(errors="surrogatepass")).digest()
        if previous.hex() != claimed:
            raise BrokenError(number, "it was altered, or a line before it was replaced")
        if line.get("n") != number:
            raise BrokenError(number, f"line {line.get('n')} stands where line {number} belongs")
        if at < moment:
            raise BrokenError(number, "it is earlier than the line before")
        moment = at
        yield previous, {**line, "facts": facts}


def verify(lines: Iterable[str], audit_key: bytes | None = None) -> Report:
    """Read a transcript; raises `BrokenError`. ``audit_key``: the public key of the token's audit key, PEM."""
    reading = _Reading(audit_key)
    for digest, line in chained(lines):
        try:
            reading.take(line, digest)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise BrokenError(line["n"], "it is not of the form of such a line") from None
    return reading.finished()


class _Reading:
    """How far a transcript was read."""

    def __init__(self, audit_key: bytes | None) -> None:
        self._audit_key = audit_key
        self._plan: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []
        self._number = 0
        self._done = 0
        self._open: int | None = None
        self._end: Line | None = None
        self._head = bytes(32)
        self._report: Report | None = None

    def take(self, line: Line, digest: bytes) -> None:
        """One line more."""
        self._number = line["n"]
        what, facts = str(line["what"]), line["facts"]
        if self._report is None:
            self._begin(line)
        elif what in _REMARKS:
            return
        elif self._end is not None:
            self._signature(what, facts)
        elif what == "step":
            self._step(facts)
        elif what == "done":
            self._step_done(facts)
        elif what == "end":
            self._ended(line, digest)
        else:
            raise BrokenError(self._number, f"nothing that is called {what!r} belongs here")

    def _begin(self, line: Line) -> None:
        facts = line["facts"]
        if line["what"] != "begin":
            raise BrokenError(self._number, "a transcript begins with its plan")
        text = str(facts.get("plan"))
        sha256 = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        if facts.get("plan_sha256") != sha256:
            raise BrokenError(self._number, "the plan does not have the digest that is written beside it")
        try:
            self._plan = tomllib.loads(text)
            ceremony, token = str(self._plan["ceremony"]), str(self._plan["token"]["label"])
            self._steps = list(self._plan["step"])
        except (tomllib.TOMLDecodeError, KeyError, TypeError):
            raise BrokenError(self._number, "the plan cannot be read") from None
        self._report = Report(ceremony, sha256, token, str(line["at"]))

    def _step(self, facts: Line) -> None:
        if facts.get("number") != self._done + 1 or self._done >= len(self._steps):
            raise BrokenError(self._number, f"step {facts.get('number')} follows step {self._done}")
        if facts.get("do") != self._steps[self._done].get("do"):
            raise BrokenError(self._number, f"the plan has another step {self._done + 1}")
        self._open = self._done + 1  # again, after an interruption

    def _step_done(self, facts: Line) -> None:
        if self._open is None or facts.get("number") != self._open:
            raise BrokenError(self._number, "a step is done that was not begun")
        step, evidence = self._steps[self._done], facts.get("evidence", {})
        due = dict(step.get("expect", {}))
        if step["do"] == "make" and step["object"] != "anchor":
            due |= MADE_TO_LEAVE if step.get("backup") else GENERATED | KEPT
        if step["do"] == "bring":
            due |= KEPT
        if "object" in step:
            due["label"] = step["object"]
        for name, value in due.items():
            if evidence.get(name) != value:
                raise BrokenError(self._number, f"{name} is {evidence.get(name)!r} where {value!r} is due")
        self._done, self._open = self._done + 1, None

    def _ended(self, line: Line, digest: bytes) -> None:
        if self._done != len(self._steps):
            raise BrokenError(self._number, f"it ends after {self._done} of {len(self._steps)} steps")
        self._end, self._head = line["facts"], digest
        assert self._report is not None  # noqa: S101
        self._report.ended, self._report.digest = str(line["at"]), digest.hex()

    def _signature(self, what: str, facts: Line) -> None:
        if what != "signature":
            raise BrokenError(self._number, "only signatures follow the end")
        by, report = str(facts.get("by")), self._report
        assert report is not None  # noqa: S101
        if by in report.signed_by:
            raise BrokenError(self._number, f"{by} signed before")
        check = self._token_signed if by == "token" else self._person_signed
        try:
            check(by, base64.b64decode(str(facts.get("signature")), validate=True))
        except (ValueError, KeyError, InvalidSignature, UnsupportedAlgorithm):
            raise BrokenError(self._number, f"the signature is not that of {by}") from None
        report.signed_by.append(by)

    def _token_signed(self, _by: str, signature: bytes) -> None:
        assert self._end is not None  # noqa: S101
        named = str(self._end.get("audit_key")).encode()
        if self._audit_key is not None and b" ".join(named.split()) not in b" ".join(self._audit_key.split()):
            raise BrokenError(self._number, "the token's audit key is another than the one given")
        key = serialization.load_pem_public_key(named)
        if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
            raise ValueError
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        digest = hashlib.sha256(SIGNED + self._head).digest()
        key.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))

    def _person_signed(self, by: str, signature: bytes) -> None:
        key = serialization.load_ssh_public_key(self._keys()[by].encode())
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ValueError
        key.verify(signature, SIGNED + self._head)

    def _keys(self) -> dict[str, str]:
        return {str(person["id"]): str(person.get("key")) for person in self._plan.get("person", [])}

    def finished(self) -> Report:
        """What it all proves; raises `BrokenError` if something is missing at the end."""
        if self._report is None or self._end is None:
            raise BrokenError(self._number + 1, "the ceremony did not end")
        due = [person for person, key in self._keys().items() if key != "None"]
        due += ["token"] if self._end.get("audit_key") else []
        missing = [signer for signer in due if signer not in self._report.signed_by]
        if missing:
            raise BrokenError(self._number + 1, f"not signed by {', '.join(missing)}")
        return self._report


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        lines = Path(arguments[0]).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        report = verify(lines, Path(arguments[1]).read_bytes() if len(arguments) == 2 else None)
    except BrokenError as error:
        print(f"BROKEN  {error}")
        return 1
    except OSError as error:
        print(f"cannot read: {error}", file=sys.stderr)
        return 2
    signed = ", ".join(report.signed_by) or "nobody"
    print(f"good    {report.ceremony} on {report.token}, ended {report.ended}, signed by {signed}")
    print(f"digest  {report.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
