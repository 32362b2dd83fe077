"""Backups of master keys: shares to custodians, one at a time, and back again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from hsmkme.ceremony.backups import Asked, read_backup
from hsmkme.ceremony.envelopes import seal
from hsmkme.ceremony.shares import MOST_SHARES, Share, read_share
from hsmkme.ceremony.sheets import Receiver, sheet
from hsmkme.ceremony.step import Role, Room, Step
from hsmkme.errors import CeremonyAborted, OperatorFault, ShareRefused
from hsmkme.hsm.officer import Evidence
from hsmkme.values import FilePath

Master = Annotated[str, Field(pattern=r"^master/[1-9][0-9]{0,8}$")]
_COLUMNS = 6


class Backup(Step):
    """A backup of a master key that was made for one: any ``threshold`` of the custodians restore it together.

    ``file`` is no secret. With ``sheets`` each share is written there to be printed, and removed when it was.
    """

    says: ClassVar[str] = "back up {object}"

    do: Literal["backup"]
    object: Master
    threshold: Annotated[int, Field(ge=2, le=MOST_SHARES)]
    file: FilePath
    sheets: FilePath | None = None

    @property
    def due(self) -> tuple[Role, ...]:
        """Both officers, and at least as many custodians as are needed."""
        custodian: Role = "custodian"
        return ("security-officer", "operator", *(custodian,) * max(len(self.by) - 2, self.threshold))

    def needs(self) -> list[str]:
        """See `Step`."""
        return [self.object]

    def writes(self) -> list[Path]:
        """See `Step`. A sheet or an envelope for each custodian too: a killed ceremony may leave one."""
        kinds = ("envelope", "html") if self.sheets else ("envelope",)
        return [self.file, *(self._beside(custodian, kind) for custodian in self.by[2:] for kind in kinds)]

    def rehearsed_in(self, directory: Path) -> Self:
        """See `Step`."""
        return self.model_copy(update={"file": directory / self.file.name, "sheets": self.sheets and directory})

    def act(self, room: Room) -> Evidence:
        """Both PINs first. The file is written last: shares of a backup that has none are worth nothing."""
        officer, operator, *custodians = self.by
        so_pin = room.people.secret(officer, "the SO PIN", lambda pin: room.backups.prove_pin("security-officer", pin))
        user_pin = room.people.secret(operator, "the user PIN", lambda pin: room.backups.prove_pin("operator", pin))
        asked = Asked(int(self.object.partition("/")[2]), self.threshold, len(custodians))
        backup, shares = room.backups.back_up(asked, so_pin, user_pin)
        for custodian, share in zip(custodians, shares, strict=True):
            if custodian in room.absent:
                self._send(room, custodian, share)
            else:
                self._hand_over(room, custodian, share)
        room.backups.keep(self.file, backup)
        return {"label": self.object, **backup.evidence(), "custodians": custodians, "file": self.file.name}

    def _hand_over(self, room: Room, custodian: str, share: Share) -> None:
        """Shown to one custodian, written or printed, typed back from paper; nothing of it stays on the screen."""
        people, words = room.people, share.words()
        people.confirm(custodian, f"{custodian} alone sees the screen")
        rows = (words[start : start + _COLUMNS] for start in range(0, len(words), _COLUMNS))
        people.say("\n".join("  ".join(f"{word:<14}" for word in row) for row in rows))
        if self.sheets is None:
            people.confirm(custodian, f"share {share.index} is written down")
        else:
            self._print(room, custodian, share)
        people.clear()
        people.secret(custodian, "your share from paper", _same_as(share), shown=" ".join(words))
        people.clear()

    def _print(self, room: Room, custodian: str, share: Share) -> None:
        receiver = Receiver(custodian, f"{self.object} of {room.label}", len(self.by) - 2)
        path = self._beside(custodian, "html")
        room.backups.issue(path, sheet(share, receiver))
        try:
            room.people.say(f"The sheet is {path}: print it now, where nobody else reads along.")
            room.people.confirm(custodian, f"share {share.index} is printed")
        finally:
            path.unlink(missing_ok=True)

    def _send(self, room: Room, custodian: str, share: Share) -> None:
        """An envelope that only the custodian opens; it may be sent by any way."""
        path = self._beside(custodian, "envelope")
        room.backups.issue(path, seal(share, room.absent[custodian].read_bytes()))
        room.people.say(f"The envelope for {custodian} is {path}")

    def _beside(self, custodian: str, kind: str) -> Path:
        return (self.sheets or self.file.parent) / f"{self.file.stem}-{custodian}.{kind}"


def _same_as(share: Share) -> Callable[[str], None]:
    def require(text: str) -> None:
        if read_share(text).encoded() != share.encoded():
            raise ShareRefused("that is another share than was shown")

    return require


class Restore(Step):
    """A master key comes back from its backup, by the shares of as many custodians as it needs, in any order."""

    says: ClassVar[str] = "restore {object}"

    do: Literal["restore"]
    object: Master
    file: FilePath

    @property
    def due(self) -> tuple[Role, ...]:
        """The operator, and custodians."""
        custodian: Role = "custodian"
        return ("operator", *(custodian,) * max(len(self.by) - 1, 2))

    def makes(self) -> list[str]:
        """See `Step`."""
        return [self.object]

    def reads(self) -> list[Path]:
        """See `Step`."""
        return [self.file]

    def rehearsed_in(self, directory: Path) -> Self:
        """See `Step`. The backup there is of a key that is worth nothing: real shares never come to a rehearsal."""
        return self.model_copy(update={"file": directory / self.file.name})

    def act(self, room: Room) -> Evidence:
        """Each custodian enters a share, nobody looking. The key is in the token, as it was, or nothing is."""
        backup = read_backup(self.file)
        if self.object != f"master/{backup.master.epoch}":
            raise OperatorFault(f"{self.file} is a backup of master/{backup.master.epoch}")
        gathering = room.backups.gathering(backup)
        for custodian in self.by[1:]:
            if gathering.missing:
                room.people.secret(custodian, "your share", gathering.take)
                room.people.clear()
        if gathering.missing:
            raise CeremonyAborted(f"{gathering.missing} shares are missing: name more custodians in the plan")
        return room.backups.restore(backup, gathering)
