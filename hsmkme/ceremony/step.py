"""What every step of a ceremony is: who acts, what must be on the token before, what is there afterwards.

The kinds are in `kinds`; each is one class that a plan writes down as a ``[[step]]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from hsmkme.ceremony.people import People
from hsmkme.config import Name
from hsmkme.hsm.officer import Evidence
from hsmkme.model import KeyMaterial

Role = Literal["security-officer", "operator", "custodian", "witness"]
"""security-officer and operator have the PINs of the PKCS#11 security officer and user."""


class Table(BaseModel):
    """A table of the plan: an unknown key is refused, and a number in quotes too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hands(Protocol):
    """What a ceremony does to the token. Everything made is read back before it is reported."""

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:
        """Initialise the token and set both PINs; one that an interrupted ceremony began is initialised again."""

    def make(self, label: str) -> Evidence:
        """Generate an object inside the token."""

    def bring(self, label: str, components: Sequence[KeyMaterial]) -> Evidence:
        """Create an object of components that were carried here."""

    def destroy(self, label: str) -> Evidence:
        """Destroy every object of this label."""

    def labels(self) -> list[str]:
        """Every object on the token."""

    def change_pin(self, role: Role, old: str, new: str) -> None:
        """Change the PIN of the security officer or of the operator."""

    def erase(self, so_pin: str) -> None:
        """Erase the whole token, its user PIN too."""

    def describe(self) -> Evidence:
        """Which token this is."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where a step is done: the people, the hands, and the label of the token."""

    people: People
    hands: Hands
    label: str


class Step(Table):
    """A step. ``by`` are the people who act, the first of them confirms it; ``expect`` is of what it must report."""

    roles: ClassVar[tuple[Role, ...]]
    """Who must act, in the order of ``by``."""
    says: ClassVar[str]
    """What the first person types to confirm it: names of keys and of the ``token`` stand in braces."""
    logs_in: ClassVar[bool] = True
    """Whether it needs the operator's login."""
    empties: ClassVar[bool] = False
    """Whether nothing that was on the token is there afterwards."""

    do: str
    by: Annotated[list[Name], Field(min_length=1)]
    expect: Mapping[str, Any] = {}

    @property
    def due(self) -> tuple[Role, ...]:
        """The roles of those who act."""
        return self.roles

    def phrase(self, label: str) -> str:
        """What the first person types to confirm that it is done to the token ``label``."""
        return self.says.format(token=label, **self.model_dump())

    def makes(self) -> list[str]:
        """Labels of objects that it makes, absent before."""
        return []

    def needs(self) -> list[str]:
        """Labels of objects that must be there before."""
        return []

    def after(self, present: frozenset[str]) -> frozenset[str]:
        """What is on the token afterwards if ``present`` was before."""
        return (frozenset() if self.empties else present) | frozenset(self.makes())

    def act(self, room: Room) -> Evidence:
        """Do it."""
        raise NotImplementedError
