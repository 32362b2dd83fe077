"""Changing a PIN."""

from __future__ import annotations

from typing import ClassVar, Literal

from hsmkme.ceremony.step import Role, Room, Step
from hsmkme.hsm.officer import Evidence


class ChangePin(Step):
    """The operator or the security officer chooses another PIN; the old one is worth nothing afterwards."""

    logs_in: ClassVar[bool] = False
    says: ClassVar[str] = "change the {whose} PIN of {token}"

    do: Literal["change-pin"]
    whose: Literal["security-officer", "operator"]

    @property
    def due(self) -> tuple[Role, ...]:
        """Whose PIN it is."""
        return (self.whose,)

    def act(self, room: Room) -> Evidence:
        """The new PIN is chosen before the token is touched. If it is the PIN already, that is said and good."""
        (person,), people = self.by, room.people
        new = people.new_pin(person, "the new PIN")
        people.secret(person, "the old PIN", lambda old: room.hands.change_pin(self.whose, old, new))
        return {"changed": self.whose}
