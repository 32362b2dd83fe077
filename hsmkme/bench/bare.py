"""An empty Flask endpoint: what a key request is compared with. It answers the same key to whoever asks for one.

``python -m hsmkme.bench.bare CONFIG PORT`` serves it on the product's own worker class, with the listener that CONFIG
describes; stock gunicorn serves it as ``hsmkme.bench.bare:create_app()``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from flask import Flask, Response

from hsmkme import config as configuration
from hsmkme.server import Server
from hsmkme.server.listener import listener_for_saes

_CONTAINER: Final = json.dumps(
    {"keys": [{"key_ID": "00000000-0000-7000-8000-000000000000", "key": "A" * 43 + "="}]}
).encode()


def create_app() -> Flask:
    """The application."""
    app = Flask("bare", static_folder=None)

    @app.get("/api/v1/keys/<slave>/enc_keys")
    def enc_keys(slave: str) -> Response:  # noqa: ARG001
        return Response(_CONTAINER, mimetype="application/json")

    return app


def main() -> None:
    """Serve on the product's worker class until stopped."""
    config, port = sys.argv[1:]
    listener = listener_for_saes(configuration.load(Path(config)))
    Server(replace(listener, bind=(f"127.0.0.1:{port}",)), create_app, {}).run()


if __name__ == "__main__":
    main()
