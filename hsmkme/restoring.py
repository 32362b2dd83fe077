"""A store that is put back from a copy: the token remembers that it was further, and keys were delivered since.

Nothing is delivered anew that may have been. Where officers are enrolled they approve first that the service goes on
with the copy, for whoever puts back a store takes back its log too; where there are none, it goes on with an alarm.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from hsmkme.errors import OperatorFault
from hsmkme.hsm.anchor import NOTHING
from hsmkme.hsm.token import Token
from hsmkme.model import Entry, Lineage
from hsmkme.officers import Officers
from hsmkme.store import Approval, Store

log = logging.getLogger(__name__)


def younger(token: Token, store: Store) -> Lineage | None:
    """The store that the token remembers, if this one is an old copy of it.

    A token that remembers nothing took the place of the one that did: whether this is the latest nobody can tell, so it
    counts as an old copy. Where a store is on several tokens the others remember it.
    """
    remembered = token.anchored()
    if remembered == NOTHING and store.lineage.is_anchored() and _is_on_one_token(store):
        return replace(store.lineage.now(), log_rows=0)
    return remembered if store.lineage.is_behind(remembered) else None


def _is_on_one_token(store: Store) -> bool:
    return len({epoch.token for epoch in store.epochs.all()}) == 1


def target(remembered: Lineage) -> str:
    """What officers approve: to go on without what the store had become. It is approved once, for it changes then."""
    return f"{remembered.store_id.hex()}.{remembered.generation}.{remembered.log_rows}"


def require_latest(token: Token, store: Store) -> None:
    """Go on with a store that is an old copy where nobody has to approve it; raises `OperatorFault` elsewhere."""
    remembered = younger(token, store)
    if remembered is None:
        return
    if Officers.of(store.approving.policy()).needed:
        raise OperatorFault(
            "this store is an old copy of the one that the token remembers, or the token is new and remembers none: put"
            f" the latest in its place, or have officers approve `restore {target(remembered)}`, then run `hsmkme"
            " restore`"
        )
    go_on(store, remembered)


def go_on(store: Store, remembered: Lineage, approval: Approval | None = None) -> None:
    """Give up what may have been delivered since the copy was made. One commit, with the approval in it."""
    if store.lineage.give_up(remembered, Entry("alarm.store-restored", "custody"), approval):
        log.error("ALARM this store is an old copy: keys that may have been delivered since were given up")
