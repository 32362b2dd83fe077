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
        """Both officers agree first. Destroyed object by object, seen empty, erased: what was destroyed stays so."""
        officer, operator = self.by
        room.people.confirm(operator, self.phrase(room.label))
        destroyed = [room.hands.destroy(label) for label in room.hands.labels()]
        left = room.hands.labels()
        if left:
            raise OperatorFault(f"the token still holds {', '.join(left)}")
        room.people.secret(officer, "the SO PIN", room.hands.erase)
        return {"destroyed": destroyed, "left": left, "erased": True}
