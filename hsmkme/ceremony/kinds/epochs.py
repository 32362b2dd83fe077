"""Steps that change the epochs of a KME, in its token and its store together."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hsmkme.ceremony.step import Role, Room, Step
from hsmkme.hsm.officer import Evidence

Epoch = Annotated[int, Field(ge=1, lt=10**9)]


class Rotate(Step):
    """The next epoch is opened: what is deposited from then on goes under its master key, which the token makes."""

    roles: ClassVar[tuple[Role, ...]] = ("operator",)
    says: ClassVar[str] = "rotate to master/{epoch}"

    do: Literal["rotate"]
    epoch: Annotated[int, Field(ge=2, lt=10**9)]

    def after(self, present: frozenset[str]) -> frozenset[str]:
        """See `Step`. It is not among what is made: one that an interrupted rotation made is taken, not destroyed."""
        return present | {f"master/{self.epoch}"}

    def active_before(self) -> int:
        """See `Step`."""
        return self.epoch - 1

    def act(self, room: Room) -> Evidence:
        """Nothing if it is the active one already."""
        return room.epochs.rotate(self.epoch, "ceremony")


class DestroyEpoch(Step):
    """An epoch that is not the active one ends: its blocks move, its master key is destroyed, and that is proved."""

    roles: ClassVar[tuple[Role, ...]] = ("security-officer", "operator")
    says: ClassVar[str] = "destroy master/{epoch} for ever"

    do: Literal["destroy-epoch"]
    epoch: Epoch

    def needs(self) -> list[str]:
        """See `Step`."""
        return [f"master/{self.epoch}"]

    def after(self, present: frozenset[str]) -> frozenset[str]:
        """See `Step`."""
        return present - {f"master/{self.epoch}"}

    def active_before(self) -> int:
        """See `Step`."""
        return self.epoch + 1

    def act(self, room: Room) -> Evidence:
        """Both officers agree first, each with their PIN."""
        officer, operator = self.by
        room.people.confirm(operator, self.phrase(room.label))
        room.people.secret(officer, "the SO PIN", lambda pin: room.backups.prove_pin("security-officer", pin))
        return room.epochs.end(self.epoch)
