"""Block keys in one session: made or unwrapped, checked, wrapped and destroyed with as few calls as can be.

The binding reads the attributes of every object that it gives and asks for the length of every answer before the
answer. Here a block costs four calls when it is sealed and two when it is first opened, besides those for its segments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import addressof, byref, create_string_buffer
from dataclasses import dataclass
from typing import Final

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsmkme.errors import OperatorFault
from hsmkme.hsm import sealing, templates
from hsmkme.hsm.cryptoki import WORD, CkAttribute, CkMechanism, Cryptoki, Function, PackedTemplate

_AES: Final = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
_LENGTH: Final = {Attribute.VALUE_LEN: sealing.BLOCK_KEY_BITS // 8}
_WRAPPED_ROOM: Final = 2 * sealing.WRAPPED_KEY_BYTES


@dataclass(frozen=True, slots=True)
class BlockKey:
    """A block key as an object of the session. It opens or it seals: ``begin`` and ``run`` are the calls of that."""

    session: int
    handle: int
    opens: bool
    begin: Callable[..., int]
    run: Callable[..., int]


class BlockKeys:
    """Makes the block keys of the session with the handle ``session``, which one caller at a time uses."""

    def __init__(self, cryptoki: Cryptoki, session: int) -> None:
        self._session = session
        self._call = cryptoki.function
        self._sealing = _Form(templates.SEALING_KEY, _AES | _LENGTH)
        self._opening = _Form(templates.OPENING_KEY, _AES)
        self._generation = CkMechanism(Mechanism.AES_KEY_GEN)
        self._wrapping = CkMechanism(Mechanism.AES_KEY_WRAP)

    def generate(self) -> BlockKey:
        """A new block key, which seals and leaves the token only wrapped."""
        handle, form = WORD(), self._sealing
        generate = self._call(Function.C_GenerateKey)
        generate(self._session, byref(self._generation), form.packed, form.count, byref(handle))
        self._check(handle.value, form)
        calls = map(self._call, (Function.C_EncryptInit, Function.C_Encrypt))
        return BlockKey(self._session, handle.value, False, *calls)

    def unwrap(self, wrapped_key: bytes, master: int) -> BlockKey:
        """A block key that ``master`` wrapped, which opens and leaves the token in no form."""
        handle, form = WORD(), self._opening
        unwrap, blob = self._call(Function.C_UnwrapKey), (wrapped_key, len(wrapped_key))
        unwrap(self._session, byref(self._wrapping), master, *blob, form.packed, form.count, byref(handle))
        self._check(handle.value, form)
        calls = map(self._call, (Function.C_DecryptInit, Function.C_Decrypt))
        return BlockKey(self._session, handle.value, True, *calls)

    def wrap(self, key: BlockKey, master: int) -> bytes:
        """The key as ``master`` wraps it."""
        room, length = create_string_buffer(_WRAPPED_ROOM), WORD(_WRAPPED_ROOM)
        wrap = self._call(Function.C_WrapKey)
        wrap(self._session, byref(self._wrapping), master, key.handle, room, byref(length))
        return room.raw[: length.value]

    def destroy(self, handle: int) -> None:
        """Let the token forget a key."""
        self._call(Function.C_DestroyObject)(self._session, handle)

    def _check(self, handle: int, form: _Form) -> None:
        try:
            form.check(self._call(Function.C_GetAttributeValue), self._session, handle)
        except OperatorFault:
            self.destroy(handle)
            raise


class _Form:
    """What a block key is made as: ``packed`` are ``count`` CK_ATTRIBUTE. Those of the template are read back."""

    def __init__(self, template: templates.Template, kind: templates.Template) -> None:
        known, whole = templates.mapper(), kind | template
        self._kept = PackedTemplate({int(a): known.pack_attribute(a, value) for a, value in whole.items()})
        self.packed, self.count = bytes(self._kept), len(whole)
        self._names = [attribute.name for attribute in template]
        self._expected = bytes(template.values())
        self._found = create_string_buffer(len(template))
        self._wanted = (CkAttribute * len(template))(
            *(CkAttribute(a, addressof(self._found) + place, 1) for place, a in enumerate(template))
        )

    def check(self, read: Callable[..., int], session: int, handle: int) -> None:
        """Compare a key's attributes with what they shall be; raises `OperatorFault` for one that differs."""
        ctypes.memset(self._found, 0xFF, len(self._expected))  # what is not filled in differs
        read(session, handle, self._wanted, len(self._wanted))
        if self._found.raw != self._expected:
            pairs = zip(self._names, self._found.raw, self._expected, strict=True)
            templates.refuse_differing("block key", [name for name, found, expected in pairs if found != expected])
