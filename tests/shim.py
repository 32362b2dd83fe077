"""A PKCS#11 module between the product and SoftHSM that fails, waits and counts as a test tells it.

Its other half is ``programs/shim.c``. What is told reaches every process that loaded the module, at once:
a running server too.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from hsmkme.hsm import TokenAddress

SOURCE: Final = Path(__file__).parent / "programs" / "shim.c"
FUNCTIONS: Final = tuple(re.findall(r"\bF\((C_\w+)\)", SOURCE.read_text()))
"""The names of Cryptoki's functions."""

TOKEN_NOT_PRESENT: Final = 0xE0
_ALWAYS: Final = 2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1


class _Orders(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in ("calls", "code", "after", "times", "held", "waiting")]


class _Control(ctypes.Structure):
    _fields_ = [
        ("module", ctypes.c_char * 512),
        ("serial", ctypes.c_char * 16),
        *((name, ctypes.c_ulong) for name in ("delay_us", "gone", "removals", "logouts", "empty")),
        ("orders", _Orders * len(FUNCTIONS)),
    ]


def build_shim(directory: Path) -> Path:
    """Compile the module; gives its path."""
    built = directory / "shim.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", built, SOURCE], check=True)
    return built


class Shim:
    """A module in ``directory`` that forwards to a copy of ``real`` of its own: other tokens of the process go on."""

    def __init__(self, built: Path, directory: Path, real: Path) -> None:
        self.module = Path(shutil.copy(built, directory / "shim-module.so"))
        file = directory / "shim-module.so.control"
        file.write_bytes(bytes(ctypes.sizeof(_Control)))
        with file.open("r+b") as stream:
            self._control = _Control.from_buffer(mmap.mmap(stream.fileno(), 0))
        self._control.module = str(shutil.copy(real, directory / "shim-real.so")).encode()

    def address(
        self, address: TokenAddress, *, locking: Literal["serial", "parallel"] = "serial", sessions: int = 1
    ) -> TokenAddress:
        """The same token through this module, which has one ``locking`` for the life of a process."""
        profile = address.profile.model_copy(update={"locking": locking, "max_sessions": sessions})
        return replace(address, module=self.module, profile=profile)

    def delay(self, microseconds: int) -> None:
        """Wait before every call, as for a network; 0 ends it."""
        self._control.delay_us = microseconds

    def fail(self, function: str, code: int, *, times: int | None = None, after: int = 0) -> None:
        """Return ``code`` from the next ``times`` calls of ``function``, from all if None, once ``after`` passed."""
        orders = self._orders(function)
        orders.times = 0
        orders.code, orders.after = code, after
        orders.times = _ALWAYS if times is None else times

    @contextmanager
    def hold(self, function: str) -> Iterator[None]:
        """No call of ``function`` ends while the block runs."""
        self._orders(function).held = 1
        try:
            yield
        finally:
            self._orders(function).held = 0

    def held_calls(self, function: str) -> int:
        """How many calls of ``function`` wait to be let go on."""
        return int(self._orders(function).waiting)

    def show_serial(self, serial: str) -> None:
        """Another token seems to be there: of at most 16 characters."""
        self._control.serial = serial.ljust(16).encode()

    def forget_login(self) -> None:
        """The token logs everybody out, once: whoever comes without a login is told CKR_USER_NOT_LOGGED_IN."""
        self._control.logouts += 1

    def lose_objects(self) -> None:
        """Searches find nothing from now on."""
        self._control.empty = 1

    def remove(self, code: int = TOKEN_NOT_PRESENT) -> None:
        """Take the token away with its sessions: every call on it returns ``code``."""
        self._control.gone = code
        self._control.removals += 1

    def restore(self) -> None:
        """End everything that was told; the token that was removed is there again. What was counted stays."""
        for orders in self._control.orders:
            orders.times = orders.after = orders.held = 0
        self._control.serial = b""
        self._control.delay_us = self._control.gone = self._control.empty = 0

    def calls(self) -> Counter[str]:
        """How often each function was called since the module was made."""
        return Counter({name: int(of.calls) for name, of in zip(FUNCTIONS, self._control.orders, strict=True)})

    def _orders(self, function: str) -> _Orders:
        found: _Orders = self._control.orders[FUNCTIONS.index(function)]
        return found
