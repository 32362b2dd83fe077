"""What is measured: each scenario is run once in every round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from hsmkme.bench.bare import PATH
from hsmkme.bench.generator import Answer, Clients, Outcome, Plan
from hsmkme.bench.stand import MASTER, SLAVE, Stand

REQUESTS_PER_SECOND: Final = 6000
"""More than any server makes: how many requests are prepared."""
KEYS_MOST: Final = 40_000
"""Segments of 256 bits that one scenario uses in one round."""
SEGMENT_BITS: Final = 256
AT_ONCE: Final = 128
"""Keys of one request for those that are to be collected."""

Figures = Mapping[str, float]
"""What one scenario gave in one round, by name with unit."""


class Scenario(Protocol):
    """Something to be measured."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def keys_needed(self, seconds: float) -> int:
        """How many segments of the pool it uses at most."""
        ...

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        ...


class Call(Enum):
    """What is asked of a server."""

    BARE = auto()
    STATUS = auto()
    ENC_KEYS = auto()
    DEC_KEYS = auto()


_KEYS: Final = (Call.ENC_KEYS, Call.DEC_KEYS)
"""What gives keys."""


@dataclass(frozen=True, slots=True)
class Load:
    """``connections`` that ask one server for the same as fast as it answers; ``server`` is a bare one, or "kme"."""

    name: str
    server: str
    call: Call
    connections: int = 32
    keys: int = 1
    bits: int = SEGMENT_BITS
    fresh: bool = False

    def keys_needed(self, seconds: float) -> int:
        """How many segments of the pool it uses at most."""
        return self._requests(seconds) * self._segments if self.call in _KEYS else 0

    @property
    def _segments(self) -> int:
        """Of one request."""
        return self.keys * -(-self.bits // SEGMENT_BITS)

    def _requests(self, seconds: float) -> int:
        """How many requests are prepared at most."""
        return max(self.connections, min(int(seconds * REQUESTS_PER_SECOND), KEYS_MOST // self._segments))

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        server = stand.bare.get(self.server) or stand.site.serving(MASTER)
        caller = SLAVE if self.call is Call.DEC_KEYS else MASTER
        clients = Clients(
            server.port, stand.site.identity(caller), self.connections, self._prepared(stand, seconds), repeat=False
        )
        outcome = stand.generator.run(Plan((clients,), seconds, self.fresh, watch=server.pids))
        return self._judged(stand, outcome)

    def _prepared(self, stand: Stand, seconds: float) -> list[bytes]:
        count = self._requests(seconds)
        match self.call:
            case Call.BARE:
                return [self._get(PATH)] * count
            case Call.STATUS:
                return [self._get(f"/api/v1/keys/{SLAVE}/status")] * count
            case Call.ENC_KEYS:
                return [self._get(f"/api/v1/keys/{SLAVE}/enc_keys?number={self.keys}&size={self.bits}")] * count
            case Call.DEC_KEYS:
                key_ids = self._fetch(stand, count * self.keys)
                return [
                    self._post(f"/api/v1/keys/{MASTER}/dec_keys", key_ids[first : first + self.keys])
                    for first in range(0, len(key_ids), self.keys)
                ]

    def _fetch(self, stand: Stand, count: int) -> list[str]:
        """Let the master get keys that its slave can collect; not timed."""
        path = f"/api/v1/keys/{SLAVE}/enc_keys?number={AT_ONCE}&size={self.bits}"
        requests = [_request("GET", path)] * -(-count // AT_ONCE)
        clients = Clients(stand.site.serving(MASTER).port, stand.site.identity(MASTER), 4, requests, repeat=False)
        outcome = stand.generator.run(Plan((clients,), len(requests)))
        answers = stand.ledger.good(self.name, outcome.early + outcome.answers)
        return stand.ledger.fetched(answers, due=True)[:count]

    def _get(self, path: str) -> bytes:
        return _request("GET", path, close=self.fresh)

    def _post(self, path: str, key_ids: list[str]) -> bytes:
        body = json.dumps({"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}, separators=(",", ":")).encode()
        return _request("POST", path, body, close=self.fresh)

    def _judged(self, stand: Stand, outcome: Outcome) -> Figures:
        """The figures of answers that are right."""
        early, timed = (stand.ledger.good(self.name, answers) for answers in (outcome.early, outcome.answers))
        if self.call is Call.ENC_KEYS:
            stand.ledger.fetched(early + timed)
        elif self.call is Call.DEC_KEYS:
            stand.ledger.collected(early + timed)
        count = max(1, len(timed))
        figures = {
            "requests_per_second": len(timed) / outcome.seconds,
            "p50_ms": 1e3 * percentile(timed, 50),
            "p99_ms": 1e3 * percentile(timed, 99),
            "server_us_per_request": 1e6 * outcome.watched_seconds / count,
            "generator_us_per_request": 1e6 * outcome.cpu_seconds / count,
        }
        if self.call in _KEYS:
            figures["keys_per_second"] = self.keys * figures["requests_per_second"]
        return figures


def percentile(answers: Sequence[Answer], percent: int) -> float:
    """How long after it was due so many of a hundred answers had come, in seconds; 0 of none."""
    times = sorted(answer.seconds for answer in answers)
    return times[min(len(times) - 1, len(times) * percent // 100)] if times else 0.0


def _request(method: str, path: str, body: bytes = b"", *, close: bool = False) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += ["Connection: close"] if close else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join((*lines, "", "")).encode() + body


SCENARIOS: Final[Sequence[Scenario]] = (
    *(Load(f"gthread-{n}", "gthread", Call.BARE, n) for n in (1, 8, 32)),
    *(Load(f"ceiling-{n}", "ceiling", Call.BARE, n) for n in (1, 8, 32)),
    *(Load(f"enc-{n}", "kme", Call.ENC_KEYS, n) for n in (1, 8, 32)),
    *(Load(f"dec-{n}", "kme", Call.DEC_KEYS, n) for n in (1, 8, 32)),
    Load("gthread-new", "gthread", Call.BARE, fresh=True),
    Load("enc-new", "kme", Call.ENC_KEYS, fresh=True),
    Load("enc-16-keys", "kme", Call.ENC_KEYS, keys=16),
    Load("enc-128-keys", "kme", Call.ENC_KEYS, keys=128),
    Load("dec-128-keys", "kme", Call.DEC_KEYS, keys=128),
    Load("enc-1024-bits", "kme", Call.ENC_KEYS, bits=1024),
    Load("status", "kme", Call.STATUS),
)
"""In the order in which they are measured."""
