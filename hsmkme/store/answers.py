"""What requests with an Idempotency-Key were answered with, so that the same request gets the same keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import AnsweredAlready
from hsmkme.model import Retry
from hsmkme.store.database import Database, Transaction

_REMEMBER: Final = (
    "INSERT INTO answer (client, token, request, key_ids, until) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The digest of a request and the keys that answered it."""

    request: bytes
    key_ids: tuple[UUID, ...]


class Answers:
    """The answers that may still be asked for again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, retry: Retry, now: float) -> Answer | None:
        """What this client's request with this Idempotency-Key was answered with, if it was and lately."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT request, key_ids FROM answer WHERE client = ? AND token = ? AND until > ?",
                (retry.client, retry.token, int(now)),
            ).fetchone()
        if row is None:
            return None
        request, packed = row
        return Answer(request, tuple(UUID(bytes=packed[at : at + 16]) for at in range(0, len(packed), 16)))


def remember(transaction: Transaction, retry: Retry, key_ids: Sequence[UUID]) -> None:
    """Keep an answer in the transaction that makes it, and drop those whose time is over.

    Raises `AnsweredAlready` if another request was faster.
    """
    now = transaction.now()
    transaction.execute("DELETE FROM answer WHERE until <= ?", (now,))
    packed = b"".join(key_id.bytes for key_id in key_ids)
    values = (retry.client, retry.token, retry.request, packed, now + retry.seconds)
    if transaction.execute(_REMEMBER, values).rowcount != 1:
        raise AnsweredAlready("a request with this Idempotency-Key was answered a moment ago")
