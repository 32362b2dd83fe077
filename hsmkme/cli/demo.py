"""demo: a KME on this machine, to look at or to drive."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import click
from rich.table import Table

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.cli.shared import JSON_OPTION, console
from hsmkme.demo import processes
from hsmkme.demo.exchange import curl_lines, exchange
from hsmkme.demo.world import World

DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


@click.group()
def demo() -> None:
    """A KME with SoftHSM and a development CA in one directory. Not for production."""


@demo.command()
@DIRECTORY
@click.option("--port", default=8443, show_default=True, help="TCP port on localhost.")
@click.option("--saes", type=click.IntRange(min=2), default=3, show_default=True, help="How many SAEs.")
@click.option("--keys", type=click.IntRange(min=0), default=10_000, show_default=True, help="Keys in a new pool.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Server processes.")
@JSON_OPTION
def up(directory: Path, port: int, saes: int, keys: int, workers: int, as_json: bool) -> None:
    """Start in the background, or resume what DIR holds; returns when it answers. Describes it in DIR/demo.json."""
    say = (lambda _: None) if as_json else (lambda line: console.print(f"  {line}", soft_wrap=True))
    description = processes.up(World(directory.resolve(), port, saes, keys, workers, say))
    if as_json:
        click.echo(json.dumps(description))
    else:
        console.print(f"[green]ready[/green] at {description['kmes'][0]['url']}; see {directory / 'demo.json'}")


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
    """Start the demo in DIR, exchange one key, show what happened, and stay up until Ctrl-C."""
    directory = directory.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.rule("hsmkme demo")
    description = processes.up(
        World(directory, port, 3, 10_000, 2, lambda line: console.print(f"  {line}", soft_wrap=True))
    )
    try:
        key_id = exchange(console, description)
        _show_log(Path(description["kmes"][0]["config"]), key_id)
        console.print("\nPaste these (the last one needs a KEY_ID from the second):\n")
        for line in curl_lines(description):
            click.echo(line + "\n")
        if not once:
            console.print(f"Serving at {description['kmes'][0]['url']}. Ctrl-C stops; state stays in {directory}.")
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("\nstopping")
    finally:
        processes.down(directory)


def _show_log(config_path: Path, key_id: str) -> None:
    """What the audit log says of one key."""
    store = bootstrap.open_store(configuration.load(config_path))
    table = Table("row", "time", "event", "actor", box=None, header_style="bold", title="The audit log on this key")
    for row in store.log.latest(100, "key."):
        facts = json.loads(row.text)
        if key_id in facts.get("key_IDs", []):
            table.add_row(str(row.seq), facts["at"], facts["event"], facts["actor"])
    console.print(table)
    store.close()
