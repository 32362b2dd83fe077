"""Many requests in one thread: each runs in a greenlet, which lets the others go on while it waits."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from greenlet import getcurrent, greenlet

Result = TypeVar("Result")

LOOK_SECONDS: Final = 0.05
"""How often it is looked for waits that took too long."""


class _Wait:
    """A wait of the greenlet that made it."""

    __slots__ = ("_asleep", "_over", "_turns", "greenlet")

    def __init__(self, turns: Turns) -> None:
        self.greenlet = getcurrent()
        self._turns = turns
        self._over = False
        self._asleep = False

    def wait(self, seconds: float | None = None) -> bool:
        if not self._over:
            self._asleep = True
            self._turns.suspend(self, seconds)
            self._asleep = False
        return self._over

    def end(self) -> None:
        self._over = True
        self._turns.resume(self)

    def go_on(self) -> None:
        """In the thread of the greenlet: wake it if it still waits for this."""
        if self._asleep:
            self.greenlet.switch()


class Turns:
    """Lets greenlets of the thread that makes it take turns. ``threads``: how many acts may be done beside it.

    Whoever loops in that thread waits until ``wake`` is readable or `seconds_left` are over, then calls `run`.
    """

    def __init__(self, threads: int) -> None:
        self.wake: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.get_ident()
        self._loop = getcurrent()
        self.moment = object()
        self._new: deque[Callable[[], None]] = deque()
        self._idle: list[greenlet] = []
        self._over: deque[_Wait] = deque()
        self._breathing: list[greenlet] = []
        self._deadlines: dict[_Wait, float] = {}
        self._look_at = 0.0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aside")

    # For the loop -----------------------------------------------------------------------------------

    def begin(self, act: Callable[[], None]) -> None:
        """Do ``act`` in a greenlet, at the next `run`."""
        self.moment = object()
        self._new.append(act)

    def seconds_left(self, most: float) -> float:
        """How long the loop may wait for something to happen."""
        if self._new or self._over or self._breathing:
            return 0.0
        return min(most, LOOK_SECONDS) if self._deadlines else most

    def run(self) -> None:
        """Let everything go on that can; those that let others go first come last."""
        self._end_overdue()
        breathing, self._breathing = self._breathing, []
        while self._over or self._new:
            while self._over:
                self._over.popleft().go_on()
            if self._new:
                runner = self._idle.pop() if self._idle else greenlet(self._run_acts, self._loop)
                runner.switch(self._new.popleft())
        for one in breathing:
            one.switch()

    def _run_acts(self, act: Callable[[], None]) -> None:
        """In a greenlet: one act after the other, idle between them. A new one would cost more than a short act."""
        while True:
            act()
            del act  # an idle greenlet keeps no request
            self._idle.append(getcurrent())
            act = self._loop.switch()

    def clear_wake(self) -> None:
        """``wake`` was readable."""
        os.eventfd_read(self.wake)

    def hurry(self) -> None:
        """Whoever waits and would give up some time does so now."""
        self._deadlines = dict.fromkeys(self._deadlines, 0.0)
        self._look_at = 0.0

    def close(self) -> None:
        """Begin nothing more beside."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # For what runs in turns -------------------------------------------------------------------------

    def new_wait(self) -> _Wait:
        """A wait of who runs now."""
        return _Wait(self)

    def breathe(self) -> None:
        """Let everything go on that can, once, and take up what has arrived."""
        self._breathing.append(getcurrent())
        self._loop.switch()

    def submit(self, act: Callable[[], Result]) -> Future[Result]:
        """Do ``act`` in a thread beside."""
        return self._pool.submit(act)

    # For waits --------------------------------------------------------------------------------------

    def suspend(self, wait: _Wait, seconds: float | None) -> None:
        """Let others go on until ``wait`` is over, or the time is."""
        if seconds is not None:
            self._deadlines[wait] = time.monotonic() + seconds
        self._loop.switch()
        self._deadlines.pop(wait, None)

    def resume(self, wait: _Wait) -> None:
        """Let ``wait`` be over. May be called in any thread."""
        self._over.append(wait)
        if threading.get_ident() != self._thread:
            os.eventfd_write(self.wake, 1)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        if not self._deadlines or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for wait in [wait for wait, deadline in self._deadlines.items() if deadline <= now]:
            wait.go_on()
