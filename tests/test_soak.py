"""What became of every key after a minute of load, kill -9, cut connections and a store that was an old copy?

And would the auditor have seen it if something had gone wrong? Faults are planted in the evidence of the same soak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.load import Relation, new_seed
from tests.soak import checks
from tests.soak.auditor import Verdict, audited
from tests.soak.casefile import Case, Key
from tests.soak.checks import CHECKS, Check
from tests.soak.run import Soak

SECONDS = 60.0


@dataclass
class Aftermath:
    """A soak that is over."""

    evidence: Path
    verdict: Verdict


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    evidence = Soak(tmp_path_factory.mktemp("soak") / "run", SECONDS, new_seed(), print).run()
    verdict = audited(evidence)
    print({name: facts for name, facts in verdict.as_json().items() if name != "findings"})
    return Aftermath(evidence, verdict)


def test_the_storm_struck_and_the_service_served(aftermath: Aftermath) -> None:
    verdict, run = aftermath.verdict, aftermath.verdict.facts["run"]
    assert sum(times for blow, times in run["blows"].items() if blow.startswith("kill")) > 0
    assert sum(times for blow, times in run["blows"].items() if blow.startswith("cut")) > 0
    assert run["restored"]["kme"] in verdict.facts["rows"]
    assert verdict.keys["delivered"] > 0
    assert verdict.facts["collected"] > 0


def test_every_key_is_accounted_for(aftermath: Aftermath) -> None:
    assert aftermath.verdict.keys["unaccounted"] == 0
    assert aftermath.verdict.deposited["unaccounted"] == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_the_auditor_finds_nothing_wrong(aftermath: Aftermath, check: Check) -> None:
    assert aftermath.verdict.found[check.__name__] == []


# Faults that the auditor must find -------------------------------------------------------------------------


def _delivered(case: Case, number: int = 0) -> Key:
    """A key that its master has and a slave collected, of a block that did not end."""
    has = {key_id for key_id, _, _ in case.clients.collected}
    keys = (case.keys[key_id] for key_id, _, _ in case.clients.fetched if key_id in has)
    live = [key for key in keys if not any((s.link, s.block) in case.ended_blocks for s in key.segments)]
    return [key for key in live if not case.gone_with_a_store(key, case.kmes)][number]


def _another_relation(case: Case) -> Key:
    key = _delivered(case)
    key.relations.add(Relation("sae-8", ("sae-1", "sae-2", "sae-3", "sae-4", "sae-5")))
    return key


def _another_relation_at_a_client(case: Case) -> Key:
    key = _delivered(case)
    case.clients.fetched.append((key.key_id, Relation("sae-8", ("sae-1", "sae-2", "sae-3")), "another mark"))
    return key


def _delivered_again(case: Case) -> Key:
    key = _delivered(case)
    key.deliveries.append(replace(key.deliveries[0], lost=not key.deliveries[0].lost))
    return key


def _same_bytes(case: Case) -> Key:
    one, other = _delivered(case), _delivered(case, -1)
    mark = next(mark for key_id, _, mark in case.clients.fetched if key_id == one.key_id)
    marked = [(k, r, mark if k == other.key_id else m) for k, r, m in case.clients.fetched]
    case.clients.fetched = marked
    return other


def _other_bytes_for_a_slave(case: Case) -> Key:
    key = _delivered(case)
    marked = [(k, slave, "another" if k == key.key_id else mark) for k, slave, mark in case.clients.collected]
    case.clients.collected = marked
    return key


def _not_in_the_log(case: Case) -> Key:
    key = _delivered(case)
    key.deliveries.clear()
    return key


def _same_segment(case: Case) -> Key:
    key = _delivered(case)
    key.segments.update(_delivered(case, -1).segments)
    return key


def _forgotten(case: Case) -> Key:
    key = _delivered(case)
    key.deliveries.clear()
    key.void_at.clear()
    key.presumed_at.clear()
    key.claims = [replace(row, lost=False) for row in key.claims]
    key.assigns = [replace(row, lost=False) for row in key.assigns]
    return key


def _refused(case: Case) -> Key:
    has = {key_id for key_id, _, _ in case.clients.collected}
    ended = case.ended_blocks
    key = next(
        key
        for key_id in has
        if not (key := case.keys[key_id]).void_at
        and not {(s.link, s.block) for s in key.segments} & ended
        and all(case.state(case.clients.kme_of[slave], key) for slave in key.relation.slaves)
    )
    key.collections.clear()
    case.clients.collected = [entry for entry in case.clients.collected if entry[0] != key.key_id]
    case.clients.refused |= {(key.key_id, slave) for slave in key.relation.slaves}
    return key


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (_another_relation, checks.one_relation_for_each_key),
        (_another_relation_at_a_client, checks.one_relation_for_each_key),
        (_delivered_again, checks.once_for_each_party),
        (_same_bytes, checks.the_same_bytes),
        (_other_bytes_for_a_slave, checks.the_same_bytes),
        (_not_in_the_log, checks.the_log_knows_what_clients_got),
        (_same_segment, checks.no_segment_in_two_keys),
        (_forgotten, checks.every_claimed_key_ends),
        (_refused, checks.a_slave_is_refused_for_a_reason),
    ],
    ids=lambda part: part.__name__.strip("_"),
)
def test_the_auditor_names_the_key_of_a_fault(
    aftermath: Aftermath, plant: Callable[[Case], Key], check: Check
) -> None:
    case = Case(aftermath.evidence)
    planted = plant(case)
    named = [name for finding in check(case) for name in finding.names]
    assert any(name.startswith(planted.key_id) for name in named), named[:3]


def test_the_auditor_misses_a_deposited_key_that_is_nowhere(aftermath: Aftermath) -> None:
    """The claim is taken out of the evidence: its segment was passed over by the cursor and is of no key."""
    case = Case(aftermath.evidence)
    key = next(
        key
        for key in (case.keys[key_id] for key_id, _, _ in case.clients.fetched)
        if not any(s.link.endswith(" local") or (s.link, s.block) in case.ended_blocks for s in key.segments)
    )
    del case.keys[key.key_id]
    lost = {name for finding in checks.every_deposited_key_is_somewhere(case) for name in finding.names}
    assert {f"{s.link}/{s.block}/{s.number}" for s in key.segments} <= lost


@pytest.mark.parametrize("event", ["alarm.block-mismatch", "alarm.keys-lost"])
def test_the_auditor_wants_a_reason_for_an_alarm(aftermath: Aftermath, event: str) -> None:
    case = Case(aftermath.evidence)
    row = next(case.rows())
    facts = {**row.facts, "event": event, "key_IDs": [_delivered(case).key_id]}
    case.alarms.append(replace(row, facts=facts))
    assert [finding.what for finding in checks.alarms_have_a_reason(case)] == [f"{row.kme} raised {event}"]
