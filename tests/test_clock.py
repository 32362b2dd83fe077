"""Does a clock that is wrong deliver nothing it should not, and destroy nothing at all?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from hsmkme.errors import ClockSetBack
from hsmkme.hsm import Token, TokenAddress
from hsmkme.model import Demand, Entry
from hsmkme.store import Claim, Steady, Store
from hsmkme.store.timekeeping import AWAY_SECONDS, TOLERANCE_SECONDS
from hsmkme.upkeep import Upkeep
from tests.conftest import PIN, FakeClock
from tests.rotating import KEYS, Kme, same
from tests.sites import make_site
from tests.test_links import RELATION as SHARED
from tests.test_links import agreed, in_touch, ready_block
from tests.world import Demo, until

HOUR = 3600
TTL = 2 * HOUR
BY = Entry("clock.accept", "operator:test")


class Machine:
    """A machine whose time of day somebody may set; its steady clock goes on."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.boot, self.seconds = "boot-1", 100.0

    @property
    def steady(self) -> Steady:
        return Steady(self.boot, self.seconds)

    def goes_on(self, seconds: float) -> None:
        self.clock.now += seconds
        self.seconds += seconds

    def is_set(self, seconds: float) -> None:
        self.clock.now += seconds

    def starts_again(self, away: float) -> None:
        self.clock.now += away
        self.boot, self.seconds = self.boot + "+", 10.0


@pytest.fixture
def machine(clock: FakeClock) -> Machine:
    return Machine(clock)


@pytest.fixture
def kme(address: TokenAddress, tmp_path: Path, machine: Machine, softhsm: Path) -> Iterator[Kme]:
    """A KME whose local link lets keys live for two hours, and that looked at the clock."""
    token = Token(address, lambda: PIN)
    site = make_site(tmp_path, token, address.label, softhsm)
    site.change_config('peer = "kme-1"', f'peer = "kme-1"\nttl_seconds = {TTL}')
    opened = Kme(site, machine.clock)
    assert look(opened, machine)
    yield opened
    opened.store.close()
    token.close()


def look(kme: Kme, machine: Machine) -> bool:
    return kme.store.timekeeping.look(machine.steady, "upkeep")


def upkeep(kme: Kme) -> Upkeep:
    return Upkeep(kme.site.settings, kme.custody, kme.store, kme.clock, kme.token.anchor().drop)


# Set back -------------------------------------------------------------------------------------------------


