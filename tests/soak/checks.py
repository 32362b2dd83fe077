"""What must be true of a soak, one function for each; a finding names the keys for which it is not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.load import repeated
from tests.soak.casefile import LOCAL, Case, Key, Outcome, Segment

RESTORE_ALARMS = frozenset({"alarm.store-restored", "alarm.peer-restored"})
"""What a restore raises."""

STATUSES = {"enc_keys": {200, 503}, "dec_keys": {200, 400, 503}}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be."""

    what: str
    names: list[str] = field(default_factory=list)
    """Key_IDs, or segments."""


Check = Callable[[Case], Iterator[Finding]]


def _found(what: str, names: Iterable[str]) -> Iterator[Finding]:
    listed = sorted(names)
    if listed:
        yield Finding(what, listed)


def one_relation_for_each_key(case: Case) -> Iterator[Finding]:
    """In the logs, in the clients' records, and in both together."""
    relations = {key.key_id: set(key.relations) for key in case.keys.values()}
    for key_id, relation, _ in case.clients.fetched:
        relations.setdefault(key_id, set()).add(relation)
    yield from _found("delivered to two relations", (key_id for key_id, known in relations.items() if len(known) > 1))
    strangers = {
        key.key_id
        for key in case.keys.values()
        if key.relations and any(slave not in key.relation.slaves for slave, _ in key.collections)
    }
    strangers |= {
        key_id
        for key_id, slave, _ in case.clients.collected
        if not any(slave in relation.slaves for relation in relations.get(key_id, ()))
    }
    yield from _found("collected by an SAE that is not of the relation", strangers)


def once_for_each_party(case: Case) -> Iterator[Finding]:
    """A master gets a key once, whatever store its KME runs on; a slave too, but for a restore of its own KME."""
    twice = (key.key_id for key in case.keys.values() if len(key.deliveries) > 1)
    yield from _found("delivered twice by the log", twice)
    yield from _found("delivered twice to its master", repeated(key_id for key_id, _, _ in case.clients.fetched))
    got = repeated((key_id, slave) for key_id, slave, _ in case.clients.collected)
    yield from _found(
        "collected twice by one slave", (key for key, slave in got if case.clients.kme_of[slave] not in case.restored)
    )
    again = set()
    for key in case.keys.values():
        branches = Counter((slave, row.lost) for slave, row in key.collections)
        again |= {key.key_id for times in branches.values() if times > 1}
    yield from _found("collected twice by one slave by the log", again)


def the_same_bytes(case: Case) -> Iterator[Finding]:
    """A key_ID has one value, and no two have the same."""
    marks: dict[str, str] = {}
    for key_id, _, mark in case.clients.fetched:
        marks.setdefault(key_id, mark)
    by_mark: dict[str, set[str]] = defaultdict(set)
    for key_id, mark in marks.items():
        by_mark[mark].add(key_id)
    twins = (key_id for key_ids in by_mark.values() if len(key_ids) > 1 for key_id in key_ids)
    yield from _found("other key_IDs have the same bytes", twins)
    wrong = {key_id for key_id, _, mark in case.clients.collected if marks.get(key_id, mark) != mark}
    yield from _found("the slave got other bytes than the master", wrong)
    unknown = {key_id for key_id, _, _ in case.clients.collected if key_id not in marks}
    yield from _found("collected, and its master never got it", unknown)


def the_log_knows_what_clients_got(case: Case) -> Iterator[Finding]:
    delivered = {(key.key_id, row.facts["master"]) for key in case.keys.values() for row in key.deliveries}
    collected = {(key.key_id, slave) for key in case.keys.values() for slave, _ in key.collections}
    missing = (k for k, relation, _ in case.clients.fetched if (k, relation.master) not in delivered)
    yield from _found("a master has it and no log says so", missing)
    missing = (k for k, slave, _ in case.clients.collected if (k, slave) not in collected)
    yield from _found("a slave has it and no log says so", missing)


