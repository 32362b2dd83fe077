"""migrate, upkeep: what a KME needs beside its servers."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FrameType

import click

from hsmkme import bootstrap, restoring
from hsmkme.cli.shared import APPROVAL_OPTION, config_path, load_config, operator, with_config
from hsmkme.liaison import ROUND_SECONDS, Liaison
from hsmkme.model import Lineage
from hsmkme.officers import Operation
from hsmkme.rotation import Rotation
from hsmkme.spreading import Spreading
from hsmkme.store import migrate as migrate_store
from hsmkme.upkeep import Duty

TICK_SECONDS = 0.5
SPREAD_SECONDS = 5
"""How often it is looked whether copies of block keys are missing: that reads every live block."""


@click.command()
@with_config
def migrate(config: str | None) -> None:
    """Create the store, or bring it to this version's schema."""
    settings = load_config(config)
    applied = migrate_store(settings.store)
    done = f"applied {', '.join(map(str, applied))}" if applied else "nothing to do"
    click.echo(f"{settings.store}: {done}")


@click.command()
@APPROVAL_OPTION
@with_config
def restore(approvals: tuple[Path, ...], config: str | None) -> None:
    """Go on with a store that was put back from a copy, as officers approve: what it may have delivered is given up."""
    bootstrap.forbid_core_dumps()
    settings = load_config(config)
    store, tokens = bootstrap.open_store(settings), bootstrap.open_tokens(settings)
    found: list[Lineage | None] = []
    tokens.each(lambda token: found.append(restoring.younger(token, store)))
    younger = (one for one in found if one is not None)
    remembered = max(younger, key=lambda one: (one.generation, one.log_rows), default=None)
    if remembered is None:
        click.echo(f"{settings.store} is no old copy: nothing to do")
        return
    store.lineage.seal_rows(tokens.any(lambda token: token.row_key()))
    judge = bootstrap.approvals(settings, store)
    approval = judge.checked(Operation.RESTORE, restoring.target(remembered), approvals, operator())
    restoring.go_on(store, remembered, approval)
    click.echo(f"{settings.store} is gone on with; links to peers are reconciled first")


@click.command()
@with_config
def upkeep(config: str | None) -> None:
    """Do the duties of the KME (seals, expiry, scrubbing, epochs, spools) until stopped."""
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logging.getLogger("hsmkme").setLevel(logging.INFO)
    bootstrap.begin(load_config(config), void=False)
    parts = bootstrap.open_parts(config_path(config))
    duties = bootstrap.upkeep_with_spools(parts)
    for name in parts.tokens.names:
        duties.duties.append(Duty(f"epochs of {name}", 1.0, _keeper_of_epochs(parts, name)))
    spreading = Spreading(parts.tokens, parts.store, "upkeep")
    spread = partial(spreading.keep, parts.config.links, SPREAD_SECONDS * parts.config.epochs.rewrap_per_second)
    duties.duties.append(Duty("copies", SPREAD_SECONDS, spread))
    if parts.config.peering is not None:
        threading.Thread(target=_look_after_links, args=(parts.liaison(), stopping), daemon=True).start()
    while not stopping.wait(TICK_SECONDS):
        duties.tick()


def _keeper_of_epochs(parts: bootstrap.Parts, token: str) -> Callable[[], None]:
    """Looks after the epochs of a token, once it is there."""

    @cache
    def rotation() -> Rotation:
        return Rotation(parts.tokens[token], parts.store, time.time, "upkeep")

    return lambda: rotation().keep(parts.config.epochs)


def _look_after_links(liaison: Liaison, stopping: threading.Event) -> None:
    """Apart from the other duties: a peer may be slow to answer."""
    while not stopping.wait(ROUND_SECONDS):
        liaison.round()
