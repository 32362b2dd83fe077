"""What the tests stand on: real tokens (SoftHSM), real stores, a real KME behind mutual TLS."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hsmkme.audit import AuditChain
from hsmkme.hsm import Token, TokenAddress
from hsmkme.model import BlockName, Entry, KeyMaterial, Link, RawBlock
from hsmkme.store import Store, migrate
from tests.shim import Shim, build_shim
from tests.tokens import PIN, bring_link_keys, made_token
from tests.world import Demo, start_demo

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # which may be busy: how long an example takes proves nothing


class FakeClock:
    """A clock that moves only when it is told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SoftHSM configuration with an empty token directory; the module reads it in this process."""
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    conf = home / "softhsm2.conf"
    conf.write_text(
        f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\n"
        "log.level = ERROR\nlibrary.reset_on_fork = true\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(conf)
    return conf


@pytest.fixture(scope="session")
def make_token(softhsm: Path) -> Callable[[], TokenAddress]:
    """Makes a token, and gives its address."""
    numbers = itertools.count(1)
    return lambda: made_token(f"test-{next(numbers)}", softhsm)


@pytest.fixture(scope="module")
def own_address(make_token: Callable[[], TokenAddress]) -> TokenAddress:
    """A token whose master keys the tests of this file change."""
    return make_token()


@pytest.fixture(scope="session")
def address(make_token: Callable[[], TokenAddress], softhsm: Path) -> TokenAddress:
    """A token that tests share, with the key of the link `far`; they change no token objects on it."""
    made = make_token()
    bring_link_keys(made, softhsm, 0, "far")
    return made


@pytest.fixture
def token(address: TokenAddress) -> Iterator[Token]:
    """The shared token as the service opens it."""
    opened = Token(address, lambda: PIN)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def built_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled module; each `Shim` is a copy of it."""
    return build_shim(tmp_path_factory.mktemp("built-shim"))


@pytest.fixture(scope="session")
def shared_shim(built_shim: Path, address: TokenAddress, tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """The one module of this kind in this process: a library once loaded stays."""
    return Shim(built_shim, tmp_path_factory.mktemp("shim"), address.module)


@pytest.fixture
def shim(shared_shim: Shim) -> Iterator[Shim]:
    """A module between the product and SoftHSM that does what the test tells it, and nothing afterwards."""
    yield shared_shim
    shared_shim.restore()


@pytest.fixture
def shimmed(address: TokenAddress, shim: Shim, clock: FakeClock) -> Iterator[Token]:
    """The shared token behind that module, whose pauses pass by the test's clock."""
    opened = Token(shim.address(address), lambda: PIN, clock=clock)
    yield opened
    shim.restore()
    opened.close()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    """An empty store that knows epoch 1, a local link `local` and a link `far` to another KME."""
    path = tmp_path / "store.sqlite"
    migrate(path)
    opened = Store(path, AuditChain(), clock)
    opened.epochs.admit(1, "0011223344", Entry("epoch.activate", "test"))
    opened.registry.admit_links([Link("local", "kme-1"), Link("far", "kme-2")], Entry("link.admit", "test"))
    yield opened
    opened.close()


@pytest.fixture
def raw_block() -> Callable[..., RawBlock]:
    """Makes a block of random keys."""
    names = itertools.count(1)

    def make(keys: int = 4, bits: int = 256, link: str = "local", block_id: str | None = None) -> RawBlock:
        name = BlockName(link, block_id or f"block-{next(names)}")
        return RawBlock(name, bits, KeyMaterial(os.urandom(keys * bits // 8)))

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running KME with four SAEs, shared by tests that leave it usable."""
    with start_demo(tmp_path_factory.mktemp("demo"), saes=4, keys=20_000) as running:
        yield running


@pytest.fixture
def fresh_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Starts a KME of the test's own, to be killed, starved or filled; stopped at the end."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(**options: int) -> Demo:
            return stack.enter_context(start_demo(tmp_path / "demo", **options))

        yield start