def no_segment_in_two_keys(case: Case) -> Iterator[Finding]:
    """But for a key of which nobody but a replaced store ever knew."""
    twice = set()
    for segment, holders in holders_of(case).items():
        known = [key for key in holders if not key.only_in_the_lost_branch]
        if len(known) > 1:
            twice |= {f"{key.key_id} (segment {segment.number} of {segment.link}/{segment.block})" for key in known}
    yield from _found("another key has the same segment", twice)


def every_claimed_key_ends(case: Case) -> Iterator[Finding]:
    claimed = [key for key in case.keys.values() if key.relations]
    lost = (key.key_id for key in claimed if case.outcome(key) is None)
    yield from _found("claimed, and nothing says what became of it", lost)
    named = (key.key_id for key in case.keys.values() if not key.relations)
    yield from _found("in the log, and nothing says that it was claimed", named)


def an_agreed_key_is_at_both_ends(case: Case) -> Iterator[Finding]:
    """What a master may be given next can be collected by each of its slaves."""
    alone = set()
    for key in case.keys.values():
        home = case.home(key) if key.relations else ""
        if not home or case.outcome(key) != Outcome("agreed") or case.state(home, key) != "assigned":
            continue
        others = {case.clients.kme_of[slave] for slave in key.relation.slaves} - {home}
        alone |= {key.key_id for kme in others if case.state(kme, key) != "assigned"}
    yield from _found("agreed by the KME of the master alone", alone)


def a_slave_is_refused_for_a_reason(case: Case) -> Iterator[Finding]:
    """It has the key by the log, or the key or its block ended at its KME, or its KME forgot it with its store."""
    has = {(key_id, slave) for key_id, slave, _ in case.clients.collected}
    for_nothing, unasked = set(), set()
    owed = ((key_id, slave) for key_id, relation, _ in case.clients.fetched for slave in relation.slaves)
    for key_id, slave in owed:
        key = case.keys.get(key_id)
        if (key_id, slave) in has or key is None or any(slave == who for who, _ in key.collections):
            continue
        if (key_id, slave) not in case.clients.refused:
            unasked.add(key_id)
        elif not _ended_at(case, key, case.clients.kme_of[slave]):
            for_nothing.add(key_id)
    yield from _found("refused to a slave, and no log says why", for_nothing)
    yield from _found("a slave never had an answer for it", unasked)


def _ended_at(case: Case, key: Key, kme: str) -> bool:
    blocks = {(segment.link, segment.block) for segment in key.segments}
    forgotten = kme in case.restored and case.state(kme, key) is None
    local = any(link.endswith(f" {LOCAL}") for link, _ in blocks)
    gone = local or case.gone_with_a_store(key, [kme])
    return kme in key.void_at or bool(blocks & case.ended_blocks) or (forgotten and gone)


def every_deposited_key_is_somewhere(case: Case) -> Iterator[Finding]:
    lost = [segment for segment, name in deposited(case) if name == "unaccounted"]
    yield from _found("deposited, and nothing says where it is", (f"{s.link}/{s.block}/{s.number}" for s in lost))


def deposited(case: Case) -> Iterator[tuple[Segment, str]]:
    """Every key that a device brought, and what became of it."""
    holders = holders_of(case)
    reached = {key_id for key_id, _, _ in case.clients.fetched}
    for (link, block), ends in case.deposits.items():
        for number in range(max(ends.values())):
            segment = Segment(link, block, number)
            names = {_name(case, key, reached) for key in holders.get(segment, ())}
            yield segment, next((n for n in _ORDER if n in names), "") or _unclaimed(case, segment)


_ORDER = ("delivered", "burnt", "agreed", "unaccounted", "revoked", "void")
"""Where two keys have a segment, which is a finding or the work of a restore, the first of these counts."""


def _name(case: Case, key: Key, reached: set[str]) -> str:
    outcome = case.outcome(key)
    if outcome is None:
        return "unaccounted"
    return "burnt" if outcome.name == "delivered" and key.key_id not in reached else outcome.name


