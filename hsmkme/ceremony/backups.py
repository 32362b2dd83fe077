"""The backup of a master key: what its file says, how it is made and brought back.

The file is no secret: without the shares it opens nothing. It names its form, the mechanism and the epoch, and has the
commitments by which a wrong share is named; `Backup.evidence` is for the transcript.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkme.audit import canonical
from hsmkme.ceremony.shares import Gathering, Share, ShareSet, split
from hsmkme.errors import OperatorFault
from hsmkme.hsm.backup import BackupOfficer, WrappedMaster, back_up
from hsmkme.hsm.officer import Evidence
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource

_FORM: Final = "hsmkme-backup/1"
_MECHANISM: Final = "AES_KEY_WRAP"


@dataclass(frozen=True, slots=True)
class Backup:
    """A wrapped master key, and what is public of the shares of the key that wraps it."""

    master: WrappedMaster
    shares: ShareSet

    def text(self) -> str:
        """The content of a backup file."""
        return canonical({"form": _FORM, **self.evidence(), "wrapped": self.master.wrapped.hex()}) + "\n"

    def evidence(self) -> Evidence:
        """What a transcript says of it; `text` adds the wrapped key."""
        return {
            "mechanism": _MECHANISM,
            "epoch": self.master.epoch,
            "check_value": self.master.check_value,
            "set": self.shares.set_id.hex(),
            "threshold": self.shares.threshold,
            "commitments": [commitment.hex() for commitment in self.shares.commitments],
        }


def read_backup(path: Path) -> Backup:
    """The backup in the file at ``path``; raises `OperatorFault` if it is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if (said["form"], said["mechanism"]) != (_FORM, _MECHANISM):
            raise ValueError
        master = WrappedMaster(int(said["epoch"]), str(said["check_value"]), bytes.fromhex(said["wrapped"]))
        commitments = tuple(bytes.fromhex(commitment) for commitment in said["commitments"])
        return Backup(master, ShareSet(bytes.fromhex(said["set"]), int(said["threshold"]), commitments))
    except OSError as error:
        raise OperatorFault(f"the backup file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise OperatorFault(f"{path} is no backup of this version of hsmkme") from None


def write_backup(path: Path, backup: Backup) -> None:
    """Write a backup file, whole and on disk when this returns; raises `OperatorFault` if there is a file."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(backup.text())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise OperatorFault(f"{path} exists: a backup is never overwritten, name another file") from None


@dataclass(frozen=True, slots=True)
class Asked:
    """What backup is wanted: of which epoch, how many shares, how many of them are needed."""

    epoch: int
    threshold: int
    count: int


def make_backup(
    address: TokenAddress, so_pin: PinSource, user_pin: PinSource, asked: Asked
) -> tuple[Backup, tuple[Share, ...]]:
    """Wrap a master key under a new key that exists as shares from here on; gives those to be handed out.

    Nothing durable. A ceremony that ends before every share is with its custodian is done again: each gives shares of
    another set, and those of an abandoned set restore nothing once its file is destroyed.
    """
    master, backup_key = back_up(address, so_pin, user_pin, asked.epoch)
    public, shares = split(backup_key, asked.threshold, asked.count)
    return Backup(master, public), shares


def restore_backup(address: TokenAddress, user_pin: PinSource, backup: Backup, gathering: Gathering) -> Evidence:
    """Bring the master key of ``backup`` into the token, by the shares of ``gathering``; proved by its check value.

    Refuses if the token has a key of that epoch; what does not fit is destroyed.
    """
    secret = gathering.secret()
    officer = BackupOfficer(address, user_pin)
    try:
        return {**officer.restore_master(backup.master, secret), "shares": gathering.indexes}
    finally:
        officer.close()
