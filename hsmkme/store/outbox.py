"""Messages to peers: numbered in the transaction they tell of, repeated until they are acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from hsmkme.errors import LinkFrozen
from hsmkme.messages.bodies import KEYS_MOST, Body, Hello, Void
from hsmkme.model import Entry
from hsmkme.store.database import Database, Transaction

OPEN: Final = ""
"""The reason for which an open link is frozen: none."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that has its number and is not signed yet."""

    link_id: str
    call: str
    txid: UUID
    seq: int
    incarnation: str
    body: bytes


class Outbox:
    """What peers have not acknowledged."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, link_id: str, limit: int) -> list[Draft]:
        """The oldest messages of a link that wait."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT call, txid, seq, incarnation, body FROM outbox JOIN link USING (link_id)"
                " WHERE link_id = ? ORDER BY outbox_pk LIMIT ?",
                (link_id, limit),
            ).fetchall()
        return [Draft(link_id, call, UUID(bytes=txid), seq, life, body) for call, txid, seq, life, body in rows]

    def count(self, link_id: str) -> int:
        """How many messages wait."""
        with self._database.read() as connection:
            return int(connection.execute("SELECT count(*) FROM outbox WHERE link_id = ?", (link_id,)).fetchone()[0])

    def acknowledged(self, draft: Draft, entry: Entry) -> None:
        """Forget a message that the peer acted upon. Writes, in one commit: its row, audit row."""
        with self._database.write() as transaction:
            gone = transaction.execute("DELETE FROM outbox WHERE txid = ?", (draft.txid.bytes,))
            if gone.rowcount:
                transaction.append(entry.knowing(link=draft.link_id, call=draft.call, txid=str(draft.txid)))

    def number(self, link_id: str, call: str, body: Body) -> Draft:
        """A message that is not repeated: a question, or one that its sender repeats itself."""
        with self._database.write(logged=False) as transaction:
            return numbered(transaction, link_id, call, body)


    def greeting(self, link_id: str, hello: Hello) -> Draft:
        """A hello; while this end starts it has no number of its own: sent in vain, it must not make an old copy look
        younger than it is."""
        with self._database.write(logged=False) as transaction:
            transaction.execute(
                "UPDATE link SET sent = sent + 1 WHERE link_id = ? AND start_rows IS NULL", (link_id,)
            )
            statement = "SELECT coalesce(start_sent, sent), incarnation FROM link WHERE link_id = ?"
            number, life = transaction.execute(statement, (link_id,)).fetchone()
        return Draft(link_id, "hello", uuid4(), number, life, hello.encoded())


def numbered(transaction: Transaction, link_id: str, call: str, body: Body) -> Draft:
    """Give a message the next number of its link."""
    row = transaction.execute(
        "UPDATE link SET sent = sent + 1 WHERE link_id = ? RETURNING sent, incarnation", (link_id,)
    ).fetchone()
    return Draft(link_id, call, uuid4(), row[0], row[1], body.encoded())


def post(transaction: Transaction, link_id: str, call: str, body: Body) -> None:
    """Leave a message to be sent, and repeated until it is acknowledged."""
    draft = numbered(transaction, link_id, call, body)
    transaction.execute(
        "INSERT INTO outbox (link_id, seq, txid, call, body, since) VALUES (?, ?, ?, ?, ?, ?)",
        (link_id, draft.seq, draft.txid.bytes, call, draft.body, transaction.now()),
    )


def post_voids(transaction: Transaction, link_id: str, key_ids: Sequence[UUID], reason: str) -> None:
    """Tell the peer of keys that will never be delivered."""
    for start in range(0, len(key_ids), KEYS_MOST):
        post(transaction, link_id, "keys/void", Void(key_ids=list(key_ids[start : start + KEYS_MOST]), reason=reason))


def require_open(transaction: Transaction, link_id: str) -> None:
    """Raises `LinkFrozen` unless keys may be claimed from the link."""
    row = transaction.execute("SELECT why FROM link WHERE link_id = ?", (link_id,)).fetchone()
    if row is None or row[0] != OPEN:
        raise LinkFrozen(f"link {link_id} is frozen: {row[0] if row else 'unknown'}")
