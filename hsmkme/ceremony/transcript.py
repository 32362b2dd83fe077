"""The record of a ceremony: one JSON line for each thing that happened, chained by hash, never overwritten.

A line is ``{"line": TEXT, "hash": HEX}``; the text is canonical JSON ``{n, at, what, facts}`` and the hash
SHA-256("hsmkme/transcript/2" ‖ hash of the line before ‖ text). Every line is on disk before the next thing happens.
`verifying` reads it and shares no code with this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsmkme.audit import canonical, timestamp
from hsmkme.ceremony import verifying
from hsmkme.errors import OperatorFault
from hsmkme.model import Clock

Line = dict[str, Any]
"""What a line says: n, at, what, facts."""


class Told:
    """What the transcript at ``path`` says so far; raises `OperatorFault` if a line does not follow from the last."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._hashes = [bytes(32)]
        self.lines: list[Line] = []
        try:
            for digest, line in verifying.chained(text.splitlines()):
                self._hashes.append(digest)
                self.lines.append(line)
        except verifying.BrokenError as error:
            raise OperatorFault(f"{path} is no transcript that can be gone on with: {error}") from error

    def told(self, what: str) -> list[Line]:
        """The lines of one kind."""
        return [line for line in self.lines if line["what"] == what]

    @property
    def digest(self) -> bytes | None:
        """Hash of the line that ends the ceremony, 32 bytes: it stands for the whole. None if it did not end."""
        ends = self.told("end")
        return self._hashes[ends[0]["n"]] if ends else None

    @property
    def done(self) -> int:
        """How many steps were done."""
        return len(self.told("done"))

    @property
    def begun(self) -> int | None:
        """The number of the step that was begun and not done."""
        steps = self.told("step")
        return steps[-1]["facts"]["number"] if steps and steps[-1]["facts"]["number"] > self.done else None


def _whole_lines(path: Path) -> str:
    """A last line that is not whole was being written when the ceremony was killed: it never happened."""
    try:
        content = path.read_bytes() if path.exists() else b""
        return content[: content.rfind(b"\n") + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorFault(f"the transcript {path} cannot be read: {error}") from error


def read(path: Path) -> Told:
    """The transcript at ``path`` as far as it goes; an empty one if there is none."""
    return Told(path, _whole_lines(path))


class Transcript(Told):
    """Writes to the file at ``path``. One that is there is gone on with."""

    def __init__(self, path: Path, clock: Clock) -> None:
        text = _whole_lines(path)
        super().__init__(path, text)
        self._clock = clock
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            os.truncate(descriptor, len(text.encode()))
            os.close(descriptor)
        except OSError as error:
            raise OperatorFault(f"the transcript {path} cannot be written: {error.strerror}") from error

    def record(self, what: str, facts: Mapping[str, object]) -> None:
        """Write what happened."""
        line = {"n": len(self.lines) + 1, "at": timestamp(self._clock()), "what": what, "facts": dict(facts)}
        text = canonical(line)
        digest = hashlib.sha256(b"hsmkme/transcript/2" + self._hashes[-1] + text.encode()).digest()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"line": text, "hash": digest.hex()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._hashes.append(digest)
        self.lines.append(json.loads(text))
