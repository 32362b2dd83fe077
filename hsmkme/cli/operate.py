"""check, migrate, serve, serve-peers, upkeep: running a KME."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from hsmkme import bootstrap, diagnosis
from hsmkme.cli.shared import JSON_OPTION, config_path, console, load_config, with_config
from hsmkme.liaison import ROUND_SECONDS, Liaison
from hsmkme.server import Server
from hsmkme.server.listener import Listener, listener_for_peers, listener_for_saes
from hsmkme.store import migrate as migrate_store

TICK_SECONDS = 0.5


@click.command()
@with_config
@JSON_OPTION
def check(config: str | None, as_json: bool) -> None:
    """Say everything that is wrong with configuration, token and store, at once."""
    findings = diagnosis.findings(config_path(config))
    if as_json:
        click.echo(json.dumps({"good": not findings, "findings": findings}))
    else:
        for finding in findings:
            console.print(f"[red]wrong[/red]  {finding}", soft_wrap=True)
        if not findings:
            console.print("[green]good[/green]   configuration, certificates, token and store fit together")
    sys.exit(1 if findings else 0)


@click.command()
@with_config
def migrate(config: str | None) -> None:
    """Create the store, or bring it to this version's schema."""
    settings = load_config(config)
    applied = migrate_store(settings.store)
    done = f"applied {', '.join(map(str, applied))}" if applied else "nothing to do"
    click.echo(f"{settings.store}: {done}")


@click.command()
@with_config
@click.option("--pid-file", metavar="FILE", help="Write the process id of the server here.")
def serve(config: str | None, pid_file: str | None) -> None:
    """Serve SAEs over mutual TLS until stopped."""
    settings = load_config(config)
    bootstrap.begin(settings, void=True)
    _serve(config_path(config), listener_for_saes(settings), bootstrap.application, pid_file)


@click.command(name="serve-peers")
@with_config
@click.option("--pid-file", metavar="FILE", help="Write the process id of the server here.")
def serve_peers(config: str | None, pid_file: str | None) -> None:
    """Serve other KMEs over mutual TLS 1.3 until stopped."""
    settings = load_config(config)
    listener = listener_for_peers(settings)
    bootstrap.begin(settings, void=False)
    _serve(config_path(config), listener, bootstrap.peer_application, pid_file)


def _serve(path: Path, listener: Listener, build: Callable[[], Any], pid_file: str | None) -> None:
    bootstrap.forbid_core_dumps()
    os.environ[bootstrap.CONFIG_VARIABLE] = str(path.resolve())
    logging.getLogger("hsmkme").setLevel(logging.INFO)
    Server(listener, build, {"pidfile": pid_file}).run()


@click.command()
@with_config
def upkeep(config: str | None) -> None:
    """Do the duties of the KME (seals, expiry, scrubbing, spools) until stopped."""
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logging.getLogger("hsmkme").setLevel(logging.INFO)
    bootstrap.begin(load_config(config), void=False)
    parts = bootstrap.open_parts(config_path(config))
    duties = bootstrap.upkeep_with_spools(parts)
    if parts.config.peering is not None:
        threading.Thread(target=_look_after_links, args=(parts.liaison(), stopping), daemon=True).start()
    while not stopping.wait(TICK_SECONDS):
        duties.tick()


def _look_after_links(liaison: Liaison, stopping: threading.Event) -> None:
    """Apart from the other duties: a peer may be slow to answer."""
    while not stopping.wait(ROUND_SECONDS):
        liaison.round()
