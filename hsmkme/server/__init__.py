"""gunicorn, set up for mutual TLS on a worker of our own that slow clients cannot stop."""

from __future__ import annotations

from typing import Any

from gunicorn.app.base import BaseApplication

from hsmkme.bootstrap import application
from hsmkme.config import Config
from hsmkme.errors import ConfigRefused
from hsmkme.server.framing import HEAD_LIMIT
from hsmkme.server.tls import check_files


class Server(BaseApplication):
    """gunicorn with the settings of a configuration; the application is built in each worker, after the fork."""

    def __init__(self, settings: Config, options: dict[str, Any]) -> None:
        self.settings = settings
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """Settings of gunicorn."""
        section = self.settings.server
        options = {
            "bind": [*section.bind, *self.settings.proxy.bind],
            "workers": section.workers,
            "threads": section.threads,
            "worker_class": "hsmkme.server.worker.EventWorker",
            "keyfile": str(section.key),
            "certfile": str(section.certificate),
            "max_requests": 200_000,
            "max_requests_jitter": 20_000,
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
        return application()

    def run(self) -> None:
        """Serve until stopped. Raises `ConfigRefused` if the certificate files cannot be used to begin with."""
        wrong = check_files(self.settings.server)
        if wrong:
            raise ConfigRefused(wrong)
        super().run()
