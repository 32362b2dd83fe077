"""HTTP answers. From an error to one: the one table, and the Error body of ETSI GS QKD 014 §6.5."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

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
    OperatorFault: 503,
    TokenMisuse: 500,
}

_UNAVAILABLE: Final = "the KME cannot deliver keys now"
_RETRY_SECONDS: Final = 5


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
_FIELDS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


def answer(value: Mapping[str, object], status: int = 200, more: Iterable[tuple[str, str]] = ()) -> Answer:
    """An answer that says ``value``, with ``more`` header fields."""
    return Answer(json.dumps(value, separators=(",", ":")).encode(), status, more)


def problem(error: HsmkmeError) -> Answer:
    """The answer to an error. Only a refused request explains itself; faults of token and store stay inside."""
    status = _STATUS.get(type(error), 503)
    if isinstance(error, RequestRefused):
        body: dict[str, object] = {"message": error.message}
        if error.details:
            body["details"] = list(error.details)
        log.info("refused %s (%s)", error.rule, error.message)
    else:
        body = {"message": _UNAVAILABLE}
        log.error("%s: %s", type(error).__name__, error)
    retry_after = [("Retry-After", str(getattr(error, "retry_after", _RETRY_SECONDS)))] if status == 503 else []
    return answer(body, status, retry_after)


def http_problem(error: HTTPException) -> Answer:
    """Errors of routing and transport: 404, 405, 413."""
    allow = [(name, value) for name, value in error.get_headers() if name == "Allow"]
    return answer({"message": error.description or error.name}, error.code or 500, allow)


def unexpected(error: Exception) -> Answer:
    """A defect: the traceback goes to the log, nothing goes to the caller."""
    log.exception("unexpected %s", type(error).__name__)
    return answer({"message": _UNAVAILABLE}, 500)
