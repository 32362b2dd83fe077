"""The store of a KME in a ceremony that changes its epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from hsmkme import bootstrap
from hsmkme.audit import AuditChain
from hsmkme.ceremony.hands import Login
from hsmkme.errors import OperatorFault, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.officer import Evidence
from hsmkme.hsm.session import PinSource
from hsmkme.hsm.tokens import Tokens
from hsmkme.model import Clock, Entry
from hsmkme.rotation import Rotation
from hsmkme.store import Store, migrate

ACTOR: Final = "ceremony"
Result = TypeVar("Result")
Act = Callable[[Store, Rotation], Result]


class StoreKeeper:
    """Keeps the store at ``path``; None: the plan has no step that needs one."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def open(self, address: TokenAddress, login: Login) -> StoreEpochs:
        """See `Keeper`."""
        return StoreEpochs(self, address, login)

    def prepare(self, address: TokenAddress, pin: str, active: int) -> None:
        """See `Keeper`."""
        migrate(self._file)
        with self._opened(address, lambda: pin) as (token, store):
            store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", ACTOR), token.name)
            rotation = Rotation(token, store, self._clock, ACTOR)
            while store.epochs.active()[token.name] < active:
                rotation.rotate(because="rehearsal")

    def with_rotation(self, address: TokenAddress, pin: PinSource, act: Act[Result]) -> Result:
        """Do ``act`` to the epochs, after the master keys of token and store were compared."""
        with self._opened(address, pin) as (token, store):
            bootstrap.custody_of(_alone(token, store), store)
            return act(store, Rotation(token, store, self._clock, ACTOR))

    @property
    def _file(self) -> Path:
        if self._path is None:
            raise OperatorFault("the plan names no configuration, so no store")
        return self._path

    @contextmanager
    def _opened(self, address: TokenAddress, pin: PinSource) -> Iterator[tuple[Token, Store]]:
        token = Token(address, pin)
        store = Store(self._file, AuditChain(), self._clock)
        try:
            yield token, store
        finally:
            store.close()
            token.close()


def _alone(token: Token, store: Store) -> Tokens:
    """The tokens that the store knows, of which this one is here."""

    def missing() -> Token:
        raise TokenUnavailable("a ceremony is held on one token")

    others = {epoch.token for epoch in store.epochs.all()} - {"", token.name}
    return Tokens({token.name: lambda: token, **dict.fromkeys(sorted(others), missing)}, {})


class StoreEpochs:
    """The epochs of a store and of the token at ``address``, by the operator's ``login``."""

    def __init__(self, keeper: StoreKeeper, address: TokenAddress, login: Login) -> None:
        self._keeper = keeper
        self._address = address
        self._login = login

    def rotate(self, epoch: int, because: str) -> Evidence:
        """See `Epochs`. Durable acts: those of `Rotation.rotate`."""

        def rotate(store: Store, rotation: Rotation) -> Evidence:
            if store.epochs.active().get(self._address.label) != epoch:
                if rotation.upcoming() != epoch:
                    raise OperatorFault(f"the next epoch is {rotation.upcoming()}, and the plan rotates to {epoch}")
                rotation.rotate(because=because)
            return {"epoch": epoch, "because": because, "check_value": store.epochs.one(epoch).check_value}

        return self._by_login(rotate)

    def end(self, epoch: int) -> Evidence:
        """See `Epochs`. Durable acts: those of `Rotation.rewrap`, then of `Rotation.shred`."""

        def end(store: Store, rotation: Rotation) -> Evidence:
            rotation.rewrap(epoch)
            rotation.shred(epoch)
            ended, active = store.epochs.one(epoch), store.epochs.active()[self._address.label]
            return {"epoch": epoch, "destroyed": ended.proved, "check_value": ended.check_value, "active": active}

        return self._by_login(end)

    def _by_login(self, act: Act[Evidence]) -> Evidence:
        return self._login(lambda pin: self._keeper.with_rotation(self._address, pin, act))
