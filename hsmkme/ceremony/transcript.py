"""The record of a ceremony: one JSON line for each step, chained by hash, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from hsmkme.audit import canonical, timestamp
from hsmkme.errors import OperatorFault
from hsmkme.model import Clock


class Transcript:
    """Writes to a new file at ``path``; every line is on disk before the next step begins."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._previous = bytes(32)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise OperatorFault(f"{path} exists: a transcript is never overwritten, name another file") from None

    def record(self, step: str, evidence: Mapping[str, object]) -> None:
        """Write what a step found or made."""
        text = canonical({"at": timestamp(self._clock()), "step": step, "evidence": dict(evidence)})
        self._previous = hashlib.sha256(b"hsmkme/transcript/1" + self._previous + text.encode()).digest()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"line": text, "hash": self._previous.hex()}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def digest(self) -> str:
        """Hash of the last line, hex: it stands for the whole transcript."""
        return self._previous.hex()
