"""Halls in which ceremonies are held: an empty one, and one whose token had its first ceremony."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ceremonies.halls import LABEL, Backed, Hall, shares_of
from tests.tokens import made_token


@pytest.fixture(scope="session")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """Made once; tests get copies."""
    hall = Hall(tmp_path_factory.mktemp("equipped")).prepare()
    made_token(LABEL, hall.conf)
    return hall


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """With a token that has nothing on it."""
    hall = Hall(tmp_path_factory.mktemp("initialised")).prepare()
    assert hall.run(hall.plan("initialise")).status == 0
    return hall


@pytest.fixture
def hall(equipped: Hall, tmp_path: Path) -> Hall:
    """With a token that had its first ceremony."""
    return equipped.copy(tmp_path / "hall")


@pytest.fixture
def empty(tmp_path: Path) -> Hall:
    """Without a token."""
    home = tmp_path / "empty"
    home.mkdir()
    return Hall(home).prepare()


@pytest.fixture(scope="session")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Backed:
    """Made once; who holds ceremonies on it takes a copy."""
    hall = Hall(tmp_path_factory.mktemp("backed")).prepare()
    plan = hall.plan("first-with-backup")
    done = hall.run(plan)
    assert done.status == 0, done.err
    return hall, plan, shares_of(done.out)


@pytest.fixture
def bare(tmp_path: Path) -> Hall:
    """An empty one to take copies of."""
    (tmp_path / "bare" / "tokens").mkdir(parents=True)
    return Hall(tmp_path / "bare").prepare()
