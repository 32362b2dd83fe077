"""What ceremonies did to the token, taken into the log once."""

from __future__ import annotations

from hsmkme.model import CeremonyNote, Entry
from hsmkme.states import EpochState
from hsmkme.store.database import Database
from hsmkme.store.epochs import insert_epoch

FIRST_MASTER = "master/1"


class Ceremonies:
    """The ceremonies that this store knows of."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def admit(self, note: CeremonyNote, token: str, entry: Entry) -> bool:
        """Log a ceremony that was held on ``token``, unless it is logged already. A store that knows no epoch begins
        with the master key it made.

        Durable writes: one commit with the ceremony, the epoch and their rows of the log.
        """
        with self._database.write() as transaction:
            known = transaction.execute(
                "INSERT INTO ceremony VALUES (?, ?) ON CONFLICT DO NOTHING", (note.transcript, note.name)
            )
            if not known.rowcount:
                return False
            facts = {"ceremony": note.name, "transcript": note.transcript.hex()}
            transaction.append(entry.knowing(**facts, made=dict(note.made)))
            value = note.made.get(FIRST_MASTER)
            if value is not None and transaction.execute("SELECT 1 FROM epoch").fetchone() is None:
                insert_epoch(transaction, 1, value, token, EpochState.ACTIVE)
                transaction.append(Entry("epoch.activate", "ceremony", {**facts, "epoch": 1, "check_value": value}))
            return True
