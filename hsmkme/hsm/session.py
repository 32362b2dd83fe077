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
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pkcs11

from hsmkme.errors import OperatorFault, TokenMisuse, TokenUnavailable
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.block_keys import BlockKeys
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.faults import fault_of, translated
from hsmkme.hsm.module import load_module
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.segments import Segments
from hsmkme.hsm.softhsm import forget_openssl_errors, mend_token_files
from hsmkme.hsm.templates import mapper
from hsmkme.model import BlockSeal

LANE_WAIT_SECONDS: Final = 10.0
"""How long a caller waits for a lane: a C call cannot be cancelled, so what waits on it is bounded."""


class _Module:
    """The module's state belongs to the process, so what guards it does too.

    ``starts`` counts how often each was initialised anew: handles of before may name other objects since.
    ``users`` counts who is in one that serves several callers at once; -1 while it is initialised anew.
    """

    lock: Any = threading.RLock()
    starts: Final = Counter[Path]()
    users: Final = Counter[Path]()
    changed: Final = threading.Condition()


PinSource = Callable[[], str]
"""Gives the PIN when it is needed; the PIN itself is never kept."""


@dataclass(slots=True)
class Lane:
    """A session and what was reached through it: token objects, and the blocks whose keys are unwrapped."""

    session: Any
    keys: BlockKeys
    objects: dict[str, Any] = field(default_factory=dict)
    opened: dict[BlockSeal, Segments] = field(default_factory=dict)


class _Idle:
    """Lanes that nobody uses. The one used last is lent first: what is asked for next may be unwrapped in it."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._count: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, lane: Lane) -> None:
        """A lane that is free again."""
        self._lanes.append(lane)
        self._count.put(None)

    def get(self, timeout: float) -> Lane:
        """A lane; raises ``queue.Empty`` if none becomes free in so many seconds."""
        self._count.get(timeout=timeout)
        return self._lanes.pop()


class Sessions:
    """The login and the lanes of this process on one token."""

    def __init__(self, address: TokenAddress, pin: PinSource, *, writable: bool = False) -> None:
        self.address = address
        self._pin = pin
        self._writable = writable
        self.serial = address.profile.locking == "serial"
        self._pid = os.getpid()
        self._lanes = _Idle()
        self._lanes_open = 0
        self._anchor: Any = None
        self._started = _Module.starts[self.address.module]
        self._resetting = threading.Lock()
        self.generation = 0
        with self._module_turn(), login_turn(address), translated("opening the token"):
            self._module = load_module(address)
            self.cryptoki = Cryptoki(str(address.module))
            if not self._module_is_initialised():  # loaded before a fork, or finalised by other code
                initialise_again(self._module, self.address.module)
            try:
                self._log_in()
            except TokenUnavailable:
                # A module lists its tokens when it is initialised: this one may have come since then.
                initialise_again(self._module, self.address.module)
                self._log_in()

    def _log_in(self) -> None:
        """Also the last time this was the token: the PIN is for no other, and no record of its own opens in another."""
        token = find_token(self._module, self.address)
        self.address = replace(self.address, serial=token.serial.decode(errors="replace"))
        self._started = _Module.starts[self.address.module]
        self._anchor = token.open(rw=self._writable, user_pin=self._pin(), attribute_mapper=mapper())
        for _ in range(self.address.profile.max_sessions):
            session = token.open(rw=self._writable, attribute_mapper=mapper())
            self._lanes.put(Lane(session, BlockKeys(self.cryptoki, session.handle)))
            self._lanes_open += 1

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for the caller alone.

        Raises `TokenUnavailable` when none becomes free in time, ``SessionClosed`` when handles were lost.
        """
        self._take_module()
        try:
            with self._resetting:  # who comes while everything is opened again waits for it
                logged_in = self._lanes_open > 0
            lane = self._free_lane(LANE_WAIT_SECONDS if logged_in else 0)
            try:
                with nullcontext() if self.serial else _used(self.address.module):
                    if self._started != _Module.starts[self.address.module]:
                        raise pkcs11.SessionClosed("another login of this process initialised the module anew")
                    yield lane
            finally:
                self._lanes.put(lane)
        finally:
            self._leave_module()

    def _free_lane(self, wait: float) -> Lane:
        try:
            return self._lanes.get(timeout=wait)
        except queue.Empty:
            state = "busy" if wait else "logged out"
            raise TokenUnavailable(f"every session of the token is {state}", retry_after=1) from None

    def _take_module(self) -> None:
        """Take the module for this caller alone, if the profile says that it cannot serve several."""
        if os.getpid() != self._pid:
            raise TokenMisuse("the token was opened before this process forked; open it after the fork")
        if self.serial and not _Module.lock.acquire(timeout=LANE_WAIT_SECONDS):
            raise TokenUnavailable("the token is busy", retry_after=1)

    def _leave_module(self) -> None:
        forget_openssl_errors()
        if self.serial:
            _Module.lock.release()

    @contextmanager
    def _module_turn(self) -> Iterator[None]:
        self._take_module()
        try:
            yield
        finally:
            self._leave_module()

    def reset(self, failed_generation: int, *, hard: bool) -> None:
        """Forget every handle and log in again; once for all who saw the failure.

        ``hard`` initialises the whole module anew, which other logins of this process survive by a reset of
        their own: for a device that failed, not for handles that were lost. Not to be called inside `lane`.
        """
        with self._module_turn(), self._resetting:
            if self.generation != failed_generation:
                return
            with login_turn(self.address), translated("opening the token again"):
                self._let_go()
                self.generation += 1
                if hard or not self._module_is_initialised():
                    initialise_again(self._module, self.address.module)
                self._log_in()

    def close(self) -> None:
        """Log out. The module stays initialised: other tokens of this process may be in use."""
        if os.getpid() == self._pid:  # a child that forked has nothing of its own to close
            with self._module_turn(), self._resetting:
                self._let_go()

    def _let_go(self) -> None:
        """Close every session once nobody uses it; what cannot be closed is gone already."""
        while self._lanes_open:
            lane = self._free_lane(LANE_WAIT_SECONDS)
            self._lanes_open -= 1
            self._close(lane.session)
        if self._anchor is not None:
            self._close(self._anchor)
            self._anchor = None

    def _close(self, session: Any) -> None:
        if self._started == _Module.starts[self.address.module]:  # else the handle may be somebody else's by now
            with suppress(pkcs11.PKCS11Error):
                session.close()

    def _module_is_initialised(self) -> bool:
        try:
            self._module.get_slots()
        except pkcs11.PKCS11Error:
            return False
        return True


