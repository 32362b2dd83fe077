"""serve, serve-peers: the two servers of a KME."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hsmkme import bootstrap
from hsmkme.applications import application, peer_application
from hsmkme.cli.shared import config_path, load_config, with_config
from hsmkme.server import Server
from hsmkme.server.listener import Listener, listener_for_peers, listener_for_saes


@click.command()
@with_config
@click.option("--pid-file", metavar="FILE", help="Write the process id of the server here.")
def serve(config: str | None, pid_file: str | None) -> None:
    """Serve SAEs over mutual TLS until stopped."""
    settings = load_config(config)
    bootstrap.begin(settings, void=True)
    _serve(config_path(config), listener_for_saes(settings), application, pid_file)


@click.command(name="serve-peers")
@with_config
@click.option("--pid-file", metavar="FILE", help="Write the process id of the server here.")
def serve_peers(config: str | None, pid_file: str | None) -> None:
    """Serve other KMEs over mutual TLS 1.3 until stopped."""
    settings = load_config(config)
    listener = listener_for_peers(settings)
    bootstrap.begin(settings, void=False)
    _serve(config_path(config), listener, peer_application, pid_file)


def _serve(path: Path, listener: Listener, build: Callable[[], Any], pid_file: str | None) -> None:
    bootstrap.forbid_core_dumps()
    os.environ[bootstrap.CONFIG_VARIABLE] = str(path.resolve())
    logging.getLogger("hsmkme").setLevel(logging.INFO)
    Server(listener, build, {"pidfile": pid_file}).run()
