"""ceremony: what officers do with the token."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hsmkme import bootstrap
from hsmkme.ceremony import steps
from hsmkme.ceremony.components import read_component
from hsmkme.ceremony.transcript import Transcript
from hsmkme.cli.shared import load_config, operator, with_config
from hsmkme.model import Entry


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


@ceremony.command("link")
@click.argument("link_id", metavar="LINK")
@click.option("--component-file", "component_files", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              multiple=True, required=True, help="File of mode 0400 with 64 hex digits; several are XORed.")
@click.option("--transcript", type=click.Path(path_type=Path), required=True, help="A new file for the transcript.")
@with_config
def link(link_id: str, component_files: tuple[Path, ...], transcript: Path, config: str | None) -> None:
    """Bring the key of LINK into the token; the other end does so with the same components.

    Order of durable acts: the key in the token, the transcript, the row of the audit log.
    """
    bootstrap.forbid_core_dumps()
    settings = load_config(config)
    peer = settings.link_named(link_id).peer
    if peer == settings.kme_id:
        raise click.UsageError(f"link {link_id} is local: it has no other end to share a key with")
    components = [read_component(path) for path in component_files]
    store = bootstrap.open_store(settings)
    record = Transcript(transcript, time.time)
    address = bootstrap.token_address(settings.token)
    check_value = steps.link(address, bootstrap.pin_source(settings.token.pin_file), link_id, components, record)
    facts = {"link": link_id, "peer": peer, "check_value": check_value, "transcript": record.digest}
    store.log.append(Entry("link.key", operator(), facts))
    store.close()
    click.echo(f"link {link_id} check value {check_value}: compare it with the one of {peer}")
    click.echo(f"transcript {transcript} digest {record.digest}")
