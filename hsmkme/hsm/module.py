"""Loading the PKCS#11 module, and refusing one that writes down what passes through it."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path
from typing import Any, Final

import pkcs11

from hsmkme.errors import OperatorFault
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.profiles import TokenAddress

# Words that only tracing shims carry: OpenSC's pkcs11-spy, pkcs11-logger, p11-kit's call log.
_SHIM_MARKS: Final = (b"PKCS11SPY", b"PKCS11_LOGGER", b"pkcs11-spy")
_SHIM_SETTINGS: Final = ("PKCS11SPY", "PKCS11SPY_OUTPUT", "PKCS11_LOGGER_LIBRARY_PATH", "P11_KIT_DEBUG")


def load_module(address: TokenAddress) -> Any:
    """Load and initialise the module of ``address``; raises `OperatorFault` if it may not be trusted."""
    refuse_shims(address.module)
    check_digest(address.module, address.module_sha256)
    refuse_other_libraries(address.module)
    if address.softhsm_conf is not None:
        os.environ["SOFTHSM2_CONF"] = str(address.softhsm_conf)
    if address.profile.locking == "parallel":
        return _threaded_library(str(address.module))
    return pkcs11.lib(str(address.module))


def refuse_shims(module: Path) -> None:
    """Refuse a tracing shim, by its content (whatever its name) or by the settings that switch one on."""
    try:
        content = module.read_bytes()
    except OSError as error:
        raise OperatorFault(f"the PKCS#11 module {module} cannot be read: {error.strerror}") from error
    if any(mark in content for mark in _SHIM_MARKS):
        raise OperatorFault(
            f"{module} is a tracing shim: it writes keys in the clear to its log. "
            "Set token.module to the token's own library."
        )
    settings = [name for name in _SHIM_SETTINGS if name in os.environ]
    if settings:
        raise OperatorFault(
            f"{', '.join(settings)} is set: a tracing shim may be in the module chain. Unset it and start again."
        )


def check_digest(module: Path, expected: str | None) -> None:
    """Compare the module file with the digest that the configuration pins, if it pins one."""
    if expected is None:
        return
    actual = digest_of(module)
    if actual != expected:
        raise OperatorFault(f"{module} has SHA-256 {actual}, the configuration pins {expected}")


def digest_of(module: Path) -> str:
    """SHA-256 of the library file, hex."""
    return hashlib.sha256(module.read_bytes()).hexdigest()


def refuse_other_libraries(module: Path) -> None:
    """Refuse a file that the dynamic loader does not take, or a library that is no PKCS#11 module."""
    try:
        library = ctypes.CDLL(str(module))
    except OSError as error:
        raise OperatorFault(f"the PKCS#11 module cannot be loaded: {error}") from error
    if not hasattr(library, "C_GetFunctionList"):
        raise OperatorFault(f"{module} is no PKCS#11 module: it has no C_GetFunctionList")


def _threaded_library(path: str) -> Any:
    from pkcs11._pkcs11 import lib as library

    cryptoki = Cryptoki(path)

    class ThreadedLibrary(library):
        """The binding's library, initialised with ``CKF_OS_LOCKING_OK``."""

        def initialize(self) -> None:
            cryptoki.initialize_for_threads()

        def finalize(self) -> None:
            cryptoki.finalize()

        def reinitialize(self) -> None:
            self.finalize()
            self.initialize()

    return ThreadedLibrary(path)
