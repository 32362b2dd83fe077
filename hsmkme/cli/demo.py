"""demo: KMEs on this machine, to look at or to drive."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.cli.shared import JSON_OPTION, console
from hsmkme.demo import processes
from hsmkme.demo.exchange import curl_lines, exchange, pairs
from hsmkme.demo.world import World

DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


@click.group()
def demo() -> None:
    """KMEs with SoftHSM and development CAs in one directory. Not for production."""


@demo.command()
@DIRECTORY
@click.option("--port", default=8443, show_default=True, help="TCP port of the first KME on localhost.")
@click.option("--kmes", type=click.IntRange(1, 3), default=1, show_default=True, help="How many KMEs in a new DIR.")
@click.option("--saes", type=click.IntRange(min=2), default=3, show_default=True, help="How many SAEs.")
@click.option("--keys", type=click.IntRange(min=0), default=10_000, show_default=True, help="Keys in a new pool.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Server processes.")
@JSON_OPTION
def up(directory: Path, port: int, kmes: int, saes: int, keys: int, workers: int, as_json: bool) -> None:
    """Start in the background, or resume what DIR holds; returns when it is ready. Describes it in DIR/demo.json.

    KME i serves SAEs at PORT + i - 1 and its peers ten ports above; SAEs are spread over the KMEs.
    """
    say = (lambda _: None) if as_json else _say
    description = processes.up(World(directory.resolve(), port, saes, keys, workers, say, kmes))
    if as_json:
        click.echo(json.dumps(description))
    else:
        console.print(f"[green]ready[/green] at {_urls(description)}; see {directory / 'demo.json'}", soft_wrap=True)


@demo.command()
@DIRECTORY
def down(directory: Path) -> None:
    """Stop the demo in DIR; its keys and its log stay."""
    stopped = processes.down(directory.resolve())
    click.echo(f"stopped {', '.join(map(str, stopped))}" if stopped else "nothing was running")


@demo.command()
@DIRECTORY
@click.option("--port", default=8443, show_default=True, help="TCP port on localhost.")
@click.option("--once", is_flag=True, help="Stop after the exchange instead of staying up.")
def show(directory: Path, port: int, once: bool) -> None:
    """Start a demo of two KMEs in DIR, exchange keys, show what happened, and stay up until Ctrl-C."""
    directory = directory.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.rule("hsmkme demo")
    description = processes.up(World(directory, port, 3, 10_000, 2, _say, kmes=2))
    try:
        key_ids = [exchange(console, description, *pair) for pair in pairs(description)]
        for kme in description["kmes"]:
            _show_log(kme, key_ids)
        console.print("\nEach key was accepted by the slave's KME (key.assign) before its master got it (key.deliver).")
        console.print("\nPaste these (the last one needs a KEY_ID from the second):\n")
        for line in curl_lines(description):
            click.echo(line + "\n")
        if not once:
            console.print(f"Serving at {_urls(description)}. Ctrl-C stops; state stays in {directory}.")
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("\nstopping")
    finally:
        processes.down(directory)


def _say(line: str) -> None:
    console.print(f"  {line}", soft_wrap=True, markup=False)


def _urls(description: dict[str, Any]) -> str:
    return ", ".join(kme["url"] for kme in description["kmes"])


def _show_log(kme: dict[str, Any], key_ids: list[str]) -> None:
    """What the audit log of one KME says of some keys."""
    store = bootstrap.open_store(configuration.load(Path(kme["config"])))
    title = f"The audit log of {kme['id']} on {'this key' if len(key_ids) == 1 else 'these keys'}"
    key_column = Column("key_ID", overflow="fold")
    columns = ("row", "time", "event", "actor", key_column)
    table = Table(*columns, box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for row in store.log.latest(100, "key."):
        facts = json.loads(row.text)
        for key_id in set(key_ids).intersection(facts.get("key_IDs", [])):
            table.add_row(str(row.seq), facts["at"][11:23], facts["event"], facts["actor"], key_id)
    console.print()
    console.print(table)
    store.close()
