"""hsm: what the token can do, and which tokens there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from hsmkme import bootstrap
from hsmkme.cli.shared import JSON_OPTION, console, load_config, show, with_config
from hsmkme.hsm.survey import Finding, Speed, Survey, saved_profile, visible_tokens


@click.group()
def hsm() -> None:
    """The token: what it does and how, and which there are."""


@hsm.command("check")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.toml",
              help="Write what was found as a profile. An existing file is not overwritten.")
@click.option("--token", metavar="LABEL", help="Which token; the first that is configured.")
@with_config
@JSON_OPTION
def check(save: Path | None, token: str | None, config: str | None, as_json: bool) -> None:
    """Try every operation that the product needs on a configured token, with objects that leave no trace.

    Exit status 0 if the token can be used, 1 if not.
    """
    section = load_config(config).token_named(token)
    address = bootstrap.token_address(section)
    if save is not None and save.exists():
        raise click.UsageError(f"{save} exists and is not overwritten")
    survey = Survey(address, bootstrap.pin_source(section.pin_file))
    try:
        with console.status("trying each operation"):
            described, findings = survey.token(), list(survey.findings())
            usable = all(finding.good or not finding.needed for finding in findings)
            speeds = list(survey.speeds()) if usable else []
    finally:
        survey.close()
    if save is not None:
        save.write_text(saved_profile(save.stem, address, described, findings), encoding="utf-8")
    if as_json:
        report = {"usable": usable, "token": described, "findings": findings, "speeds": speeds}
        click.echo(json.dumps(report, default=asdict))
    else:
        _tell(usable, described, findings, speeds)
    sys.exit(0 if usable else 1)


def _tell(usable: bool, token: dict[str, object], findings: Sequence[Finding], speeds: Sequence[Speed]) -> None:
    for name, value in token.items():
        console.print(f"[bold]{name:>14}[/bold]  {value}")
    console.print()
    marks = {True: "good", False: "wrong"}
    rows = [
        {"": marks[finding.good] if finding.needed else "", "operation": finding.name, "this_token": finding.found}
        for finding in findings
    ]
    show(rows, ("", "operation", "this_token"), as_json=False)
    console.print()
    if speeds:
        show([asdict(speed) for speed in speeds], ("name", "microseconds"), as_json=False)
        console.print()
    console.print("[green]good[/green]   this token can be used" if usable else
                  "[red]wrong[/red]  this token cannot be used: see ops/tokens.md for what it must do")


@hsm.command("list")
@with_config
@JSON_OPTION
def list_tokens(config: str | None, as_json: bool) -> None:
    """The tokens that the configured modules show, without logging in to any, and the links placed on each."""
    settings = load_config(config)
    rows = visible_tokens([bootstrap.token_address(section) for section in settings.token])
    for row in rows:
        row["links"] = settings.links_on(str(row["label"])) if row["configured"] else []
    columns = ("slot", "label", "serial", "manufacturer", "model", "firmware", "configured", "links")
    show(rows, columns, as_json=as_json)
