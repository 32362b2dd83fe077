"""A client that behaves, among those that do not: is it served, and how long does it wait?"""

from __future__ import annotations

import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.hostile.moves import PREFIX, request
from tests.hostile.wire import Answer, Wire
from tests.world import Demo

STATUS = request("GET", f"{PREFIX}sae-2/status")
ENC_KEYS = request("GET", f"{PREFIX}sae-2/enc_keys")


def context_of(demo: Demo, sae_id: str | None = "sae-1") -> ssl.SSLContext:
    """TLS as an SAE of ``demo`` speaks it, or as someone without certificate."""
    context = ssl.create_default_context(cafile=demo.description["ca"])
    if sae_id is not None:
        sae = next(sae for sae in demo.description["saes"] if sae["id"] == sae_id)
        context.load_cert_chain(sae["cert"], sae["key"])
    return context


class Honest:
    """Keeps its connection; opens another when the server ended it between two requests, as HTTP allows."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._wire: Wire | None = None
        self.connections = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self.leave()

    def ask(self, data: bytes = STATUS) -> Answer:
        """The answer. Raises `OSError` if a new connection does not give one."""
        if self._wire is not None:
            try:
                return self._ask(self._wire, data)
            except OSError:  # ended while it was idle: nothing was read of the request
                self.leave()
        self._wire = Wire(self._port, self._context)
        self.connections += 1
        self._wire.shake_hands()
        return self._ask(self._wire, data)

    def _ask(self, wire: Wire, data: bytes) -> Answer:
        wire.send(data)
        (answer,) = wire.answers(1)
        if answer.closes:
            self.leave()
        return answer

    def leave(self) -> None:
        """End the connection."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None


@dataclass(frozen=True)
class Waits:
    """How long requests took, in seconds."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        return f"{self.median * 1000:.1f}/{p99 * 1000:.1f} ms ({len(ordered)})"


def visits(port: int, context: ssl.SSLContext, times: int, go_on: Callable[[], bool] = lambda: True) -> Waits:
    """Each request on a connection of its own, at most ``times`` and at least once."""
    waits: list[float] = []
    while len(waits) < times and (go_on() or not waits):
        begin = time.perf_counter()
        with Honest(port, context) as client:
            assert client.ask().status == 200
        waits.append(time.perf_counter() - begin)
    return Waits(waits)


def stay(port: int, context: ssl.SSLContext, times: int, go_on: Callable[[], bool] = lambda: True) -> Waits:
    """All requests on one connection, which the server may not end."""
    waits: list[float] = []
    with Honest(port, context) as client:
        client.ask()
        while len(waits) < times and (go_on() or not waits):
            begin = time.perf_counter()
            assert client.ask().status == 200
            waits.append(time.perf_counter() - begin)
        assert client.connections == 1, "the server ended a connection that was in use"
    return Waits(waits)
