"""ETSI GS QKD 014 V1.1.1 on the wire: a thin adapter over ``kme.Kme``. Wire names live here only."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable
from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from hsmkme.api import requests
from hsmkme.api.callers import Callers
from hsmkme.api.problems import Answer, FaultLog, answer, http_problem, problem
from hsmkme.errors import BadRequest, HsmkmeError
from hsmkme.kme import Kme, Repeatable, Status
from hsmkme.model import OpenKey

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class KeyDelivery:
    """The three methods under ``/api/v1/keys/``, as a WSGI application in front of ``others``.

    Not one of Flask's views: its routing unquotes paths and answers HEAD and OPTIONS by itself, and costs more than a
    key does (``ops/adr/0011``). A body of more than ``body_most`` bytes is refused.
    """

    def __init__(
        self, others: WSGIApplication, kme: Kme, callers: Callers, faults: FaultLog, *, body_most: int
    ) -> None:
        self._others = others
        self._kme = kme
        self._callers = callers
        self._faults = faults
        self._reading = requests.Reading(kme.limits, body_most)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI."""
        path = requests.path_of(environ)
        if not path.startswith(requests.PREFIX):
            return self._others(environ, start_response)
        return self._answer(environ, path)(environ, start_response)

    def _answer(self, environ: WSGIEnvironment, path: str) -> Answer:
        try:
            caller = self._callers.of(environ)
            try:
                return self._called(caller, environ, path)
            except BadRequest:
                self._kme.admit(caller)  # a stranger learns that it is one, and nothing of what is wrong otherwise
                raise
        except HsmkmeError as error:
            return problem(error, self._faults)
        except HTTPException as error:
            return http_problem(error)

    def _called(self, caller: str, environ: WSGIEnvironment, path: str) -> Answer:
        again = self._again(environ)
        target = requests.target_of(path)
        if target is None:
            raise NotFound(f"no such method: {', '.join(requests.METHODS)} exist")
        sae_id, method = target
        _allow(environ, method)
        if method == "status":
            return answer(_status(self._kme.status(caller, sae_id)))
        if method == "enc_keys":
            return Answer(_container(self._kme.get_key(caller, sae_id, self._reading.key_request(environ), again)))
        return Answer(_container(self._kme.get_key_with_ids(caller, sae_id, self._reading.key_ids(environ), again)))

    def _again(self, environ: WSGIEnvironment) -> Repeatable | None:
        """What makes the request repeatable; nothing where the configuration does not offer it."""
        if not self._kme.limits.idempotency_seconds:
            return None
        token = requests.idempotency_key(environ)
        return None if token is None else Repeatable(self._callers.fingerprint(environ), token)


def _allow(environ: WSGIEnvironment, method: str) -> None:
    """Anything but the methods of the standard is refused before a key is touched: HEAD would consume one."""
    allowed = ["GET"] if method == "status" else ["GET", "POST"]
    if environ["REQUEST_METHOD"] not in allowed:
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


def _container(keys: Iterable[OpenKey]) -> bytes:
    """Key container data format, §6.3: the one place where key bytes leave the KME.

    Written by hand: neither value has a character that JSON would escape.
    """
    entries = [f'{{"key_ID":"{key.key_id}","key":"{_base64(key.material.reveal())}"}}' for key in keys]
    return f'{{"keys":[{",".join(entries)}]}}'.encode()


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
