"""Which of five things a PKCS#11 error means, and the product's own error for it.

record    this blob does not open: quarantine the row (only after the sentinel opened)
session   handles or login were lost: reset, find the objects again, try once more
device    the token fails: 503 until it answers again
operator  a person must act; a login is never retried
bug       the call is forbidden: a defect, never retried
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

import pkcs11

from hsmkme.errors import OperatorFault, PinRefused, TokenError, TokenMisuse, TokenUnavailable
from hsmkme.hsm.cryptoki import (
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_PINS_REFUSED,
    CKR_SESSION_HANDLE_INVALID,
    CryptokiError,
)


class Fault(StrEnum):
    """The five kinds."""

    RECORD = "record"
    SESSION = "session"
    DEVICE = "device"
    OPERATOR = "operator"
    BUG = "bug"


_BY_CLASS: Final[dict[type[Exception], Fault]] = {
    **dict.fromkeys(
        (
            # The first two are what SoftHSM 2.6 says of an altered blob, and of a dying device alike.
            pkcs11.GeneralError,
            pkcs11.FunctionFailed,
            pkcs11.EncryptedDataInvalid,
            pkcs11.EncryptedDataLenRange,
            pkcs11.WrappedKeyInvalid,
            pkcs11.WrappedKeyLenRange,
        ),
        Fault.RECORD,
    ),
    **dict.fromkeys(
        (
            pkcs11.SessionHandleInvalid,
            pkcs11.SessionClosed,
            pkcs11.OperationActive,
            pkcs11.OperationNotInitialized,
            pkcs11.UserNotLoggedIn,
            pkcs11.ObjectHandleInvalid,
            pkcs11.KeyHandleInvalid,
            pkcs11.WrappingKeyHandleInvalid,
            pkcs11.UnwrappingKeyHandleInvalid,
        ),
        Fault.SESSION,
    ),
    **dict.fromkeys(
        (
            pkcs11.DeviceError,
            pkcs11.DeviceMemory,
            pkcs11.DeviceRemoved,
            pkcs11.HostMemory,
            pkcs11.SessionCount,
            pkcs11.TokenNotPresent,
            pkcs11.TokenNotRecognised,
            pkcs11.SlotIDInvalid,
            pkcs11.NoSuchToken,
            pkcs11.FunctionCancelled,
        ),
        Fault.DEVICE,
    ),
    **dict.fromkeys(
        (
            pkcs11.PinExpired,
            pkcs11.PinIncorrect,
            pkcs11.PinInvalid,
            pkcs11.PinLenRange,
            pkcs11.PinLocked,
            pkcs11.UserPinNotInitialized,
            pkcs11.NoSuchKey,
            pkcs11.MultipleObjectsReturned,
            pkcs11.MultipleTokensReturned,
        ),
        Fault.OPERATOR,
    ),
}

_HANDLES_LOST: Final = (CKR_OBJECT_HANDLE_INVALID, CKR_SESSION_HANDLE_INVALID, CKR_CRYPTOKI_NOT_INITIALIZED)

_PIN_REFUSED: Final = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)

# The binding has no class for CKR_CRYPTOKI_NOT_INITIALIZED, only these words.
_FINALISED: Final = "Initialisation error (not initialized)"


def fault_of(error: Exception) -> Fault:
    """The kind of a binding error; what is not known is a bug."""
    if isinstance(error, CryptokiError):
        if error.code in CKR_PINS_REFUSED:
            return Fault.OPERATOR
        return Fault.SESSION if error.code in _HANDLES_LOST else Fault.BUG
    if str(error).startswith(_FINALISED):
        return Fault.SESSION
    return _BY_CLASS.get(type(error), Fault.BUG)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise errors of the binding as the product's own, saying what was being done.

    For code that neither retries nor distinguishes records: start-up and ceremonies.
    """
    try:
        yield
    except (pkcs11.PKCS11Error, CryptokiError) as error:
        raise outward(error, doing) from error


def outward(error: Exception, doing: str) -> TokenError:
    """The product's error for ``error``; crypto errors carry the kind of the fault and nothing else."""
    name = type(error).__name__
    match fault_of(error):
        case Fault.OPERATOR:
            refused = isinstance(error, (CryptokiError, *_PIN_REFUSED))  # the only faults of an operator that it has
            kind = PinRefused if refused else OperatorFault
            return kind(f"{doing}: the token answers {name}; an operator must act")
        case Fault.BUG:
            detail = f" ({error})" if str(error) else ""
            return TokenMisuse(f"{doing}: the token forbids it: {name}{detail}")
        case _:
            return TokenUnavailable(f"{doing}: the token fails: {name}")
