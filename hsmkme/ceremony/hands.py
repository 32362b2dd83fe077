"""The hands of a ceremony: the real ones, and those of a dry run, which change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hsmkme.ceremony.step import Role
from hsmkme.errors import OperatorFault
from hsmkme.hsm import initialising
from hsmkme.hsm.components import joined
from hsmkme.hsm.officer import Evidence, Officer, expected
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.model import KeyMaterial

Login = Callable[[], Officer]
"""Asks the operator for the PIN and logs in."""

UNKNOWN: Final = "0000000000"
"""Stands in a dry run for a check value that nobody knows yet."""


class TokenHands:
    """Hands on the token at ``address``. They log in when they must and log out when others need the token.

    ``again``: an earlier run was interrupted, and may have left the token half initialised or a PIN changed.
    """

    def __init__(self, address: TokenAddress, login: Login, *, again: bool) -> None:
        self._address = address
        self._login = login
        self._again = again
        self._officer: Officer | None = None

    @property
    def officer(self) -> Officer:
        """The login."""
        if self._officer is None:
            self._officer = self._login()
        return self._officer

    def close(self) -> None:
        """Log out."""
        if self._officer is not None:
            self._officer.close()
            self._officer = None

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:
        """See `Hands`."""
        begun = self._again and initialising.token_state(self._address) != "absent"
        act = initialising.finish_initialising if begun else initialising.initialise_token
        return {"label": self._address.label, "serial": act(self._address, so_pin, user_pin)}

    def make(self, label: str) -> Evidence:
        """See `Hands`."""
        if label.startswith("master/"):
            return self.officer.make_master(_epoch(label))
        made = {
            "digest": self.officer.make_digest_key,
            "audit": self.officer.make_audit_key,
            "anchor": self.officer.make_anchor,
        }
        return made[label]()

    def bring(self, label: str, components: Sequence[KeyMaterial]) -> Evidence:
        """See `Hands`."""
        kind, _, name = label.partition("/")
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
        if role not in ("security-officer", "operator"):
            raise OperatorFault(f"the token has no PIN of a {role}")
        self.close()
        if not (self._again and initialising.is_pin(self._address, role, new)):
            initialising.change_pin(self._address, role, old, new)

    def erase(self, so_pin: str) -> None:
        """See `Hands`."""
        self.close()
        initialising.erase_token(self._address, so_pin)

    def describe(self) -> Evidence:
        """See `Hands`."""
        return initialising.describe_token(self._address)


class DryHands:
    """Hands that only say what would be reported. ``present`` is what the token holds, ``token`` what it is."""

    def __init__(self, token: Evidence, present: frozenset[str]) -> None:
        self._token = token
        self._present = set(present)

    def initialise(self, so_pin: str, user_pin: str) -> Evidence:  # noqa: ARG002
        """See `Hands`."""
        return {"label": self._token["label"]}

    def make(self, label: str) -> Evidence:
        """See `Hands`."""
        self._present.add(label)
        return {**expected(label), **({"check_value": UNKNOWN} if label.startswith("master/") else {})}

    def bring(self, label: str, components: Sequence[KeyMaterial]) -> Evidence:  # noqa: ARG002
        """See `Hands`."""
        self._present.add(label)
        return {**expected(label), "check_value": UNKNOWN}

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


def _epoch(label: str) -> int:
    return int(label.partition("/")[2])
