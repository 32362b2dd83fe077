"""Cryptoki's own calls, through the module's function list, where the binding lacks one or spends several on it.

``C_Initialize`` with ``CKF_OS_LOCKING_OK``, ``C_InitToken``, ``C_GetAttributeValue`` of an attribute that is
itself a template (the binding would hand the module uninitialised pointers), and what `hsm/block_keys.py` does.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final

CKR_OK: Final = 0
CKR_ENCRYPTED_DATA_LEN_RANGE: Final = 0x41
CKR_FUNCTION_NOT_SUPPORTED: Final = 0x54
CKR_CRYPTOKI_NOT_INITIALIZED: Final = 0x190
CKR_CRYPTOKI_ALREADY_INITIALIZED: Final = 0x191
CKF_OS_LOCKING_OK: Final = 0x2

_WORD: Final = ctypes.sizeof(ctypes.c_void_p)

WORD: Final = ctypes.c_ulong
POINTER: Final = ctypes.c_void_p
"""Also of bytes, which a call is handed where they are; they must outlive it."""


class Function(Enum):
    """Position in CK_FUNCTION_LIST (PKCS#11 v2.40 §5), which begins with a two-byte version, padded; arguments."""

    C_Initialize = 0, POINTER
    C_Finalize = 1, POINTER
    C_InitToken = 9, WORD, POINTER, WORD, POINTER
    C_DestroyObject = 22, WORD, WORD
    C_GetAttributeValue = 24, WORD, WORD, POINTER, WORD
    C_EncryptInit = 29, WORD, POINTER, WORD
    C_Encrypt = 30, WORD, POINTER, WORD, POINTER, POINTER
    C_DecryptInit = 33, WORD, POINTER, WORD
    C_Decrypt = 34, WORD, POINTER, WORD, POINTER, POINTER
    C_GenerateKey = 58, WORD, POINTER, POINTER, WORD, POINTER
    C_WrapKey = 60, WORD, POINTER, WORD, WORD, POINTER, POINTER
    C_UnwrapKey = 61, WORD, POINTER, WORD, POINTER, WORD, POINTER, WORD, POINTER


class CkAttribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = [("type", WORD), ("value", POINTER), ("length", WORD)]


class CkMechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = [("type", WORD), ("parameter", POINTER), ("length", WORD)]


class CkGcmParams(ctypes.Structure):
    """CK_GCM_PARAMS; lengths of nonce, additional data (bytes) and tag (bits)."""

    _fields_ = [
        ("nonce", POINTER),
        ("nonce_bytes", WORD),
        ("nonce_bits", WORD),
        ("bound", POINTER),
        ("bound_bytes", WORD),
        ("tag_bits", WORD),
    ]


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
        functions = POINTER()
        code = self._library.C_GetFunctionList(ctypes.byref(functions))
        if code != CKR_OK or functions.value is None:
            raise CryptokiError("C_GetFunctionList", code)
        self._table = functions.value
        self._bound: dict[Function, Callable[..., int]] = {}

    def function(self, function: Function) -> Callable[..., int]:
        """``function`` as this module has it; it raises `CryptokiError` for any answer but CKR_OK."""
        if function not in self._bound:
            self._bound[function] = self._bind(function)
        return self._bound[function]

    def _bind(self, function: Function) -> Callable[..., int]:
        position, *arguments = function.value
        address = POINTER.from_address(self._table + _WORD * (1 + position)).value
        if address is None:
            raise CryptokiError(function.name, CKR_FUNCTION_NOT_SUPPORTED)
        called = ctypes.CFUNCTYPE(WORD, *arguments)(address)

        def check(code: int, *_: Any) -> int:
            if code:
                raise CryptokiError(function.name, code)
            return code

        called.errcheck = check  # type: ignore[assignment]
        return called

    def initialize_for_threads(self) -> None:
        """``C_Initialize`` saying that several threads will call and the module must lock."""
        arguments = _InitializeArgs()
        arguments.flags = CKF_OS_LOCKING_OK
        with _already(CKR_CRYPTOKI_ALREADY_INITIALIZED):
            self.function(Function.C_Initialize)(ctypes.byref(arguments))

    def finalize(self) -> None:
        """``C_Finalize``: closes every session of the process."""
        with _already(CKR_CRYPTOKI_NOT_INITIALIZED):
            self.function(Function.C_Finalize)(None)

    def init_token(self, slot: int, so_pin: str, label: str) -> None:
        """``C_InitToken``: erase what the slot holds and set the SO PIN; ``label`` ≤ 32 bytes of UTF-8."""
        pin, padded = so_pin.encode(), label.encode().ljust(32)
        if len(padded) > 32:
            raise ValueError(f"a token label has at most 32 bytes: {label!r}")
        self.function(Function.C_InitToken)(slot, pin, len(pin), padded)

    def nested_template(self, session: int, handle: int, attribute: int) -> dict[int, bytes]:
        """The attributes inside a template-valued attribute, by type, as raw bytes.

        Three calls: how many there are, how long each is, their values.
        """
        read = self.function(Function.C_GetAttributeValue)
        outer = CkAttribute(attribute, None, 0)
        read(session, handle, ctypes.byref(outer), 1)
        inner = (CkAttribute * (outer.length // ctypes.sizeof(CkAttribute)))()
        outer.value = ctypes.addressof(inner)
        read(session, handle, ctypes.byref(outer), 1)
        buffers = [ctypes.create_string_buffer(entry.length) for entry in inner]
        for entry, buffer in zip(inner, buffers, strict=True):
            entry.value = ctypes.addressof(buffer)
        read(session, handle, ctypes.byref(outer), 1)
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


@contextmanager
def _already(code: int) -> Iterator[None]:
    """What was to be done was done already if the answer is ``code``."""
    try:
        yield
    except CryptokiError as error:
        if error.code != code:
            raise
