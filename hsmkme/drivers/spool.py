"""A directory into which a device renames its key files.

After the deposit a file is moved to ``done/`` and emptied: its keys are in the token's care now and no plain
copy stays. A refused one is moved to ``refused/`` as it was, with the reason beside it. While the pool is full the file
stays where it is. Names that begin with a dot or end in ``.part`` are still being written; symbolic links are left
alone, because what they point at would be overwritten. The block id is the file's name without its extension.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkme.drivers.keyfile import Format, KeyFile
from hsmkme.errors import DepositRefused, PoolFull
from hsmkme.model import RawBlock

log = logging.getLogger(__name__)

_PIECE_BYTES: Final = 1 << 20

Deposit = Callable[[Sequence[RawBlock], str], object]
"""Deposits blocks for an actor: ``intake.Intake.take``."""


@dataclass(frozen=True, slots=True)
class Spool:
    """The directory of one device on ``link_id``."""

    directory: Path
    link_id: str
    key_bits: int
    block_keys: int
    format: Format = "auto"

    def prepare(self) -> None:
        """Make the directories, and empty what a crash left in ``done/`` before it was emptied."""
        for name in ("", "done", "refused"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.directory / "done").iterdir():
            if path.is_file() and path.stat().st_size:
                _empty(path)

    def waiting(self) -> Iterator[Path]:
        """Files to be taken, in the order of their names."""
        for path in sorted(self.directory.iterdir()):
            whole = not path.name.startswith(".") and path.suffix != ".part"
            if whole and path.is_file() and not path.is_symlink():
                yield path

    def sweep(self, deposit: Deposit) -> int:
        """Deposit what waits; returns the number of files taken. Stops early while the pool is full."""
        taken = 0
        try:
            for path in self.waiting():
                taken += self._settle(path, deposit)
        except PoolFull as full:
            log.warning("spool %s waits: %s", self.directory, full)
        return taken

    def _settle(self, path: Path, deposit: Deposit) -> bool:
        try:
            self._take(path, deposit)
        except PoolFull:
            raise
        except DepositRefused as refusal:
            self._refuse(path, refusal)
            return False
        except OSError as error:
            log.error("spool %s: %a cannot be read, it will be tried again: %s", self.directory, path.name, error)
            return False
        self._finish(path)
        return True

    def _take(self, path: Path, deposit: Deposit) -> None:
        with path.open("rb") as stream:
            keyfile = KeyFile(stream, self.link_id, path.stem, self.key_bits, self.block_keys, self.format)
            for blocks in keyfile.batches():
                deposit(blocks, f"spool:{self.link_id}")

    def _finish(self, path: Path) -> None:
        """Move a deposited file, then empty it: a crash before leaves it to be deposited again, as known; a
        crash between leaves it to `prepare`. Emptied first, it would be a new block of zeros."""
        target = self._free("done", path.name)
        path.rename(target)
        _empty(target)

    def _refuse(self, path: Path, refusal: DepositRefused) -> None:
        log.error("spool %s: %a refused: %s", self.directory, path.name, refusal)
        target = self._free("refused", path.name)
        target.with_name(target.name + ".reason").write_text(f"{refusal}\n", encoding="utf-8")
        path.rename(target)

    def _free(self, folder: str, name: str) -> Path:
        """A name in ``folder`` that nothing has: an earlier file of the same name is kept."""
        target, number = self.directory / folder / name, 0
        while target.exists():
            number += 1
            target = self.directory / folder / f"{name}.{number}"
        return target


def _empty(path: Path) -> None:
    """Overwrite the file with zeros, on disk, and cut it to nothing."""
    with path.open("r+b") as stream:
        left = path.stat().st_size
        while left > 0:
            left -= stream.write(bytes(min(left, _PIECE_BYTES)))
        stream.flush()
        os.fsync(stream.fileno())
        stream.truncate(0)
