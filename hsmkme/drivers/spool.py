"""A directory into which a device renames its key files.

After the deposit a file is moved to ``done/`` and emptied: its keys are in the token's care now and no plain
copy stays. A refused one is moved to ``refused/`` as it was, with the reason beside it. While the pool is full the file
stays where it is. Names that begin with a dot or end in ``.part`` are still being written.
The block id is the file's name without its extension.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hsmkme.drivers.keyfile import Format, KeyFile
from hsmkme.errors import DepositRefused, PoolFull
from hsmkme.model import RawBlock

log = logging.getLogger(__name__)

Deposit = Callable[[RawBlock, str], object]
"""Deposits one block for an actor: ``intake.Intake.take``."""


@dataclass(frozen=True, slots=True)
class Spool:
    """The directory of one device on ``link_id``."""

    directory: Path
    link_id: str
    key_bits: int
    block_keys: int
    format: Format = "auto"

    def prepare(self) -> None:
        """Make the directories."""
        for name in ("", "done", "refused"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def waiting(self) -> Iterator[Path]:
        """Files to be taken, in the order of their names."""
        for path in sorted(self.directory.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".part":
                yield path

    def sweep(self, deposit: Deposit) -> int:
        """Deposit what waits; returns the number of files taken. Stops early while the pool is full."""
        taken = 0
        for path in self.waiting():
            try:
                self._take(path, deposit)
            except PoolFull as full:
                log.warning("spool %s waits: %s", self.directory, full)
                break
            except DepositRefused as refusal:
                self._refuse(path, refusal)
            else:
                self._finish(path)
                taken += 1
        return taken

    def _take(self, path: Path, deposit: Deposit) -> None:
        with path.open("rb") as stream:
            keyfile = KeyFile(stream, self.link_id, path.stem, self.key_bits, self.block_keys, self.format)
            for block in keyfile.blocks():
                deposit(block, f"spool:{self.link_id}")

    def _finish(self, path: Path) -> None:
        """Overwrite, empty and move a deposited file; interrupted, it is deposited again as known."""
        target = self._free("done", path.name)
        path.rename(target)
        with target.open("r+b") as stream:
            stream.write(bytes(target.stat().st_size))
            stream.flush()
            os.fsync(stream.fileno())
            stream.truncate(0)

    def _refuse(self, path: Path, refusal: DepositRefused) -> None:
        log.error("spool %s: %s refused: %s", self.directory, path.name, refusal)
        target = self._free("refused", path.name)
        target.with_name(target.name + ".reason").write_text(f"{refusal}\n")
        path.rename(target)

    def _free(self, folder: str, name: str) -> Path:
        """A name in ``folder`` that nothing has: an earlier file of the same name is kept."""
        target, number = self.directory / folder / name, 0
        while target.exists():
            number += 1
            target = self.directory / folder / f"{name}.{number}"
        return target
