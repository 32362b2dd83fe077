"""What every step of a ceremony is: who acts, what must be on the token before, what is there afterwards.

The kinds are in `kinds`; each is one class that a plan writes down as a ``[[step]]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from hsmkme.ceremony.backups import Asked, Backup
from hsmkme.ceremony.people import People
from hsmkme.ceremony.shares import Gathering, Share
from hsmkme.hsm.officer import Evidence
from hsmkme.model import KeyMaterial
from hsmkme.values import Name

Role = Literal["security-officer", "operator", "custodian", "witness"]
"""security-officer and operator have the PINs of the PKCS#11 security officer and user."""


class Table(BaseModel):
    """A table of the plan: an unknown key is refused, and a number in quotes too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hands(Protocol):
    """What a ceremony does to the token. Everything made is read back before it is reported."""

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:
        """Initialise the token and set both PINs; one that an interrupted ceremony began is initialised again."""

    def make(self, label: str, *, backed: bool) -> Evidence:
        """Generate an object inside the token; a master key that is ``backed`` can be backed up."""

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


class Backups(Protocol):
    """What a ceremony does about backups of master keys."""

    def prove_pin(self, role: Role, pin: str) -> str:
        """The PIN itself, if it is the one of this role; raises `PinRefused`."""

    def back_up(self, asked: Asked, so_pin: str, user_pin: str) -> tuple[Backup, tuple[Share, ...]]:
        """Wrap a master key under a new key that exists as shares from here on."""

    def issue(self, path: Path, text: str) -> None:
        """Write what is for one custodian alone."""

    def keep(self, path: Path, backup: Backup) -> None:
        """Write the backup file."""

    def gathering(self, backup: Backup) -> Gathering:
        """Begin to gather its shares."""

    def restore(self, backup: Backup, gathering: Gathering) -> Evidence:
        """Bring the master key back by the shares that were gathered."""


class Epochs(Protocol):
    """What a ceremony does to the epochs of a KME: to its token and its store together."""

    def rotate(self, epoch: int, because: str) -> Evidence:
        """Let ``epoch`` be the active one; nothing is done if it is."""

    def end(self, epoch: int) -> Evidence:
        """Move what is under ``epoch`` to the active one, destroy its master key, prove it."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where a step is done: the people, the hands, and the label of the token.

    ``absent``: custodians who are not there, and the public key to which their share is sealed.
    """

    people: People
    hands: Hands
    backups: Backups
    epochs: Epochs
    label: str
    absent: Mapping[str, Path] = field(default_factory=dict)


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

    def writes(self) -> list[Path]:
        """Files that it makes, absent before."""
        return []

    def reads(self) -> list[Path]:
        """Files that it needs."""
        return []

    def rehearsed_in(self, directory: Path) -> Self:  # noqa: ARG002
        """The same step with files of its own in ``directory``."""
        return self

    def active_before(self) -> int | None:
        """The epoch that is active before it, if it changes the epochs of a KME and so its store too."""
        return None

    def act(self, room: Room) -> Evidence:
        """Do it."""
        raise NotImplementedError
