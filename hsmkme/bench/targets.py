"""What the figures should be: ratios of medians, and what each is to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hsmkme.bench.scenarios import Figures


@dataclass(frozen=True, slots=True)
class Target:
    """``figure`` of scenario ``of`` ÷ that of ``to`` (or its ``to_figure``), and what that is to be."""

    of: str
    to: str
    figure: str = "requests_per_second"
    least: float | None = None
    most: float | None = None
    to_figure: str | None = None

    def ratio(self, medians: Mapping[str, Figures]) -> float | None:
        """The ratio; None if one of the two was not measured."""
        upper = medians.get(self.of, {}).get(self.figure)
        lower = medians.get(self.to, {}).get(self.to_figure or self.figure)
        return upper / lower if upper is not None and lower else None

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is what it is to be."""
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)

    @property
    def wanted(self) -> str:
        """What it is to be, for people."""
        return f"≥ {self.least}" if self.least is not None else f"≤ {self.most}"


TARGETS: Final[Sequence[Target]] = (
    Target("enc-32", "gthread-32", least=1.0),
    Target("dec-32", "gthread-32", least=1.0),
    Target("enc-32", "ceiling-32", least=0.75),
    Target("dec-32", "ceiling-32", least=0.75),
    Target("enc-32", "gthread-32", "p99_ms", most=1.0),
    Target("dec-32", "gthread-32", "p99_ms", most=1.0),
    Target("enc-new", "gthread-new", least=1.6),
)
