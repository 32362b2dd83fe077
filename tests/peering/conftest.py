"""Two KMEs in one process, on one token that has the keys of their links."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsmkme.hsm import Token, TokenAddress
from tests.conftest import FakeClock
from tests.peering.pair import Pair, PeerPapers
from tests.tokens import PIN, bring_link_keys

LINKS = ("far", "other")


@pytest.fixture(scope="session")
def both_address(make_token: Callable[[], TokenAddress], softhsm: Path) -> TokenAddress:
    """A token with the keys of two links, which stands for those of both ends: their link keys are the same."""
    made = make_token()
    bring_link_keys(made, softhsm, 0, *LINKS)
    return made


@pytest.fixture(scope="module")
def both(both_address: TokenAddress) -> Iterator[Token]:
    opened = Token(both_address, lambda: PIN)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def wrong_address(make_token: Callable[[], TokenAddress], softhsm: Path) -> TokenAddress:
    """A token whose link keys are others."""
    made = make_token()
    bring_link_keys(made, softhsm, 1, *LINKS)
    return made


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> PeerPapers:
    return PeerPapers.issued(tmp_path_factory.mktemp("papers"))


@pytest.fixture
def pair(tmp_path: Path, clock: FakeClock, both: Token, papers: PeerPapers) -> Iterator[Pair]:
    """Two KMEs that know each other, with keys ready at both ends."""
    made = Pair.made(tmp_path, clock, {"kme-1": both, "kme-2": both}, papers)
    made.fill(2, keys=16)
    made.rounds()
    yield made
    made.close()
