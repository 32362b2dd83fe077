"""A KME's server that tells where its CPU time goes and which calls its token gets.

``python -m hsmkme.bench.sampled CONFIG PORT DIRECTORY``: each worker keeps its `Tally` in DIRECTORY. It is slower for
that, so what it serves is not timed.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.applications import application
from hsmkme.server import Server
from hsmkme.server.listener import listener_for_saes

INTERVAL_SECONDS: Final = 0.001

PLACES: Final[Mapping[str, str]] = {
    "/ssl.py": "TLS",
    "hsmkme:server/tls": "TLS",
    "hsmkme:server/": "HTTP",
    "/gunicorn/": "HTTP",
    "/selectors.py": "HTTP",
    "/gevent/": "HTTP",
    "hsmkme:hsm/": "token",
    "/pkcs11/": "token",
    "hsmkme:store/log": "audit",
    "hsmkme:audit": "audit",
    "hsmkme:store/": "store",
    "/json/": "JSON",
    "hsmkme:api/requests": "JSON",
    "hsmkme:api/sae": "JSON",
    "hsmkme:api/problems": "Flask",
    "hsmkme:api/__init__": "Flask",
    "/flask/": "Flask",
    "/werkzeug/": "Flask",
    "hsmkme:": "policy",
}
"""What a file belongs to, by the first of these that is in its path. A frame of any other file is its caller's."""

_PACKAGE: Final = str(Path(bootstrap.__file__).parent) + os.sep

PARTS: Final = ("TLS", "HTTP", "Flask", "policy", "store", "audit", "token", "JSON", "other")

_CALLS: Final = """
Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo
InitToken InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState SetOperationState
Login Logout CreateObject CopyObject DestroyObject GetObjectSize GetAttributeValue SetAttributeValue FindObjectsInit
FindObjects FindObjectsFinal EncryptInit Encrypt EncryptUpdate EncryptFinal DecryptInit Decrypt DecryptUpdate
DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit Sign SignUpdate SignFinal SignRecoverInit
SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit VerifyRecover DigestEncryptUpdate
DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey
SeedRandom GenerateRandom GetFunctionStatus CancelFunction WaitForSlotEvent
"""
CALLS: Final = tuple(f"C_{name}" for name in _CALLS.split())
"""The functions of PKCS#11 v2.40 in the order of CK_FUNCTION_LIST."""

_ARGUMENTS_MOST: Final = 8
_NAMES: Final = (*PARTS, *CALLS)


class Tally:
    """Numbers in a file that others read while they grow: nanoseconds of CPU time by part, calls by function."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * len(_NAMES)))
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def add(self, place: int, number: int) -> None:
        """Add to one of the numbers."""
        self._numbers[place] += number


def read_tallies(directory: Path) -> Counter[str]:
    """The sum over all workers until now."""
    total: Counter[str] = Counter()
    for path in directory.glob("*.tally"):
        total.update(dict(zip(_NAMES, memoryview(path.read_bytes()).cast("Q"), strict=True)))
    return total


# Where the time goes ---------------------------------------------------------------------------------------------


class Sampler:
    """Asks every millisecond of CPU time which threads used it, and adds what each used to where it is."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._used: dict[int, int] = {}
        self._main = threading.main_thread().ident

    def start(self) -> None:
        """From now on, in this process."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
        atexit.register(signal.setitimer, signal.ITIMER_PROF, 0)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        frames = sys._current_frames()
        for thread in threading.enumerate():
            if thread.ident is None:
                continue
            used = time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
            more = used - self._used.get(thread.ident, used)
            self._used[thread.ident] = used
            if more:
                self._tally.add(self._place(frame if thread.ident == self._main else frames.get(thread.ident)), more)

    def _place(self, frame: FrameType | None) -> int:
        """The part that the innermost frame belongs to."""
        while frame is not None:
            place = _place_of(frame.f_code.co_filename)
            if place is not None:
                return place
            frame = frame.f_back
        return PARTS.index("other")


@cache
def _place_of(path: str) -> int | None:
    """The number of the part that a source file belongs to."""
    known = path.replace(_PACKAGE, "hsmkme:")
    return next((PARTS.index(part) for mark, part in PLACES.items() if mark in known), None)


# What the token is asked -----------------------------------------------------------------------------------------


class CallCounter:
    """Counts the calls of the module at ``path`` in this process: stands before each function in its list of them."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self._tally = tally
        self._list = ctypes.POINTER(ctypes.c_void_p)()
        self._counting: list[Any] = []
        ctypes.CDLL(str(path)).C_GetFunctionList(ctypes.byref(self._list))
        self._addresses = [self._list[1 + number] for number in range(len(CALLS))]  # a version is first, and padding

    def start(self) -> None:
        """From now on, until the process ends."""
        for number, address in enumerate(self._addresses):
            if address:
                self._counting.append(self._counted(len(PARTS) + number, address))
                self._list[1 + number] = ctypes.cast(self._counting[-1], ctypes.c_void_p).value
        atexit.register(self.stop)

    def stop(self) -> None:
        """Leave the list as it was."""
        for number, address in enumerate(self._addresses):
            self._list[1 + number] = address

    def _counted(self, place: int, address: int) -> Any:
        """A function that counts, and calls that at ``address`` with as many arguments as any of them takes."""
        kind = ctypes.CFUNCTYPE(ctypes.c_ulong, *[ctypes.c_void_p] * _ARGUMENTS_MOST)
        call = kind(address)

        def counted(*arguments: Any) -> int:
            self._tally.add(place, 1)
            return int(call(*arguments))

        return kind(counted)


def build(directory: Path, module: Path) -> Callable[..., Any]:
    """In a worker: begin to count, then make the application."""
    tally = Tally(directory / f"{os.getpid()}.tally")
    CallCounter(module, tally).start()
    Sampler(tally).start()
    return application()


def main() -> None:
    """Serve until stopped."""
    path, port, directory = sys.argv[1:]
    os.environ[bootstrap.CONFIG_VARIABLE] = path
    config = configuration.load(Path(path))
    listener = replace(listener_for_saes(config), bind=(f"127.0.0.1:{port}",))
    module = bootstrap.token_address(config.token[0]).module
    Server(listener, partial(build, Path(directory), module), {}).run()


if __name__ == "__main__":
    main()
