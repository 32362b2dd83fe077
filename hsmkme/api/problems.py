"""From an error to an HTTP answer: the one table, and the Error body of ETSI GS QKD 014 §6.5."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from flask import Response
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


def answer(value: Mapping[str, object] | bytes, status: int = 200) -> Response:
    """A JSON answer that nobody may store (point 29); ``value`` is encoded unless it is bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    response = Response(body, status=status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def problem(error: HsmkmeError) -> Response:
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
    response = answer(body, status)
    if status == 503:
        response.headers["Retry-After"] = str(getattr(error, "retry_after", _RETRY_SECONDS))
    return response


def http_problem(error: HTTPException) -> Response:
    """Errors of routing and transport: 404, 405, 413."""
    response = answer({"message": error.description or error.name}, error.code or 500)
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def unexpected(error: Exception) -> Response:
    """A defect: the traceback goes to the log, nothing goes to the caller."""
    log.exception("unexpected %s", type(error).__name__)
    return answer({"message": _UNAVAILABLE}, 500)
