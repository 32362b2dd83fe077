"""Every state that the model of kme-peer/1 can reach, judged.

* **I1** at most one relation got the key, its masters and slaves counted alike;
* **I2** if a master got it, its slave's end holds it for the same relation or can still learn that, or an alarm exists;
* **I8** no key is given to a master twice, no row moves back but by a restore, none changes its relation;
* **live** from every state in which a master has the key and its slave has not, and no alarm exists, greetings, pulls
  and the slave's own request alone lead to the slave having it: nothing that was lost needs to arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tests.peering.model import ASSIGNING, HELD, MASTER_AT, READY, VOID, End, Protocol, Rules, State

HEALING = frozenset({"hello", "reconcile", "pull", "fetch"})


@dataclass(slots=True)
class Result:
    """How many states there are, and for each broken property the shortest way to break it."""

    states: int = 0
    alarms: int = 0
    exchanged: set[tuple[str, int, int]] = field(default_factory=set)  # relation; crashes and restores still to come
    broken: dict[str, list[str]] = field(default_factory=dict)


@cache
def search(rules: Rules, stop_at: str = "") -> Result:
    """Visit every reachable state; with ``stop_at``, end when that property was seen broken."""
    protocol = Protocol(rules)
    came: dict[State, tuple[State, str] | None] = {protocol.start: None}
    queue = deque([protocol.start])
    result = Result()
    waiting: list[State] = []
    while queue and (not stop_at or stop_at not in result.broken):
        state = queue.popleft()
        result.alarms += state.alarm
        if state.masters and state.masters[0] in state.slaves:
            result.exchanged.add((state.masters[0], state.crashes, state.restores))
        elif state.masters and not state.alarm:
            waiting.append(state)
        for name, after in protocol.steps(state):
            if after not in came:
                came[after] = (state, name)
                queue.append(after)
            for wrong in _wrong(name, state, after):
                if wrong not in result.broken:
                    result.broken[wrong] = _way(came, state, name, after)
    result.states = len(came)
    if not stop_at or stop_at == "live":
        stuck = _stuck(protocol, waiting)
        if stuck is not None:
            result.broken["live"] = _way(came, stuck, "", stuck)
    return result


def _wrong(name: str, before: State, after: State) -> Iterator[str]:
    if len({*after.masters, *after.slaves}) > 1:
        yield "I1"
    if after.masters and not after.alarm and not _reachable(after, after.masters[0]):
        yield "I2"
    if len(after.masters) > 1 or (name != "restore" and any(map(_moves_back, before.ends, after.ends))):
        yield "I8"


def _reachable(state: State, relation: str) -> bool:
    """Whether the slave's end holds the key for ``relation``, or has not given it away and its peer holds it."""
    there, here = state.ends[1 - MASTER_AT[relation]], state.ends[MASTER_AT[relation]]
    if there.key in HELD:
        return there.relation == relation
    return there.key == READY and here.key in HELD and here.relation == relation


def _moves_back(old: End, new: End) -> bool:
    changed = old.key not in (READY, ASSIGNING) and new.key != VOID and old.assignment != new.assignment
    return new.key < old.key or changed


def _stuck(protocol: Protocol, waiting: list[State]) -> State | None:
    """A state from which what heals by itself never gives the slave its key."""
    well: set[State] = set()
    for state in waiting:
        way = [state]
        seen = {state}
        while way:
            now = way.pop()
            if now in well or now.masters[0] in now.slaves:
                well.add(state)
                break
            for name, after in protocol.steps(now):
                if name in HEALING and after not in seen:
                    seen.add(after)
                    way.append(after)
        else:
            return state
    return None


def _way(came: dict[State, tuple[State, str] | None], state: State, name: str, after: State) -> list[str]:
    lines = [f"{name}: {_told(after)}"]
    step = came[state]
    here = state
    while step is not None:
        lines.append(f"{step[1]}: {_told(here)}")
        here = step[0]
        step = came[here]
    return lines[::-1]


def _told(state: State) -> str:
    words = ("ready", "assigning", "assigned", "delivered", "void")
    ends = (
        f"{'AB'[me]} {words[end.key]} {end.relation} (owner {'AB'[end.owner]}, {end.epoch})"
        + ("" if end.live else " frozen")
        for me, end in enumerate(state.ends)
    )
    return f"{'; '.join(ends)}; masters {list(state.masters)}, slaves {sorted(state.slaves)}"
