"""Does `hsmkme bench` measure what it says, and show no figures of servers that give a key twice?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hsmkme import cli
from hsmkme.bench.generator import Generator
from hsmkme.bench.ledger import Ledger
from hsmkme.bench.loads import Call, Load
from hsmkme.bench.plans import Answer, Clients, Identity, Plan, request
from hsmkme.bench.sampled import PARTS
from hsmkme.bench.stand import CEILING
from hsmkme.errors import FiguresRefused
from tests.world import Demo, run_cli

LOADS = {"gthread-8", "enc-8", "dec-8"}
OF_A_LOAD = {"requests_per_second", "p50_ms", "p99_ms", "server_us_per_request", "generator_us_per_request"}
OF_KEYS = {"keys_per_second", "commits_per_key"}


def test_a_quick_run_measures_every_scenario_and_finds_no_key_twice() -> None:
    chosen = [part for name in (*LOADS, "deposit", "token-seal-bare") for part in ("--only", name)]
    tree = json.loads(run_cli("bench", "--quick", "--json", *chosen).stdout)
    assert tree["rounds"] == 1
    # A KME may say that it is to be asked again, as when another process logs in to its token; it must be said here.
    others = tree["other_answers"]
    assert {other["status"] for other in others} <= {503}
    assert sum(other["answers"] for other in others) <= max(1, tree["keys"] // 100)
    assert tree["keys"] > 0
    medians = {name: scenario["median"] for name, scenario in tree["scenarios"].items()}
    assert medians.keys() == LOADS | {"deposit", "token-seal-bare"}
    assert medians["gthread-8"].keys() == OF_A_LOAD
    assert medians["enc-8"].keys() == medians["dec-8"].keys() == OF_A_LOAD | OF_KEYS
    assert [value for figures in medians.values() for value in figures.values() if value <= 0] == []
    assert tree["splits"].keys() == {"enc-8", "dec-8"}
    for split in tree["splits"].values():
        assert tuple(split["microseconds"]) == PARTS
        assert sum(split["microseconds"].values()) > 0
        assert split["calls"]["C_DecryptInit"] >= 1
    assert [target["of"] for target in tree["targets"]] == ["deposit"]


def test_servers_that_give_a_key_twice_get_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty endpoint gives the same key to everybody: here it is taken for a KME."""
    monkeypatch.setattr("hsmkme.cli.bench.SCENARIOS", [Load("planted", CEILING, Call.ENC_KEYS, connections=2)])
    done = CliRunner().invoke(cli.main, ["bench", "--quick"])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "came twice" in done.stderr


def test_a_slave_that_gets_other_bytes_or_the_same_key_again_is_noticed() -> None:
    fetched, other = _container("AAAA"), _container("BBBB")
    for collected in ([other], [fetched, fetched]):
        ledger = Ledger()
        ledger.fetched([fetched], due=True)
        with pytest.raises(FiguresRefused):
            ledger.collected(collected)


def _container(key: str) -> Answer:
    return Answer(0, 200, 0.0, json.dumps({"keys": [{"key_ID": "one", "key": key}]}).encode())


def test_the_generator_makes_requests_at_a_rate_and_keeps_every_answer(demo: Demo) -> None:
    sae = demo.sae("sae-1")
    identity = Identity(Path(demo.description["ca"]), Path(sae["cert"]), Path(sae["key"]))
    asked = [request("/api/v1/keys/sae-2/status"), request("/api/v1/keys/sae-2/status", b"{}")]
    with Generator() as generator:
        timed = generator.run(Plan([Clients(demo.port, identity, 2, asked)], 1.0, rate=50, watch=(demo.server_pid,)))
        few = generator.run(Plan([Clients(demo.port, identity, 2, asked, repeat=False)], 60.0, fresh=True))
    assert len(timed.early) == 2
    assert len(timed.answers) + timed.unsent in (49, 50, 51)
    assert {answer.status for answer in timed.answers} == {200, 405}
    assert timed.watched_seconds >= 0
    assert few.early == []
    assert sorted(answer.status for answer in few.answers) == [200, 405]
    assert all(json.loads(answer.body) for answer in timed.answers + few.answers)
