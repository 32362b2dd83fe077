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
from hsmkme.bench.rounds import Step, run
from hsmkme.bench.scenarios import SCENARIOS, Scenario
from hsmkme.bench.stand import stand
from hsmkme.cli.shared import JSON_OPTION, console

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
    keys = sum(scenario.keys_needed(seconds) for scenario in chosen) * rounds
    with _place(directory) as place, _progress(len(chosen) * rounds) as (say, step):
        with stand(place, keys, say) as here:
            record = run(here, chosen, rounds, seconds, step)
        return Report(record, here.ledger, rounds, seconds)


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
    figures = _table("scenario", *(Column(name, justify="right") for name in report.columns))
    for row in report.rows():
        figures.add_row(*row)
    ratios = _table("ratio", Column("is", justify="right"), Column("target", justify="right"), "verdict")
    for verdict in report.verdicts():
        said = "[green]reached[/green]" if verdict.reached else "[red]not reached[/red]"
        ratios.add_row(verdict.what, f"{verdict.ratio:.2f}", verdict.target.wanted, said)
    for part in (figures, "", ratios, "", *report.remarks()):
        console.print(part)


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)
