"""What does an outage of token or store leave in the service's log, when it fails every request?"""

from __future__ import annotations

import pytest
from flask import Flask

from hsmkme.api.opening import Opening
from hsmkme.api.problems import FaultLog, answer_errors
from hsmkme.errors import StoreUnavailable, TokenUnavailable
from tests.conftest import FakeClock

GONE = TokenUnavailable("unwrap: the token fails: DeviceRemoved")
FULL = StoreUnavailable("the disk is full")


@pytest.fixture
def faults(clock: FakeClock) -> FaultLog:
    return FaultLog(clock)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since this was last asked."""
    lines = [f"{record.levelname} {record.message}" for record in caplog.records]
    caplog.clear()
    return lines


def test_the_first_fault_is_told_at_once_and_those_that_follow_are_counted(
    faults: FaultLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults.tell(GONE)
    assert lines_of(caplog) == [f"ERROR TokenUnavailable: {GONE}"]
    for _ in range(400):
        clock.now += 1 / 512
        faults.tell(GONE)
    assert lines_of(caplog) == []
    clock.now += 0.5
    faults.tell(GONE)
    assert lines_of(caplog) == [f"ERROR TokenUnavailable: {GONE} (and 400 more since the last line)"]
    clock.now += 1
    faults.tell(GONE)
    assert lines_of(caplog) == [f"ERROR TokenUnavailable: {GONE}"], "what was told is not counted again"


def test_a_long_outage_is_one_line_a_second(
    faults: FaultLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(60 * 64):
        faults.tell(GONE)
        clock.now += 1 / 64
    assert len(lines_of(caplog)) == 60


def test_faults_of_one_kind_do_not_hide_those_of_another(faults: FaultLog, caplog: pytest.LogCaptureFixture) -> None:
    for fault in (GONE, FULL, GONE, FULL):
        faults.tell(fault)
    assert lines_of(caplog) == [f"ERROR TokenUnavailable: {GONE}", f"ERROR StoreUnavailable: {FULL}"]


def test_a_clock_that_is_set_back_silences_nothing(
    faults: FaultLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults.tell(GONE)
    clock.now -= 3600
    faults.tell(GONE)
    assert len(lines_of(caplog)) == 2


def test_requests_that_fail_together_are_all_answered_and_leave_one_line(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("failing")
    answer_errors(app, FaultLog(clock))

    @app.get("/")
    def fail() -> str:
        raise GONE

    answers = [app.test_client().get("/") for _ in range(20)]
    assert {(answer.status_code, answer.headers["Retry-After"]) for answer in answers} == {(503, "5")}
    assert lines_of(caplog) == [f"ERROR TokenUnavailable: {GONE}"]


def test_a_service_that_cannot_begin_yet_leaves_no_line_for_each_request(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> Flask:
        raise GONE

    app = Flask("waiting")
    app.wsgi_app = Opening(build, clock)  # type: ignore[method-assign]
    assert {app.test_client().get("/").status_code for _ in range(20)} == {503}
    assert lines_of(caplog) == [
        f"ERROR the service cannot begin yet, it will be tried again: {GONE}",
        f"ERROR TokenUnavailable: {GONE}",
    ]
