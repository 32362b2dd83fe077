"""epoch: the generations of the master key: opened, drained, destroyed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hsmkme import bootstrap
from hsmkme.cli.shared import (
    APPROVAL_OPTION,
    JSON_OPTION,
    config_path,
    console,
    load_config,
    operator,
    require_approved,
    show,
    show_facts,
    with_config,
)
from hsmkme.errors import StoreError
from hsmkme.officers import Operation
from hsmkme.revocation import Revocation
from hsmkme.rotation import Rotation
from hsmkme.store import Epoch, Store

_COLUMNS = ("epoch", "token", "state", "check_value", "since", "wraps", "live_blocks", "quarantined", "next")
_NEXT = {
    "preactivation": "`hsmkme epoch rotate` activates it",
    "deactivated": "upkeep drains and destroys it, or `hsmkme epoch rewrap {n}`, `hsmkme epoch shred {n}`",
    "compromised": "upkeep drains and destroys it, or `hsmkme epoch rewrap {n}`, `hsmkme epoch shred {n}`",
    "destroyed": "`hsmkme epoch shred {n}`: the token has not shown yet that the master key is gone",
}


@click.group()
def epoch() -> None:
    """The generations of the master key."""


@epoch.command("list")
@with_config
@JSON_OPTION
def epoch_list(config: str | None, as_json: bool) -> None:
    """Every epoch, and how many blocks are under it."""
    store = bootstrap.open_store(load_config(config))
    rows = [_told(store, one) for one in store.epochs.all()]
    show(rows if as_json else [_readable(row) for row in rows], _COLUMNS, as_json=as_json)


@epoch.command("show")
@click.argument("number", metavar="EPOCH", type=int)
@with_config
@JSON_OPTION
def epoch_show(number: int, config: str | None, as_json: bool) -> None:
    """One epoch: its state, what is under it, and what to do next."""
    store = bootstrap.open_store(load_config(config))
    facts = _told(store, store.epochs.one(number))
    if as_json:
        click.echo(json.dumps(facts))
        return
    show_facts(_readable(facts))


@epoch.command("rotate")
@click.option("--reason", default="by hand", show_default=True, help="Why, for the audit log.")
@click.option("--token", metavar="LABEL", help="Of which token; the first that is configured.")
@with_config
@JSON_OPTION
def epoch_rotate(reason: str, token: str | None, config: str | None, as_json: bool) -> None:
    """Open the next epoch: deposits go under it at once, in every process. What is under others stays readable."""
    parts = bootstrap.open_parts(config_path(config))
    store, rotation = parts.store, _rotation(parts, parts.config.token_named(token).label)
    number = rotation.rotate(because=reason)
    facts = _told(store, store.epochs.one(number))
    done = f"epoch {number} is active, check value {facts['check_value']}; upkeep moves the blocks of the one before"
    click.echo(json.dumps(facts) if as_json else done)


@epoch.command("rewrap")
@click.argument("number", metavar="EPOCH", type=int)
@with_config
@JSON_OPTION
def epoch_rewrap(number: int, config: str | None, as_json: bool) -> None:
    """Move every live block of EPOCH to the active one, inside the token, as fast as it goes. May be interrupted."""
    store, rotation = opened(config, number)
    began, total = time.monotonic(), sum(store.epochs.live(number).values())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"))
    quiet = as_json or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet) as progress:
        task = progress.add_task(f"epoch {number}", total=total)
        rotation.rewrap(number, lambda blocks: progress.advance(task, blocks))
    left, seconds = sum(store.epochs.live(number).values()), round(time.monotonic() - began, 3)
    facts = {"epoch": number, "moved": total - left, "left": left, "seconds": seconds}
    told = f"epoch {number}: {total - left} blocks moved in {seconds} s, {left} left"
    click.echo(json.dumps(facts) if as_json else told)
    if left:
        raise StoreError(f"{left} blocks did not move: `hsmkme epoch show {number}` says why")


@epoch.command("shred")
@click.argument("number", metavar="EPOCH", type=int)
@click.option("--now", is_flag=True, help="Wait for no block to move: what is under it is given up. Needs officers.")
@APPROVAL_OPTION
@with_config
@JSON_OPTION
def epoch_shred(number: int, now: bool, approvals: tuple[Path, ...], config: str | None, as_json: bool) -> None:
    """Destroy the master key of EPOCH, under which no live block is, and prove it.

    Every old copy of what was under it is worthless afterwards, backups too.
    """
    store, rotation = opened(config, number)
    given_up = 0
    if now:
        store.epochs.one(number)
        require_approved(config, store, (Operation.SHRED, number), approvals)
        given_up = Revocation(store, operator(), f"epoch {number} is shredded now").shred(number, rotation).blocks
    fresh = now or rotation.shred(number)
    told = "master key destroyed, and proved to be" if fresh else "was destroyed before"
    facts = {"epoch": number, "destroyed": True, "now": fresh, "given_up": given_up}
    click.echo(json.dumps(facts) if as_json else f"epoch {number}: {told}; {given_up} blocks given up")


def opened(config: str | None, epoch: int) -> tuple[Store, Rotation]:
    """The store, and who rotates: logged in to the token that ``epoch`` is of."""
    parts = bootstrap.open_parts(config_path(config))
    return parts.store, _rotation(parts, parts.config.token_named(parts.store.epochs.one(epoch).token).label)


def _rotation(parts: bootstrap.Parts, token: str) -> Rotation:
    return Rotation(parts.tokens[token], parts.store, time.time, operator())


def _told(store: Store, one: Epoch) -> dict[str, Any]:
    """An epoch as programs see it."""
    live = store.epochs.live(one.number)
    done = one.proved or one.state == "active"
    return {
        "epoch": one.number,
        "token": one.token,
        "state": str(one.state),
        "check_value": one.check_value,
        "since": one.since or None,
        "wraps": one.wraps,
        "live_blocks": sum(live.values()),
        "quarantined": live.get("frozen", 0),
        "proved_destroyed": one.proved,
        "next": "" if done else _NEXT[one.state].format(n=one.number),
    }


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    since = facts["since"]
    when = "never active" if since is None else datetime.fromtimestamp(since, UTC).isoformat()
    return {**facts, "since": when}
