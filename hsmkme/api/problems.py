"""From an error to an HTTP answer: the one table, and the Error body of ETSI GS QKD 014 §6.5."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Mapping
from typing import Final

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from hsmkme.errors import (
    BadRequest,
    HsmkmeError,
    NotEnoughKeys,
    NotEntitled,
    OperatorFault,
    OverLimit,
    RequestRefused,
    StoreUnavailable,
    TokenMisuse,
    TokenUnavailable,
)
from hsmkme.model import Clock

log = logging.getLogger(__name__)

_STATUS: Final[Mapping[type[Exception], int]] = {
    BadRequest: 400,
    NotEntitled: 401,
    NotEnoughKeys: 503,
    OverLimit: 503,
    TokenUnavailable: 503,
    StoreUnavailable: 503,
    OperatorFault: 503,
    TokenMisuse: 500,
}

_UNAVAILABLE: Final = "the KME cannot deliver keys now"
_RETRY_SECONDS: Final = 5
_LINE_SECONDS: Final = 1.0
"""How far apart lines on faults of one kind are, at least."""


class FaultLog:
    """Faults of token and store in the log: the first of a kind at once, then at most one line a second.

    Every request fails while token or store is away: the log stays readable, and says how many did. For all threads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}
        """By kind: when its last line was written, and how many faults there were since."""

    def tell(self, error: HsmkmeError) -> None:
        """Write a line on ``error`` and on those before it that got none, or count it."""
        kind, now = type(error).__name__, self._clock()
        with self._lock:
            told_at, untold = self._told.get(kind, (-math.inf, 0))
            soon = 0 <= now - told_at < _LINE_SECONDS  # a clock that was set back silences nothing
            self._told[kind] = (told_at, untold + 1) if soon else (now, 0)
        if not soon:
            log.error("%s: %s%s", kind, error, f" (and {untold} more since the last line)" if untold else "")


def answer_errors(app: Flask, clock: Clock) -> None:
    """Let ``app`` answer whatever is raised in it; ``clock`` in seconds."""
    faults = FaultLog(clock)
    app.register_error_handler(HsmkmeError, lambda error: problem(error, faults))
    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(Exception, _unexpected)


def answer(value: Mapping[str, object] | bytes, status: int = 200) -> Response:
    """A JSON answer that nobody may store (point 29); ``value`` is encoded unless it is bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    response = Response(body, status=status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def problem(error: HsmkmeError, faults: FaultLog) -> Response:
    """The answer to an error. Only a refused request explains itself; faults of token and store stay inside."""
    status = _STATUS.get(type(error), 503)
    if isinstance(error, RequestRefused):
        body: dict[str, object] = {"message": error.message}
        if error.details:
            body["details"] = list(error.details)
        log.info("refused %s (%s)", error.rule, error.message)
    else:
        body = {"message": _UNAVAILABLE}
        faults.tell(error)
    response = answer(body, status)
    if status == 503:
        response.headers["Retry-After"] = str(getattr(error, "retry_after", _RETRY_SECONDS))
    return response


def _http_problem(error: HTTPException) -> Response:
    """Errors of routing and transport: 404, 405, 413."""
    response = answer({"message": error.description or error.name}, error.code or 500)
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    """A defect: the traceback goes to the log, nothing goes to the caller."""
    log.exception("unexpected %s", type(error).__name__)
    return answer({"message": _UNAVAILABLE}, 500)
