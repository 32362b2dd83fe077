"""What lies between two KMEs of one process: carries messages, and does to them what networks and attackers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hsmkme.errors import HsmkmeError, PeerRefused

if TYPE_CHECKING:
    from tests.peering.pair import End


@dataclass(frozen=True)
class Request:
    """A message on its way; ``sender`` is whose certificate it comes with."""

    sender: str
    to: str
    call: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """The answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Deliver = Callable[[Request], Reply]
Fault = Callable[["Line", Request], Reply]
"""What happens to one message; it may raise what a connection raises."""


@dataclass
class Line:
    """``faults`` are met by the messages of a call, one after the other; None lets one through."""

    ends: dict[str, End] = field(default_factory=dict)
    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    always: Fault | None = None
    seen: list[Request] = field(default_factory=list)
    held: list[Request] = field(default_factory=list)
    after_next: list[Request] = field(default_factory=list)
    met: int = 0

    def carry(self, request: Request) -> Reply:
        self.seen.append(request)
        waiting = self.faults.get(request.call, [])
        fault = waiting.pop(0) if waiting else self.always
        late, self.after_next = self.after_next, []
        try:
            if fault is None:
                return self.deliver(request)
            self.met += 1
            return fault(self, request)
        finally:
            for one in late:
                self.deliver(one)

    def deliver(self, request: Request) -> Reply:
        """What the listener for peers makes of it (`api/peer.py`)."""
        peering = self.ends[request.to].peering
        try:
            said = peering.answer(request.sender, request.call, request.headers, request.body)
        except PeerRefused as refusal:
            return Reply(400, {}, json.dumps({"message": str(refusal)}).encode())
        except HsmkmeError:
            return Reply(503, {}, b"{}")
        return Reply(said.status, said.headers, said.body)

    def next(self, call: str, *faults: Fault | None) -> None:
        """The next messages of ``call`` meet these."""
        self.faults[call] = list(faults)

    def calls(self) -> list[str]:
        return [request.call for request in self.seen]

    def heal(self) -> None:
        """No more faults; what was held back arrives now."""
        self.faults, self.always = {}, None
        late, self.held = [*self.after_next, *self.held], []
        self.after_next = []
        for request in late:
            self.deliver(request)

    def replay(self) -> list[Reply]:
        """Everything that was ever sent comes again."""
        return [self.deliver(request) for request in list(self.seen)]


# Faults -----------------------------------------------------------------------------------------------------


def drop_request(line: Line, request: Request) -> Reply:
    raise ConnectionRefusedError("nobody is there")


def drop_answer(line: Line, request: Request) -> Reply:
    line.deliver(request)
    raise TimeoutError("no answer")


def delay(line: Line, request: Request) -> Reply:
    """It arrives when its sender does not wait any more: when the line is healed."""
    line.held.append(request)
    raise TimeoutError("no answer yet")


def reorder(line: Line, request: Request) -> Reply:
    """It arrives after the message that comes next, from whichever end."""
    line.after_next.append(request)
    raise TimeoutError("no answer yet")


def duplicate(line: Line, request: Request) -> Reply:
    first, second = line.deliver(request), line.deliver(request)
    assert first == second or request.call == "keys/query"
    return second


def twice_and_late(line: Line, request: Request) -> Reply:
    """It is answered, and comes a second time later."""
    line.held.append(request)
    return line.deliver(request)


def truncate_request(line: Line, request: Request) -> Reply:
    return line.deliver(replace(request, body=request.body[: len(request.body) // 2]))


def truncate_answer(line: Line, request: Request) -> Reply:
    reply = line.deliver(request)
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def cut(line: Line, request: Request) -> Reply:
    """The connection is reset while the answer comes."""
    line.deliver(request)
    raise ConnectionResetError("reset by peer")


def alter_request(line: Line, request: Request) -> Reply:
    return line.deliver(replace(request, body=_flipped(request.body)))


def alter_header(line: Line, request: Request) -> Reply:
    headers = {**request.headers, "KME-Seq": str(int(request.headers["KME-Seq"]) + 1)}
    return line.deliver(replace(request, headers=headers))


def alter_answer(line: Line, request: Request) -> Reply:
    reply = line.deliver(request)
    return replace(reply, body=_flipped(reply.body))


def alter_status(line: Line, request: Request) -> Reply:
    return replace(line.deliver(request), status=503)


def other_answer(line: Line, request: Request) -> Reply:
    """The signed answer to an earlier message of this call comes in place of its own."""
    earlier = [one for one in line.seen[:-1] if (one.call, one.sender) == (request.call, request.sender)]
    line.deliver(request)
    if not earlier:
        raise TimeoutError("no answer")
    return line.deliver(earlier[-1])


def replay_all(line: Line, request: Request) -> Reply:
    """It is answered, and so is, before and after, everything that was ever sent."""
    line.replay()
    reply = line.deliver(request)
    line.replay()
    return reply


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


