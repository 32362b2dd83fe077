"""Where probes work: a session that is logged in, keys of which no trace stays, and how a refusal is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from hsmkme.errors import OperatorFault
from hsmkme.hsm import templates
from hsmkme.hsm.answers import Fault, fault_of_code, name_of_code
from hsmkme.hsm.cryptoki import Cryptoki, CryptokiError
from hsmkme.hsm.faults import code_of

SESSION_ONLY: Final[templates.Template] = {Attribute.TOKEN: False}
KNOWN: Final = bytes(range(32))
DATA: Final = b"hsmkme/check"
NONCE: Final = bytes(11) + b"\x01"
ERRORS: Final = (pkcs11.PKCS11Error, CryptokiError)


class Unfit(Exception):
    """The token does something, and not what is needed."""


class Bench:
    """A session that is logged in, and the keys that the probes work with."""

    def __init__(self, session: Any, cryptoki: Cryptoki) -> None:
        self.session = session
        self.cryptoki = cryptoki

    def known_key(self, kind: KeyType, *capabilities: Attribute) -> Any:
        """A key whose value is known here too."""
        template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: kind, Attribute.VALUE: KNOWN}
        return self.session.create_object({**template, **SESSION_ONLY, **dict.fromkeys(capabilities, True)})

    def master(self) -> Any:
        """A key made like a master key, but for being no token object."""
        flags = MechanismFlag.WRAP | MechanismFlag.UNWRAP
        template = {**templates.MASTER, **SESSION_ONLY}
        return self.session.generate_key(KeyType.AES, 256, capabilities=flags, template=template)

    def sealing_key(self) -> Any:
        """A block key as it is while a block is sealed."""
        flags, template = MechanismFlag.ENCRYPT, templates.SEALING_KEY
        return self.session.generate_key(KeyType.AES, 256, capabilities=flags, template=template)

    def unwrapped(self, master: Any, wrapped: bytes, **changes: Any) -> Any:
        """A block key as it is while keys of the block are opened."""
        changed = {Attribute[name]: value for name, value in changes.items()}
        kind = (ObjectClass.SECRET_KEY, KeyType.AES)
        flags, template = MechanismFlag.DECRYPT, {**templates.OPENING_KEY, **changed}
        return master.unwrap_key(
            *kind, wrapped, mechanism=Mechanism.AES_KEY_WRAP, capabilities=flags, template=template
        )


def wrapped_key(bench: Bench, master: Any) -> bytes:
    """A new block key under ``master``."""
    return bytes(master.wrap_key(bench.sealing_key(), mechanism=Mechanism.AES_KEY_WRAP))


def refused(act: Callable[[], object], kind: Fault | None = None) -> str:
    """The answer with which the token refuses ``act``; it must be of the kind, if one is named."""
    try:
        act()
    except AttributeError:
        return "no such call"  # the binding gives objects no method for what they cannot do
    except ERRORS as error:
        code = code_of(error)
        if kind is not None and (code is None or fault_of_code(code) is not kind):
            meant = "nothing" if code is None else fault_of_code(code)
            raise Unfit(f"{name_of(error)}, which means {meant} and not {kind}") from error
        return name_of(error)
    raise Unfit("it does")


def name_of(error: Exception) -> str:
    """The answer (CKR_…) that an error stands for."""
    code = code_of(error)
    return type(error).__name__ if code is None else name_of_code(code)


def same(found: object, due: object, what: str) -> None:
    """Raises `Unfit` unless ``found`` is what is ``due``."""
    if found != due:
        raise Unfit(f"{what} is not what it must be")


def read_back(bench: Bench, key: Any, template: templates.Template) -> str:
    """How many attributes of a key are what they must be; raises `Unfit` naming those that are not."""
    try:
        templates.verify_object("key", key, template, bench.cryptoki)
    except OperatorFault as fault:
        raise Unfit(str(fault).partition(": ")[2].partition(". ")[0]) from fault
    return f"{len(template)} attributes read back"
