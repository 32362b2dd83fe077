"""TLS contexts from files that may change while the server runs."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hsmkme.server.listener import Listener

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often the files are looked at."""

SESSIONS_MOST: Final = 64
"""TLS 1.2 sessions of one context, each with the client's certificate: Python has no switch to keep none."""


class Contexts:
    """The current TLS context. A changed file is read within a second; one that cannot be read changes nothing.

    A context that has kept too many sessions is replaced: they would take memory, and could be resumed.
    """

    def __init__(self, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._clock = clock
        self._looked_at = clock()
        self._seen = self._stamps()
        self._unreadable = False
        self._context = tls_context(listener)

    def current(self) -> ssl.SSLContext:
        """The context for a new connection."""
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            if self._unreadable or self._stamps() != self._seen:
                self._renew()
        if not self._unreadable and self._context.session_stats()["number"] >= SESSIONS_MOST:
            self._renew()
        return self._context

    def _renew(self) -> None:
        stamps = self._stamps()
        try:
            self._context = tls_context(self._listener)
        except OSError as error:  # of TLS too
            log.error("the certificate files cannot be used, what was read before stays: %s", error)
            self._unreadable = True
            return
        if self._unreadable or stamps != self._seen:
            log.info("certificate files changed and were read")
        self._seen, self._unreadable = stamps, False

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [_stamp(path) for path in self._listener.files]


def tls_context(listener: Listener) -> ssl.SSLContext:
    """The listener's certificate, the CAs of its clients, their revocation list, and the versions it takes.

    No tickets, and few sessions (`SESSIONS_MOST`): a resumed session is not verified anew, except against the time and
    the revocation list, which are looked at on every request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = listener.minimum_version
    context.load_cert_chain(listener.certificate, listener.key)
    context.load_verify_locations(listener.ca)
    if listener.crl is not None:
        context.load_verify_locations(listener.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = ssl.CERT_REQUIRED if listener.certificate_required else ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def check_files(listener: Listener) -> list[str]:
    """What is wrong with certificate, key, CA and CRL files."""
    missing = [f"{listener.section}: no file {path}" for path in listener.files if not path.is_file()]
    if missing:
        return missing
    try:
        tls_context(listener)
    except OSError as error:  # of TLS too
        return [f"{listener.section}: the certificate files do not make a TLS context: {error}"]
    return []


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
