"""What a KME learns of ceremonies on its token, and what ceremonies do to its epochs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from hsmkme.audit import AuditChain
from hsmkme.ceremony.verifying import verify
from hsmkme.custody import Custody
from hsmkme.hsm import Token
from hsmkme.hsm.tokens import sole
from hsmkme.model import BlockName, Entry, KeyMaterial, Link, RawBlock
from hsmkme.states import BlockState, EpochState
from hsmkme.store import Store
from tests.ceremonies.halls import Hall, told, transcript_of
from tests.ceremonies.killed import run_killed
from tests.ceremonies.test_kinds import proved
from tests.processes import apart, hsmkme, status_of
from tests.tokens import PIN, link_answers


@pytest.fixture
def site(hall: Hall) -> Hall:
    """A hall with a configuration and a store, which no service has opened yet."""
    return with_store(hall)


def with_store(hall: Hall) -> Hall:
    hall.config.write_text(
        'kme_id = "kme-1"\nstore = "store.sqlite"\n'
        f'[token]\nlabel = "test-hall"\npin_file = "pin"\nsofthsm_conf = "{hall.conf}"\n'
        '[server]\ncertificate = "c"\nkey = "k"\nsae_ca = "a"\n[[link]]\nid = "local"\npeer = "kme-1"\n'
    )
    (hall.home / "pin").write_text(PIN)
    (hall.home / "pin").chmod(0o400)
    assert hsmkme("--config", hall.config, "migrate").status == 0
    return hall


def begin_service(hall: Hall) -> None:
    """What every process of a KME does when it starts: custody of token and store; a block is deposited too."""
    token = Token(hall.address, lambda: PIN)
    store = Store(hall.home / "store.sqlite", AuditChain(), lambda: 1_800_000_000.0)
    custody = Custody(sole(token), store, lambda: 1_800_000_000.0)
    store.registry.admit_links([Link("local", "kme-1")], Entry("link.admit", "test"))
    block = RawBlock(BlockName("local", os.urandom(4).hex()), 256, KeyMaterial(os.urandom(64)))
    custody.deposit([block], BlockState.READY, 1000, "test")
    store.close()
    token.close()


def logged(hall: Hall, event: str) -> list[dict[str, Any]]:
    store = Store(hall.home / "store.sqlite", AuditChain(), lambda: 0.0)
    rows = [json.loads(row.text) for row in store.log.latest(100, event)]
    store.close()
    return rows


def epochs(hall: Hall) -> dict[int, EpochState]:
    store = Store(hall.home / "store.sqlite", AuditChain(), lambda: 0.0)
    found = {epoch.number: epoch.state for epoch in store.epochs.all()}
    store.close()
    return found


# What the service learns ---------------------------------------------------------------------------------------------


def test_the_first_start_after_the_first_ceremony_begins_epoch_1_and_logs_the_transcript(empty: Hall) -> None:
    plan = empty.plan("first")
    assert empty.run(plan).status == 0
    with_store(empty)
    apart(begin_service, empty)
    (held,) = logged(empty, "ceremony.held")
    (active,) = logged(empty, "epoch.activate")
    assert held["transcript"] == active["transcript"] == proved(plan)["digest"]
    master = told(plan, "done")[2]["evidence"]
    assert held["made"]["master/1"] == active["check_value"] == master["check_value"]
    assert epochs(empty) == {1: EpochState.ACTIVE}


def test_each_ceremony_is_logged_once(site: Hall) -> None:
    apart(begin_service, site)
    plan = site.plan("link-key", "paris")
    assert site.run(plan, link_answers("paris", bytes(range(32)))).status == 0
    for _ in range(2):
        apart(begin_service, site)
    first, second = logged(site, "ceremony.held")
    assert second["transcript"] == proved(plan)["digest"] != first["transcript"]
    assert second["ceremony"].startswith("link-key-paris-")
    assert list(second["made"]) == ["link/paris"]


def test_the_log_with_ceremonies_proves_itself(site: Hall) -> None:
    apart(begin_service, site)
    done = hsmkme("--config", site.config, "audit", "verify")
    assert (done.status, "good" in done.out) == (0, True), done.err


# Epochs --------------------------------------------------------------------------------------------------------------


def test_an_epoch_is_opened_and_the_one_before_is_destroyed_and_that_is_proved(site: Hall) -> None:
    apart(begin_service, site)
    rotate = site.plan("rotate", "2")
    done = site.run(rotate)
    assert done.status == 0, done.err
    assert epochs(site) == {1: EpochState.DEACTIVATED, 2: EpochState.ACTIVE}
    assert "master/2" in site.labels()
    destroy = site.plan("destroy-epoch", "1")
    done = site.run(destroy)
    assert done.status == 0, done.err
    assert epochs(site) == {1: EpochState.DESTROYED, 2: EpochState.ACTIVE}
    assert "master/1" not in site.labels()
    (facts,) = told(destroy, "done")
    assert (facts["evidence"]["destroyed"], facts["evidence"]["active"]) == (True, 2)
    assert [proved(plan)["signed_by"] for plan in (rotate, destroy)] == [["token"]] * 2
    apart(begin_service, site)  # what was moved opens, and deposits go on


def test_a_plan_that_skips_an_epoch_is_refused_and_makes_nothing(site: Hall) -> None:
    apart(begin_service, site)
    plan = site.plan("rotate", "3")
    before = site.objects()
    done = site.run(plan)
    assert (done.status, "the next epoch is 2, and the plan rotates to 3" in done.err) == (1, True)
    assert (epochs(site), site.objects()) == ({1: EpochState.ACTIVE}, before)


def test_the_active_epoch_is_not_destroyed(site: Hall) -> None:
    apart(begin_service, site)
    done = site.run(site.plan("destroy-epoch", "1"))
    assert (done.status, "epoch 1 is active" in done.err) == (1, True)
    assert "master/1" in site.labels()


def test_an_operator_alone_does_not_destroy_an_epoch(site: Hall) -> None:
    apart(begin_service, site)
    assert site.run(site.plan("rotate", "2")).status == 0
    done = site.run(site.plan("destroy-epoch", "1"), {"so-1.the-SO-PIN": PIN})
    assert (done.status, "so-1 gave no right answer to: the SO PIN" in done.err) == (3, True)
    assert epochs(site) == {1: EpochState.DEACTIVATED, 2: EpochState.ACTIVE}
    assert "master/1" in site.labels()


def test_a_plan_about_epochs_names_the_configuration(site: Hall) -> None:
    plan = site.plan("rotate", "2", (f'config = "{site.config}"\n', ""))
    done = site.run(plan)
    assert (done.status, "config: is missing: the steps change the store that it names" in done.err) == (1, True)


@pytest.mark.parametrize("kind", ["rotate", "destroy-epoch"])
def test_killed_before_anything_that_it_does_it_is_gone_on_with_to_the_same_end(
    equipped: Hall, tmp_path: Path, kind: str
) -> None:
    start = with_store(equipped.copy(tmp_path / "start"))
    apart(begin_service, start)
    if kind == "destroy-epoch":
        assert start.run(start.plan("rotate", "2")).status == 0
    written = start.plan(kind, "2" if kind == "rotate" else "1")

    def run(name: str, point: int) -> tuple[Hall, Path, int]:
        home = tmp_path / name
        shutil.copytree(start.home, home)
        hall, plan = Hall(home).prepare(), home / written.name
        for path in (hall.config, plan):
            path.write_text(path.read_text().replace(str(start.home), str(home)))
        arguments = ("ceremony", "run", plan, "--answers", hall.answers({}))
        return hall, plan, status_of(run_killed, point, home / "points", *arguments)

    hall, _, status = run("whole", 0)
    end, points = epochs(hall), (hall.home / "points").read_text().splitlines()
    assert (status, len(points) > 7) == (0, True)
    for point, name in enumerate(points, start=1):
        hall, plan, status = run(f"point-{point}", point)
        assert status == -signal.SIGKILL, name
        again = hall.run(plan)
        assert again.status == 0, (name, again.err)
        assert verify(transcript_of(plan).read_text().splitlines()).signed_by == ["token"]
        assert epochs(hall) == end
        apart(begin_service, hall)


@pytest.mark.parametrize(("kind", "about"), [("rotate", "2"), ("destroy-epoch", "1")])
def test_a_rehearsal_has_a_store_of_its_own(site: Hall, tmp_path: Path, kind: str, about: str) -> None:
    apart(begin_service, site)
    if kind == "destroy-epoch":
        assert site.run(site.plan("rotate", "2")).status == 0
    plan, before = site.plan(kind, about), epochs(site)
    answers = site.answers({"op-1.the-user-PIN": "rehearsal-user", "so-1.the-SO-PIN": "rehearsal-so"})
    done = hsmkme("ceremony", "rehearse", plan, "--answers", answers, "--directory", tmp_path / "rehearsal")
    assert done.status == 0, done.err
    assert epochs(site) == before
    proof = hsmkme("ceremony", "verify", plan, "--transcript", tmp_path / "rehearsal" / "transcript.jsonl")
    assert proof.status == 0, proof.out
