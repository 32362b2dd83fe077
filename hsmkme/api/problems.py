"""HTTP answers. From an error to one: the one table, and the Error body of ETSI GS QKD 014 §6.5."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from flask import Flask
from werkzeug.exceptions import HTTPException

from hsmkme.errors import (
    BadRequest,
    ClockSetBack,
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

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

_STATUS: Final[Mapping[type[Exception], int]] = {
    BadRequest: 400,
    NotEntitled: 401,
    NotEnoughKeys: 503,
    OverLimit: 503,
    TokenUnavailable: 503,
    StoreUnavailable: 503,
    ClockSetBack: 503,
    OperatorFault: 503,
    TokenMisuse: 500,
}

_UNAVAILABLE: Final = "the KME cannot deliver keys now"
_WRONG_TIME: Final = f"{_UNAVAILABLE}: its clock was set back"
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


def answer_errors(app: Flask, faults: FaultLog) -> None:
    """Let ``app`` answer whatever is raised in it."""
    app.register_error_handler(HsmkmeError, lambda error: problem(error, faults))
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(Exception, _unexpected)


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer that nobody may store (point 29), as a WSGI application; Flask takes it for a response."""

    body: bytes
    status: int = 200
    more: Iterable[tuple[str, str]] = ()

    def __call__(self, _environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI."""
        length = str(len(self.body))
        start_response(_LINES[self.status], [*_FIELDS, ("Content-Length", length), *self.more])
        return (self.body,)


_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
_FIELDS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


def answer(value: Mapping[str, object], status: int = 200, more: Iterable[tuple[str, str]] = ()) -> Answer:
    """An answer that says ``value``, with ``more`` header fields."""
    return Answer(_JSON.encode(value).encode(), status, more)


def problem(error: HsmkmeError, faults: FaultLog) -> Answer:
    """The answer to an error. Only a refused request explains itself; faults of token and store stay inside."""
    status = _STATUS.get(type(error), 503)
    if isinstance(error, RequestRefused):
        body: dict[str, object] = {"message": error.message}
        if error.details:
            body["details"] = list(error.details)
        log.info("refused %s (%s)", error.rule, error.message)
    else:
        body = {"message": _WRONG_TIME if isinstance(error, ClockSetBack) else _UNAVAILABLE}
        faults.tell(error)
    retry_after = [("Retry-After", str(getattr(error, "retry_after", _RETRY_SECONDS)))] if status == 503 else []
    return answer(body, status, retry_after)


def http_problem(error: HTTPException) -> Answer:
    """Errors of routing and transport: 404, 405, 413."""
    allow = [(name, value) for name, value in error.get_headers() if name == "Allow"]
    return answer({"message": error.description or error.name}, error.code or 500, allow)


def _unexpected(error: Exception) -> Answer:
    """A defect: the traceback goes to the log, nothing goes to the caller."""
    log.exception("unexpected %s", type(error).__name__)
    return answer({"message": _UNAVAILABLE}, 500)
