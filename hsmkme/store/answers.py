"""What requests with an Idempotency-Key were answered with, so that the same request gets the same keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import AnsweredAlready
from hsmkme.model import Retry
from hsmkme.store.database import Database, Transaction

_REMEMBER: Final = """
INSERT INTO answer VALUES (:client, :token, :request, :key_ids, :until) ON CONFLICT (client, token) DO UPDATE SET
    request = excluded.request, key_ids = excluded.key_ids, until = excluded.until WHERE until <= :now
"""


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
    """Keep an answer in the transaction that makes it; raises `AnsweredAlready` if another request was faster."""
    now = transaction.now()
    values = {
        "client": retry.client,
        "token": retry.token,
        "request": retry.request,
        "key_ids": b"".join(key_id.bytes for key_id in key_ids),
        "until": now + retry.seconds,
        "now": now,
    }
    if transaction.execute(_REMEMBER, values).rowcount != 1:
        raise AnsweredAlready("a request with this Idempotency-Key was answered a moment ago")


def forget(transaction: Transaction) -> None:
    """Drop answers whose time is over."""
    transaction.execute("DELETE FROM answer WHERE until <= ?", (transaction.now(),))
