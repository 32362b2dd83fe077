"""One-time pads under which keys are carried to further KMEs, at the end that claims them. Inside a transaction.

A pad is claimed for one key, masks it once, and is erased when every KME has accepted the key or the key is void.
Its segments were taken for good before anything was masked: whatever happens then, they mask nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from hsmkme.errors import KeyNotHeld
from hsmkme.messages.bodies import Assign
from hsmkme.model import Demand, Entry, SealedKey
from hsmkme.states import KeyState
from hsmkme.store.claims import assign_of, claimed, vein_to
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import require_open
from hsmkme.store.rows import rows_of, void_rows
from hsmkme.store.veins import claim_entry


@dataclass(frozen=True, slots=True)
class Pads:
    """The pads of one link, in the order of the keys they mask. ``assign`` tells of those keys where their pads are."""

    link_id: str
    pads: tuple[SealedKey, ...]
    assign: Assign

    @property
    def pad_ids(self) -> list[UUID]:
        """What the pads are called here; nobody else hears of it."""
        return [pad.key_id for pad in self.pads]


def claim_pads(transaction: Transaction, demand: Demand, pad_ids: Sequence[UUID], entry: Entry) -> Pads:
    """A pad for each key of ``demand``, of a link to ``demand.peer``.

    Writes: cursors of the blocks, two rows for each pad, audit row. Raises what `claims.vein_to` does.
    """
    vein = vein_to(transaction, demand)
    pads = claimed(transaction, vein, demand, pad_ids)
    transaction.executemany(
        "INSERT INTO pad VALUES (?, ?, ?)",
        [(pad.key_id.bytes, key_id.bytes, vein.link_id) for pad, key_id in zip(pads, demand.key_ids, strict=True)],
    )
    transaction.append(claim_entry(entry, demand, pads).knowing(masks=[str(key_id) for key_id in demand.key_ids]))
    named = [pad._replace(key_id=key_id) for pad, key_id in zip(pads, demand.key_ids, strict=True)]
    return Pads(vein.link_id, tuple(pads), assign_of(transaction, demand, named))


def use_up(transaction: Transaction, pads: Pads, actor: str) -> None:
    """The KME at the other end accepted what the pads masked: they are void, and erased.

    Raises `KeyNotHeld` if they were given up meanwhile, `LinkFrozen` if their link is not open any more.
    """
    require_open(transaction, pads.link_id)
    rows = rows_of(transaction.connection, pads.pad_ids)
    if [row.state for row in rows] != [KeyState.ASSIGNING] * len(pads.pads):
        raise KeyNotHeld("the offer was given up before every KME had accepted it")
    facts = {"reason": "used as one-time pad", "link": pads.link_id, "masks": [str(k.key_id) for k in pads.assign.keys]}
    void_rows(transaction, rows, Entry("key.void", actor, facts), tell=False)
