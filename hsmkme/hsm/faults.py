"""From an error of the binding to what it means, and to the product's own error for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pkcs11

from hsmkme.errors import OperatorFault, PinRefused, TokenError, TokenMisuse, TokenUnavailable
from hsmkme.hsm.answers import CODES, Fault, fault_of_code
from hsmkme.hsm.cryptoki import CryptokiError

# What the binding finds wrong by itself.
_OF_THE_BINDING: Final[dict[type[Exception], Fault]] = {
    pkcs11.NoSuchToken: Fault.DEVICE,
    pkcs11.NoSuchKey: Fault.OPERATOR,
    pkcs11.MultipleObjectsReturned: Fault.OPERATOR,
    pkcs11.MultipleTokensReturned: Fault.OPERATOR,
}

# The binding names its classes after the answers, but for these.
_OTHERWISE_NAMED: Final = {
    "tokennotrecognised": "TOKEN_NOT_RECOGNIZED",
    "functioncancelled": "FUNCTION_CANCELED",
    "anotheruseralreadyloggedin": "USER_ANOTHER_ALREADY_LOGGED_IN",
}
_NAMED: Final = {name.replace("_", "").lower(): code for name, code in CODES.items()} | {
    ours: CODES[name] for ours, name in _OTHERWISE_NAMED.items()
}

# Answers for which it has no class, only words.
_WORDS: Final = {
    "Initialisation error (not initialized)": CODES["CRYPTOKI_NOT_INITIALIZED"],
    "Initialisation error (already initialized)": CODES["CRYPTOKI_ALREADY_INITIALIZED"],
    "Buffer was too small": CODES["BUFFER_TOO_SMALL"],
    "Parallel not supported": CODES["SESSION_PARALLEL_NOT_SUPPORTED"],
    "User type invalid": CODES["USER_TYPE_INVALID"],
}
_PINS_REFUSED: Final = tuple(CODES[f"PIN_{why}"] for why in ("INCORRECT", "INVALID", "LEN_RANGE", "TOO_WEAK"))
_UNMAPPED: Final = re.compile(r"Unmapped error code (0x[0-9a-f]+)")


def code_of(error: Exception) -> int | None:
    """The answer of the token (CKR_*) that ``error`` stands for; None if the binding found it by itself."""
    if isinstance(error, CryptokiError):
        return error.code
    if type(error) is not pkcs11.PKCS11Error:
        return _NAMED.get(type(error).__name__.lower())
    unmapped = _UNMAPPED.match(str(error))
    if unmapped is not None:
        return int(unmapped[1], 16)
    return next((code for words, code in _WORDS.items() if str(error).startswith(words)), None)


def fault_of(error: Exception) -> Fault:
    """The kind of an error of the binding; what is not known is a bug."""
    code = code_of(error)
    return _OF_THE_BINDING.get(type(error), Fault.BUG) if code is None else fault_of_code(code)


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
            kind = PinRefused if code_of(error) in _PINS_REFUSED else OperatorFault
            return kind(f"{doing}: the token answers {name}; an operator must act")
        case Fault.BUG:
            detail = f" ({error})" if str(error) else ""
            return TokenMisuse(f"{doing}: the token forbids it: {name}{detail}")
        case _:
            return TokenUnavailable(f"{doing}: the token fails: {name}")
