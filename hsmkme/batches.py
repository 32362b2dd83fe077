"""What several requests of one process wish for at the same time is done for all of them at once.

The first to come leads. Those that come until it begins join it, and wait. What cannot be done for all together is
done for each alone, so that nobody fails because of another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from hsmkme.errors import HsmkmeError, StoreUnavailable
from hsmkme.waiting import Wait, breathe, new_wait

Wish = TypeVar("Wish")
Outcome = TypeVar("Outcome")

WISHES_MOST: Final = 64
"""After so many wishes the next one waits for the next batch."""


class _Batch(Generic[Wish, Outcome]):
    """Wishes in the order they came, and once they are ``done`` what became of each."""

    def __init__(self) -> None:
        self.wishes: list[Wish] = []
        self.waits: list[Wait] = []
        self.done: Sequence[Outcome] | None = None
        self.failure: StoreUnavailable | None = None


class Batches(Generic[Wish, Outcome]):
    """Does wishes by ``act``, which gives as many outcomes.

    ``act`` is called with what gives the wishes, and asks for them as late as it can: others may join until then. It
    does all of them or, by an exception, none.
    """

    def __init__(self, act: Callable[[Callable[[], Sequence[Wish]]], Sequence[Outcome]]) -> None:
        self._act = act
        self._guard = threading.Lock()
        self._forming: _Batch[Wish, Outcome] | None = None

    def do(self, wish: Wish) -> Outcome:
        """What became of ``wish``; raises what ``act`` raises when it does this wish alone."""
        with self._guard:
            batch, leads = self._forming, False
            if batch is None or len(batch.wishes) == WISHES_MOST:
                batch = self._forming = _Batch()
                leads = True
            place = len(batch.wishes)
            batch.wishes.append(wish)
            if not leads:
                wait = new_wait()
                batch.waits.append(wait)
        if leads:
            self._lead(batch)
        else:
            wait.wait()
        if batch.failure is not None:
            raise StoreUnavailable(str(batch.failure)) from batch.failure
        if batch.done is None:
            return self._act(lambda: [wish])[0]
        return batch.done[place]

    def _lead(self, batch: _Batch[Wish, Outcome]) -> None:
        try:
            breathe()
            batch.done = self._act(lambda: self._closed(batch))
        except StoreUnavailable as failure:  # it would fail for each alone, too, and take as long
            batch.failure = failure
        except HsmkmeError:
            if len(batch.wishes) == 1:
                raise
        finally:
            self._closed(batch)
            for wait in batch.waits:
                wait.end()

    def _closed(self, batch: _Batch[Wish, Outcome]) -> Sequence[Wish]:
        """The wishes of a batch that nobody joins any more."""
        with self._guard:
            if self._forming is batch:
                self._forming = None
        return batch.wishes
