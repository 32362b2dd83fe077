"""Does anything cost more because there are many keys? Counted in steps of SQLite, which no other process changes."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import FakeClock
from tests.verbs import steps_of

FEW, MANY = 2_000, 200_000


def test_no_verb_takes_more_steps_in_a_store_of_many_keys(tmp_path: Path) -> None:
    few = steps_of(tmp_path / "few.sqlite", FEW, FakeClock())
    many = steps_of(tmp_path / "many.sqlite", MANY, FakeClock())
    assert {name: (few[name], many[name]) for name in few if many[name] > 1.1 * few[name]} == {}
    assert min(few.values()) > 0
