"""ceremony: what officers do with the token."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hsmkme import bootstrap
from hsmkme.ceremony import steps
from hsmkme.ceremony.transcript import Transcript
from hsmkme.cli.shared import load_config, with_config


@click.group()
def ceremony() -> None:
    """Key ceremonies."""


@ceremony.command("first")
@click.option("--so-pin-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="File of mode 0400 with the security officer's PIN.")
@click.option("--transcript", type=click.Path(path_type=Path), required=True, help="A new file for the transcript.")
@with_config
def first(so_pin_file: Path, transcript: Path, config: str | None) -> None:
    """Initialise the configured token and make master key epoch 1, the digest key and the audit key."""
    settings = load_config(config)
    store = bootstrap.open_store(settings)
    record = Transcript(transcript, time.time)
    keys = steps.first(
        bootstrap.token_address(settings.token),
        bootstrap.pin_source(so_pin_file),
        bootstrap.pin_source(settings.token.pin_file),
        record,
    )
    bootstrap.admit_first_epoch(store, keys.check_value, record.digest)
    click.echo(f"token {settings.token.label} serial {keys.serial}, master/1 check value {keys.check_value}")
    click.echo(f"transcript {transcript} digest {record.digest}")
