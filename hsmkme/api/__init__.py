"""The HTTP surface: Flask, and nothing of Flask beyond this package."""

from __future__ import annotations

from flask import Flask, Response, request

from hsmkme.api import sae
from hsmkme.api.callers import Callers
from hsmkme.api.description import described
from hsmkme.api.problems import answer, answer_errors
from hsmkme.config import Config
from hsmkme.kme import Kme
from hsmkme.model import Clock


def create_app(config: Config, kme: Kme, wall: Clock) -> Flask:
    """The WSGI application of the SAE side; ``wall`` is the time of day, in seconds since 1970, UTC."""
    app = Flask("hsmkme", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes
    app.url_map.merge_slashes = False
    callers, description = Callers(config, wall), described(config.keys)
    sae.serve(app, kme, callers)
    answer_errors(app, wall)

    @app.get("/health", provide_automatic_options=False)
    def health() -> Response:
        """Alive: this process answers. Says nothing of keys, so it needs no certificate."""
        return answer({"kme": config.kme_id})

    @app.get("/openapi.json", provide_automatic_options=False)
    def openapi() -> Response:
        """The description of the API, for SAEs that this KME knows."""
        kme.admit(callers.of(request.environ))
        return answer(description)

    return app
