"""From the bytes of a whole request to the bytes of its answer: gunicorn's parser, then the application."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.util import http_date, unquote_to_wsgi_str

from hsmkme.server.connection import Connection
from hsmkme.server.framing import HEAD_END, refusal

_CONSTANT: Final = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "SERVER_SOFTWARE": "hsmkme",
    "SCRIPT_NAME": "",
}
HEADS_MOST: Final = 256
HEAD_MOST: Final = 4096
"""How many different heads are remembered, and how long each may be, in bytes."""

_LINE: Final = re.compile(rb"(?P<method>[A-Z]{3,20}) (?P<target>/(?!/)[!\"$-~]*) HTTP/1\.[01]\r\n")
"""A target without anything that a parser has to think about: it is path and query."""

_BODILESS: Final = ("204", "304")


class Caller:
    """Calls the WSGI ``application`` with requests as gunicorn's parser reads them under ``settings``."""

    def __init__(self, application: Any, settings: Config) -> None:
        self._application = application
        self._settings = _plain(settings)
        self._heads: dict[bytes, _Head] = {}
        self._date = _Date()

    def call(self, connection: Connection, request: bytes, *, last: bool) -> tuple[bytes, bool]:
        """Let the application answer; gives the answer, and whether it ends the connection.

        ``last``: nothing more is served on the connection.
        """
        plain = _plain_head(request)
        try:
            head, environ = self._known(request, plain) or self._parsed(request, plain, connection.peer)
        except (StopIteration, ParseException, NoMoreData):
            return refusal(400, "the request is not valid HTTP"), True
        environ |= connection.environment
        answer = _Answer()
        pieces = self._application(environ, answer.start)
        try:
            body = b"".join((*answer.written, *pieces))
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        close = last or connection.must_close or head.closes
        return answer.whole(head, body, self._date.now(), close), close

    def _known(self, request: bytes, plain: _PlainHead | None) -> tuple[_Head, dict[str, Any]] | None:
        """Head and environment of a request that is like one that was parsed before, but for target and body."""
        if plain is None or plain.line_length > self._settings.limit_request_line:
            return None
        head = self._heads.get(plain.rest)
        if head is None:
            return None
        target = plain.target.decode("ascii")
        path, _, query = target.partition("?")
        if "%" in path:
            path = unquote_to_wsgi_str(path)
        body = BytesIO(request[plain.length + len(HEAD_END) :])
        return head, {**head.environ, "RAW_URI": target, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": body}

    def _parsed(self, request: bytes, plain: _PlainHead | None, peer: Any) -> tuple[_Head, dict[str, Any]]:
        """Head and environment as gunicorn's parser has them: a client says the same again and again."""
        parsed: Any = next(RequestParser(self._settings, iter((request,)), peer))
        head = _Head(parsed.method, parsed.version, parsed.should_close(), _environment(parsed))
        if plain is not None and plain.length <= HEAD_MOST and "HTTP_TRANSFER_ENCODING" not in head.environ:
            if len(self._heads) == HEADS_MOST:
                self._heads.clear()
            self._heads[plain.rest] = head
        path = unquote_to_wsgi_str(parsed.path)
        own = {"RAW_URI": parsed.uri, "PATH_INFO": path, "QUERY_STRING": parsed.query, "wsgi.input": parsed.body}
        return head, {**head.environ, **own}


class _PlainHead(NamedTuple):
    """A head whose target is path and query, apart from the ``rest`` of it; lengths in bytes, without the line ends."""

    target: bytes
    rest: bytes
    line_length: int
    length: int


def _plain_head(request: bytes) -> _PlainHead | None:
    line, end = _LINE.match(request), request.find(HEAD_END)
    if line is None:
        return None
    rest = request[: line.end("method")] + request[line.end("target") : end]
    return _PlainHead(line["target"], rest, line.end() - len(b"\r\n"), end)


class _Head(NamedTuple):
    """What a request says beside its target and its body."""

    method: str
    version: tuple[int, int]
    closes: bool
    environ: dict[str, Any]


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

    def whole(self, head: _Head, body: bytes, date: str, close: bool) -> bytes:
        """Head and body."""
        lines = [f"HTTP/{head.version[0]}.{head.version[1]} {self.status}", "Server: hsmkme", f"Date: {date}"]
        lines.append("Connection: close" if close else "Connection: keep-alive")
        lines += [f"{name}: {value}" for name, value in self.fields if name.lower() != "content-length"]
        if not self.status.startswith(_BODILESS):
            lines.append(f"Content-Length: {len(body)}")
        text = "\r\n".join((*lines, "", "")).encode("latin-1")
        return text if head.method == "HEAD" or self.status.startswith(_BODILESS) else text + body


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


def _environment(parsed: Any) -> dict[str, Any]:
    """What the WSGI environment has of a head. Fields that came several times are joined, as RFC 9110 §5.3 says."""
    environ: dict[str, Any] = {
        **_CONSTANT,
        "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": parsed.scheme,
        "REQUEST_METHOD": parsed.method,
        "SERVER_PROTOCOL": f"HTTP/{parsed.version[0]}.{parsed.version[1]}",
    }
    for field, value in parsed.headers:
        name = field.replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _plain(settings: Config) -> Any:
    """What the parser asks of ``settings``, as plain attributes: it asks often, and they do not change."""
    values = {name: setting.get() for name, setting in settings.settings.items()}
    values["is_ssl"] = settings.is_ssl
    values["forwarded_allow_networks"] = settings.forwarded_allow_networks
    values["proxy_allow_networks"] = settings.proxy_allow_networks
    return SimpleNamespace(**values)
