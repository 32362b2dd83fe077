"""The HTTP surface: Flask, and nothing of Flask beyond this package."""

from __future__ import annotations

from flask import Flask, request

from hsmkme.api.callers import Callers
from hsmkme.api.description import described
from hsmkme.api.problems import Answer, FaultLog, answer, answer_errors
from hsmkme.api.sae import KeyDelivery
from hsmkme.config import Config
from hsmkme.kme import Kme
from hsmkme.model import Clock


def create_app(config: Config, kme: Kme, wall: Clock) -> Flask:
    """The WSGI application of the SAE side; ``wall`` is the time of day, in seconds since 1970, UTC."""
    app = Flask("hsmkme", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes
    app.url_map.merge_slashes = False
    callers, description = Callers(config, wall), described(config.keys)
    faults = FaultLog(wall)
    delivery = KeyDelivery(app.wsgi_app, kme, callers, faults, body_most=config.server.max_body_bytes)
    app.wsgi_app = delivery  # type: ignore[method-assign]
    answer_errors(app, faults)

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
