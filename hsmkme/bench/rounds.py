"""Rounds: each runs every scenario once, in turn, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from hsmkme.bench.loads import Figures
from hsmkme.bench.scenarios import Scenario
from hsmkme.bench.stand import KME, Stand

Record = Mapping[str, Sequence[Figures]]
"""The figures of every round, by scenario."""

Step = Callable[[int, str], None]
"""Called with the number of the round and the name of the scenario that begins."""


def run(stand: Stand, scenarios: Sequence[Scenario], rounds: int, seconds: float, step: Step) -> Record:
    """Measure. Raises `FiguresRefused` if a key came twice."""
    record: dict[str, list[Figures]] = {scenario.name: [] for scenario in scenarios}
    for number in range(1, rounds + 1):
        step(number, "keys for the round")
        stand.fill(keys_needed(scenarios, KME, seconds))
        for scenario in scenarios:
            step(number, scenario.name)
            record[scenario.name].append(scenario.measure(stand, seconds))
    return record


def keys_needed(scenarios: Sequence[Scenario], server: str, seconds: float) -> int:
    """How many segments of a server's pool a round uses at most."""
    return sum(scenario.keys_needed(seconds) for scenario in scenarios if scenario.server == server)


def medians(record: Record) -> dict[str, Figures]:
    """The median of each figure over the rounds, by scenario."""
    return {
        name: {figure: median(one[figure] for one in rounds) for figure in rounds[0]} for name, rounds in record.items()
    }
