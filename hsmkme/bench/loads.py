"""Scenarios of many clients who ask one server for the same as fast as it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

from hsmkme.bench.plans import Answer, Clients, Outcome, Plan, request
from hsmkme.bench.site import MASTER, SLAVE
from hsmkme.bench.stand import TWO_KMES, Stand

REQUESTS_PER_SECOND: Final = 6000
"""More than any server answers: how many requests are prepared."""
SEGMENTS_PER_SECOND: Final = 20_000
"""Fewer than a token opens: how many a scenario uses in one round."""
SEGMENT_BITS: Final = 256
AT_ONCE: Final = 128
"""Keys of one request for those that are to be collected."""

Figures = Mapping[str, float]
"""What one scenario gave in one round, by name with unit."""


class Call(Enum):
    """What is asked of a server: of a bare one, the same as ENC_KEYS."""

    BARE = auto()
    STATUS = auto()
    ENC_KEYS = auto()
    DEC_KEYS = auto()


_GIVES_KEYS: Final = (Call.ENC_KEYS, Call.DEC_KEYS)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one load: ``good`` answers, those before the clock ran among them."""

    outcome: Outcome
    good: Sequence[Answer]
    commits: int
    messages: int
    """From one KME to the other, both ways."""


@dataclass(frozen=True, slots=True)
class Load:
    """``connections`` to one server of the stand; ``keys`` of ``bits`` for each request; ``fresh``: no keep-alive."""

    name: str
    server: str
    call: Call
    connections: int = 32
    keys: int = 1
    bits: int = SEGMENT_BITS
    fresh: bool = False

    def keys_needed(self, seconds: float) -> int:
        """How many segments of the server's pool it uses at most."""
        return self._requests(seconds) * self._segments if self.call in _GIVES_KEYS else 0

    @property
    def _segments(self) -> int:
        """Of one request."""
        return self.keys * -(-self.bits // SEGMENT_BITS)

    def _requests(self, seconds: float) -> int:
        """How many requests are prepared: those of the timed run, and one of each connection before it."""
        return self.connections + int(seconds * min(REQUESTS_PER_SECOND, SEGMENTS_PER_SECOND / self._segments))

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure once, for about ``seconds``."""
        run = self.run(stand, self.prepared(stand, seconds), seconds)
        outcome, times = run.outcome, sorted(a.seconds for a in run.outcome.answers if a.status == HTTPStatus.OK)
        count, keys = max(1, len(times)), max(1, len(run.good)) * self.keys
        figures = {
            "requests_per_second": len(times) / outcome.seconds,
            "p50_ms": 1e3 * percentile(times, 50),
            "p99_ms": 1e3 * percentile(times, 99),
            "server_us_per_request": 1e6 * outcome.watched_seconds / count,
            "generator_us_per_request": 1e6 * outcome.cpu_seconds / count,
        }
        if self.call in _GIVES_KEYS:
            figures["keys_per_second"] = self.keys * figures["requests_per_second"]
            figures["commits_per_key"] = run.commits / keys
        if self.server == TWO_KMES:
            figures["messages_per_1000_keys"] = 1000 * run.messages / keys
        return figures

    def run(self, stand: Stand, requests: Sequence[bytes], seconds: float) -> Run:
        """Make the requests, and see whether the answers are right."""
        server, caller = stand.servers[self.server], SLAVE if self.call is Call.DEC_KEYS else MASTER
        clients = Clients(server.ports[caller], server.site.identity(caller), self.connections, requests, repeat=False)
        commits, messages = server.site.commits(), server.site.messages()
        outcome = stand.generator.run(Plan((clients,), seconds, self.fresh, watch=server.pids))
        commits, messages = server.site.commits() - commits, server.site.messages() - messages
        good = stand.ledger.good(self.name, outcome.early + outcome.answers)
        if self.call is Call.ENC_KEYS:
            stand.ledger.fetched(good)
        elif self.call is Call.DEC_KEYS:
            stand.ledger.collected(good)
        return Run(outcome, good, commits, messages)

    def prepared(self, stand: Stand, seconds: float) -> list[bytes]:
        """Requests for a run; the master gets the keys that its slave is to collect."""
        count = self._requests(seconds)
        match self.call:
            case Call.STATUS:
                return [request(f"/api/v1/keys/{SLAVE}/status", close=self.fresh)] * count
            case Call.ENC_KEYS | Call.BARE:
                return [request(self._enc_keys(self.keys), close=self.fresh)] * count
            case Call.DEC_KEYS:
                key_ids = self._fetched(stand, count * self.keys)
                groups = (key_ids[first : first + self.keys] for first in range(0, len(key_ids), self.keys))
                path = f"/api/v1/keys/{MASTER}/dec_keys"
                return [request(path, _named(group), close=self.fresh) for group in groups]

    def _enc_keys(self, number: int) -> str:
        return f"/api/v1/keys/{SLAVE}/enc_keys?number={number}&size={self.bits}"

    def _fetched(self, stand: Stand, count: int) -> list[str]:
        """key_IDs of so many keys that the master got."""
        server = stand.servers[self.server]
        requests = [request(self._enc_keys(AT_ONCE))] * -(-count // AT_ONCE)
        clients = Clients(server.ports[MASTER], server.site.identity(MASTER), 4, requests, repeat=False)
        outcome = stand.generator.run(Plan((clients,), len(requests)))
        answers = stand.ledger.good(self.name, outcome.early + outcome.answers)
        return stand.ledger.fetched(answers, due=True)[:count]


def percentile(times: Sequence[float], percent: int) -> float:
    """The time within which so many of a hundred answers came, of ``times`` in order; 0 of none."""
    return times[min(len(times) - 1, len(times) * percent // 100)] if times else 0.0


def _named(key_ids: Sequence[str]) -> bytes:
    """The body of a dec_keys request (ETSI GS QKD 014 §6.4)."""
    return json.dumps({"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}, separators=(",", ":")).encode()
