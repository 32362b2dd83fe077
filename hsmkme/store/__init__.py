"""Keeper of rows: verbs that are atomic in themselves, and nothing else that speaks SQL."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hsmkme.model import Clock
from hsmkme.store import schema
from hsmkme.store.ageing import Ageing
from hsmkme.store.agreed import Agreed, NewIds, Offer
from hsmkme.store.answers import Answer, Answers
from hsmkme.store.approving import Approval, Approving
from hsmkme.store.blocks import Blocks, Claim, Outcome
from hsmkme.store.carried import Carried, carried_name
from hsmkme.store.ceremonies import Ceremonies
from hsmkme.store.copies import Copies
from hsmkme.store.database import Chain, Database, connect, spoken
from hsmkme.store.epochs import Epoch, Epochs
from hsmkme.store.examining import Examining
from hsmkme.store.inbox import Inbox, Receipt
from hsmkme.store.keys import Collection, Keys
from hsmkme.store.lineage import Lineages
from hsmkme.store.links import Links, LinkState
from hsmkme.store.log import Log, Span
from hsmkme.store.outbox import Draft, Outbox
from hsmkme.store.pads import Pads
from hsmkme.store.reconciling import Reconciling
from hsmkme.store.registry import Known, Registry
from hsmkme.store.revoking import Revoking, Scope
from hsmkme.store.sharing import Sharing
from hsmkme.store.timekeeping import ClockState, Steady, Timekeeping
from hsmkme.store.veins import Vein
from hsmkme.store.views import Views
from hsmkme.store.writers import turn

__all__ = [
    "Ageing",
    "Agreed",
    "Answer",
    "Answers",
    "Approval",
    "Approving",
    "Blocks",
    "Carried",
    "Ceremonies",
    "Chain",
    "Claim",
    "ClockState",
    "Collection",
    "Copies",
    "Draft",
    "Epoch",
    "Epochs",
    "Examining",
    "Inbox",
    "Keys",
    "Known",
    "Lineages",
    "LinkState",
    "Links",
    "Log",
    "NewIds",
    "Offer",
    "Outbox",
    "Outcome",
    "Pads",
    "Receipt",
    "Reconciling",
    "Registry",
    "Revoking",
    "Scope",
    "Sharing",
    "Span",
    "Steady",
    "Store",
    "Timekeeping",
    "Vein",
    "Views",
    "carried_name",
]


class Store:
    """The SQLite store at ``path``. It cannot be had without the chain that writes the audit log."""

    def __init__(self, path: Path, chain: Chain, clock: Clock) -> None:
        self._database = Database(path, chain, clock)
        self.blocks = Blocks(self._database)
        self.keys = Keys(self._database)
        self.agreed = Agreed(self._database)
        self.lineage = Lineages(self._database)
        self.links = Links(self._database)
        self.inbox = Inbox(self._database)
        self.carried = Carried(self._database, self.inbox)
        self.outbox = Outbox(self._database)
        self.sharing = Sharing(self._database)
        self.reconciling = Reconciling(self._database)
        self.epochs = Epochs(self._database)
        self.copies = Copies(self._database)
        self.ageing = Ageing(self._database)
        self.timekeeping = Timekeeping(self._database)
        self.revoking = Revoking(self._database)
        self.registry = Registry(self._database)
        self.ceremonies = Ceremonies(self._database)
        self.log = Log(self._database)
        self.answers = Answers(self._database)
        self.approving = Approving(self._database)
        self.views = Views(self._database)
        self.examining = Examining(self._database)

    def checkpoint(self) -> None:
        """Empty the WAL into the file."""
        self._database.checkpoint()

    def close(self) -> None:
        """Close this thread's connection."""
        self._database.close()


def migrate(path: Path) -> list[int]:
    """Create the store at ``path`` or bring it to this version's schema; returns the migrations applied."""
    with spoken(), turn(path):
        if not path.exists():
            path.touch(mode=0o600)
        with closing(connect(path)) as connection:
            return schema.migrate(connection)
