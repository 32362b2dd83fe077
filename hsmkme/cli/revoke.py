"""revoke: what an officer does when something may be known to others."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TextColumn

from hsmkme import bootstrap
from hsmkme.cli.epoch import opened
from hsmkme.cli.shared import (
    APPROVAL_OPTION,
    JSON_OPTION,
    MOMENT,
    console,
    load_config,
    operator,
    require_approved,
    seconds,
    show,
    with_config,
)
from hsmkme.errors import StoreError
from hsmkme.messages.bodies import REASON_MOST
from hsmkme.officers import Operation
from hsmkme.revocation import Outcome, Revocation
from hsmkme.rotation import Rotation
from hsmkme.states import EpochState
from hsmkme.store import Scope, Store


@click.command()
@click.option("--link", metavar="LINK", help="Blocks of this link, all of them or those deposited in a time.")
@click.option("--from", "since", type=MOMENT, help="With --link: deposited then or later, UTC.")
@click.option("--to", "until", type=MOMENT, help="With --link: deposited then or before, UTC.")
@click.option("--block", metavar="ID", help="One block; with --link if several links have one of that name.")
@click.option("--sae", "sae_id", metavar="SAE_ID", help="An SAE: its requests are refused, its undelivered keys burnt.")
@click.option("--epoch", type=int, help="A master key: every block that was ever under it, and the key itself.")
@APPROVAL_OPTION
@click.option("--reason", required=True, help="Why; for the audit log, and for the peer.")
@with_config
@JSON_OPTION
def revoke(
    sae_id: str | None,
    epoch: int | None,
    approvals: tuple[Path, ...],
    reason: str,
    config: str | None,
    as_json: bool,
    **blocks: Any,
) -> None:
    """Deliver nothing any more of what may be known to others; list the keys that parties have of it.

    At once, in every process and at the peer. What was not delivered is burnt. Exit status 1: nothing is meant by that.
    """
    if sum(one is not None for one in (blocks["link"] or blocks["block"], sae_id, epoch)) != 1:
        raise click.UsageError("name one of --link, --block, --sae, --epoch")
    if (blocks["since"] or blocks["until"]) and not blocks["link"]:
        raise click.UsageError("--from and --to go with --link")
    if not 0 < len(reason) <= REASON_MOST:
        raise click.UsageError(f"--reason has 1 to {REASON_MOST} characters")
    store = bootstrap.open_store(load_config(config))
    revocation = Revocation(store, operator(), reason)
    quiet = as_json or not console.is_terminal
    with Progress(TextColumn("{task.completed} blocks ended"), console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("", total=None)

        def ended(blocks: int) -> None:
            bar.advance(task, blocks)

        if sae_id is not None:
            outcome = revocation.sae(sae_id)
        elif epoch is not None:
            outcome = revocation.epoch(epoch, _approved(epoch, approvals, config), ended)
        else:
            outcome = revocation.blocks(_scope(store, **blocks), ended)
    _tell(outcome, as_json=as_json)


def _approved(epoch: int, files: tuple[Path, ...], config: str | None) -> Rotation:
    """Who ends the epoch, once officers approved that; they did if a revocation of it was begun."""
    store, rotation = opened(config, epoch)
    if store.epochs.one(epoch).state is not EpochState.COMPROMISED:
        require_approved(config, store, (Operation.REVOKE, epoch), files)
    return rotation


def _scope(store: Store, link: str | None, block: str | None, since: datetime | None, until: datetime | None) -> Scope:
    links = sorted({name for name, _ in store.revoking.blocks(Scope(link_id=link, block_id=block))})
    if block is not None and len(links) > 1:
        raise StoreError(f"the links {', '.join(links)} have a block {block}: name one with --link")
    return Scope(link, block, seconds(since, 0), seconds(until, 2**62))


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    rows = [
        {"master": relation.master, "slaves": list(relation.slaves), "key_IDs": [str(key_id) for key_id in key_ids]}
        for relation, key_ids in outcome.delivered.items()
    ]
    if as_json:
        click.echo(json.dumps({"blocks": outcome.blocks, "burnt": outcome.burnt, "delivered": rows}))
        return
    click.echo(f"{outcome.blocks} blocks revoked, {outcome.burnt} keys burnt that nobody had")
    if rows:
        click.echo("These parties have keys of it and must be told (--json names the keys, and so does the audit log):")
        told = [{**row, "slaves": ", ".join(row["slaves"]), "keys": len(row["key_IDs"])} for row in rows]
        show(told, ("master", "slaves", "keys"), as_json=False)