def _unclaimed(case: Case, segment: Segment) -> str:
    """Of a segment that is of no key: it waits in the pool, or ended with its block, or by a restore."""
    name = segment.link, segment.block
    if name in case.ended_blocks:
        return "revoked"
    known, deposits = case.blocks[name], case.deposits[name]
    if deposits.keys() - known.keys():
        waits = any(block["state"] == "deposited" for block in known.values())
        return "left" if waits else "lost" if not known else "unaccounted"
    if any(block["state"] == "deposited" for block in known.values()):
        return "left"
    owners = [block for block in known.values() if block["mine"]]
    if len(owners) != 1:
        return "unaccounted"
    if segment.number >= owners[0]["used"]:
        return "left"
    by_its_alarm = case.restored & known.keys() and segment.link.endswith(f" {LOCAL}")
    return "given up" if by_its_alarm or segment in case.given_up else "unaccounted"


def a_restore_gave_up_what_the_log_says(case: Case) -> Iterator[Finding]:
    """Of its local links, what a restored KME gave up is what its alarm counts: nobody else knows of those keys."""
    holders = holders_of(case)
    for kme in sorted(case.restored):
        told = sum(row.facts.get("keys_void", 0) for row in case.alarms if row.kme == kme and not row.lost)
        given_up = 0
        for segment, name in deposited(case):
            if segment.link == case.name_of(kme, LOCAL) and kme in case.blocks[segment.link, segment.block]:
                rows = [row for key in holders.get(segment, ()) for row in (*key.claims, *key.deliveries)]
                given_up += name == "given up" or (bool(rows) and all(row.lost for row in rows))
        if told != given_up:
            yield Finding(f"{kme} says that {told} keys of its local links were given up, and it were {given_up}")


def alarms_have_a_reason(case: Case) -> Iterator[Finding]:
    """None, but for a restore, and none of those after the restored end is reconciled.

    Of keys that the peer of a restored end says are lost, each must be of a block that only the replaced store had.
    """
    reconciled = min(
        (row.facts["at"] for row in case.rows() if row.event == "link.open" and row.facts["was"] == "restored"),
        default="",
    )
    by_kind: dict[str, list[str]] = defaultdict(list)
    for row in case.alarms:
        if case.restored and row.event in RESTORE_ALARMS and row.facts["at"] <= reconciled:
            continue
        if row.event == "alarm.keys-lost":
            lost = [case.keys.get(key_id) for key_id in row.key_ids]
            if lost and all(key is not None and case.gone_with_a_store(key, case.restored) for key in lost):
                continue
        facts = {name: value for name, value in row.facts.items() if name not in ("seq", "event", "at")}
        by_kind[f"{row.kme} raised {row.event}"].append(f"row {row.facts['seq']} at {row.facts['at']}: {facts}")
    for what, rows in by_kind.items():
        yield Finding(what, rows)


def the_service_never_failed(case: Case) -> Iterator[Finding]:
    """Who is not served is told to come back, or that the key is not there."""
    for (call, status), times in sorted(case.clients.answers.items()):
        if status not in STATUSES[call]:
            yield Finding(f"{call} was answered {status}, {times} times")
    yield from (Finding(fault) for fault in case.run["faults"])


def holders_of(case: Case) -> dict[Segment, list[Key]]:
    """Which keys have each segment."""
    holders: dict[Segment, list[Key]] = defaultdict(list)
    for key in case.keys.values():
        for segment in key.segments:
            holders[segment].append(key)
    return holders


CHECKS: tuple[Check, ...] = (
    one_relation_for_each_key,
    once_for_each_party,
    the_same_bytes,
    the_log_knows_what_clients_got,
    no_segment_in_two_keys,
    every_claimed_key_ends,
    an_agreed_key_is_at_both_ends,
    a_slave_is_refused_for_a_reason,
    every_deposited_key_is_somewhere,
    a_restore_gave_up_what_the_log_says,
    alarms_have_a_reason,
    the_service_never_failed,
)
