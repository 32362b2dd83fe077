"""gunicorn, set up for mutual TLS on a worker of our own that slow clients cannot stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication

from hsmkme.errors import ConfigRefused
from hsmkme.server.framing import HEAD_LIMIT
from hsmkme.server.listener import Listener
from hsmkme.server.tls import check_files


class Server(BaseApplication):
    """gunicorn with the settings of a listener. ``build`` makes the application in each worker, after the fork."""

    def __init__(self, listener: Listener, build: Callable[[], Any], options: dict[str, Any]) -> None:
        self.listener = listener
        self._build = build
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """Settings of gunicorn."""
        listener = self.listener
        options = {
            "bind": [*listener.bind, *listener.plain],
            "workers": listener.workers,
            "worker_class": "hsmkme.server.worker.EventWorker",
            "keyfile": str(listener.key),
            "certfile": str(listener.certificate),
            "max_requests": 100_000,
            "max_requests_jitter": 10_000,
            "limit_request_line": 8190,
            "limit_request_field_size": HEAD_LIMIT,
            "http_parser": "python",  # the one that `framing` was held against
            "forwarded_allow_ips": "",  # no header changes path, scheme or address, whoever sends it
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "backlog": 4096,
            "proc_name": "hsmkme",
            "control_socket_disable": True,
            **self._options,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The application; the token's module is loaded here, in the worker."""
        return self._build()

    def run(self) -> None:
        """Serve until stopped. Raises `ConfigRefused` if the certificate files cannot be used to begin with."""
        wrong = check_files(self.listener)
        if wrong:
            raise ConfigRefused(wrong)
        super().run()
