"""ETSI GS QKD 014 V1.1.1 on the wire: a thin adapter over ``kme.Kme``. Wire names live here only."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

from flask import Flask, Response, abort, request
from werkzeug.exceptions import MethodNotAllowed

from hsmkme.api import requests
from hsmkme.api.callers import Callers
from hsmkme.api.problems import answer
from hsmkme.errors import BadRequest
from hsmkme.kme import Kme, Repeatable, Status
from hsmkme.model import OpenKey


def serve(app: Flask, kme: Kme, callers: Callers) -> None:
    """Let ``app`` answer the three methods under ``/api/v1/keys/``.

    They are found before Flask's routing, which unquotes paths and answers HEAD and OPTIONS by itself.
    """
    reading = requests.Reading(kme.limits)

    @app.before_request
    def dispatch() -> Response | None:
        path = requests.path_of(request)
        if not path.startswith(requests.PREFIX):
            return None
        caller = callers.of(request.environ)
        try:
            return answer(_called(kme, reading, caller, path, _again(kme, callers)))
        except BadRequest:
            kme.admit(caller)  # a stranger learns that it is one, and nothing of what is wrong with its request
            raise


def _again(kme: Kme, callers: Callers) -> Repeatable | None:
    """What makes the request repeatable; nothing where the configuration does not offer it."""
    if not kme.limits.idempotency_seconds:
        return None
    token = requests.idempotency_key(request)
    return None if token is None else Repeatable(callers.fingerprint(request.environ), token)


def _called(
    kme: Kme, reading: requests.Reading, caller: str, path: str, again: Repeatable | None
) -> dict[str, object]:
    target = requests.target_of(path)
    if target is None:
        abort(404, description=f"no such method: {', '.join(requests.METHODS)} exist")
    sae_id, method = target
    _allow(method)
    if method == "status":
        return _status(kme.status(caller, sae_id))
    if method == "enc_keys":
        return _container(kme.get_key(caller, sae_id, reading.key_request(request), again))
    return _container(kme.get_key_with_ids(caller, sae_id, reading.key_ids(request), again))


def _allow(method: str) -> None:
    """Anything but the methods of the standard is refused before a key is touched: HEAD would consume one."""
    allowed = ["GET"] if method == "status" else ["GET", "POST"]
    if request.method not in allowed:
        raise MethodNotAllowed(valid_methods=allowed, description=f"{method} takes {' and '.join(allowed)}")


def _status(status: Status) -> dict[str, object]:
    """Status data format, §6.1."""
    limits = status.limits
    return {
        "source_KME_ID": status.source_kme,
        "target_KME_ID": status.target_kme,
        "master_SAE_ID": status.master,
        "slave_SAE_ID": status.slave,
        "key_size": limits.key_size,
        "stored_key_count": status.stored_key_count,
        "max_key_count": limits.max_key_count,
        "max_key_per_request": limits.max_key_per_request,
        "max_key_size": limits.max_key_size,
        "min_key_size": limits.min_key_size,
        "max_SAE_ID_count": limits.max_sae_id_count,
    }


def _container(keys: Iterable[OpenKey]) -> dict[str, object]:
    """Key container data format, §6.3: the one place where key bytes leave the KME."""
    return {
        "keys": [{"key_ID": str(key.key_id), "key": b64encode(key.material.reveal()).decode()} for key in keys]
    }
