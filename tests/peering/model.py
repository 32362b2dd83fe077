"""kme-peer/1 as a set of steps: two ends, one key, everything that can go wrong between them.

Relations ``a1`` and ``a2`` have their masters at A and their slaves at B, ``b1`` the other way round. The network is
the set of all messages ever sent, and any of them may arrive at any time, any number of times or never: that contains
loss, duplication, replay and every order. One end may crash once (what is not durable is gone) and one end may once be
restored from any earlier durable state (more often: from the same one). A slave may ask at any moment, even before its
master got the key.

`Rules` are the protocol's; each can be taken away, to see what it is there for. Keys of other segments are not in the
model: rows of different segments never touch. What the states must keep is in `search.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

A, B = 0, 1
MASTER_AT = {"a1": A, "a2": A, "b1": B}
READY, ASSIGNING, ASSIGNED, DELIVERED, VOID = range(5)
HELD = (ASSIGNED, DELIVERED)
LAST_GRANT = 2
"""Grants end at this ``own_epoch``: away and back again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol demands; the defaults are kme-peer/1."""

    confirm: bool = True  # a master gets a key only after the peer's end accepted the assignment
    freeze: bool = True  # an end that starts does nothing on the link before hello and reconcile
    unique: bool = True  # an acceptor accepts one assignment per segment, ever
    owned: bool = True  # only the owner claims; an acceptor refuses whoever is not
    pull: bool = True  # a slave's end that does not know a key asks the peer
    hello_first: bool = True  # claims that nobody waits for any more are void after hello, not before
    burn: bool = True  # after a restore, what was assigned here counts as delivered
    exact_void: bool = True  # a void names the assignment (txid, own_epoch), not the relation alone
    exact_already: bool = True  # `already` is the answer to the same txid, not to the same relation
    barrier: bool = False  # the peer takes note of the higher own_epoch before it answers hello
    notice: str = "generation"  # how a restore is noticed: by "generation", by "seq", or "always" assumed
    early: bool = True  # slaves may ask before their master got the key
    crashes: int = 1
    restores: int = 1


class End(NamedTuple):
    """One KME: the durable row of the key and of the link, then what is lost when it stops."""

    owner: int = A
    epoch: int = 0
    key: int = READY
    relation: str = ""
    tx: int = -1  # with the relation: the txid of the assignment
    sent: int = 0  # sequence numbers, kept only where they are what notices a restore
    seen: int = 0
    heard: int = 0  # the newest incarnation of the peer that said hello
    incarnation: int = 0
    live: bool = True
    restored: bool = False

    @property
    def assignment(self) -> tuple[str, int]:
        return self.relation, self.tx


class Message(NamedTuple):
    """One message under way; ``view`` is the row of the end that sent it."""

    kind: str
    to: int
    relation: str = ""
    tx: int = -1
    epoch: int = 0
    seq: int = 0
    good: bool = True
    view: End | None = None


class State(NamedTuple):
    """Everything at one moment; the last three are what only we know."""

    ends: tuple[End, End]
    net: frozenset[Message] = frozenset()
    backup: tuple[int, End] | None = None
    crashes: int = 0
    restores: int = 0
    masters: tuple[str, ...] = ()  # one entry per delivery to a master
    slaves: frozenset[str] = frozenset()
    alarm: bool = False


Step = tuple[str, State]


class Protocol:
    """The steps that an end, the network and misfortune can take."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.start = State((End(), End()), crashes=rules.crashes, restores=rules.restores)

    def steps(self, state: State) -> Iterator[Step]:
        """Every step from ``state`` with what it leads to."""
        for me in (A, B):
            yield from self._work(state, me)
            yield from self._misfortune(state, me)
        for message in state.net:
            for after in self._arrive(state, message):
                yield message.kind, after

    # What an end does by itself -------------------------------------------------------------------------

    def _work(self, state: State, me: int) -> Iterator[Step]:
        end, peer = state.ends[me], state.ends[1 - me]
        mine = MASTER_AT.get(end.relation) == me
        if end.key == ASSIGNED and not mine and (self.rules.early or end.relation in state.masters):
            served = _with(state, me, end._replace(key=DELIVERED))
            yield "fetch", served._replace(slaves=state.slaves | {end.relation})
        if not end.live:
            yield "hello", self._greet(state, me)
            return
        if end.key == READY:
            yield from self._claim(state, me)
        if mine and (end.key == ASSIGNED or (end.key == ASSIGNING and not self.rules.confirm)):
            given = _with(state, me, end._replace(key=DELIVERED))
            yield "deliver", given._replace(masters=(*state.masters, end.relation)[:2])
        if end.key == ASSIGNING:
            yield "deadline", self._void(state, me, end)
        if self.rules.pull and peer.live and peer.key in HELD and MASTER_AT[peer.relation] != me:
            yield from (("pull", after) for after in self._learn(state, me, peer))

    def _claim(self, state: State, me: int) -> Iterator[Step]:
        """The row, then the message; or ownership passes, in the same order."""
        end = state.ends[me]
        if self.rules.owned and end.owner != me:
            return
        end = self._number(end)
        for relation, master in MASTER_AT.items():
            # a1 and a2 are alike: the first of them to be claimed is called a1
            unlike = relation != "a2" or any(m.relation == "a1" for m in state.net)
            if master == me and unlike:
                row = end._replace(key=ASSIGNING, relation=relation, tx=end.incarnation)
                yield "claim", _with(state, me, row, _about(row, "assign", 1 - me))
        if self.rules.owned and end.epoch < LAST_GRANT:
            row = end._replace(owner=1 - me, epoch=end.epoch + 1)
            yield "grant", _with(state, me, row, _about(row, "grant", 1 - me))

    def _void(self, state: State, me: int, end: End) -> State:
        row = self._number(end)._replace(key=VOID)
        return _with(state, me, row, _about(row, "void", 1 - me))

    def _number(self, end: End) -> End:
        return end._replace(sent=end.sent + 1) if self.rules.notice == "seq" else end

    # What the network brings ----------------------------------------------------------------------------

    def _arrive(self, state: State, message: Message) -> Iterator[State]:
        me = message.to
        end = state.ends[me]
        if message.kind == "reconcile":
            if not end.live and message.tx == end.incarnation and message.view is not None:
                yield self._reconcile(state, me, message.view)
        elif end.live:
            if message.seq > end.seen:
                end = end._replace(seen=message.seq)
                state = _with(state, me, end)
            if message.kind == "assign":
                yield self._accept(state, me, message)
            elif message.kind == "answer":
                yield self._answered(state, me, message)
            elif message.kind == "void":
                yield self._voided(state, me, message)
            elif message.kind == "grant" and end.key == READY and message.epoch > end.epoch:
                yield _with(state, me, end._replace(owner=me, epoch=message.epoch))
            elif message.kind == "view" and message.view is not None:
                yield from self._learn(state, me, message.view)

    def _accept(self, state: State, me: int, offer: Message) -> State:
        end = state.ends[me]
        same = end.assignment == (offer.relation, offer.tx)
        if not self.rules.exact_already:
            same = end.relation == offer.relation
        foreign = self.rules.owned and (offer.epoch < end.epoch or (offer.epoch == end.epoch and end.owner == me))
        if end.key in HELD and same:
            good = True
        elif (self.rules.unique and end.key != READY) or foreign:
            good = False
        else:
            good = True
            end = end._replace(key=ASSIGNED, relation=offer.relation, tx=offer.tx, epoch=offer.epoch, owner=1 - me)
            end = self._number(end)
        answer = Message("answer", 1 - me, offer.relation, offer.tx, seq=end.sent, good=good)
        return _with(state, me, end, answer)

    def _answered(self, state: State, me: int, answer: Message) -> State:
        end = state.ends[me]
        if end.key != ASSIGNING or end.assignment != (answer.relation, answer.tx):
            return state
        if not answer.good:
            return self._void(state, me, end)
        row = end._replace(key=ASSIGNED)
        stale = [Message("view", 1 - me, view=_shown(row))] if self.rules.pull else []
        return _with(state, me, row, *stale)

    def _voided(self, state: State, me: int, message: Message) -> State:
        end = state.ends[me]
        same = end.assignment == (message.relation, message.tx)
        current = message.epoch >= end.epoch
        if not self.rules.exact_void:
            same, current = end.relation == message.relation, True
        if end.key == READY and current:
            return _with(state, me, end._replace(key=VOID, relation=message.relation, tx=message.tx))
        if end.key == ASSIGNED and same and MASTER_AT[end.relation] != me:
            return _with(state, me, end._replace(key=VOID))
        if end.key == DELIVERED and same and MASTER_AT[end.relation] != me:
            return state._replace(alarm=True)
        return state

    def _learn(self, state: State, me: int, view: End) -> Iterator[State]:
        """The slave's end takes from the peer's answer what it does not know itself."""
        end = state.ends[me]
        if end.key == READY and view.epoch >= end.epoch:
            row = end._replace(key=ASSIGNED, relation=view.relation, tx=view.tx, epoch=view.epoch, owner=1 - me)
            yield _with(state, me, row)

    # Crash and restore ----------------------------------------------------------------------------------

    def _misfortune(self, state: State, me: int) -> Iterator[Step]:
        end = state.ends[me]
        if state.crashes:
            yield "crash", self._started(state._replace(crashes=state.crashes - 1), me, end)
        if state.restores and state.backup is None:
            yield "backup", state._replace(backup=(me, end._replace(incarnation=0, live=True, restored=False)))
        if state.restores and state.backup is not None and state.backup[0] == me:
            old = state.backup[1]._replace(incarnation=end.incarnation, restored=True)
            left = state.restores - 1
            kept = state._replace(restores=left, backup=state.backup if left else None)
            yield "restore", self._started(kept, me, old)

    def _started(self, state: State, me: int, end: End) -> State:
        end = end._replace(incarnation=end.incarnation + 1, live=not self.rules.freeze)
        if end.key == ASSIGNING and (end.live or not self.rules.hello_first):
            return self._void(state, me, end)
        return _with(state, me, end)

    def _greet(self, state: State, me: int) -> State:
        """Hello reaches the peer, which answers with its row; a peer that is not live itself answers too."""
        end, peer = state.ends[me], state.ends[1 - me]
        if self.rules.barrier and peer.heard < end.incarnation:
            peer = peer._replace(heard=end.incarnation)
            if peer.key == READY and peer.owner == me and self._suspects(end, peer):
                peer = peer._replace(epoch=max(peer.epoch, end.epoch) + 1)
        answer = Message("reconcile", me, tx=end.incarnation, view=_shown(peer))
        return _with(state, 1 - me, peer, answer)

    def _suspects(self, end: End, view: End) -> bool:
        if self.rules.notice == "seq":
            return view.seen > end.sent
        return end.restored or self.rules.notice == "always"

    def _reconcile(self, state: State, me: int, view: End) -> State:
        """The peer's row wins where ours knows less; nothing that ours knows moves back."""
        net = frozenset(m for m in state.net if m.kind != "reconcile" or m.to != me)  # they have done their work
        state = state._replace(net=net)
        end = state.ends[me]._replace(live=True, restored=False)
        if not self._suspects(state.ends[me], view):
            return self._void(state, me, end) if end.key == ASSIGNING else _with(state, me, end)
        end = end._replace(sent=max(end.sent, view.seen))
        mine = MASTER_AT.get(end.relation) == me
        if view.key in HELD and end.key in (READY, ASSIGNING):
            key = DELIVERED if MASTER_AT[view.relation] == me else ASSIGNED
            end = end._replace(key=key, relation=view.relation, tx=view.tx)
        elif view.key == VOID and end.key < DELIVERED:
            end = end._replace(key=VOID, relation=view.relation, tx=view.tx)
        elif end.key == ASSIGNED and mine and self.rules.burn:
            end = end._replace(key=DELIVERED)
        elif end.key == ASSIGNING:
            return self._void(state, me, end)
        if view.epoch >= end.epoch:
            end = end._replace(owner=view.owner, epoch=view.epoch)
        if end.key == READY and end.owner == me and not self.rules.barrier:
            end = end._replace(epoch=end.epoch + 1)
        return _with(state, me, end)


def _with(state: State, me: int, end: End, *sent: Message) -> State:
    ends = (end, state.ends[B]) if me == A else (state.ends[A], end)
    return state._replace(ends=ends, net=state.net.union(sent) if sent else state.net)


def _about(row: End, kind: str, to: int) -> Message:
    return Message(kind, to, row.relation, row.tx, row.epoch, row.sent)


def _shown(end: End) -> End:
    """What a peer is told: durable facts alone."""
    return end._replace(heard=0, incarnation=0, live=True, restored=False)
