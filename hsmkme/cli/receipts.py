"""prove-destroyed: receipts for who must believe that a key is gone."""

from __future__ import annotations

import json
import time
from uuid import UUID

import click

from hsmkme import bootstrap, verify
from hsmkme.cli.audit import signing_keys
from hsmkme.cli.shared import config_path, with_config
from hsmkme.errors import AuditBroken
from hsmkme.receipts import Receipts


@click.command("prove-destroyed")
@click.argument("key_id", type=click.UUID, required=False)
@click.option("--block", metavar="LINK/ID", help="A block instead of a key.")
@click.option("--epoch", type=int, help="A master key instead of a key.")
@with_config
def prove_destroyed(key_id: UUID | None, block: str | None, epoch: int | None, config: str | None) -> None:
    """Print a signed receipt (JSON) that KEY_ID can be opened from no copy of the store, by nobody.

    `python verify.py RECEIPT PUBLIC_KEY` checks it offline. Exit status 1: it is not destroyed yet, and what is to be
    done. The receipt has the rows of the audit log up to the next seal: they may name other keys.
    """
    if sum(one is not None for one in (key_id, block, epoch)) != 1:
        raise click.UsageError("name one of KEY_ID, --block, --epoch")
    parts = bootstrap.open_parts(config_path(config))
    receipts = Receipts(parts.config.kme_id, parts.custody, parts.store, time.time)
    if key_id is not None:
        receipt = receipts.of_key(key_id)
    elif block is not None:
        receipt = receipts.of_block(block)
    else:
        receipt = receipts.of_epoch(int(epoch or 0))
    told = json.loads(receipt)
    try:
        verify.verify_receipt(told, signing_keys(parts))
    except verify.BrokenError as broken:  # somebody wrote to the store, or to its log
        raise AuditBroken(f"{broken}: no receipt is given of what cannot be proved", broken.row) from broken
    click.echo(json.dumps(told, indent=1))
