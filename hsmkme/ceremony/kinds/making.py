"""Steps that make something: a token, keys generated inside it, keys brought to it in components."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hsmkme.ceremony.step import Role, Room, Step
from hsmkme.errors import CeremonyAborted
from hsmkme.hsm.officer import Evidence
from hsmkme.values import Name


class Initialise(Step):
    """A new token: a free slot gets the label, the SO PIN and the user PIN, each chosen by its officer."""

    roles: ClassVar[tuple[Role, ...]] = ("security-officer", "operator")
    logs_in: ClassVar[bool] = False
    empties: ClassVar[bool] = True
    says: ClassVar[str] = "initialise {token}"

    do: Literal["initialise"]

    def act(self, room: Room) -> Evidence:
        """Both PINs are chosen before the token is touched."""
        officer, operator = self.by
        so_pin = room.people.new_pin(officer, "new SO PIN")
        user_pin = room.people.new_pin(operator, "new user PIN")
        return room.hands.initialise(so_pin, user_pin)


class Make(Step):
    """A key generated inside the token, or the anchor in which it remembers the store."""

    roles: ClassVar[tuple[Role, ...]] = ("operator",)
    says: ClassVar[str] = "make {object}"

    do: Literal["make"]
    object: Annotated[str, Field(pattern=r"^(master/[1-9][0-9]{0,8}|digest|audit|anchor)$")]
    backup: bool = False

    def makes(self) -> list[str]:
        """See `Step`."""
        return [self.object]

    def act(self, room: Room) -> Evidence:
        """Generated, read back, compared with its template. One that shall have a backup is made for that."""
        return room.hands.make(self.object, backed=self.backup)


class Bring(Step):
    """The key of a link, of a device or of all tokens of a KME, joined of components; its check value is compared with
    the other end's."""

    says: ClassVar[str] = "bring {object}"

    do: Literal["bring"]
    object: Annotated[str, Field(pattern=r"^((link|transport)/[A-Za-z0-9._-]{1,64}|digest|bridge)$")]
    other_end: Name

    @property
    def due(self) -> tuple[Role, ...]:
        """At least two, so that nobody knows the key."""
        custodian: Role = "custodian"
        return (custodian,) * max(len(self.by), 2)

    def makes(self) -> list[str]:
        """See `Step`."""
        return [self.object]

    def act(self, room: Room) -> Evidence:
        """Each custodian enters one component, nobody looking. A key that the other end does not have is destroyed."""
        parts = []
        for custodian in self.by:
            parts.append(room.people.component(custodian, self.object))
            room.people.clear()
        evidence = room.hands.bring(self.object, parts)
        try:
            room.people.compare(self.by[0], self.object, str(evidence["check_value"]), self.other_end)
        except (CeremonyAborted, KeyboardInterrupt):
            room.hands.destroy(self.object)
            raise
        return {**evidence, "other_end": self.other_end, "components": len(parts)}
