"""A master key that has a backup: it can be wrapped, only under a key that the security officer marked as trusted.

Nobody with the user PIN can make a trusted key, so the service can export the master key as little as before; nobody
with the SO PIN alone can use the master key. Both together wrap it, once, under a backup key whose value exists
afterwards only as shares. Like ``officer``, which this extends, it is for ceremonies alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsmkme.errors import OperatorFault
from hsmkme.hsm import templates
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.faults import translated
from hsmkme.hsm.module import load_module
from hsmkme.hsm.objects import check_value, find_object, master_label
from hsmkme.hsm.officer import Evidence, Officer
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource, find_token, initialise_again, login_turn
from hsmkme.model import KeyMaterial

BACKUP_KEY_BYTES: Final = 32
_MASTER_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class WrappedMaster:
    """The master key of ``epoch`` under a backup key (AES-KW, RFC 3394, 40 bytes), and its check value."""

    epoch: int
    check_value: str
    wrapped: bytes


class BackupOfficer(Officer):
    """An `Officer` who makes master keys that have a backup, and brings them back."""

    def make_backed_master(self, epoch: int) -> Evidence:
        """Generate the master key of ``epoch`` so that `back_up` can wrap it."""
        return self._generate_master(epoch, templates.BACKED_MASTER, templates.MADE_TO_LEAVE)

    def restore_master(self, master: WrappedMaster, backup_key: KeyMaterial) -> Evidence:
        """Bring a master key back that `back_up` wrapped under ``backup_key``, and prove it by its check value.

        It is unwrapped in this process, which has the backup key and so the master key in any case: what SoftHSM
        unwraps stays modifiable, or can be copied, and a copy would outlive the destruction of the epoch.
        Raises `OperatorFault` if the key does not fit; then the token has no more objects than before.
        """
        label, value = master_label(master.epoch), _unwrapped(master, backup_key)
        identity = {Attribute.LABEL: label, Attribute.ID: label.encode(), Attribute.VALUE: value}
        kind = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
        with translated(f"restoring {label}"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, label)
            key = lane.session.create_object({**kind, **templates.BACKED_MASTER, **identity})
            evidence = self._verified(label, [key], templates.BACKED_MASTER, templates.BROUGHT_HERE)
            found = check_value(lane.session, key)
            if found != master.check_value:
                key.destroy()
                raise OperatorFault(f"{label} has check value {found}, the backup says {master.check_value}")
            return {**evidence, "check_value": found}


def back_up(
    address: TokenAddress, so_pin: PinSource, user_pin: PinSource, epoch: int
) -> tuple[WrappedMaster, KeyMaterial]:
    """Wrap the master key of ``epoch`` under a new backup key; gives both, the backup key to be split at once.

    The key's 32 bytes are drawn in the token, which is told them by the security officer as a trusted session object
    and forgets them before this returns; nothing durable changes. Other logins of this process end: log in again.
    """
    with login_turn(address), translated(f"backing up {master_label(epoch)}"):
        module = load_module(address)
        initialise_again(module, address.module)
        token = find_token(module, address)
        session = token.open(rw=True, attribute_mapper=templates.mapper())
        try:
            value = _drawn(session)
            with _login(token, so_pin=so_pin()):
                backup_key = session.create_object(
                    {Attribute.CLASS: ObjectClass.SECRET_KEY, **templates.BACKUP_KEY, Attribute.VALUE: value.reveal()}
                )
            with _login(token, user_pin=user_pin()):
                cryptoki = Cryptoki(str(address.module))
                templates.verify_object("backup key", backup_key, templates.BACKUP_KEY, cryptoki)
                _refuse_other_trusted_keys(session)
                return _wrapped(session, cryptoki, backup_key, epoch), value
        finally:
            session.close()  # the backup key goes with it


def _drawn(session: Any) -> KeyMaterial:
    value = bytes(session.generate_random(BACKUP_KEY_BYTES * 8))
    if len(value) != BACKUP_KEY_BYTES or not any(value):
        raise OperatorFault("the token's random generator does not work: do not use this token")
    return KeyMaterial(value)


@contextmanager
def _login(token: Any, **pin: str) -> Iterator[None]:
    """A login holds for all sessions of the process until the session that made it is closed."""
    session = token.open(rw=True, **pin)
    try:
        yield
    finally:
        session.close()


def _refuse_other_trusted_keys(session: Any) -> None:
    """A trusted key of known value would let who has the user PIN export the master key, today or later."""
    if len(list(session.get_objects({Attribute.TRUSTED: True, Attribute.WRAP: True}))) != 1:
        raise OperatorFault(
            "the token has another key that is marked as trusted and may wrap: whoever knows it can export master keys."
            " Find out who made it, and make the master key anew on another token"
        )


def _wrapped(session: Any, cryptoki: Cryptoki, backup_key: Any, epoch: int) -> WrappedMaster:
    label = master_label(epoch)
    master = find_object(session, label, ObjectClass.SECRET_KEY)
    if not master[Attribute.WRAP_WITH_TRUSTED]:
        raise OperatorFault(f"{label} was made without a backup and can never have one: rotate to a new epoch with one")
    templates.verify_object(label, master, templates.BACKED_MASTER, cryptoki)
    wrapped = bytes(backup_key.wrap_key(master, mechanism=Mechanism.AES_KEY_WRAP))
    return WrappedMaster(epoch, check_value(session, master), wrapped)


def _unwrapped(master: WrappedMaster, backup_key: KeyMaterial) -> bytes:
    try:
        value = aes_key_unwrap(backup_key.reveal(), master.wrapped)
    except InvalidUnwrap:
        value = b""
    if len(value) != _MASTER_BYTES:
        raise OperatorFault("the shares do not open this backup: the backup file is another one, or was altered")
    return value
