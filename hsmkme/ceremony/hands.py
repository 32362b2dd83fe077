"""The hands of a ceremony: the real ones, and those of a dry run, which change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from hsmkme.ceremony.backups import Asked, Backup, make_backup, restore_backup, write_backup
from hsmkme.ceremony.shares import Gathering, Share, ShareSet, split
from hsmkme.ceremony.sheets import write_private
from hsmkme.ceremony.step import Role
from hsmkme.errors import OperatorFault, PinRefused
from hsmkme.hsm import initialising
from hsmkme.hsm.backup import BackupOfficer, WrappedMaster
from hsmkme.hsm.components import joined
from hsmkme.hsm.officer import Evidence, expected
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource
from hsmkme.model import KeyMaterial

Result = TypeVar("Result")


class Login(Protocol):
    """Asks the operator for the PIN and does something with it; again, if the token does not take it."""

    def __call__(self, use: Callable[[PinSource], Result]) -> Result:
        """What ``use`` gives."""


UNKNOWN: Final = "0000000000"
"""Stands in a dry run for a check value that nobody knows yet."""


class TokenHands:
    """Hands on the token at ``address``. They log in when they must and log out when others need the token.

    ``again``: the first step to do was begun before, and may have left the token half initialised or a PIN changed.
    """

    def __init__(self, address: TokenAddress, login: Login, *, again: bool) -> None:
        self._address = address
        self._login = login
        self._again = again
        self._officer: BackupOfficer | None = None

    @property
    def officer(self) -> BackupOfficer:
        """The login."""
        if self._officer is None:
            self._officer = self._login(lambda pin: BackupOfficer(self._address, pin))
        return self._officer

    def close(self) -> None:
        """Log out."""
        if self._officer is not None:
            self._officer.close()
            self._officer = None

    def logged_out(self, use: Callable[[PinSource], Result]) -> Result:
        """Log out, and let the operator log in for something else."""
        self.close()
        return self._login(use)

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:
        """See `Hands`."""
        state, act = initialising.token_state(self._address), initialising.initialise_token
        if self._again and state != "absent":
            if state == "ready":
                self._require_empty(user_pin)
            act = initialising.finish_initialising
        return {"label": self._address.label, "serial": act(self._address, so_pin, user_pin)}

    def _require_empty(self, user_pin: str) -> None:
        """A token that an interrupted step finished has its PINs and nothing else; any other is not to be erased."""
        officer = BackupOfficer(self._address, lambda: user_pin)
        held = officer.labels()
        officer.close()
        if held:
            found = ", ".join(held)
            raise OperatorFault(f"the token holds {found}: it is not the one that this ceremony began to make")

    def make(self, label: str, *, backed: bool) -> Evidence:
        """See `Hands`."""
        if label.startswith("master/"):
            make = self.officer.make_backed_master if backed else self.officer.make_master
            return make(_epoch(label))
        made = {
            "digest": self.officer.make_digest_key,
            "audit": self.officer.make_audit_key,
            "anchor": self.officer.make_anchor,
        }
        return made[label]()

    def bring(self, label: str, components: Sequence[KeyMaterial]) -> Evidence:
        """See `Hands`."""
        kind, _, name = label.partition("/")
        if not name:
            return self.officer.make_shared_key(label, joined(components))
        bring = self.officer.make_link_key if kind == "link" else self.officer.make_transport_key
        return bring(name, joined(components))

    def destroy(self, label: str) -> Evidence:
        """See `Hands`."""
        return self.officer.destroy(label)

    def labels(self) -> list[str]:
        """See `Hands`. A token without a user holds nothing that anybody could reach."""
        if self._officer is None and initialising.token_state(self._address) == "without user PIN":
            return []
        return self.officer.labels()

    def change_pin(self, role: Role, old: str, new: str) -> None:
        """See `Hands`."""
        self.close()
        if not (self._again and initialising.is_pin(self._address, _holder(role), new)):
            initialising.change_pin(self._address, _holder(role), old, new)

    def erase(self, so_pin: str) -> None:
        """See `Hands`."""
        self.close()
        initialising.erase_token(self._address, so_pin)

    def describe(self) -> Evidence:
        """See `Hands`."""
        return initialising.describe_token(self._address)

    def prove_pin(self, role: Role, pin: str) -> str:
        """See `Backups`."""
        self.close()
        if not initialising.is_pin(self._address, _holder(role), pin):
            raise PinRefused(f"that is not the PIN of the {role}")
        return pin

    def back_up(self, asked: Asked, so_pin: str, user_pin: str) -> tuple[Backup, tuple[Share, ...]]:
        """See `Backups`."""
        self.close()
        return make_backup(self._address, lambda: so_pin, lambda: user_pin, asked)

    def issue(self, path: Path, text: str) -> None:
        """See `Backups`."""
        write_private(path, text)

    def keep(self, path: Path, backup: Backup) -> None:
        """See `Backups`."""
        write_backup(path, backup)

    def gathering(self, backup: Backup) -> Gathering:
        """See `Backups`."""
        return Gathering(backup.shares)

    def restore(self, backup: Backup, gathering: Gathering) -> Evidence:
        """See `Backups`."""
        return self.logged_out(lambda pin: restore_backup(self._address, pin, backup, gathering))


class DryHands:
    """Hands that only say what would be reported. ``present`` is what the token holds, ``token`` what it is."""

    def __init__(self, token: Evidence, present: frozenset[str]) -> None:
        self._token = token
        self._present = set(present)

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:  # noqa: ARG002
        """See `Hands`."""
        return {"label": self._token["label"]}

    def make(self, label: str, *, backed: bool) -> Evidence:
        """See `Hands`."""
        self._present.add(label)
        value = {"check_value": UNKNOWN} if label.startswith("master/") else {}
        return {**expected(label, "backed" if backed else ""), **value}

    def bring(self, label: str, components: Sequence[KeyMaterial]) -> Evidence:  # noqa: ARG002
        """See `Hands`."""
        self._present.add(label)
        return {**expected(label, "link" if label == "digest" else ""), "check_value": UNKNOWN}

    def destroy(self, label: str) -> Evidence:
        """See `Hands`."""
        self._present.discard(label)
        return {"label": label, "destroyed": 1}

    def labels(self) -> list[str]:
        """See `Hands`."""
        return sorted(self._present)

    def change_pin(self, role: Role, old: str, new: str) -> None:
        """See `Hands`."""

    def erase(self, so_pin: str) -> None:
        """See `Hands`."""

    def describe(self) -> Evidence:
        """See `Hands`."""
        return self._token

    def prove_pin(self, role: Role, pin: str) -> str:  # noqa: ARG002
        """See `Backups`."""
        return pin

    def back_up(self, asked: Asked, so_pin: str, user_pin: str) -> tuple[Backup, tuple[Share, ...]]:  # noqa: ARG002
        """See `Backups`. The shares are of no key."""
        public, shares = split(KeyMaterial(bytes(32)), asked.threshold, asked.count, _no_randomness)
        return Backup(WrappedMaster(asked.epoch, UNKNOWN, bytes(40)), public), shares

    def issue(self, path: Path, text: str) -> None:
        """See `Backups`."""

    def keep(self, path: Path, backup: Backup) -> None:
        """See `Backups`."""

    def gathering(self, backup: Backup) -> Gathering:
        """See `Backups`."""
        return DryGathering(backup.shares)

    def restore(self, backup: Backup, gathering: Gathering) -> Evidence:  # noqa: ARG002
        """See `Backups`."""
        label = f"master/{backup.master.epoch}"
        self._present.add(label)
        return {**expected(label, "restored"), "check_value": backup.master.check_value}

    def rotate(self, epoch: int, because: str) -> Evidence:
        """See `Epochs`."""
        self._present.add(f"master/{epoch}")
        return {"epoch": epoch, "because": because, "check_value": UNKNOWN}

    def end(self, epoch: int) -> Evidence:
        """See `Epochs`."""
        self._present.discard(f"master/{epoch}")
        return {"epoch": epoch, "destroyed": True}


class DryGathering(Gathering):
    """Counts shares and looks at none."""

    def __init__(self, public: ShareSet) -> None:
        super().__init__(public)
        self._taken = 0

    @property
    def missing(self) -> int:
        """See `Gathering`."""
        return super().missing - self._taken

    def take(self, text: str) -> None:  # noqa: ARG002
        """See `Gathering`."""
        self._taken += 1


def _no_randomness(length: int) -> bytes:
    return bytes(range(1, length + 1))


def _holder(role: Role) -> initialising.Whose:
    if role not in ("security-officer", "operator"):
        raise OperatorFault(f"the token has no PIN of a {role}")
    return role


def _epoch(label: str) -> int:
    return int(label.partition("/")[2])
