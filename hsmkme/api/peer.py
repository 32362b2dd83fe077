"""kme-peer/1 on the wire: what a KME answers to its peers, on a listener and under a CA of their own."""

from __future__ import annotations

from flask import Flask, abort, request
from werkzeug.exceptions import MethodNotAllowed

from hsmkme.api.peer_identity import PeerCallers
from hsmkme.api.problems import Answer, FaultLog, answer, answer_errors
from hsmkme.api.requests import path_of
from hsmkme.config import Config
from hsmkme.errors import PeerRefused
from hsmkme.messages.signing import FIELDS, PREFIX
from hsmkme.model import Clock
from hsmkme.peering import Peering


def create_peer_app(config: Config, peering: Peering, wall: Clock) -> Flask:
    """The WSGI application of the peers' side; ``wall`` is the time of day, in seconds since 1970, UTC.

    Raises `ConfigRefused` without ``[peering]``.
    """
    app = Flask("hsmkme.peer", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.required_peering().max_body_bytes
    app.url_map.merge_slashes = False
    serve(app, peering, PeerCallers(config, wall))
    answer_errors(app, FaultLog(wall))

    @app.get("/health", provide_automatic_options=False)
    def health() -> Answer:
        """Alive: this process answers, to every KME of the peers' CA."""
        return answer({"kme": config.kme_id})

    return app


def serve(app: Flask, peering: Peering, callers: PeerCallers) -> None:
    """Let ``app`` answer what stands under ``/kme-peer/v1/``, to configured peers alone."""

    @app.before_request
    def dispatch() -> Answer | None:
        path = path_of(request.environ)
        if not path.startswith(PREFIX):
            return None
        peer, call = callers.of(request.environ), path.removeprefix(PREFIX)
        if call not in peering.calls:
            abort(404, description="no such call")
        if request.method != "POST":
            raise MethodNotAllowed(valid_methods=["POST"], description=f"{call} takes POST")
        try:
            headers = {name: request.headers.get(name, "") for name in FIELDS}
            said = peering.answer(peer, call, headers, request.get_data())
        except PeerRefused as refusal:
            return answer({"message": str(refusal)}, 400)
        return Answer(said.body, said.status, tuple(said.headers.items()))
