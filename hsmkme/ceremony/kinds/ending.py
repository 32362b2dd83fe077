"""The end of a token."""

from __future__ import annotations

from typing import ClassVar, Literal

from hsmkme.ceremony.step import Role, Room, Step
from hsmkme.errors import OperatorFault
from hsmkme.hsm.officer import Evidence


class Decommission(Step):
    """Destroy every object of the token one by one, then erase it; what was sealed under it opens nowhere again."""

    roles: ClassVar[tuple[Role, ...]] = ("security-officer", "operator")
    empties: ClassVar[bool] = True
    says: ClassVar[str] = "destroy everything on {token}"

    do: Literal["decommission"]

    def act(self, room: Room) -> Evidence:
        """Both officers agree first, each with their PIN. Destroyed one by one, seen empty, erased: no way back."""
        officer, operator = self.by
        room.people.confirm(operator, self.phrase(room.label))
        so_pin = room.people.secret(
            officer, "the SO PIN", lambda pin: room.backups.prove_pin("security-officer", pin)
        )
        destroyed = [room.hands.destroy(label) for label in room.hands.labels()]
        left = room.hands.labels()
        if left:
            raise OperatorFault(f"the token still holds {', '.join(left)}")
        room.hands.erase(so_pin)
        return {"destroyed": destroyed, "left": left, "erased": True}
