"""What is true of a KME after thousands of hostile requests? `python -m tests.hostile` asks the same with more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.hostile.game import CHECKS, Outcome, play
from tests.load import new_seed
from tests.world import start_demo

REQUESTS = 15_000


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    home = tmp_path_factory.mktemp("fuzz")
    with start_demo(home / "demo", saes=4, keys=25_000) as demo:
        played = play(demo, home, REQUESTS, new_seed())
        print(played.report())
        yield played


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.replace("_", " "))
def test_after_hostile_requests(outcome: Outcome, check: Callable[[Outcome], None]) -> None:
    check(outcome)
