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
from hsmkme.store.claims import assign_of, claimed, sealed, vein_to
from hsmkme.store.database import Transaction
from hsmkme.store.outbox import require_open
from hsmkme.store.rows import rows_of, void_rows
from hsmkme.store.veins import claim_entry_of


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
    runs = claimed(transaction, vein, demand, pad_ids)
    transaction.executemany(
        "INSERT INTO pad VALUES (?, ?, ?)",
        [(pad_id.bytes, key_id.bytes, vein.link_id) for pad_id, key_id in zip(pad_ids, demand.key_ids, strict=True)],
    )
    masks = [str(key_id) for key_id in demand.key_ids]
    transaction.append(claim_entry_of(entry, demand, pad_ids, runs).knowing(masks=masks))
    pads = sealed(pad_ids, demand.size, runs, vein.per_key)
    return Pads(vein.link_id, pads, assign_of(transaction, demand, demand.key_ids, runs))


def use_up(transaction: Transaction, pads: Pads, actor: str) -> None:
    """The KME at the other end accepted what the pads masked: they are void, and erased.

    Raises `KeyNotHeld` if they were given up meanwhile, `LinkFrozen` if their link is not open any more.
    """
    require_open(transaction, pads.link_id)
    rows = rows_of(transaction.connection, pads.pad_ids)
    if [row.state for row in rows] != [KeyState.ASSIGNING] * len(pads.pads):
        raise KeyNotHeld("the offer was given up before every KME had accepted it")
    masks = [str(key_id) for key_id in pads.assign.named]
    facts = {"reason": "used as one-time pad", "link": pads.link_id, "masks": masks}
    void_rows(transaction, rows, Entry("key.void", actor, facts), tell=False)
