"""An application that is served before it can be built: token or store may be away when a worker starts."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from hsmkme.api.problems import FaultLog, problem
from hsmkme.errors import HsmkmeError, StoreUnavailable, TokenUnavailable
from hsmkme.waiting import aside

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 1.0
"""How long a token or a store that failed is left alone before the next try."""


class Opening:
    """The application that ``build`` makes; until it can, every request is answered 503.

    A worker that ended here would end the server: gunicorn takes it for a defect that every worker has.
    What a person must mend ends the first worker so all the same, and is not tried again in a later one.
    """

    def __init__(self, build: Callable[[], WSGIApplication], clock: Callable[[], float] = time.monotonic) -> None:
        self._build = build
        self._clock = clock
        self._faults = FaultLog(clock)
        self._turn = threading.Lock()
        self._due = 0.0
        self._failure: HsmkmeError | None = None
        self._application: WSGIApplication | None = None
        self._open()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI."""
        if self._application is None:
            self._open_if_due()
        if self._application is None:
            failure = self._failure or TokenUnavailable("not open yet")
            return problem(failure, self._faults)(environ, start_response)
        return self._application(environ, start_response)

    def _open_if_due(self) -> None:
        """One request tries; those that come meanwhile are answered as before."""
        if self._clock() < self._due or not self._turn.acquire(blocking=False):
            return
        try:
            aside(self._open)
        except HsmkmeError as error:
            self._failure, self._due = error, math.inf
        finally:
            self._turn.release()

    def _open(self) -> None:
        try:
            self._application = self._build()
        except (StoreUnavailable, TokenUnavailable) as error:
            log.error("the service cannot begin yet, it will be tried again: %s", error)
            self._failure, self._due = error, self._clock() + PAUSE_SECONDS
