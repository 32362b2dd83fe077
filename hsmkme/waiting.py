"""Waiting, for code that does not know whether it has a thread to itself or shares one with other requests.

In a thread of its own it just waits. A server's worker runs many requests in one thread: it says so by `share`, and
whoever waits there by the means of this module lets the others go on meanwhile. Anything else that waits (a lock, a
socket, a sleep) would stop them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol, TypeVar

Result = TypeVar("Result")


class Wait(Protocol):
    """One wait of the one who made it."""

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for `end`; False if it did not come in time."""
        ...

    def end(self) -> None:
        """The wait is over. May be called in any thread, once."""
        ...


class Sharer(Protocol):
    """Lets what runs in one thread take turns."""

    def new_wait(self) -> Wait:
        """A wait of who runs now."""
        ...

    def breathe(self) -> None:
        """Let everything go on that can, once."""
        ...

    @property
    def moment(self) -> object:
        """Another one whenever something is begun."""
        ...

    def submit(self, act: Callable[[], Result]) -> Future[Result]:
        """Do ``act`` in a thread beside."""
        ...


class _ThreadWait:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float | None = None) -> bool:
        return self._lock.acquire(timeout=-1 if seconds is None else seconds)

    def end(self) -> None:
        self._lock.release()


class _Threads(threading.local):
    sharer: Sharer | None = None


_threads: Final = _Threads()


def share(sharer: Sharer | None) -> None:
    """From now on what runs in this thread shares it by ``sharer``; None: it has the thread to itself."""
    _threads.sharer = sharer


def new_wait() -> Wait:
    """A wait of the caller."""
    sharer = _threads.sharer
    return _ThreadWait() if sharer is None else sharer.new_wait()


def moment() -> object:
    """The same as long as nothing is begun in this thread: what is read meanwhile is new for all that goes on there."""
    sharer = _threads.sharer
    return object() if sharer is None else sharer.moment


def breathe() -> None:
    """Let others of this thread go on before the caller does."""
    if _threads.sharer is not None:
        _threads.sharer.breathe()


def sleep(seconds: float) -> None:
    """Wait so long."""
    new_wait().wait(seconds)


def aside(act: Callable[[], Result]) -> Result:
    """What ``act`` returns or raises, which may take long: others of this thread go on meanwhile."""
    (result,) = all_aside([act])
    return result


def all_aside(acts: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each of ``acts`` returns, done at the same time where others of this thread go on meanwhile; raises what the
    first of them raised, once what was begun has ended."""
    sharer = _threads.sharer
    if sharer is None:
        return [act() for act in acts]
    outcomes = [sharer.submit(act) for act in acts]
    for outcome in outcomes:
        wait = sharer.new_wait()
        outcome.add_done_callback(partial(_end, wait))
        wait.wait()
    return [outcome.result() for outcome in outcomes]


def _end(wait: Wait, _: object) -> None:
    wait.end()


class Places:
    """So many may be inside at a time; the others wait, who came first goes in first."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._guard = threading.Lock()
        self._queue: deque[Wait] = deque()

    @property
    def awaited(self) -> int:
        """How many wait."""
        return len(self._queue)

    def take(self, seconds: float) -> bool:
        """Go in; False if there was no place in time."""
        with self._guard:
            if self._free:
                self._free -= 1
                return True
            mine = new_wait()
            self._queue.append(mine)
        if mine.wait(seconds):
            return True
        with self._guard:
            if mine not in self._queue:  # it was given after all
                return True
            self._queue.remove(mine)
            return False

    def give_back(self) -> None:
        """Let the next one in."""
        with self._guard:
            if self._queue:
                self._queue.popleft().end()
            else:
                self._free += 1
