"""bench: what a KME costs on this machine."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from hsmkme.bench.plot import check_plotting, plot
from hsmkme.bench.pools import prepared
from hsmkme.bench.report import Report
from hsmkme.bench.rounds import Step, keys_needed, run
from hsmkme.bench.scenarios import SCENARIOS, Scenario
from hsmkme.bench.splits import splits
from hsmkme.bench.stand import stand
from hsmkme.cli.shared import JSON_OPTION, PAGE_COLUMNS, console

NAMES = [scenario.name for scenario in SCENARIOS]
QUICK_SECONDS = 0.2
DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds; figures are medians.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), metavar="NAME", help="Measure this, and others named.")
@click.option("--quick", is_flag=True, help="One short round: shows that everything works, not how fast.")
@click.option("--pool-sizes", metavar="DIR", type=DIRECTORY, help="Measure the prepared KMEs in DIR instead.")
@click.option("--directory", metavar="DIR", type=DIRECTORY, help="Keep the KMEs here.")
@click.option("--plot", "picture", metavar="FILE", type=FILE, help="Draw the figures (SVG).")
@click.option("--markdown", is_flag=True, help="Print a page for ops/benchmarks.md.")
@JSON_OPTION
def bench(
    rounds: int,
    seconds: float,
    only: Sequence[str],
    quick: bool,
    pool_sizes: Path | None,
    directory: Path | None,
    picture: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Measure a new KME on this machine, beside an empty Flask endpoint on stock gunicorn.

    Prints no figures, and ends with status 1, if any key came twice.
    """
    if picture is not None:
        check_plotting()
    if quick:
        rounds, seconds = 1, QUICK_SECONDS
    chosen: Sequence[Scenario] = [scenario for scenario in SCENARIOS if not only or scenario.name in only]
    if pool_sizes is not None:
        chosen = prepared(pool_sizes)
    report = _measured(chosen, rounds, seconds, directory)
    if picture is not None:
        plot(report, picture)
    if as_json:
        click.echo(json.dumps(report.tree()))
    elif markdown:
        click.echo(f"`{shlex.join(['hsmkme', *sys.argv[1:]])}`, {time.strftime('%Y-%m-%d')}, {report.machine}\n")
        click.echo(report.markdown())
    else:
        _show(report)


def _measured(chosen: Sequence[Scenario], rounds: int, seconds: float, directory: Path | None) -> Report:
    with (
        _place(directory) as place,
        _progress(len(chosen) * rounds) as (say, step),
        stand(place, keys_needed(chosen, seconds), rounds, say) as here,
    ):
        record = run(here, chosen, rounds, seconds, step)
        return Report(record, splits(here, chosen, seconds, say), here.ledger, rounds, seconds)


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="hsmkme-bench-") as temporary:
        yield Path(temporary)


@contextmanager
def _progress(measurements: int) -> Iterator[tuple[Callable[[str], None], Step]]:
    """What is being done, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("preparing", total=measurements)

        def step(number: int, name: str) -> None:
            bar.update(task, description=f"round {number}: {name}", advance=1)

        yield lambda line: bar.update(task, description=line), step


def _show(report: Report) -> None:
    wide = console if console.is_terminal else Console(highlight=False, width=PAGE_COLUMNS)
    for table in report.tables:
        columns = (Column(name, justify="left" if name in table.words else "right") for name in table.headings[1:])
        shown = Table(table.headings[0], *columns, box=None, pad_edge=False)
        for row in table.rows:
            shown.add_row(*row)
        wide.print(f"[bold]{table.title}[/bold]")
        wide.print(shown)
        wide.print()
    for line in report.remarks:
        wide.print(line)
