"""kme-peer/1 on the wire: what a KME answers to its peers, on a listener and under a CA of their own."""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, abort, request
from werkzeug.exceptions import HTTPException

from hsmkme.api.peer_identity import PeerCallers
from hsmkme.api.problems import answer, http_problem, problem, unexpected
from hsmkme.api.requests import path_of
from hsmkme.config import Config
from hsmkme.errors import HsmkmeError
from hsmkme.model import Clock

PREFIX: Final = "/kme-peer/v1/"


def create_peer_app(config: Config, wall: Clock) -> Flask:
    """The WSGI application of the peers' side; ``wall`` is the time of day, in seconds since 1970, UTC.

    Raises `ConfigRefused` without ``[peering]``.
    """
    app = Flask("hsmkme.peer", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.required_peering().max_body_bytes
    app.url_map.merge_slashes = False
    serve(app, PeerCallers(config, wall))
    app.register_error_handler(HsmkmeError, problem)
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(Exception, unexpected)

    @app.get("/health", provide_automatic_options=False)
    def health() -> Response:
        """Alive: this process answers, to every KME of the peers' CA."""
        return answer({"kme": config.kme_id})

    return app


def serve(app: Flask, callers: PeerCallers) -> None:
    """Let ``app`` answer what stands under ``/kme-peer/v1/``, to configured peers alone."""

    @app.before_request
    def dispatch() -> Response | None:
        if not path_of(request).startswith(PREFIX):
            return None
        callers.of(request.environ)
        abort(404, description="no such call")
