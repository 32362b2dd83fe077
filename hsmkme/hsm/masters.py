"""What makes and destroys master keys: read-write sessions under a login, for officers and upkeep only.

The service never imports this module (a test watches). Every verb can be done again: a process that is killed in one
leaves what the next run takes up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism

from hsmkme.errors import OperatorFault
from hsmkme.hsm import sealing, templates
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.faults import fault_of
from hsmkme.hsm.objects import check_value, find_object, master_label
from hsmkme.hsm.running import Runner
from hsmkme.hsm.session import Lane

_MADE: Final = {**templates.MASTER, **templates.MADE_HERE}


def generate_master(session: Any, epoch: int, template: templates.Template = templates.MASTER) -> Any:
    """A new token object: the master key of ``epoch``. Whoever makes it reads it back."""
    return session.generate_key(
        KeyType.AES,
        256,
        label=master_label(epoch),
        id=master_label(epoch).encode(),
        store=True,
        capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
        template=template,
    )


class MasterKeys:
    """The master keys of the token that ``runner`` has logged in to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def make(self, epoch: int) -> str:
        """Generate the master key of ``epoch``, which no store knows yet; returns its check value.

        One that a killed process made is taken, if it is as it should be; what is half made is destroyed.
        """

        def make(lane: Lane) -> str:
            with _writable(lane) as session:
                for found in _masters(session, epoch):
                    with suppress(OperatorFault):
                        self._require_fit(found)
                if not _masters(session, epoch):
                    self._require_fit(generate_master(session, epoch))
                return check_value(session, find_object(session, master_label(epoch), ObjectClass.SECRET_KEY))

        return self._runner.run(f"making {master_label(epoch)}", make)

    def witness(self, epoch: int) -> bytes:
        """A wrapped key that nothing but the master key of ``epoch`` unwraps, 40 bytes."""

        def wrap(lane: Lane) -> bytes:
            master = find_object(lane.session, master_label(epoch), ObjectClass.SECRET_KEY)
            key = lane.session.generate_key(
                KeyType.AES, sealing.BLOCK_KEY_BITS, capabilities=MechanismFlag.ENCRYPT, template=templates.SEALING_KEY
            )
            try:
                return bytes(master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP))
            finally:
                key.destroy()

        return self._runner.run("making a witness", wrap)

    def destroy(self, epoch: int) -> int:
        """Destroy the master key of ``epoch``, for ever; returns how many objects there were, none if it was gone."""

        def destroy(lane: Lane) -> int:
            with _writable(lane) as session:
                found = _masters(session, epoch)
                for master in found:
                    master.destroy()
                return len(found)

        return self._runner.run(f"destroying {master_label(epoch)}", destroy)

    def prove_destroyed(self, epoch: int, witness: bytes) -> int:
        """Show that nothing in the token is the master key of ``epoch``, or another copy of it.

        No session finds it, neither an old one nor a new one, and ``witness`` is unwrapped by none of the other master
        keys; returns how many those are. Raises `OperatorFault` if the key is there still.
        """

        def prove(lane: Lane) -> int:
            with _writable(lane) as fresh:
                for session in (fresh, lane.session):
                    session.generate_random(8)  # a lost session says so here, and finds nothing
                    if _masters(session, epoch):
                        raise OperatorFault(f"{master_label(epoch)} is in the token still: it was not destroyed")
                others = [key for key in _masters(fresh) if _unwraps(key, witness)]
                if others:
                    raise OperatorFault(
                        f"{others[0].label} unwraps what {master_label(epoch)} wrapped: it is a copy of that key. Find "
                        "out who made it before you destroy it."
                    )
                return len(_masters(fresh))

        return self._runner.run(f"looking for {master_label(epoch)}", prove)

    def _require_fit(self, master: Any) -> None:
        """Destroy a key that is not as it should be, before anything is put under it."""
        try:
            templates.verify_object(master.label, master, _MADE, self._runner.cryptoki)
        except OperatorFault:
            master.destroy()
            raise


@contextmanager
def _writable(lane: Lane) -> Iterator[Any]:
    """A read-write session beside a lane, whose login holds for it too."""
    session = lane.session.token.open(rw=True, attribute_mapper=templates.mapper())
    try:
        yield session
    finally:
        session.close()


def _masters(session: Any, epoch: int | None = None) -> list[Any]:
    """The master keys that a session sees: of one epoch, or all."""
    kind = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
    if epoch is not None:
        return list(session.get_objects({**kind, Attribute.LABEL: master_label(epoch)}))
    return [found for found in session.get_objects(kind) if found.label.startswith("master/")]


def _unwraps(master: Any, witness: bytes) -> bool:
    try:
        master.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            witness,
            mechanism=Mechanism.AES_KEY_WRAP,
            capabilities=MechanismFlag.DECRYPT,
            template=templates.OPENING_KEY,
        ).destroy()
    except pkcs11.PKCS11Error as error:
        if fault_of(error) is not Fault.RECORD:
            raise
        return False
    return True
