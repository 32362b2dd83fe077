"""From the bytes of a whole request to the bytes of its answer: gunicorn's parser, then the application."""

from __future__ import annotations

import ssl
from typing import Any, cast

from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser

from hsmkme.api.certificates import PROXIED
from hsmkme.server.connection import Connection
from hsmkme.server.framing import refusal


class Sink:
    """What the application's answer is written to; stands for the socket in the WSGI environment."""

    def __init__(self, connection: Connection) -> None:
        self.written = bytearray()
        self._socket = connection.socket

    def sendall(self, data: bytes) -> None:
        """Keep ``data`` of the answer."""
        self.written += data

    def send(self, data: bytes) -> int:
        """Interim answers were sent by the connection already."""
        return len(data)

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The client's certificate as TLS verified it; None without one or without TLS."""
        return self._socket.getpeercert(binary_form) if isinstance(self._socket, ssl.SSLSocket) else None


def call(
    application: Any, settings: Any, connection: Connection, request: bytes, *, last: bool
) -> tuple[bytes, bool]:
    """Let the WSGI ``application`` answer; gives the answer, and whether it ends the connection.

    ``settings`` are gunicorn's. ``last``: nothing more is served on the connection.
    """
    try:
        parsed = next(RequestParser(settings, iter((request,)), connection.peer))
    except (StopIteration, ParseException, NoMoreData):
        return refusal(400, "the request is not valid HTTP"), True
    sink = Sink(connection)
    response, environ = cast("Any", wsgi).create(parsed, sink, connection.peer, connection.server, settings)
    environ[PROXIED] = connection.proxied
    if last or connection.must_close:
        response.force_close()
    body = application(environ, response.start_response)
    try:
        for piece in body:
            response.write(piece)
        response.close()
    finally:
        if hasattr(body, "close"):
            body.close()
    return bytes(sink.written), response.should_close()
