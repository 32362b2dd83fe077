"""bench: what a KME costs on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from hsmkme.bench.report import Report
from hsmkme.bench.rounds import Step, keys_needed, run
from hsmkme.bench.scenarios import SCENARIOS, Scenario
from hsmkme.bench.splits import splits
from hsmkme.bench.stand import KME, TWO_KMES, stand
from hsmkme.cli.shared import JSON_OPTION, PAGE_COLUMNS, console

NAMES = [scenario.name for scenario in SCENARIOS]
QUICK_SECONDS = 0.3


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds; figures are medians.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), metavar="NAME", help="Measure this, and others named.")
@click.option("--quick", is_flag=True, help="One short round: shows that everything works, not how fast.")
@click.option("--directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Keep KMEs here.")
@JSON_OPTION
def bench(
    rounds: int, seconds: float, only: Sequence[str], quick: bool, directory: Path | None, as_json: bool
) -> None:
    """Measure a new KME on this machine, beside an empty Flask endpoint on stock gunicorn.

    Prints no figures, and ends with status 1, if any key came twice.
    """
    if quick:
        rounds, seconds = 1, QUICK_SECONDS
    chosen = [scenario for scenario in SCENARIOS if not only or scenario.name in only]
    report = _measured(chosen, rounds, seconds, directory)
    if as_json:
        click.echo(json.dumps(report.tree()))
    else:
        _show(report)


def _measured(chosen: Sequence[Scenario], rounds: int, seconds: float, directory: Path | None) -> Report:
    one, two = (keys_needed(chosen, server, seconds) for server in (KME, TWO_KMES))
    with (
        _place(directory) as place,
        _progress(len(chosen) * rounds) as (say, step),
        stand(place, one, two * rounds, say) as here,
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
    errors = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("preparing", total=measurements)

        def step(number: int, name: str) -> None:
            bar.update(task, description=f"round {number}: {name}", advance=1)

        yield lambda line: bar.update(task, description=line), step


def _show(report: Report) -> None:
    wide = console if console.is_terminal else Console(highlight=False, width=PAGE_COLUMNS)
    for table in report.tables:
        columns = (Column(name, justify="left" if name in table.words else "right") for name in table.headings[1:])
        shown = Table(table.headings[0], *columns, box=None, header_style="bold", pad_edge=False,
                      title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        wide.print(shown)
        wide.print()
    for line in report.remarks:
        wide.print(line)
