"""All the evidence of a soak put together: every key with what logs, stores and clients say of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.load import Relation
from tests.soak import trail
from tests.soak.trail import Row, Trail

LOCAL = "local"
LIVE = frozenset({"assigning", "assigned"})
ENDED_BLOCKS = frozenset({"revoked", "expired", "frozen"})


class Segment(NamedTuple):
    """One deposited key: its place in a block. A local link is of one KME, which is in its name then."""

    link: str
    block: str
    number: int


class Outcome(NamedTuple):
    """What became of a key."""

    name: str
    by_restore: bool = False


@dataclass
class Key:
    """Everything that is known of one key_ID."""

    key_id: str
    relations: set[Relation] = field(default_factory=set)
    deliveries: list[Row] = field(default_factory=list)
    claims: list[Row] = field(default_factory=list)
    assigns: list[Row] = field(default_factory=list)
    collections: list[tuple[str, Row]] = field(default_factory=list)
    """(slave, row)."""
    void_at: set[str] = field(default_factory=set)
    learnt_at: set[str] = field(default_factory=set)
    presumed_at: set[str] = field(default_factory=set)
    """Where it counts as delivered because a younger copy of the store may have delivered it."""
    segments: set[Segment] = field(default_factory=set)

    @property
    def relation(self) -> Relation:
        return next(iter(self.relations))

    @property
    def only_in_the_lost_branch(self) -> bool:
        """Claimed by a store that was replaced, and never heard of by anybody else: it was offered to nobody."""
        rows = [*self.deliveries, *self.claims, *self.assigns, *(row for _, row in self.collections)]
        return all(row.lost for row in rows) and not self.deliveries and not self.assigns and not self.learnt_at


@dataclass
class Clients:
    """What the SAEs recorded; marks stand for bytes."""

    kme_of: dict[str, str] = field(default_factory=dict)
    fetched: list[tuple[str, Relation, str]] = field(default_factory=list)
    collected: list[tuple[str, str, str]] = field(default_factory=list)
    """(key_ID, slave, mark)."""
    refused: set[tuple[str, str]] = field(default_factory=set)
    """(key_ID, slave)."""
    unanswered: set[tuple[str, str]] = field(default_factory=set)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)


class Case:
    """The evidence in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.clients = _clients(directory / "clients.jsonl")
        self.run: dict[str, Any] = json.loads((directory / "run.json").read_text())
        self.kmes = sorted(set(self.clients.kme_of.values()))
        self.trails: list[Trail] = [trail.read(directory, kme) for kme in self.kmes]
        self.keys: dict[str, Key] = {}
        self.deposits: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        """Link and block to how many keys each KME says were deposited."""
        self.ended_blocks: set[tuple[str, str]] = set()
        self._kept: set[tuple[str, str, str]] = set()
        self._only_replaced: set[tuple[str, str, str]] = set()
        """KME, link and block of every deposit that is still logged, and of those logged by a replaced store alone."""
        self.given_up: set[Segment] = set()
        """Segments that a reconciliation gave up, as the log names them."""
        self.alarms: list[Row] = []
        self.stock: dict[str, dict[str, Any]] = {}
        self.blocks: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        """Link and block to what the store of each KME says of it."""
        for kme in self.kmes:
            self._take_stock(kme, json.loads((directory / f"{kme}.stock.json").read_text()))
        for row in self.rows():
            self._read(row)

    def rows(self) -> Iterator[Row]:
        for each in self.trails:
            yield from each.rows

    @property
    def restored(self) -> set[str]:
        """KMEs whose store was replaced."""
        return {each.kme for each in self.trails if each.forked_after is not None}

    def key(self, key_id: str) -> Key:
        return self.keys.setdefault(key_id, Key(key_id))

    def home(self, key: Key) -> str:
        """The KME that serves the master."""
        return self.clients.kme_of[key.relation.master]

    def state(self, kme: str, key: Key) -> str | None:
        """What the store of ``kme`` says of a key at the end."""
        found: str | None = self.stock[kme]["keys"].get(key.key_id)
        return found

    def outcome(self, key: Key) -> Outcome | None:
        """What became of a key that was claimed; None if nothing tells."""
        home = self.home(key)
        if key.deliveries:
            return Outcome("delivered")
        if home in key.presumed_at:
            return Outcome("burnt")
        if home in key.void_at:
            return Outcome("void")
        if any((segment.link, segment.block) in self.ended_blocks for segment in key.segments):
            return Outcome("revoked")
        state = self.state(home, key)
        if state in LIVE:
            return Outcome("agreed")
        if home in key.learnt_at:
            return Outcome("void", by_restore=True)
        known_elsewhere = any(self.state(kme, key) in (*LIVE, "delivered", "consumed") for kme in self.kmes)
        if home in self.restored and state is None and not known_elsewhere and all(row.lost for row in key.claims):
            return Outcome("void", by_restore=True)
        return None

    def gone_with_a_store(self, key: Key, kmes: Iterable[str]) -> bool:
        """Whether a block of ``key`` came to one of ``kmes`` after the copy that its store was replaced by was made."""
        places = {(kme, s.link, s.block) for kme in kmes for s in key.segments}
        return bool(places & (self._only_replaced - self._kept))

    def name_of(self, kme: str, link: str) -> str:
        return f"{kme} {link}" if link == LOCAL else link

    def _take_stock(self, kme: str, stock: dict[str, Any]) -> None:
        self.stock[kme] = stock
        for block in stock["blocks"]:
            name = self.name_of(kme, block["link"]), block["block"]
            self.blocks[name][kme] = block
            if block["state"] in ENDED_BLOCKS:
                self.ended_blocks.add(name)

    def _read(self, row: Row) -> None:
        facts, kme = row.facts, row.kme
        if row.event == "block.deposit":
            link = self.name_of(kme, facts["link"])
            self.deposits[link, facts["block"]][kme] = facts["keys"]
            (self._only_replaced if row.lost else self._kept).add((kme, link, facts["block"]))
        elif row.event == "block.revoke":
            self.ended_blocks |= {(self.name_of(kme, facts["link"]), block) for block in facts["blocks"]}
        elif row.event == "block.expire":
            self.ended_blocks |= {self._split(kme, name) for name in facts["blocks"]}
        elif row.event.startswith("alarm."):
            self.alarms.append(row)
        elif row.event in ("key.deliver", "key.claim", "key.assign"):
            self._read_claim(row)
        elif row.event == "key.collect":
            slave = facts["actor"].removeprefix("sae:")
            for key_id in row.key_ids:
                self.key(key_id).collections.append((slave, row))
        elif row.event in ("key.void", "key.expire"):
            for key_id in row.key_ids:
                self.key(key_id).void_at.add(kme)
        elif row.event == "key.presume-delivered":
            for key_id in row.key_ids:
                self.key(key_id).presumed_at.add(kme)
        elif row.event == "link.learn":
            for key_id in row.key_ids:
                self.key(key_id).learnt_at.add(kme)
            self.given_up.update(self._segments(kme, facts.get("given_up", ())))

    def _read_claim(self, row: Row) -> None:
        relation = Relation(row.facts["master"], tuple(row.facts["slaves"]))
        segments = list(self._segments(row.kme, row.facts["segments"]))
        each = len(segments) // len(row.key_ids)
        assert each * len(row.key_ids) == len(segments), f"row {row.facts['seq']} of {row.kme}: keys of unlike lengths"
        for number, key_id in enumerate(row.key_ids):
            key = self.key(key_id)
            key.relations.add(relation)
            key.segments.update(segments[number * each : (number + 1) * each])
            {"key.deliver": key.deliveries, "key.claim": key.claims, "key.assign": key.assigns}[row.event].append(row)

    def _segments(self, kme: str, runs: Iterable[tuple[str, int, int]]) -> Iterator[Segment]:
        for name, first, count in runs:
            link, block = self._split(kme, name)
            yield from (Segment(link, block, number) for number in range(first, first + count))

    def _split(self, kme: str, name: str) -> tuple[str, str]:
        link, _, block = name.partition("/")
        return self.name_of(kme, link), block


def _clients(path: Path) -> Clients:
    clients = Clients()
    for line in path.read_text().splitlines():
        fact = json.loads(line)
        if "saes" in fact:
            clients.kme_of = fact["saes"]
        elif "fetched" in fact:
            clients.fetched.append((fact["fetched"], Relation(fact["master"], tuple(fact["slaves"])), fact["mark"]))
        elif "collected" in fact:
            clients.collected.append((fact["collected"], fact["slave"], fact["mark"]))
        elif "refused" in fact:
            clients.refused.add((fact["refused"], fact["slave"]))
        elif "unanswered" in fact:
            clients.unanswered.add((fact["unanswered"], fact["slave"]))
        elif "call" in fact:
            clients.answers[fact["call"], fact["status"]] = fact["times"]
    return clients
