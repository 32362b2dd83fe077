"""The two WSGI applications of a KME, built in the worker that serves them. Apart: only servers need Flask."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from flask import Flask

from hsmkme import bootstrap
from hsmkme.api import create_app
from hsmkme.api.opening import Opening
from hsmkme.api.peer import create_peer_app
from hsmkme.errors import OperatorFault


def application() -> Opening:
    """The WSGI application of the SAE side, for the configuration that HSMKME_CONFIG names."""
    return Opening(partial(_opened, _configured()))


def peer_application() -> Opening:
    """The WSGI application of the peers' side, for the configuration that HSMKME_CONFIG names."""
    return Opening(partial(_opened_for_peers, _configured()))


def _configured() -> Path:
    path = os.environ.get(bootstrap.CONFIG_VARIABLE)
    if not path:
        raise OperatorFault(f"set {bootstrap.CONFIG_VARIABLE} to the path of the configuration file")
    return Path(path)


def _opened(path: Path) -> Flask:
    parts = bootstrap.open_parts(path)
    return create_app(parts.config, parts.kme(), time.time)


def _opened_for_peers(path: Path) -> Flask:
    parts = bootstrap.open_parts(path)
    return create_peer_app(parts.config, parts.peering(), time.time)
