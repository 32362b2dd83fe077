"""One login for each process, and the lanes under it.

*Anchor*: the session that logged in. Closing it would log the whole process out, so it stays open.
*Lane*: a session opened without PIN, with the objects found and the block keys unwrapped through it;
one thread uses it at a time. A ``serial`` profile has one lane and one lock for the whole process,
because the module was initialised for one thread; a ``parallel`` profile has as many as it allows.

The module is never used in a process that forked after it was loaded.
"""

from __future__ import annotations

import fcntl
import os
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pkcs11

from hsmkme.errors import OperatorFault, TokenMisuse, TokenUnavailable
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.faults import translated
from hsmkme.hsm.module import load_module
from hsmkme.hsm.profiles import Profile
from hsmkme.hsm.templates import mapper

LANE_WAIT_SECONDS: Final = 10.0
"""How long a caller waits for a lane: a C call cannot be cancelled, so what waits on it is bounded."""

# The module's state belongs to the process, so the lock that guards it does too.
_PROCESS_LOCK: Final = threading.RLock()

PinSource = Callable[[], str]
"""Gives the PIN when it is needed; the PIN itself is never kept."""


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Which token: exactly one in ``module`` must match ``label``, and ``serial`` if it is given.

    ``softhsm_conf`` is what SoftHSM reads as SOFTHSM2_CONF; ``module_sha256`` pins the library file.
    """

    profile: Profile
    module: Path
    label: str
    serial: str | None = None
    softhsm_conf: Path | None = None
    module_sha256: str | None = None


@dataclass(slots=True)
class Lane:
    """A session and what was reached through it."""

    session: Any
    generation: int
    objects: dict[str, Any] = field(default_factory=dict)
    block_keys: OrderedDict[bytes, Any] = field(default_factory=OrderedDict)


class Sessions:
    """The login and the lanes of this process on one token."""

    def __init__(self, address: TokenAddress, pin: PinSource, *, writable: bool = False) -> None:
        self.address = address
        self._pin = pin
        self._writable = writable
        self._pid = os.getpid()
        self._gate: AbstractContextManager[Any] = (
            _PROCESS_LOCK if address.profile.locking == "serial" else nullcontext()
        )
        self._lanes: queue.LifoQueue[Lane] = queue.LifoQueue()
        self._anchor: Any = None
        self._resetting = threading.Lock()
        self.generation = 0
        with self._gate, translated("opening the token"):
            self._module = load_module(address)
            self.cryptoki = Cryptoki(str(address.module))
            self._log_in()

    def _log_in(self) -> None:
        token = find_token(self._module, self.address)
        with _login_turn(self.address):
            self._anchor = token.open(rw=self._writable, user_pin=self._pin(), attribute_mapper=mapper())
        for _ in range(self.address.profile.max_sessions):
            session = token.open(rw=self._writable, attribute_mapper=mapper())
            self._lanes.put(Lane(session, self.generation))

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for the caller alone. Raises `TokenUnavailable` when none becomes free in time."""
        if os.getpid() != self._pid:
            raise TokenMisuse("the token was opened before this process forked; open it after the fork")
        with self._gate:
            try:
                lane = self._lanes.get(timeout=LANE_WAIT_SECONDS)
            except queue.Empty:
                raise TokenUnavailable("every session of the token is busy", retry_after=1) from None
            try:
                yield lane
            finally:
                if lane.generation == self.generation:
                    self._lanes.put(lane)

    def reset(self, failed_generation: int, *, hard: bool) -> None:
        """Forget every handle and log in again; once for all who saw the failure.

        ``hard`` initialises the whole module anew, which other logins of this process survive by a reset of
        their own: for a device that failed, not for handles that were lost. Not to be called inside `lane`.
        """
        with self._gate, self._resetting, translated("opening the token again"):
            if self.generation != failed_generation:
                return
            self.generation += 1
            self._let_go()
            if hard or not self._module_is_initialised():
                self._module.reinitialize()
            self._log_in()

    def close(self) -> None:
        """Log out. The module stays initialised: other tokens of this process may be in use."""
        with self._gate:
            self._let_go()

    def _let_go(self) -> None:
        """Close what can be closed; what cannot is gone already."""
        lanes = []
        while not self._lanes.empty():
            lanes.append(self._lanes.get_nowait().session)
        for session in (*lanes, self._anchor):
            with suppress(pkcs11.PKCS11Error):
                session.close()

    def _module_is_initialised(self) -> bool:
        try:
            self._module.get_slots()
        except pkcs11.PKCS11Error:
            return False
        return True


def find_token(module: Any, address: TokenAddress) -> Any:
    """The one token that matches; none or several is for an operator to solve."""
    found = []
    for slot in module.get_slots(token_present=True):
        token = slot.get_token()
        serial = token.serial.decode(errors="replace")
        if token.label == address.label and address.serial in (None, serial):
            found.append(token)
    if not found:
        raise TokenUnavailable(f"no token labelled {address.label!r} (serial {address.serial}) is present")
    if len(found) > 1:
        raise OperatorFault(f"{len(found)} tokens are labelled {address.label!r}: name the serial in the config")
    return found[0]


@contextmanager
def _login_turn(address: TokenAddress) -> Iterator[None]:
    """One process logs in at a time: SoftHSM refuses logins that meet."""
    path = Path(tempfile.gettempdir()) / f"hsmkme-login-{os.getuid()}-{address.label.replace('/', '_')}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
