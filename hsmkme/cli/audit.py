"""audit: the log, for people and for auditors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from hsmkme import bootstrap, verify
from hsmkme.bootstrap import Parts
from hsmkme.cli.shared import JSON_OPTION, config_path, console, load_config, show, with_config
from hsmkme.errors import AuditBroken, HsmkmeError


@click.group()
def audit() -> None:
    """The tamper-evident log of everything that happened to a key."""


@audit.command("verify")
@with_config
@JSON_OPTION
def audit_verify(config: str | None, as_json: bool) -> None:
    """Check every row, every seal, and that nothing is missing. Exit status 1 names the first bad row."""
    parts = bootstrap.open_parts(config_path(config))
    try:
        report = verify.verify(parts.custody.logbook.export(parts.config.kme_id), signing_keys(parts))
    except verify.BrokenError as error:
        raise AuditBroken(str(error).partition(": ")[2], error.row) from error
    if as_json:
        click.echo(json.dumps({"good": True, **report}))
        return
    console.print(
        f"[green]good[/green]    {report['rows']} rows, {report['seals']} seals, sealed through row "
        f"{report['sealed_through']}"
    )


@audit.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@with_config
def audit_export(file: Path, config: str | None) -> None:
    """Write the whole log to FILE, for `verify.py`. An existing file is not overwritten."""
    parts = bootstrap.open_parts(config_path(config))
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            for line in parts.custody.logbook.export(parts.config.kme_id):
                output.write(line + "\n")
    except HsmkmeError:
        file.unlink()  # half an export is none
        raise
    click.echo(f"{file}: check it with `python verify.py {file} PUBLIC_KEY`")


@audit.command("key")
@with_config
def audit_key(config: str | None) -> None:
    """Print what verifies seals and exports: the public key of each token that answers (PEM)."""
    click.echo(bootstrap.open_parts(config_path(config)).custody.logbook.public_keys().decode(), nl=False)


@audit.command("show")
@click.option("--last", type=int, default=20, show_default=True, help="How many rows.")
@click.option("--alarms", is_flag=True, help="Only alarms.")
@with_config
@JSON_OPTION
def audit_show(last: int, alarms: bool, config: str | None, as_json: bool) -> None:
    """The latest rows."""
    store = bootstrap.open_store(load_config(config))
    rows = [json.loads(row.text) for row in store.log.latest(last, "alarm." if alarms else "")]
    if as_json:
        click.echo(json.dumps(rows))
        return
    shown = ("seq", "at", "event", "actor")
    show(
        [{**row, "facts": _facts({k: v for k, v in row.items() if k not in shown})} for row in rows],
        (*shown, "facts"),
        as_json=False,
    )


def _facts(facts: dict[str, object]) -> str:
    """Facts of a row in one cell; long lists of keys by their number."""
    parts = []
    for name, value in facts.items():
        long = isinstance(value, list) and len(value) > 2
        parts.append(f"{name}={len(value)} of them" if long else f"{name}={value}")  # type: ignore[arg-type]
    return "  ".join(parts)


def signing_keys(parts: Parts) -> verify.Keys:
    """The public halves of the keys that sign the log, of each token that answers."""
    return verify.keys_in(parts.custody.logbook.public_keys())
