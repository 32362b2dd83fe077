"""Two KMEs in one process, on one token that has the keys of their links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsmkme.hsm import Token, TokenAddress
from tests.conftest import PIN, FakeClock
from tests.peering.pair import Pair, PeerPapers

_BRING_LINK_KEYS = """
import sys, time
from pathlib import Path
from hsmkme.ceremony import steps
from hsmkme.ceremony.transcript import Transcript
from hsmkme.hsm import TokenAddress, load_profile
from hsmkme.model import KeyMaterial
label, conf, pin, first, *links = sys.argv[1:]
profile = load_profile("softhsm-2.6")
address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=Path(conf))
for link in links:
    transcript = Transcript(Path(conf).parent / f"{label}-{link}.jsonl", time.time)
    value = KeyMaterial(bytes(range(int(first), int(first) + 32)))
    steps.link(address, lambda: pin, link, [value], transcript)
"""

LINKS = ("far", "other")


def _with_link_keys(made: TokenAddress, first: int) -> TokenAddress:
    command = [sys.executable, "-c", _BRING_LINK_KEYS, made.label, str(made.softhsm_conf), PIN, str(first), *LINKS]
    subprocess.run(command, check=True)
    return made


@pytest.fixture(scope="session")
def both_address(make_token: Callable[[], TokenAddress]) -> TokenAddress:
    """A token with the keys of two links, which stands for those of both ends: their link keys are the same."""
    return _with_link_keys(make_token(), 0)


@pytest.fixture(scope="module")
def both(both_address: TokenAddress) -> Iterator[Token]:
    opened = Token(both_address, lambda: PIN)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def wrong_address(make_token: Callable[[], TokenAddress]) -> TokenAddress:
    """A token whose link keys are others."""
    return _with_link_keys(make_token(), 1)


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
