"""What officers do to a token as a whole: initialise it, change its PINs, erase it. For ceremonies only.

Every PIN is at hand before the first call that changes the token, so that nobody who is still being asked
for one leaves a token half made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pkcs11
from pkcs11 import TokenFlag

from hsmkme.errors import OperatorFault
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.faults import translated
from hsmkme.hsm.module import digest_of, load_module
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import find_token, login_turn

Whose = Literal["security-officer", "operator"]
"""Whose PIN: that of the PKCS#11 security officer, or of the PKCS#11 user."""


def initialise_token(address: TokenAddress, so_pin: str, user_pin: str) -> str:
    """Initialise a free slot as the token ``address.label`` and set both PINs; returns the serial number.

    Refuses if a token of that label exists: initialising erases.
    """
    with _module_of(address, "initialising the token") as module:
        _initialise(module, address, _free_slot(module, address.label), so_pin)
        return _set_user_pin(module, address, so_pin, user_pin)


def finish_initialising(address: TokenAddress, so_pin: str, user_pin: str) -> str:
    """`initialise_token` for a token that a killed process left with an SO PIN and perhaps nothing else."""
    with _module_of(address, "initialising the token again") as module:
        _initialise(module, address, find_token(module, address).slot.slot_id, so_pin)
        return _set_user_pin(module, address, so_pin, user_pin)


def erase_token(address: TokenAddress, so_pin: str) -> None:
    """Erase whatever the token holds, the user PIN too. Afterwards nobody can log in as its user."""
    with _module_of(address, "erasing the token") as module:
        _initialise(module, address, find_token(module, address).slot.slot_id, so_pin)
        if TokenFlag.USER_PIN_INITIALIZED in find_token(module, address).flags:
            raise OperatorFault("the token was erased and still has a user PIN")


def token_state(address: TokenAddress) -> Literal["absent", "without user PIN", "ready"]:
    """Whether there is a token at ``address`` and whether it can be used."""
    with _module_of(address, "looking for the token", changes=False) as module:
        if address.label not in {token.label for token in module.get_tokens()}:
            return "absent"
        has_pin = TokenFlag.USER_PIN_INITIALIZED in find_token(module, address).flags
        return "ready" if has_pin else "without user PIN"


def require_free_slot(address: TokenAddress) -> None:
    """Refuse if there is a token of that label already, or no slot for a new one."""
    with _module_of(address, "looking for a free slot", changes=False) as module:
        _free_slot(module, address.label)


def require_token(address: TokenAddress) -> None:
    """Refuse unless exactly one token is the one at ``address``, its serial number too."""
    with _module_of(address, "looking for the token", changes=False) as module:
        find_token(module, address)


def describe_token(address: TokenAddress) -> dict[str, object]:
    """The token, if there is one, and its library, as they say of themselves: neither attests anything."""
    with _module_of(address, "reading the token", changes=False) as module:
        said: dict[str, object] = {
            "label": address.label,
            "library": str(address.module),
            "library_sha256": digest_of(address.module),
            "library_version": ".".join(map(str, module.library_version)),
        }
        if address.label in {token.label for token in module.get_tokens()}:
            token = find_token(module, address)
            said |= {
                "serial": token.serial.decode(),
                "manufacturer": token.manufacturer_id,
                "model": token.model,
                "firmware": ".".join(map(str, token.firmware_version)),
            }
        return said


def change_pin(address: TokenAddress, whose: Whose, old: str, new: str) -> None:
    """Change a PIN from ``old`` to ``new``, and log in with the new one."""
    name = _argument(whose)
    with _module_of(address, "changing a PIN") as module:
        token = find_token(module, address)
        session = token.open(rw=True, **{name: old})
        session.set_pin(old, new)
        session.close()
        token.open(rw=True, **{name: new}).close()


def is_pin(address: TokenAddress, whose: Whose, pin: str) -> bool:
    """Whether ``pin`` logs in. Real tokens count those that do not."""
    with _module_of(address, "trying a PIN") as module:
        try:
            find_token(module, address).open(rw=True, **{_argument(whose): pin}).close()
        except pkcs11.PinIncorrect:
            return False
        return True


def _argument(whose: Whose) -> str:
    return "so_pin" if whose == "security-officer" else "user_pin"


@contextmanager
def _module_of(address: TokenAddress, doing: str, *, changes: bool = True) -> Iterator[Any]:
    """The module, initialised, for the caller alone. After a change it is finalised: who comes next lists anew."""
    with login_turn(address), translated(doing):
        module = load_module(address)
        try:
            module.get_slots()
        except pkcs11.PKCS11Error:
            module.initialize()
        yield module
        if changes:
            module.finalize()


def _free_slot(module: Any, label: str) -> int:
    slots = {slot.slot_id: slot.get_token() for slot in module.get_slots(token_present=True)}
    if any(token.label == label for token in slots.values()):
        raise OperatorFault(f"a token labelled {label!r} exists already; initialising would erase it")
    free = [slot_id for slot_id, token in slots.items() if not token.label]
    if not free:
        raise OperatorFault("no slot holds an uninitialised token")
    return int(free[0])


def _initialise(module: Any, address: TokenAddress, slot: int, so_pin: str) -> None:
    Cryptoki(str(address.module)).init_token(slot, so_pin, address.label)
    module.reinitialize()


def _set_user_pin(module: Any, address: TokenAddress, so_pin: str, user_pin: str) -> str:
    token = find_token(module, address)
    session = token.open(rw=True, so_pin=so_pin)
    session.init_pin(user_pin)
    session.close()
    return str(token.serial.decode())
