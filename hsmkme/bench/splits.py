"""Where the CPU time of a request goes, and which calls its token gets.

Counted apart from the timed rounds, on a server that is slower for being watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from hsmkme.bench.loads import Load
from hsmkme.bench.sampled import CALLS, PARTS, read_tallies
from hsmkme.bench.scenarios import Scenario
from hsmkme.bench.stand import KME, SAMPLED, Stand


@dataclass(frozen=True, slots=True)
class Split:
    """Of one request of a scenario."""

    microseconds: Mapping[str, float]
    """CPU time by part."""
    calls: Mapping[str, float]
    """Calls of the token by function, but those that a request makes less than once in a hundred times."""


def splits(
    stand: Stand, scenarios: Sequence[Scenario], seconds: float, step: Callable[[str], None]
) -> dict[str, Split]:
    """Look into those scenarios that ask the single KME and keep their connections open."""
    loads = [one for one in scenarios if isinstance(one, Load) and one.server == KME and not one.fresh]
    found: dict[str, Split] = {}
    with stand.sampled() if loads else nullcontext(Path()) as tallies:
        for load in loads:
            step(f"watching {load.name}")
            watched = replace(load, server=SAMPLED)
            _spent(stand, watched, seconds, tallies)  # what is done once is done by now
            found[load.name] = _spent(stand, watched, seconds, tallies)
    return found


def _spent(stand: Stand, load: Load, seconds: float, tallies: Path) -> Split:
    stand.fill(load.keys_needed(seconds))
    prepared = load.prepared(stand, seconds)
    before = read_tallies(tallies)
    requests = max(1, len(load.run(stand, prepared, seconds).good))
    spent = read_tallies(tallies) - before
    return Split(
        {part: spent[part] / requests / 1e3 for part in PARTS},
        {call: spent[call] / requests for call in CALLS if spent[call] > requests / 100},
    )
