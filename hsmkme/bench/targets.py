"""What the figures should be: ratios of medians, and what each is to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hsmkme.bench.loads import Figures

_RATE: Final = "requests_per_second"
_KEYS: Final = "keys_per_second"
_CPU: Final = "server_us_per_request"


@dataclass(frozen=True, slots=True)
class Target:
    """``figure`` of scenario ``of``, divided by that of ``to`` if there is one, and what that is to be."""

    what: str
    figure: str
    of: str
    to: str | None = None
    least: float | None = None
    most: float | None = None

    def value(self, medians: Mapping[str, Figures]) -> float | None:
        """What it is; None if it was not measured."""
        upper = medians.get(self.of, {}).get(self.figure)
        lower = medians.get(self.to, {}).get(self.figure) if self.to else 1.0
        return upper / lower if upper is not None and lower else None

    def reached(self, value: float) -> bool:
        """Whether that is what it is to be."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def wanted(self) -> str:
        """What it is to be, for people."""
        return f"≥ {self.least}" if self.least is not None else f"≤ {self.most}"


TARGETS: Final[Sequence[Target]] = (
    Target("enc_keys, 32 connections ÷ gthread", _RATE, "enc-32", "gthread-32", least=1.0),
    Target("dec_keys, 32 connections ÷ gthread", _RATE, "dec-32", "gthread-32", least=1.0),
    Target("enc_keys, 32 connections ÷ ceiling", _RATE, "enc-32", "ceiling-32", least=0.75),
    Target("dec_keys, 32 connections ÷ ceiling", _RATE, "dec-32", "ceiling-32", least=0.75),
    Target("enc_keys, p99 ÷ gthread", "p99_ms", "enc-32", "gthread-32", most=1.0),
    Target("dec_keys, p99 ÷ gthread", "p99_ms", "dec-32", "gthread-32", most=1.0),
    Target("overload, p99 ÷ saturation", "p99_ms", "overload", "enc-32", most=3.0),
    Target("new connections, enc_keys ÷ gthread", _RATE, "enc-new", "gthread-new", least=1.6),
    Target("128 keys a request ÷ C_Decrypt alone", _KEYS, "enc-128-keys", "token-open-bare", least=0.7),
    Target("deposit ÷ C_Encrypt alone", _KEYS, "deposit", "token-seal-bare", least=0.8),
    Target("enc_keys per core: two KMEs ÷ one", _CPU, "enc-32", "two-enc-32", least=0.8),
    Target("messages to the peer per 1,000 keys", "messages_per_1000_keys", "two-enc-32", most=10),
    *(
        Target(f"{what}: 10,000,000 keys in the store ÷ 1,000", figure, "pool-10000000", "pool-1000", most=1.1)
        for what, figure in (
            ("status", "status_us"),
            ("enc_keys", "enc_keys_us"),
            ("dec_keys", "dec_keys_us"),
            ("start", "start_ms"),
            ("a tick of upkeep", "tick_ms"),
        )
    ),
)
