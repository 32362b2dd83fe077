"""gunicorn, set up for mutual TLS: one cached TLS context, deadlines for slow clients, no session tickets."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from hsmkme.bootstrap import application
from hsmkme.config import Config, ServerSection

CLIENT_SECONDS: Final = 15.0
"""How long a client may keep a thread waiting in a handshake, a request or an answer."""


class Server(BaseApplication):
    """gunicorn with the settings of ``config``; the application is built in each worker, after the fork."""

    def __init__(self, config: Config, options: dict[str, Any]) -> None:
        self._section = config.server
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """Settings of gunicorn."""
        section = self._section
        settings = {
            "bind": section.bind,
            "workers": section.workers,
            "threads": section.threads,
            "worker_class": "gthread",
            "keyfile": str(section.key),
            "certfile": str(section.certificate),
            "ca_certs": str(section.sae_ca),
            "ssl_context": context_factory(section),
            "do_handshake_on_connect": False,
            "keepalive": 75,
            "max_requests": 200_000,
            "max_requests_jitter": 20_000,
            "limit_request_line": 8190,
            "proc_name": "hsmkme",
            "control_socket_disable": True,
            **self._options,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The application; the token's module is loaded here, in the worker."""
        return application()


class DeadlineSocket(ssl.SSLSocket):
    """A TLS socket on which no client keeps a thread waiting for ever: blocking means `CLIENT_SECONDS`."""

    def setblocking(self, flag: bool) -> None:
        """Blocking with a deadline, or not blocking."""
        self.settimeout(CLIENT_SECONDS if flag else 0.0)


def context_factory(section: ServerSection) -> Callable[[Any, Any], ssl.SSLContext]:
    """gunicorn's ``ssl_context`` hook. It asks for each connection: the context is made once and kept.

    A client without certificate gets through the handshake and then a 401 that says so (point 11); one
    whose certificate is not of ``sae_ca`` does not. No tickets: a resumed session would not be verified anew.
    """
    made: list[ssl.SSLContext] = []

    def hook(_config: Any, _default: Any) -> ssl.SSLContext:
        if not made:
            made.append(tls_context(section))
        return made[0]

    return hook


def tls_context(section: ServerSection) -> ssl.SSLContext:
    """TLS 1.3 and 1.2, server certificate, and the CAs of SAEs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(section.certificate, section.key)
    context.load_verify_locations(section.sae_ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.sslsocket_class = DeadlineSocket
    return context


def check_files(section: ServerSection) -> list[str]:
    """What is wrong with certificate, key and CA files."""
    missing = [
        f"server.{name}: no file {path}"
        for name, path in (("certificate", section.certificate), ("key", section.key), ("sae_ca", section.sae_ca))
        if not Path(path).is_file()
    ]
    if missing:
        return missing
    try:
        tls_context(section)
    except (ssl.SSLError, OSError) as error:
        return [f"server: certificate, key and sae_ca do not make a TLS context: {error}"]
    return []
