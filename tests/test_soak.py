"""What became of every key after a minute of load, kill -9, cut connections and a store that was an old copy?"""

from __future__ import annotations

import pytest

from tests.load import new_seed
from tests.soak.auditor import Verdict, audited
from tests.soak.checks import CHECKS, Finding
from tests.soak.run import Soak

SECONDS = 60.0


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    found = audited(Soak(tmp_path_factory.mktemp("soak") / "run", SECONDS, new_seed(), print).run())
    print(found.as_json())
    return found


def test_the_storm_struck_and_the_service_served(verdict: Verdict) -> None:
    run = verdict.facts["run"]
    assert sum(times for blow, times in run["blows"].items() if blow.startswith("kill")) > 0
    assert sum(times for blow, times in run["blows"].items() if blow.startswith("cut")) > 0
    assert run["restored"]["kme"] in verdict.facts["rows"]
    assert verdict.keys["delivered"] > 0
    assert verdict.facts["collected"] > 0


def test_every_key_is_accounted_for(verdict: Verdict) -> None:
    assert verdict.keys["unaccounted"] == 0
    assert verdict.deposited["unaccounted"] == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_auditor_finds_nothing_wrong(verdict: Verdict, check: object) -> None:
    assert verdict.of(check) == []


def test_the_verdict_names_what_is_wrong() -> None:
    finding = Finding("a thing", ["a", "b"])
    assert (finding.what, finding.names) == ("a thing", ["a", "b"])
