"""Halls in which ceremonies are held: an empty one, and one whose token had its first ceremony."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ceremonies.halls import LABEL, Hall
from tests.tokens import made_token


@pytest.fixture(scope="session")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    """Made once; tests get copies."""
    hall = Hall(tmp_path_factory.mktemp("equipped")).prepare()
    made_token(LABEL, hall.conf)
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