@contextmanager
def _used(path: Path) -> Iterator[None]:
    """A module that serves several callers at once is not initialised anew while one is in it."""
    _count_users(path, lambda users: users >= 0, lambda users: users + 1)
    try:
        yield
    finally:
        _count_users(path, lambda _: True, lambda users: users - 1)


def initialise_again(module: Any, path: Path) -> None:
    """Initialise the module anew, once nobody is in it: every login of this process ends, and notices."""
    _count_users(path, lambda users: users == 0, lambda _: -1)
    try:
        with suppress(pkcs11.PKCS11Error):
            module.finalize()  # somebody may have done it before us
        _Module.starts[path] += 1
        module.initialize()
    finally:
        _count_users(path, lambda _: True, lambda _: 0)


def _count_users(path: Path, when: Callable[[int], bool], to: Callable[[int], int]) -> None:
    with _Module.changed:
        if not _Module.changed.wait_for(lambda: when(_Module.users[path]), LANE_WAIT_SECONDS):
            raise TokenUnavailable("a call of another token of this module does not come back", retry_after=1)
        _Module.users[path] = to(_Module.users[path])
        _Module.changed.notify_all()


def find_token(module: Any, address: TokenAddress) -> Any:
    """The one token that matches; none or several is for an operator to solve."""
    found = []
    for token in filter(None, map(_token_in, module.get_slots(token_present=True))):
        serial = token.serial.decode(errors="replace")
        if token.label == address.label and address.serial in (None, serial):
            found.append(token)
    if not found:
        raise TokenUnavailable(f"no token labelled {address.label!r} (serial {address.serial}) is present")
    if len(found) > 1:
        raise OperatorFault(f"{len(found)} tokens are labelled {address.label!r}: name the serial in the config")
    return found[0]


def _token_in(slot: Any) -> Any:
    """The token in a slot; None if the device fails: it may not be the one that is looked for."""
    try:
        return slot.get_token()
    except pkcs11.PKCS11Error as error:
        if fault_of(error) not in (Fault.RECORD, Fault.DEVICE):
            raise
        return None


@contextmanager
def login_turn(address: TokenAddress) -> Iterator[None]:
    """One process initialises and logs in at a time.

    A login on SoftHSM rewrites the token's file in place: who reads it meanwhile finds no token, and two who
    write it can leave it empty, the token lost. The lock is on a file that every user of the token reads,
    whatever their user ID and their temporary directory.
    """
    path = address.softhsm_conf or address.module
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorFault(f"{path} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if address.softhsm_conf is not None:
            mend_token_files(address.softhsm_conf)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would not free it while a forked child has it too
        os.close(descriptor)
