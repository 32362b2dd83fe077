"""The store of a KME in a ceremony that changes its epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hsmkme import bootstrap
from hsmkme.audit import AuditChain
from hsmkme.ceremony.hands import Login
from hsmkme.errors import OperatorFault
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.officer import Evidence
from hsmkme.hsm.session import PinSource
from hsmkme.model import Entry
from hsmkme.rotation import Rotation
from hsmkme.store import Store, migrate

ACTOR = "ceremony"
Result = TypeVar("Result")


class StoreKeeper:
    """Keeps the store at ``path``; None: the plan has no step that needs one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def open(self, address: TokenAddress, login: Login) -> StoreEpochs:
        """See `Keeper`."""
        return StoreEpochs(self._path, address, login)

    def prepare(self, address: TokenAddress, pin: str, active: int) -> None:
        """See `Keeper`."""
        if self._path is None:
            raise OperatorFault("there is no place for a store")
        migrate(self._path)
        with _opened(self._path, address, lambda: pin) as (token, store):
            store.epochs.admit(1, token.check_value(1), Entry("epoch.activate", ACTOR))
            rotation = Rotation(token, store, time.time, ACTOR)
            while store.epochs.active() < active:
                rotation.rotate(because="rehearsal")


class StoreEpochs:
    """The epochs of the store at ``path`` and of the token at ``address``, by the operator's ``login``."""

    def __init__(self, path: Path | None, address: TokenAddress, login: Login) -> None:
        self._path = path
        self._address = address
        self._login = login

    def rotate(self, epoch: int, because: str) -> Evidence:
        """See `Epochs`. Durable acts: those of `Rotation.rotate`."""

        def rotate(store: Store, rotation: Rotation) -> Evidence:
            active = store.epochs.active()
            if active not in (epoch - 1, epoch):
                raise OperatorFault(f"epoch {active} is active, and the plan rotates from {epoch - 1} to {epoch}")
            if active != epoch:
                rotation.rotate(because=because)
            return {"epoch": epoch, "because": because, "check_value": _check_value(store, epoch)}

        return self._with_rotation(rotate)

    def end(self, epoch: int) -> Evidence:
        """See `Epochs`. Durable acts: those of `Rotation.rewrap`, then of `Rotation.shred`."""

        def end(store: Store, rotation: Rotation) -> Evidence:
            rotation.rewrap(epoch)
            rotation.shred(epoch)
            proved = next(one.proved for one in store.epochs.all() if one.number == epoch)
            facts = {"check_value": _check_value(store, epoch), "active": store.epochs.active()}
            return {"epoch": epoch, "destroyed": proved, **facts}

        return self._with_rotation(end)

    def _with_rotation(self, act: Callable[[Store, Rotation], Result]) -> Result:
        path = self._path
        if path is None:
            raise OperatorFault("the plan names no configuration")

        def use(pin: PinSource) -> Result:
            with _opened(path, self._address, pin) as (token, store):
                bootstrap.custody_of(token, store)  # compares the master keys of both
                return act(store, Rotation(token, store, time.time, ACTOR))

        return self._login(use)


def _check_value(store: Store, epoch: int) -> str:
    return next(one.check_value for one in store.epochs.all() if one.number == epoch)


@contextmanager
def _opened(path: Path, address: TokenAddress, pin: PinSource) -> Iterator[tuple[Token, Store]]:
    token = Token(address, pin)
    store = Store(path, AuditChain(), time.time)
    try:
        yield token, store
    finally:
        store.close()
        token.close()
