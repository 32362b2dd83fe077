"""What every command shares: where the configuration is, and how results are shown."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.table import Table

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.config import Config
from hsmkme.officers import Operation
from hsmkme.store import Store

Function = TypeVar("Function", bound=Callable[..., Any])

PAGE_COLUMNS: Final = 200
"""How wide a table is that no terminal limits."""

console = Console(highlight=False)

CONFIG_OPTION = click.option(
    "--config",
    "config",
    metavar="FILE",
    help="The configuration file. Default: $HSMKME_CONFIG, or hsmkme.toml here.",
)
MOMENT = click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d"])
"""A time of day, UTC."""

APPROVAL_OPTION = click.option(
    "--approval",
    "approvals",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="What officers signed, if there are any (ops/approvals.md). Again for copies that were signed in parallel.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Settings:
    """The ``--config`` given before the command, if any."""

    config: str | None


def with_config(function: Function) -> Function:
    """Give a command ``--config`` too, so that it may stand before or after the command's name."""
    return CONFIG_OPTION(function)


def config_path(given: str | None) -> Path:
    """Which configuration file is meant."""
    settings = click.get_current_context().find_object(Settings)
    outer = settings.config if settings else None
    return Path(given or outer or os.environ.get(bootstrap.CONFIG_VARIABLE) or "hsmkme.toml")


def load_config(given: str | None) -> Config:
    """The configuration that is meant."""
    return configuration.load(config_path(given))


def seconds(given: datetime | None, otherwise: int) -> int:
    """A `MOMENT` in seconds since the epoch; ``otherwise`` for none."""
    return otherwise if given is None else int(given.replace(tzinfo=UTC).timestamp())


def moment(seconds: int) -> str:
    """Seconds since the epoch as a `MOMENT`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def operator() -> str:
    """Who gives the command, for the audit log."""
    return f"operator:{getpass.getuser()}"


def require_approved(config: str | None, store: Store, act: tuple[Operation, object], files: Sequence[Path]) -> None:
    """Use up the officers' approval of an act, operation and target, before it begins."""
    operation, target = act
    bootstrap.approvals(load_config(config), store).require(operation, str(target), files, operator())


def show_facts(facts: Mapping[str, object]) -> None:
    """Print what is known of one thing, a line for each fact."""
    for name, value in facts.items():
        console.print(f"[bold]{name.replace('_', ' '):>12}[/bold]  {value}", soft_wrap=True)


def show(rows: Sequence[Mapping[str, object]], columns: Iterable[str], *, as_json: bool) -> None:
    """Print rows as a table, or as a JSON array."""
    if as_json:
        click.echo(json.dumps(list(rows), default=str))
        return
    names = list(columns)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(name) is None else str(row.get(name)) for name in names))
    wide = console if console.is_terminal else Console(highlight=False, width=PAGE_COLUMNS)
    wide.print(table)
