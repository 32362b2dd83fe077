"""From the bytes of a whole request to the bytes of its answer: gunicorn's parser, then the application."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.util import http_date, unquote_to_wsgi_str

from hsmkme.api.certificates import PROXIED
from hsmkme.server.connection import Connection
from hsmkme.server.framing import refusal

_CONSTANT: Final = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "SERVER_SOFTWARE": "hsmkme",
    "SCRIPT_NAME": "",
}
_BODILESS: Final = ("204", "304")


class Caller:
    """Calls the WSGI ``application`` with requests as gunicorn's parser reads them under ``settings``."""

    def __init__(self, application: Any, settings: Config) -> None:
        self._application = application
        self._settings = _plain(settings)
        self._date = _Date()

    def call(self, connection: Connection, request: bytes, *, last: bool) -> tuple[bytes, bool]:
        """Let the application answer; gives the answer, and whether it ends the connection.

        ``last``: nothing more is served on the connection.
        """
        try:
            parsed: Any = next(RequestParser(self._settings, iter((request,)), connection.peer))
        except (StopIteration, ParseException, NoMoreData):
            return refusal(400, "the request is not valid HTTP"), True
        answer = _Answer()
        pieces = self._application(_environment(parsed, connection), answer.start)
        try:
            body = b"".join((*answer.written, *pieces))
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        close = last or connection.must_close or parsed.should_close()
        return answer.whole(parsed, body, self._date.now(), close), close


class _Answer:
    """What an application says of its answer before the body."""

    status = "500 Internal Server Error"
    fields: list[tuple[str, str]]

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def start(
        self, status: str, fields: list[tuple[str, str]], exc_info: object = None  # noqa: ARG002 - nothing is sent yet
    ) -> Callable[[bytes], None]:
        """WSGI's ``start_response``."""
        self.status, self.fields = status, fields
        return self.written.append

    def whole(self, parsed: Any, body: bytes, date: str, close: bool) -> bytes:
        """Head and body."""
        lines = [f"HTTP/{parsed.version[0]}.{parsed.version[1]} {self.status}", "Server: hsmkme", f"Date: {date}"]
        lines.append("Connection: close" if close else "Connection: keep-alive")
        lines += [f"{name}: {value}" for name, value in self.fields if name.lower() != "content-length"]
        if not self.status.startswith(_BODILESS):
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        return head if parsed.method == "HEAD" or self.status.startswith(_BODILESS) else head + body


class _Date:
    """The time of day for the Date field, made anew now and then."""

    def __init__(self) -> None:
        self._text, self._until = "", 0.0

    def now(self) -> str:
        """As HTTP writes it, at most half a second old."""
        now = time.monotonic()
        if now >= self._until:
            self._text, self._until = http_date(), now + 0.5
        return self._text


def _environment(parsed: Any, connection: Connection) -> dict[str, Any]:
    """The WSGI environment of a request. Fields that came several times are joined, as RFC 9110 §5.3 says."""
    environ: dict[str, Any] = {
        **_CONSTANT,
        "wsgi.errors": sys.stderr,
        "wsgi.input": parsed.body,
        "wsgi.url_scheme": parsed.scheme,
        "gunicorn.socket": connection,
        "REQUEST_METHOD": parsed.method,
        "QUERY_STRING": parsed.query,
        "RAW_URI": parsed.uri,
        "PATH_INFO": unquote_to_wsgi_str(parsed.path),
        "SERVER_PROTOCOL": f"HTTP/{parsed.version[0]}.{parsed.version[1]}",
        PROXIED: connection.proxied,
    }
    environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = _address(connection.peer)
    environ["SERVER_NAME"], environ["SERVER_PORT"] = _address(connection.server)
    for field, value in parsed.headers:
        name = field.replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _address(address: Any) -> tuple[str, str]:
    """Name and port; of a Unix socket, its path."""
    return (address, "") if isinstance(address, str) else (address[0], str(address[1]))


def _plain(settings: Config) -> Any:
    """What the parser asks of ``settings``, as plain attributes: it asks often, and they do not change."""
    values = {name: setting.get() for name, setting in settings.settings.items()}
    values["is_ssl"] = settings.is_ssl
    values["forwarded_allow_networks"] = settings.forwarded_allow_networks
    values["proxy_allow_networks"] = settings.proxy_allow_networks
    return SimpleNamespace(**values)
