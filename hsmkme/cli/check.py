"""check: whether configuration, certificates, token and store fit together."""

from __future__ import annotations

import json
import sys

import click

from hsmkme import diagnosis
from hsmkme.cli.shared import JSON_OPTION, config_path, console, with_config


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
