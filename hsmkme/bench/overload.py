"""More requests than a server can answer: what becomes of those it takes on, and how soon the others are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from hsmkme.bench.loads import REQUESTS_PER_SECOND, Call, Figures, Load, percentile
from hsmkme.bench.plans import Clients, Plan, request
from hsmkme.bench.site import MASTER, SLAVE
from hsmkme.bench.stand import KME, Stand

TIMES: Final = 3
"""How many times as many requests come as the server answers."""
CLIENTS: Final = 16
CONNECTIONS: Final = 32
"""Of each client: all together have room for what is to be refused."""
SATURATION: Final = Load("saturation", KME, Call.ENC_KEYS)


@dataclass(frozen=True, slots=True)
class Overload:
    """enc_keys requests of many clients at `TIMES` the rate that 32 connections reach, whoever waits."""

    name: str
    server: str = KME

    def keys_needed(self, seconds: float) -> int:
        """As many as it could be asked for, if it answered every request."""
        return SATURATION.keys_needed(seconds) + int(seconds * REQUESTS_PER_SECOND) + CLIENTS * CONNECTIONS

    def measure(self, stand: Stand, seconds: float) -> Figures:
        """Measure saturation, then overload, each for about ``seconds``; figures are of the answers that are 200."""
        rate = TIMES * SATURATION.measure(stand, seconds)["requests_per_second"]
        server, asked = stand.servers[self.server], [request(f"/api/v1/keys/{SLAVE}/enc_keys")]
        clients = [Clients(server.ports[MASTER], server.site.identity(MASTER), CONNECTIONS, asked)] * CLIENTS
        outcome = stand.generator.run(Plan(clients, seconds, rate=rate, watch=server.pids))
        stand.ledger.fetched(stand.ledger.good(self.name, outcome.early + outcome.answers))
        times = sorted(a.seconds for a in outcome.answers if a.status == HTTPStatus.OK)
        refused = sorted(a.seconds for a in outcome.answers if a.status == HTTPStatus.SERVICE_UNAVAILABLE)
        served = Counter(a.clients for a in outcome.answers if a.status == HTTPStatus.OK)
        return {
            "requests_per_second": len(times) / outcome.seconds,
            "p50_ms": 1e3 * percentile(times, 50),
            "p99_ms": 1e3 * percentile(times, 99),
            "refused_per_second": len(refused) / outcome.seconds,
            "refused_p99_ms": 1e3 * percentile(refused, 99),
            "least_share": CLIENTS * min(served[client] for client in range(CLIENTS)) / max(1, len(times)),
        }
