"""Does the master key change under a KME that works, without a key lost, a request failed or a step half done?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pkcs11 import KeyType

from hsmkme.audit import AuditChain
from hsmkme.config import EpochsSection
from hsmkme.custody import Custody
from hsmkme.errors import IllegalTransition, OperatorFault, RecordFault, StoreError
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.masters import MasterKeys
from hsmkme.hsm.tokens import sole
from hsmkme.model import BlockName, Entry, KeyMaterial, RawBlock, SealedBlock
from hsmkme.states import BlockState
from hsmkme.store import Store
from tests.conftest import PIN, FakeClock
from tests.kills import watch
from tests.load import Ledger, Load, check, new_seed
from tests.processes import processes
from tests.rotating import KEYS, Kme, new_kme, same
from tests.sites import Site
from tests.world import Demo, start_demo

DAY = 86400


@pytest.fixture
def kme(own_address: TokenAddress, tmp_path: Path, clock: FakeClock) -> Iterator[Kme]:
    with new_kme(own_address, tmp_path, clock) as opened:
        yield opened


# One turn -------------------------------------------------------------------------------------------------


def test_keys_outlive_the_master_key_they_were_sealed_under(kme: Kme) -> None:
    kme.deposit("one")
    claimed = kme.fetch(1)
    kme.turn_over()
    kme.deposit("two")
    rest = kme.fetch(2 * KEYS - 1)
    assert same(kme.collect([*claimed, *rest]), [*claimed, *rest])
    assert kme.are_of([*claimed, *rest], "one", "two")
    assert kme.states() == {1: "destroyed", 2: "active"}
    assert kme.masters() == ["master/2"]


def test_what_is_deposited_after_a_rotation_goes_under_the_new_epoch_in_a_process_that_began_before(kme: Kme) -> None:
    kme.deposit("one")
    kme.rotation.rotate(because="test")
    kme.deposit("two")
    assert [len(kme.store.epochs.under(epoch, 0, 9)) for epoch in (1, 2)] == [1, 1]


def test_segments_do_not_change_when_a_block_key_moves(kme: Kme) -> None:
    kme.deposit("one")
    with kme.store.log._database.read() as connection:
        before = connection.execute("SELECT sealed FROM segments").fetchall()
    kme.turn_over()
    with kme.store.log._database.read() as connection:
        assert connection.execute("SELECT sealed FROM segments").fetchall() == before


def test_what_ended_before_is_not_moved(kme: Kme) -> None:
    kme.deposit("one")
    kme.collect(kme.fetch(KEYS))
    kme.turn_over()
    assert kme.rows("block.rewrap") == []
    assert '"blocks":["local/one"]' in kme.rows("block.destroy")[0]


def test_every_step_is_in_the_log(kme: Kme) -> None:
    kme.deposit("one")
    kme.turn_over()
    check_value = kme.store.epochs.all()[0].check_value
    assert '"blocks":["local/one"]' in kme.rows("block.rewrap")[0]
    for event in ("epoch.make", "epoch.activate", "epoch.give-up"):
        assert len(kme.rows(event)) == 1 + (event == "epoch.activate"), event
    (destroyed,) = kme.rows("epoch.destroy")
    assert f'"check_value":"{check_value}"' in destroyed
    assert '"epoch":1' in destroyed


# What a worker meets ----------------------------------------------------------------------------------------


def test_keys_that_were_read_before_their_block_moved_still_open(kme: Kme) -> None:
    kme.deposit("one")
    claimed = kme.fetch(2)
    held = kme.custody.held([key.key_id for key in claimed])
    kme.token.forget()  # no block key is unwrapped
    kme.turn_over()
    stale = [held[key.key_id] for key in claimed]
    assert stale[0].key.parts[0].block.epoch == 1
    assert same(kme.custody.collect("sae-2", stale, "sae:sae-2"), claimed)
    assert kme.rows("alarm") == []


def test_a_block_sealed_under_an_epoch_that_ended_meanwhile_is_sealed_again(kme: Kme) -> None:
    sealed: list[int] = []
    block = RawBlock(BlockName("local", "one"), 256, KeyMaterial(os.urandom(32)))

    def keep(made: Sequence[SealedBlock]) -> None:
        sealed.append(made[0].seal.epoch)
        if len(sealed) == 1:
            kme.turn_over()
        kme.store.blocks.deposit(made, BlockState.READY, 10, Entry("block.deposit", "device"))

    kme.custody._epochs.seal([block], keep)
    assert sealed == [1, 2]
    assert len(kme.fetch(1)) == 1


def test_the_store_refuses_a_block_under_an_epoch_that_ended(kme: Kme) -> None:
    sealed = kme.token.seal(RawBlock(BlockName("local", "one"), 256, KeyMaterial(os.urandom(32))), 1)
    kme.turn_over()
    with pytest.raises(IllegalTransition):
        kme.store.blocks.deposit([sealed], BlockState.READY, 10, Entry("block.deposit", "device"))


def test_the_token_is_proved_under_the_new_epoch_when_the_old_one_is_gone(kme: Kme) -> None:
    kme.deposit("one")
    kme.turn_over()
    kme.token.runner._breaker._answered_at = None  # as after a pause
    assert len(kme.fetch(1)) == 1


def test_a_process_drops_the_block_keys_of_a_destroyed_epoch_within_a_second(kme: Kme) -> None:
    kme.deposit("one")
    claimed = kme.fetch(2)

    def unwrapped() -> set[int]:
        return kme.token.runner.run("looking", lambda lane: {seal.epoch for seal in lane.opened})

    kme.rotation.rotate(because="test")
    kme.rotation.rewrap(1)
    assert unwrapped() == {1}
    kme.rotation.shred(1)
    kme.clock.now += 1
    kme.collect(claimed)
    assert unwrapped() == {2}


def test_a_store_from_before_an_epoch_was_destroyed_is_refused_at_the_start(kme: Kme, tmp_path: Path) -> None:
    kme.deposit("one")
    kme.store.checkpoint()
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(kme.site.path.read_bytes())
    kme.turn_over()
    old = Store(copy, AuditChain(), kme.clock)
    with pytest.raises(OperatorFault, match="the token has no SECRET_KEY labelled 'master/1'"):
        Custody(sole(kme.token), old, kme.clock)
    old.close()


def test_a_row_that_names_an_epoch_that_there_is_not_is_quarantined(kme: Kme) -> None:
    kme.deposit("one")
    with kme.store.log._database.write(logged=False) as transaction:
        transaction.execute("DROP TRIGGER block_moves_to_active")
        transaction.execute("PRAGMA defer_foreign_keys = ON")
        transaction.execute("INSERT INTO epoch (epoch, state, check_value) VALUES (9, 'destroyed', '0011223344')")
        blob = "CAST(substr(wrapped, 1, 3) || x'00000009' || substr(wrapped, 8) AS BLOB)"
        transaction.execute(f"UPDATE block SET epoch = 9, wrapped = {blob}")  # noqa: S608
    with pytest.raises(RecordFault):
        kme.fetch(1)
    assert len(kme.rows("alarm.block-tampered")) == 1


# What is refused --------------------------------------------------------------------------------------------


def test_an_epoch_with_live_blocks_is_not_destroyed(kme: Kme) -> None:
    kme.deposit("one")
    kme.rotation.rotate(because="test")
    with pytest.raises(StoreError, match="1 live blocks are under epoch 1: `hsmkme epoch rewrap 1`"):
        kme.rotation.shred(1)
    with pytest.raises(IllegalTransition):
        kme.store.epochs.destroy(1, Entry("epoch.give-up", "test"))
    assert kme.masters() == ["master/1", "master/2"]


@pytest.mark.parametrize("verb", ["rewrap", "shred"])
def test_the_active_epoch_is_neither_drained_nor_destroyed(verb: str, kme: Kme) -> None:
    with pytest.raises(StoreError, match="epoch 1 is active: `hsmkme epoch rotate` opens the one after it first"):
        getattr(kme.rotation, verb)(1)
    assert kme.masters() == ["master/1"]


def test_a_block_whose_key_was_altered_is_quarantined_with_one_alarm_and_holds_its_epoch_back(kme: Kme) -> None:
    kme.deposit("good")
    kme.deposit("bad")
    with kme.store.log._database.write(logged=False) as transaction:
        blob = "CAST(substr(wrapped, 1, 46) || x'00' AS BLOB)"
        transaction.execute(f"UPDATE block SET wrapped = {blob} WHERE block_id = 'bad'")  # noqa: S608
    kme.rotation.rotate(because="test")
    for _ in range(3):
        kme.rotation.rewrap(1)
    assert len(kme.rows("alarm.block-tampered")) == 1
    assert kme.store.epochs.live(1) == {"frozen": 1}
    with pytest.raises(StoreError, match="1 blocks in quarantine are under epoch 1"):
        kme.rotation.shred(1)
    assert len(kme.fetch(KEYS)) == KEYS


def test_a_master_key_that_the_token_does_not_destroy_is_not_proved_destroyed(kme: Kme) -> None:
    masters = MasterKeys(kme.token.runner)
    witness = masters.witness(1)
    with pytest.raises(OperatorFault, match="master/1 is in the token still"):
        masters.prove_destroyed(1, witness)


def test_a_copy_of_a_destroyed_master_key_under_another_name_is_found(kme: Kme) -> None:
    """What unwraps the witness is that key, whatever it is called."""
    masters = MasterKeys(kme.token.runner)
    masters.make(2)
    witness = masters.witness(2)
    assert masters.destroy(7) == 0
    with pytest.raises(OperatorFault, match="master/2 unwraps what master/7 wrapped"):
        masters.prove_destroyed(7, witness)


def test_a_master_key_that_is_not_as_it_should_be_is_replaced_before_anything_is_under_it(kme: Kme) -> None:
    def plant(lane: Any) -> None:
        session = lane.session.token.open(rw=True)
        session.generate_key(KeyType.AES, 256, label="master/2", store=True)
        session.close()

    kme.token.runner.run("planting", plant)
    kme.turn_over()
    assert kme.masters() == ["master/2"]
    assert kme.token.check_value(2) == kme.store.epochs.all()[1].check_value


def test_a_master_key_that_a_killed_rotation_left_is_taken(kme: Kme) -> None:
    check_value = MasterKeys(kme.token.runner).make(2)
    assert kme.rotation.rotate(because="test") == 2
    assert kme.store.epochs.all()[1].check_value == check_value


# Upkeep -----------------------------------------------------------------------------------------------------


def keep(kme: Kme, seconds: int = 1, **settings: int) -> None:
    for _ in range(seconds):
        kme.rotation.keep(EpochsSection(**settings))
        kme.clock.now += 1


def test_upkeep_opens_an_epoch_every_day_and_drains_and_destroys_the_last_one(kme: Kme) -> None:
    for name in ("one", "two", "three"):
        kme.deposit(name)
    keep(kme)
    assert kme.states() == {1: "active"}
    kme.clock.now += DAY
    keep(kme, 1, rewrap_per_second=2)
    assert kme.states() == {1: "deactivated", 2: "active"}
    keep(kme, 1, rewrap_per_second=2)
    assert len(kme.store.epochs.under(1, 0, 9)) == 1, "no more than two in a second"
    keep(kme, 4, rewrap_per_second=2)
    assert kme.states() == {1: "destroyed", 2: "active"}
    assert kme.store.epochs.all()[0].proved
    kme.clock.now += DAY
    keep(kme, 5)
    assert kme.states() == {1: "destroyed", 2: "destroyed", 3: "active"}


def test_upkeep_opens_an_epoch_after_so_many_wraps(kme: Kme) -> None:
    for number in range(3):
        kme.deposit(f"block-{number}")
    keep(kme, 1, rotate_blocks=4)
    assert kme.states() == {1: "active"}
    kme.deposit("last")
    keep(kme, 1, rotate_blocks=4)
    assert kme.states() == {1: "deactivated", 2: "active"}


def test_upkeep_leaves_rotation_to_officers_if_it_is_told_to(kme: Kme) -> None:
    kme.deposit("one")
    kme.clock.now += 100 * DAY
    keep(kme, 3, rotate_seconds=0, rotate_blocks=0)
    assert kme.states() == {1: "active"}


def test_a_compromised_epoch_is_drained_first(kme: Kme) -> None:
    kme.deposit("one")
    kme.rotation.rotate(because="test")
    kme.deposit("two")
    kme.rotation.rotate(because="test")
    kme.store.epochs.compromise(2, Entry("epoch.compromise", "officer"))
    keep(kme, 3, rotate_seconds=0)
    assert kme.states() == {1: "destroyed", 2: "destroyed", 3: "active"}
    assert ['"epoch":2' in row for row in kme.rows("epoch.destroy")] == [True, False]


# Kills ------------------------------------------------------------------------------------------------------


def _upkeep(config: str, now: float, kill_at: int) -> None:
    """What upkeep does of epochs until nothing is left to do; killed at the ``kill_at``-th durable moment, if any."""
    from hsmkme import bootstrap, rotation
    from hsmkme.config import load

    settings = load(Path(config))
    store = Store(settings.store, AuditChain(), lambda: now)
    token = bootstrap.open_token(settings.token[0])
    watch(kill_at)
    one = rotation.Rotation(token, store, lambda: now, "upkeep")
    for _ in range(8):
        one.keep(EpochsSection(rewrap_per_second=1))


def _run_upkeep(site: Site, now: float, kill_at: int) -> bool:
    """Whether it was killed."""
    child = processes.Process(target=_upkeep, args=(str(site.config), now, kill_at))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_killed_at_every_durable_step_and_run_again_it_comes_to_the_same_end(
    kme: Kme, own_address: TokenAddress
) -> None:
    kme.deposit("ended")
    kme.collect(kme.fetch(KEYS))
    for number in range(3):
        kme.deposit(f"block-{number}")
    kme.store.close()
    kme.token.close()
    kills = 0
    for kill_at in range(1, 100):
        kme.clock.now += DAY
        killed = _run_upkeep(kme.site, kme.clock.now, kill_at)
        kills += killed
        _run_upkeep(kme.site, kme.clock.now, 0)
        epochs = {epoch.number: (str(epoch.state), epoch.proved) for epoch in kme.store.epochs.all()}
        last = max(epochs)
        assert last == kill_at + 1, "one epoch is opened each day, however often upkeep is killed"
        assert epochs == {**dict.fromkeys(range(1, last), ("destroyed", True)), last: ("active", False)}
        assert [len(kme.store.epochs.under(epoch, 0, 9)) for epoch in (last - 1, last)] == [0, 3]
        if not killed:
            break
    assert kills >= 14, kills
    assert (len(kme.rows("epoch.activate")), len(kme.rows("epoch.destroy"))) == (last, last - 1)
    reopened = Kme(Site(kme.site.directory, Token(own_address, lambda: PIN)), kme.clock)
    assert reopened.masters() == [f"master/{last}"]
    assert kme.are_of(reopened.fetch(3 * KEYS), *(f"block-{number}" for number in range(3)))
    assert reopened.rows("alarm") == []
    reopened.store.close()
    reopened.token.close()


# Under load -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_under_load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("epochs"), saes=4, keys=40_000, workers=2) as running:
        yield running


def _epochs(demo: Demo) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads(demo.cli("epoch", "list", "--json").stdout)
    return found


def test_no_request_fails_while_the_master_key_changes(demo_under_load: Demo) -> None:
    demo, rounds = demo_under_load, 3
    with Load(demo, new_seed()) as records:
        records.wait_for_more(50)
        for last in range(1, rounds + 1):
            demo.cli("epoch", "rotate", "--reason", "test")
            demo.cli("epoch", "rewrap", str(last))
            demo.cli("epoch", "shred", str(last))
            records.wait_for_more(100)
    assert set(records.answers) == {("enc_keys", 200), ("dec_keys", 200)}, records.answers
    assert records.unanswered.total() == 0
    ledger = Ledger(demo.log_rows())
    assert (ledger.alarms, ledger.voided) == ([], [])
    check(records, ledger)
    states = {row["epoch"]: (row["state"], row["proved_destroyed"]) for row in _epochs(demo)}
    assert states == {**dict.fromkeys(range(1, rounds + 1), ("destroyed", True)), rounds + 1: ("active", False)}
