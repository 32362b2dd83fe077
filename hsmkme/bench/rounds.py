"""Rounds: each runs every scenario once, in turn, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

from collections import Counter
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
        if KME in stand.servers:
            step(number, "keys for the round")
            stand.fill(keys_needed(scenarios, seconds)[KME])
        for scenario in scenarios:
            step(number, scenario.name)
            record[scenario.name].append(scenario.measure(stand, seconds))
    return record


def keys_needed(scenarios: Sequence[Scenario], seconds: float) -> Counter[str]:
    """How many segments of each server's pool a round uses at most; a server that needs none is there with 0."""
    needed = Counter({scenario.server: 0 for scenario in scenarios})
    for scenario in scenarios:
        needed[scenario.server] += scenario.keys_needed(seconds)
    return needed


def medians(record: Record) -> dict[str, Figures]:
    """The median of each figure over the rounds, by scenario."""
    return {
        name: {figure: median(one[figure] for one in rounds) for figure in rounds[0]} for name, rounds in record.items()
    }
