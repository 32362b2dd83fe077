"""The Cryptoki calls that the binding lacks, through the module's own function list.

``C_Initialize`` with ``CKF_OS_LOCKING_OK``, ``C_InitToken``, and ``C_GetAttributeValue`` of an attribute
that is itself a template (the binding would hand the module uninitialised pointers).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

CKR_OK: Final = 0
CKR_FUNCTION_NOT_SUPPORTED: Final = 0x54
CKR_OBJECT_HANDLE_INVALID: Final = 0x82
CKR_PINS_REFUSED: Final = (0xA0, 0xA1, 0xA2)
"""CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE."""
CKR_SESSION_HANDLE_INVALID: Final = 0xB3
CKR_CRYPTOKI_NOT_INITIALIZED: Final = 0x190
CKR_CRYPTOKI_ALREADY_INITIALIZED: Final = 0x191
CKF_OS_LOCKING_OK: Final = 0x2

# Positions in CK_FUNCTION_LIST (PKCS#11 v2.40 §5), which begins with a two-byte version, padded.
_INITIALIZE: Final = 0
_FINALIZE: Final = 1
_INIT_TOKEN: Final = 9
_GET_ATTRIBUTE_VALUE: Final = 24

_WORD: Final = ctypes.sizeof(ctypes.c_void_p)


class _Attribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = [("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong)]


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS with no callbacks of ours."""

    _fields_ = [
        ("callbacks", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    ]


class CryptokiError(Exception):
    """A return value other than CKR_OK; ``code`` is the CKR number."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned 0x{code:x}")
        self.code = code


class Cryptoki:
    """The function list of the module at ``path``; the dynamic loader gives the binding's own instance."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        functions = ctypes.c_void_p()
        _check("C_GetFunctionList", self._library.C_GetFunctionList(ctypes.byref(functions)))
        if functions.value is None:
            raise CryptokiError("C_GetFunctionList", CKR_OK)
        self._table = functions.value

    def _function(self, position: int, *arguments: Any) -> Any:
        address = ctypes.c_void_p.from_address(self._table + _WORD * (1 + position)).value
        if address is None:
            raise CryptokiError(f"function {position} of the list", CKR_FUNCTION_NOT_SUPPORTED)
        return ctypes.CFUNCTYPE(ctypes.c_ulong, *arguments)(address)

    def initialize_for_threads(self) -> None:
        """``C_Initialize`` saying that several threads will call and the module must lock."""
        arguments = _InitializeArgs()
        arguments.flags = CKF_OS_LOCKING_OK
        code = self._function(_INITIALIZE, ctypes.c_void_p)(ctypes.byref(arguments))
        if code != CKR_CRYPTOKI_ALREADY_INITIALIZED:
            _check("C_Initialize", code)

    def finalize(self) -> None:
        """``C_Finalize``: closes every session of the process."""
        code = self._function(_FINALIZE, ctypes.c_void_p)(None)
        if code != CKR_CRYPTOKI_NOT_INITIALIZED:
            _check("C_Finalize", code)

    def init_token(self, slot: int, so_pin: str, label: str) -> None:
        """``C_InitToken``: erase what the slot holds and set the SO PIN; ``label`` ≤ 32 bytes of UTF-8."""
        pin, padded = so_pin.encode(), label.encode().ljust(32)
        if len(padded) > 32:
            raise ValueError(f"a token label has at most 32 bytes: {label!r}")
        call = self._function(_INIT_TOKEN, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        _check("C_InitToken", call(slot, pin, len(pin), padded))

    def nested_template(self, session: int, handle: int, attribute: int) -> dict[int, bytes]:
        """The attributes inside a template-valued attribute, by type, as raw bytes.

        Three calls: how many there are, how long each is, their values.
        """
        call = self._function(
            _GET_ATTRIBUTE_VALUE, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong
        )
        outer = _Attribute(attribute, None, 0)
        _check("C_GetAttributeValue", call(session, handle, ctypes.byref(outer), 1))
        inner = (_Attribute * (outer.length // ctypes.sizeof(_Attribute)))()
        outer.value = ctypes.addressof(inner)
        _check("C_GetAttributeValue", call(session, handle, ctypes.byref(outer), 1))
        buffers = [ctypes.create_string_buffer(entry.length) for entry in inner]
        for entry, buffer in zip(inner, buffers, strict=True):
            entry.value = ctypes.addressof(buffer)
        _check("C_GetAttributeValue", call(session, handle, ctypes.byref(outer), 1))
        return {entry.type: buffer.raw for entry, buffer in zip(inner, buffers, strict=True)}


class PackedTemplate:
    """A CK_ATTRIBUTE array as bytes; keeps the buffers it points to alive as long as itself."""

    def __init__(self, attributes: dict[int, bytes]) -> None:
        self._buffers = {kind: ctypes.create_string_buffer(raw, len(raw)) for kind, raw in attributes.items()}

    def __bytes__(self) -> bytes:
        return b"".join(
            struct.pack("@LPL", kind, ctypes.addressof(buffer), len(buffer))
            for kind, buffer in self._buffers.items()
        )


def _check(call: str, code: int) -> None:
    if code != CKR_OK:
        raise CryptokiError(call, code)
