"""What can become of a message between two KMEs. `Gone` ends the sender's connection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from tests.peering.interposer import SECONDS, Exchange, Gone, Pass
from tests.peering.wire import Ended, Raw, plain

__all__ = [
    "AlterAnswer",
    "AlterRequest",
    "CutAnswer",
    "Delay",
    "DropAnswer",
    "DropRequest",
    "Duplicate",
    "HoldBack",
    "Nonsense",
    "Pass",
    "Replay",
    "Slowly",
    "TruncateAnswer",
    "TruncateRequest",
]


class DropRequest:
    """The receiver never sees it."""

    def __call__(self, _: Exchange) -> None:
        raise Gone


class DropAnswer:
    """The receiver acts on it and answers; the sender never sees the answer."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.forward()
        raise Gone


@dataclass(frozen=True, slots=True)
class Delay:
    """It arrives ``seconds`` late; the sender may have given up, the receiver acts on it all the same."""

    seconds: float

    def __call__(self, exchange: Exchange) -> None:
        exchange.pause(self.seconds)
        exchange.reply(exchange.forward())


@dataclass(frozen=True, slots=True)
class Duplicate:
    """It arrives twice, one after the other or ``together``; the sender gets the ``answer`` to the first or second."""

    answer: int = 2
    together: bool = False

    def __call__(self, exchange: Exchange) -> None:
        with ThreadPoolExecutor(2 if self.together else 1) as threads:
            answers = [copy.result() for copy in [threads.submit(exchange.forward) for _ in range(2)]]
        exchange.reply(answers[self.answer - 1])


@dataclass(frozen=True, slots=True)
class HoldBack:
    """It arrives after the next message has been answered, or after ``at_most`` seconds.

    ``hang_up``: the sender's connection ends at once, so that one who sends one message at a time goes on.
    """

    at_most: float = SECONDS
    hang_up: bool = True

    def __call__(self, exchange: Exchange) -> None:
        if self.hang_up:
            exchange.hang_up()
        exchange.interposer.wait_for_a_later_one(exchange.number, self.at_most)
        answer = exchange.forward()
        if self.hang_up:
            raise Gone
        exchange.reply(answer)


@dataclass(frozen=True, slots=True)
class Replay:
    """Before it arrives, the recorded request ``number`` arrives once more; nobody sees the answer to that."""

    number: int

    def __call__(self, exchange: Exchange) -> None:
        exchange.forward(exchange.interposer.recorded(self.number))
        exchange.reply(exchange.forward())


@dataclass(frozen=True, slots=True)
class TruncateRequest:
    """``keep`` bytes of its body arrive, then the connection ends; ``mend``: as a whole request of that length."""

    keep: int
    mend: bool = False

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request.cut(self.keep, mend=self.mend)
        if self.mend:
            exchange.reply(exchange.forward(request))
            return
        exchange.hang_up()
        with suppress(OSError, Ended):
            exchange.interposer.deliver(request, whole=False)
        raise Gone


@dataclass(frozen=True, slots=True)
class TruncateAnswer:
    """``keep`` bytes of the answer's body come back, as a whole answer of that length."""

    keep: int

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(exchange.forward().cut(self.keep, mend=True))


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """The connection ends after ``after`` bytes of the answer, its head counted in (default: amid the body)."""

    after: int | None = None

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.forward()
        middle = len(answer.head) + len(answer.body) // 2
        exchange.write(answer.content[: middle if self.after is None else self.after])
        raise Gone


@dataclass(frozen=True, slots=True)
class AlterRequest:
    """One bit is another on the way there: of byte ``at`` of the body, or of the value of ``header``."""

    at: int | None = None
    header: str | None = None

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(exchange.forward(exchange.request.altered(self.at, self.header)))


@dataclass(frozen=True, slots=True)
class AlterAnswer:
    """One bit is another on the way back."""

    at: int | None = None
    header: str | None = None

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(exchange.forward().altered(self.at, self.header))


@dataclass(frozen=True, slots=True)
class Nonsense:
    """Somebody else answers; the receiver sees it only if it is ``forwarded``."""

    status: int = 200
    body: bytes = b"<html>welcome</html>"
    content_type: str = "text/html"
    forwarded: bool = False

    def __call__(self, exchange: Exchange) -> None:
        if self.forwarded:
            exchange.forward()
        answer: Raw = plain(self.status, self.body, self.content_type)
        exchange.reply(answer)


@dataclass(frozen=True, slots=True)
class Slowly:
    """The answer comes back byte by byte, ``pause`` seconds between two; what is left after ``at_most`` never comes."""

    pause: float = 0.1
    at_most: float = 10.0

    def __call__(self, exchange: Exchange) -> None:
        content = exchange.forward()
        pauses = max(0, int(self.at_most / self.pause))
        for byte in content.content[: pauses + 1]:
            exchange.write(bytes([byte]))
            exchange.pause(self.pause)
        if pauses + 1 < len(content.content):
            raise Gone
        exchange.status = content.status
