"""Every answer a PKCS#11 call may give (CKR_*, PKCS#11 v3.2), and which of five things it means.

record    this blob may be to blame: the row, if the token opens a sealed answer that is known, else the device
session   handles or login were lost: open again, find the objects again, try once more
device    the token fails or is too busy: 503 until it answers again
operator  a person must act; a login is never tried again
bug       the call should never have been made: a defect, never tried again
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """The five kinds."""

    RECORD = "record"
    SESSION = "session"
    DEVICE = "device"
    OPERATOR = "operator"
    BUG = "bug"


OK: Final = 0x000
VENDOR_DEFINED: Final = 0x8000_0000
"""From here on vendors number their own answers. Nobody can say what one means: the device fails."""

ANSWERS: Final[dict[Fault, dict[str, int]]] = {
    Fault.RECORD: {
        # The first two are what SoftHSM 2.6 says of an altered blob, and of a dying device alike.
        "GENERAL_ERROR": 0x005, "FUNCTION_FAILED": 0x006,
        "ENCRYPTED_DATA_INVALID": 0x040, "ENCRYPTED_DATA_LEN_RANGE": 0x041, "AEAD_DECRYPT_FAILED": 0x042,
        "WRAPPED_KEY_INVALID": 0x110, "WRAPPED_KEY_LEN_RANGE": 0x112,
    },
    Fault.SESSION: {
        "KEY_HANDLE_INVALID": 0x060, "KEY_CHANGED": 0x065, "OBJECT_HANDLE_INVALID": 0x082,
        "OPERATION_ACTIVE": 0x090, "OPERATION_NOT_INITIALIZED": 0x091,
        "SESSION_CLOSED": 0x0B0, "SESSION_HANDLE_INVALID": 0x0B3,
        "UNWRAPPING_KEY_HANDLE_INVALID": 0x0F0, "WRAPPING_KEY_HANDLE_INVALID": 0x113,
        "USER_NOT_LOGGED_IN": 0x101, "USER_ALREADY_LOGGED_IN": 0x100, "CRYPTOKI_NOT_INITIALIZED": 0x190,
        "OPERATION_CANCEL_FAILED": 0x202,
    },
    Fault.DEVICE: {
        "CANCEL": 0x001, "HOST_MEMORY": 0x002, "SLOT_ID_INVALID": 0x003,
        "DEVICE_ERROR": 0x030, "DEVICE_MEMORY": 0x031, "DEVICE_REMOVED": 0x032, "FUNCTION_CANCELED": 0x050,
        "SESSION_COUNT": 0x0B1, "TOKEN_NOT_PRESENT": 0x0E0, "TOKEN_NOT_RECOGNIZED": 0x0E1,
        "RANDOM_NO_RNG": 0x121, "MUTEX_BAD": 0x1A0, "MUTEX_NOT_LOCKED": 0x1A1,
        "FIPS_SELF_TEST_FAILED": 0x1B6, "LIBRARY_LOAD_FAILED": 0x1B7, "FUNCTION_REJECTED": 0x200,
        "TOKEN_RESOURCE_EXCEEDED": 0x201, "PENDING": 0x204, "SEED_RANDOM_REQUIRED": 0x206,
        "VENDOR_DEFINED": VENDOR_DEFINED,
    },
    Fault.OPERATOR: {
        "PIN_INCORRECT": 0x0A0, "PIN_INVALID": 0x0A1, "PIN_LEN_RANGE": 0x0A2, "PIN_EXPIRED": 0x0A3,
        "PIN_LOCKED": 0x0A4, "PIN_TOO_WEAK": 0x1B8, "USER_PIN_NOT_INITIALIZED": 0x102,
        "TOKEN_WRITE_PROTECTED": 0x0E2, "TOKEN_NOT_INITIALIZED": 0x208, "KEY_EXHAUSTED": 0x203, "NEW_PIN_MODE": 0x1B0,
        "NEXT_OTP": 0x1B1,
    },
    Fault.BUG: {
        "ARGUMENTS_BAD": 0x007, "NO_EVENT": 0x008, "NEED_TO_CREATE_THREADS": 0x009, "CANT_LOCK": 0x00A,
        "ATTRIBUTE_READ_ONLY": 0x010, "ATTRIBUTE_SENSITIVE": 0x011, "ATTRIBUTE_TYPE_INVALID": 0x012,
        "ATTRIBUTE_VALUE_INVALID": 0x013, "ACTION_PROHIBITED": 0x01B, "DATA_INVALID": 0x020, "DATA_LEN_RANGE": 0x021,
        "FUNCTION_NOT_PARALLEL": 0x051, "FUNCTION_NOT_SUPPORTED": 0x054, "KEY_SIZE_RANGE": 0x062,
        "KEY_TYPE_INCONSISTENT": 0x063, "KEY_NOT_NEEDED": 0x064, "KEY_NEEDED": 0x066, "KEY_INDIGESTIBLE": 0x067,
        "KEY_FUNCTION_NOT_PERMITTED": 0x068, "KEY_NOT_WRAPPABLE": 0x069, "KEY_UNEXTRACTABLE": 0x06A,
        "MECHANISM_INVALID": 0x070, "MECHANISM_PARAM_INVALID": 0x071,
        "SESSION_PARALLEL_NOT_SUPPORTED": 0x0B4, "SESSION_READ_ONLY": 0x0B5, "SESSION_EXISTS": 0x0B6,
        "SESSION_READ_ONLY_EXISTS": 0x0B7, "SESSION_READ_WRITE_SO_EXISTS": 0x0B8, "SESSION_ASYNC_NOT_SUPPORTED": 0x205,
        "SIGNATURE_INVALID": 0x0C0, "SIGNATURE_LEN_RANGE": 0x0C1,
        "TEMPLATE_INCOMPLETE": 0x0D0, "TEMPLATE_INCONSISTENT": 0x0D1,
        "UNWRAPPING_KEY_SIZE_RANGE": 0x0F1, "UNWRAPPING_KEY_TYPE_INCONSISTENT": 0x0F2,
        "USER_TYPE_INVALID": 0x103, "USER_ANOTHER_ALREADY_LOGGED_IN": 0x104,
        "USER_TOO_MANY_TYPES": 0x105, "WRAPPING_KEY_SIZE_RANGE": 0x114, "WRAPPING_KEY_TYPE_INCONSISTENT": 0x115,
        "RANDOM_SEED_NOT_SUPPORTED": 0x120, "DOMAIN_PARAMS_INVALID": 0x130, "CURVE_NOT_SUPPORTED": 0x140,
        "BUFFER_TOO_SMALL": 0x150, "SAVED_STATE_INVALID": 0x160, "INFORMATION_SENSITIVE": 0x170,
        "STATE_UNSAVEABLE": 0x180, "CRYPTOKI_ALREADY_INITIALIZED": 0x191,
        "EXCEEDED_MAX_ITERATIONS": 0x1B5, "PUBLIC_KEY_INVALID": 0x1B9, "OPERATION_NOT_VALIDATED": 0x207,
        "PARAMETER_SET_NOT_SUPPORTED": 0x209,
    },
}  # fmt: skip

CODES: Final = {name: code for named in ANSWERS.values() for name, code in named.items()}
_FAULTS: Final = {code: fault for fault, named in ANSWERS.items() for code in named.values()}


def fault_of_code(code: int) -> Fault:
    """The kind of an answer other than `OK`; one that no version of the standard knows is a bug."""
    return _FAULTS.get(code, Fault.DEVICE if code >= VENDOR_DEFINED else Fault.BUG)


def name_of_code(code: int) -> str:
    """``CKR_…``, or the number of an answer that has no name here."""
    return next((f"CKR_{name}" for name, known in CODES.items() if known == code), f"0x{code:x}")
