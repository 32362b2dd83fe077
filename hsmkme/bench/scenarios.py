"""What is measured: each scenario is run once in every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from hsmkme.bench.alone import Work, deposit, open_bare, open_keys, rewrap, seal_bare, seal_blocks, side_by_side
from hsmkme.bench.loads import Call, Figures, Load
from hsmkme.bench.overload import Overload
from hsmkme.bench.site import WORKERS
from hsmkme.bench.stand import CEILING, GTHREAD, KME, TWO_KMES, Stand

DEPOSITED_PER_SECOND: Final = 10_000
"""How many keys a deposit brings, of each second that it may take."""


class Scenario(Protocol):
    """Something to be measured."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def server(self) -> str:
        """Which server of the stand it asks, or whose token."""
        ...

    def keys_needed(self, seconds: float) -> int:
        """How many segments of the server's pool it uses at most."""
        ...

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """The token of the single KME without its server, in as many ``processes`` at once."""

    name: str
    work: Work
    processes: int = 1
    figure: str = "keys_per_second"
    server: str = KME

    def keys_needed(self, seconds: float) -> int:  # noqa: ARG002 - none, however long
        """None."""
        return 0

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        return {self.figure: side_by_side(self.work, stand.site.config, seconds, self.processes)}


@dataclass(frozen=True, slots=True)
class Deposit:
    """Raw keys from a file into the pool."""

    name: str
    server: str = KME

    def keys_needed(self, seconds: float) -> int:  # noqa: ARG002 - it brings some
        """None."""
        return 0

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        keys = int(seconds * DEPOSITED_PER_SECOND)
        return {"keys_per_second": side_by_side(deposit, stand.site.config, keys)}


SCENARIOS: Final[Sequence[Scenario]] = (
    *(Load(f"gthread-{n}", GTHREAD, Call.BARE, n) for n in (1, 8, 32)),
    *(Load(f"ceiling-{n}", CEILING, Call.BARE, n) for n in (1, 8, 32)),
    *(Load(f"enc-{n}", KME, Call.ENC_KEYS, n) for n in (1, 8, 32)),
    *(Load(f"dec-{n}", KME, Call.DEC_KEYS, n) for n in (1, 8, 32)),
    Load("gthread-new", GTHREAD, Call.BARE, fresh=True),
    Load("enc-new", KME, Call.ENC_KEYS, fresh=True),
    Load("enc-16-keys", KME, Call.ENC_KEYS, keys=16),
    Load("enc-128-keys", KME, Call.ENC_KEYS, keys=128),
    Load("dec-128-keys", KME, Call.DEC_KEYS, keys=128),
    Load("enc-1024-bits", KME, Call.ENC_KEYS, bits=1024),
    Load("status", KME, Call.STATUS),
    Load("two-enc-32", TWO_KMES, Call.ENC_KEYS),
    Overload("overload"),
    Alone("token-open-bare", open_bare, WORKERS),
    Alone("token-open", open_keys, WORKERS),
    Alone("token-seal-bare", seal_bare),
    Alone("token-seal", seal_blocks),
    Deposit("deposit"),
    Alone("rotation", rewrap, figure="blocks_per_second"),
)
"""In the order in which they are measured."""