def test_nothing_is_delivered_by_a_clock_that_was_set_back_and_no_key_is_lost(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    claimed = kme.fetch(1)
    machine.is_set(-HOUR)
    with pytest.raises(ClockSetBack, match="the clock was set back by 3600 s"):
        kme.fetch(1)
    with pytest.raises(ClockSetBack):
        kme.collect(claimed)
    with pytest.raises(ClockSetBack):
        kme.custody.repeat([kme.custody.held([claimed[0].key_id])[claimed[0].key_id].key], "sae:sae-1")
    machine.is_set(HOUR)
    assert same(kme.collect(claimed), claimed)
    assert kme.are_of([*claimed, *kme.fetch(KEYS - 1)], "one")


def test_nothing_is_agreed_on_or_drawn_by_a_clock_that_was_set_back(store: Store, machine: Machine) -> None:
    ready_block(store)
    in_touch(store)
    assert store.timekeeping.look(machine.steady, "upkeep")
    agreed(store)
    machine.is_set(-HOUR)
    with pytest.raises(ClockSetBack):
        agreed(store)
    demand = _demand()
    with pytest.raises(ClockSetBack):
        store.agreed.deliver(lambda: [Claim(demand, BY, None)])
    machine.is_set(HOUR)
    assert store.agreed.deliver(lambda: [Claim(demand, BY, None)]) != [None]


def _demand() -> Demand:
    return Demand(SHARED, "kme-2", 256, (uuid4(),), frozenset(["sae-2"]))


def test_a_clock_that_is_corrected_a_little_disturbs_nobody(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    for seconds in (-TOLERANCE_SECONDS, 2 * TOLERANCE_SECONDS, -TOLERANCE_SECONDS):
        machine.is_set(seconds)
        assert look(kme, machine) is (abs(seconds) <= TOLERANCE_SECONDS)
        kme.fetch(1)


def test_what_deliveries_saw_of_the_time_counts_though_upkeep_is_away(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    for _ in range(3):
        machine.goes_on(TOLERANCE_SECONDS)
        kme.fetch(1)
    machine.is_set(-2 * TOLERANCE_SECONDS)
    with pytest.raises(ClockSetBack):
        kme.fetch(1)


def test_upkeep_goes_on_when_the_clock_was_set_back(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    duties = upkeep(kme)
    duties.tick()
    machine.is_set(-HOUR)
    kme.store.log.append(Entry("test", "test"))
    for _ in range(2):
        duties.tick()
        seal = kme.store.log.last_seal()
        assert seal is not None, "the log is sealed as before"
        assert seal.seq == kme.store.log.head()[0]
        kme.store.log.append(Entry("test", "test"))
        machine.goes_on(kme.site.settings.audit.seal_seconds)


# Set ahead ------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_ahead_ends_nothing_until_it_is_accepted(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    claimed = kme.fetch(1)
    duties = upkeep(kme)
    machine.is_set(1000 * 86400)
    assert not look(kme, machine)
    duties.age()
    duties.expire()
    machine.is_set(-1000 * 86400)
    assert look(kme, machine)
    duties.age()
    duties.expire()
    assert same(kme.collect(claimed), claimed)
    assert len(kme.fetch(KEYS - 1)) == KEYS - 1
    machine.is_set(1000 * 86400)
    assert not look(kme, machine)
    kme.store.timekeeping.accept(machine.steady, BY)
    assert look(kme, machine)
    kme.deposit("late")
    machine.goes_on(TTL + 1)
    assert look(kme, machine)
    duties.age()
    assert len(kme.rows("block.expire")) == 1


def test_a_time_that_nobody_vouches_for_is_not_the_latest_seen(kme: Kme, machine: Machine) -> None:
    """Else a clock that is set right again would be behind it."""
    kme.deposit("one")
    machine.is_set(HOUR)
    kme.fetch(1)
    machine.is_set(-HOUR)
    kme.fetch(1)


# Looking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_there_is_one_alarm_and_a_row_when_the_clock_is_right_again(
    seconds: int, kme: Kme, machine: Machine
) -> None:
    machine.is_set(seconds)
    for _ in range(3):
        machine.goes_on(5)
        assert not look(kme, machine)
    (alarm,) = kme.rows("alarm.clock")
    assert f'"seconds":{seconds + 5}' in alarm
    machine.is_set(-seconds)
    for _ in range(2):
        assert look(kme, machine)
    assert len(kme.rows("clock.right")) == 1
    assert len(kme.rows("alarm.")) == 1


def test_a_machine_that_was_off_is_believed_unless_it_is_behind_or_far_ahead(kme: Kme, machine: Machine) -> None:
    machine.starts_again(AWAY_SECONDS - 1)
    assert look(kme, machine)
    machine.starts_again(-TOLERANCE_SECONDS - 1)
    assert not look(kme, machine)
    machine.is_set(TOLERANCE_SECONDS + 1)
    assert look(kme, machine)
    machine.starts_again(AWAY_SECONDS + 1)
    assert not look(kme, machine)


def test_a_latest_time_that_somebody_wrote_into_the_store_is_found_wrong(kme: Kme, machine: Machine) -> None:
    kme.deposit("one")
    with kme.store.log._database.write(logged=False) as transaction:
        transaction.execute("UPDATE clock SET latest = latest + 86400")
    with pytest.raises(ClockSetBack):
        kme.fetch(1)
    assert look(kme, machine), "the steady clock knows better"
    assert len(kme.fetch(1)) == 1


def test_the_check_of_a_kme_says_that_its_clock_is_not_believed(kme: Kme, machine: Machine) -> None:
    with kme.store.log._database.write(logged=False) as transaction:
        transaction.execute("UPDATE clock SET latest = 0")  # the command reads the real clock
    assert "clock:" not in kme.site.hsmkme("check").out
    machine.is_set(HOUR)
    assert not look(kme, machine)
    assert "clock: it is not believed: see `hsmkme clock show`" in kme.site.hsmkme("check").out


# A server -------------------------------------------------------------------------------------------------


def test_a_server_whose_clock_was_set_back_says_so_until_an_officer_accepts_it(
    fresh_demo: Callable[..., Demo],
) -> None:
    """For the server it is the same whether the clock is an hour behind or the store an hour ahead."""
    demo = fresh_demo(saes=2, keys=256)
    fetched = demo.enc("sae-1", "sae-2", number=2)
    assert json.loads(demo.cli("clock", "show", "--json").stdout)["state"] == "right"
    os.kill(demo.upkeep_pid, signal.SIGTERM)
    with demo.database() as connection:
        connection.execute("UPDATE clock SET latest = ?, ahead = ahead + ?", (int(time.time()) + HOUR, HOUR))
    for answer in (
        demo.post("sae-1", "sae-2/enc_keys", {}),
        demo.post("sae-2", "sae-1/dec_keys", {"key_IDs": [{"key_ID": key_id} for key_id in fetched]}),
    ):
        assert answer.status_code == 503
        assert answer.json() == {"message": "the KME cannot deliver keys now: its clock was set back"}
        assert int(answer.headers["Retry-After"]) > 0
    shown = demo.cli("clock", "show", check=False)
    assert (shown.returncode, b"no key is delivered" in shown.stdout) == (1, True)
    with demo.upkeep():
        until(lambda: any(row["event"] == "alarm.clock" for row in demo.log_now()), what="an alarm")
        assert demo.cli("clock", "accept", check=False).returncode == 2
        assert b"the time is 20" in demo.cli("clock", "accept", "--yes").stdout
        assert demo.dec("sae-2", "sae-1", list(fetched)) == fetched
        demo.enc("sae-1", "sae-2")
    events = [row["event"] for row in demo.log_now() if "clock" in row["event"]]
    assert events == ["alarm.clock", "clock.accept"]
    assert demo.cli("clock", "show").returncode == 0
