"""The HTTP surface: Flask, and nothing of Flask beyond this package."""

from __future__ import annotations

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from hsmkme.api.callers import Callers
from hsmkme.api.description import described
from hsmkme.api.problems import Answer, answer, http_problem, problem, unexpected
from hsmkme.api.sae import KeyDelivery
from hsmkme.config import Config
from hsmkme.errors import HsmkmeError
from hsmkme.kme import Kme
from hsmkme.model import Clock


def create_app(config: Config, kme: Kme, wall: Clock) -> Flask:
    """The WSGI application of the SAE side; ``wall`` is the time of day, in seconds since 1970, UTC."""
    app = Flask("hsmkme", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes
    app.url_map.merge_slashes = False
    callers, description = Callers(config, wall), described(config.keys)
    app.wsgi_app = KeyDelivery(app.wsgi_app, kme, callers, config.server.max_body_bytes)  # type: ignore[method-assign]
    app.register_error_handler(HsmkmeError, problem)
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(Exception, unexpected)

    @app.get("/health", provide_automatic_options=False)
    def health() -> Answer:
        """Alive: this process answers. Says nothing of keys, so it needs no certificate."""
        return answer({"kme": config.kme_id})

    @app.get("/openapi.json", provide_automatic_options=False)
    def openapi() -> Answer:
        """The description of the API, for SAEs that this KME knows."""
        kme.admit(callers.of(request.environ))
        return Answer(description)

    return app
