"""deposit and simulate: keys into the pool."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from hsmkme import bootstrap
from hsmkme.bootstrap import Parts
from hsmkme.cli.shared import JSON_OPTION, MOMENT, config_path, operator, seconds, with_config
from hsmkme.drivers.keyfile import FORMATS, Format, KeyFile
from hsmkme.drivers.simulator import Simulator
from hsmkme.intake import Driver, Tally
from hsmkme.intake import Progress as OnBlock


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--link", "link_id", required=True, help="The link whose keys these are.")
@click.option("--key-bits", type=int, help="Bits of one key. Default: the link's.")
@click.option("--block-id", help="What both ends call this block. Default for a local link: from its content.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="auto", help="Default: found out by looking.")
@click.option("--not-before", type=MOMENT, help="Release no key before then, UTC. The same at both ends of a link.")
@with_config
@JSON_OPTION
def deposit(
    file: str,
    link_id: str,
    key_bits: int | None,
    block_id: str | None,
    form: Format,
    not_before: datetime | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Deposit the raw keys in FILE (- for standard input)."""
    parts = bootstrap.open_parts(config_path(config))
    link = parts.config.link_named(link_id)
    if block_id is None and link.peer != parts.config.kme_id:
        raise click.UsageError(f"--block-id is needed: {link.peer} must know the block by the same id")
    with ExitStack() as stack:
        stream = sys.stdin.buffer if file == "-" else stack.enter_context(_opened(file))
        bar = stack.enter_context(_bar())
        size = None if file == "-" else Path(file).stat().st_size
        task = bar.add_task("depositing", total=size)
        keyfile = KeyFile(
            stream,
            link_id,
            block_id,
            link.key_bits if key_bits is None else key_bits,
            parts.config.keys.block_keys,
            form,
            operator(),
            lambda count: bar.advance(task, count),
            parts.custody.block_id_of,
            seconds(not_before, 0),
        )
        tally = _run(parts, keyfile)
    _report(tally, link_id, as_json)


@click.command()
@click.option("--link", "link_id", required=True, help="The link to deposit on.")
@click.option("--keys", type=int, default=1000, show_default=True, help="How many keys.")
@click.option("--rate", type=float, default=0.0, help="Keys per second. Default: as fast as they are taken.")
@click.option("--seed-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="The same file at two KMEs gives the same blocks.")
@click.option("--start", type=int, default=0, help="Number of the first block.")
@with_config
@JSON_OPTION
def simulate(
    link_id: str, keys: int, rate: float, seed_file: Path, start: int, config: str | None, as_json: bool
) -> None:
    """Deposit keys of a simulated QKD device. Whoever has the seed has the keys: not for production."""
    parts = bootstrap.open_parts(config_path(config))
    link = parts.config.link_named(link_id)
    block_keys = parts.config.keys.block_keys
    device = Simulator(link_id, seed_file.read_bytes(), link.key_bits, block_keys, keys, rate, start)
    with _bar() as bar:
        task = bar.add_task("simulating", total=keys * link.key_bits // 8)
        step = link.key_bits // 8
        tally = _run(parts, device, lambda done: bar.update(task, completed=done.keys * step))
    _report(tally, link_id, as_json)


def _run(parts: Parts, driver: Driver, progress: OnBlock = lambda _: None) -> Tally:
    return parts.intake().run(driver, progress)


def _opened(file: str) -> BinaryIO:
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from error


def _bar() -> Progress:
    """A bar on standard error, only where a person sees it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _report(tally: Tally, link_id: str, as_json: bool) -> None:
    facts = {"link": link_id, "keys": tally.keys, "blocks_taken": tally.taken, "blocks_already_known": tally.already}
    if as_json:
        click.echo(json.dumps(facts))
        return
    known = f", {tally.already} blocks were known already" if tally.already else ""
    click.echo(f"{tally.keys} keys in {tally.taken} blocks deposited on link {link_id}{known}")
