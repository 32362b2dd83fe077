"""The figures as a picture (SVG), if matplotlib is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hsmkme.bench.report import Report
from hsmkme.bench.rounds import medians
from hsmkme.bench.sampled import PARTS
from hsmkme.errors import OperatorFault

_COSTS: Final = ("start_ms", "tick_ms", "status_us", "enc_keys_us", "dec_keys_us")
_WIDTH: Final = 9.0
_ROW: Final = 0.3
_EDGES: Final = 1.6

Draw = Callable[[Any], None]
"""Draws on the axes of matplotlib."""


def check_plotting() -> None:
    """Raises `OperatorFault` that says what to install: before something is measured, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OperatorFault("--plot needs matplotlib: pip install 'hsmkme[bench]'") from None


def plot(report: Report, path: Path) -> None:
    """Draw what the report has: requests a second, where their time goes, costs by the size of the store."""
    from matplotlib.figure import Figure

    panels = [panel for panel in (_rates(report), _split(report), _pools(report)) if panel is not None]
    heights = [rows * _ROW + _EDGES for rows, _ in panels]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    columns = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
    for axes, (_, draw) in zip(columns[:, 0], panels, strict=True):
        draw(axes)
    figure.savefig(path, format="svg")


def _rates(report: Report) -> tuple[int, Draw] | None:
    """Bars of requests a second; those of the empty endpoint are grey."""
    rates = {
        name: figures["requests_per_second"]
        for name, figures in medians(report.record).items()
        if "requests_per_second" in figures
    }

    def draw(axes: Any) -> None:
        colours = ["tab:gray" if name.startswith(("gthread", "ceiling")) else "tab:blue" for name in rates]
        axes.barh(list(rates), list(rates.values()), color=colours)
        axes.invert_yaxis()
        axes.set_xlabel("requests/s")

    return (len(rates), draw) if rates else None


def _split(report: Report) -> tuple[int, Draw] | None:
    """Bars of a request's CPU time, each of its parts."""

    def draw(axes: Any) -> None:
        names, left = list(report.splits), [0.0] * len(report.splits)
        for part in PARTS:
            widths = [split.microseconds[part] for split in report.splits.values()]
            axes.barh(names, widths, left=left, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("CPU time of a request, µs, watched")
        axes.legend()

    return (len(report.splits), draw) if report.splits else None


def _pools(report: Report) -> tuple[int, Draw] | None:
    """Lines of each cost, divided by what it is in the smallest store."""
    found = {name: figures for name, figures in medians(report.record).items() if _COSTS[0] in figures}

    def draw(axes: Any) -> None:
        sizes, least = [int(name.removeprefix("pool-")) for name in found], next(iter(found.values()))
        for cost in _COSTS:
            values = [figures[cost] / least[cost] for figures in found.values()]
            axes.semilogx(sizes, values, marker="o", label=cost.rpartition("_")[0].replace("_", " "))
        axes.set_xlabel("keys in the store")
        axes.set_ylabel("cost ÷ that in the smallest")
        axes.set_ylim(bottom=0)
        axes.legend()

    return (10, draw) if found else None
