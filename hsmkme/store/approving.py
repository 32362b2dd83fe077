"""Which approvals of officers were used, each once, and the policy by which they are judged."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkme.errors import ApprovalRefused
from hsmkme.model import Entry
from hsmkme.store.database import Database, Transaction


@dataclass(frozen=True, slots=True)
class Approval:
    """An act that officers approved: the 16 bytes that make it unlike every other, and its row of the audit log.

    No ``nonce``: nobody had to approve it."""

    nonce: bytes | None
    entry: Entry


def spend(transaction: Transaction, approval: Approval) -> None:
    """Use ``approval`` up in the transaction of the act: nonce, audit row. Raises `ApprovalRefused` if it was used."""
    if approval.nonce is not None:
        cursor = transaction.execute("INSERT INTO approval VALUES (?) ON CONFLICT DO NOTHING", (approval.nonce,))
        if not cursor.rowcount:
            raise ApprovalRefused("this approval was used before: ask for a new one", rule="APPROVAL-NONCE-1")
    transaction.append(approval.entry)


class Approving:
    """Approvals used, and the policy in force."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def spend(self, approval: Approval) -> None:
        """`spend`, in a commit of its own: for an act that is not one transaction, before it begins."""
        with self._database.write() as transaction:
            spend(transaction, approval)

    def used(self, nonce: bytes) -> bool:
        """Whether the approval of this nonce was used."""
        with self._database.read() as connection:
            return connection.execute("SELECT 1 FROM approval WHERE nonce = ?", (nonce,)).fetchone() is not None

    def policy(self) -> str | None:
        """The text of the policy in force; None before the first."""
        with self._database.read() as connection:
            row = connection.execute("SELECT text FROM approval_policy").fetchone()
            return None if row is None else str(row[0])

    def adopt(self, was: str | None, text: str, entry: Entry, approval: Approval | None) -> None:
        """Put the policy ``text`` in force in the place of ``was``. Writes, in one commit: nonce, policy, audit rows.

        Raises `ApprovalRefused` if another policy than ``was`` is in force by now.
        """
        with self._database.write() as transaction:
            row = transaction.execute("SELECT text FROM approval_policy").fetchone()
            if (None if row is None else row[0]) != was:
                raise ApprovalRefused("the policy changed meanwhile: look at it again", rule="APPROVAL-OFFICER-1")
            if approval is not None:
                spend(transaction, approval)
            transaction.execute(
                "INSERT INTO approval_policy VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET text = excluded.text",
                (text,),
            )
            transaction.append(entry)
