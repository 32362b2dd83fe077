"""The audit log and the token's audit key: seals, exports and receipts are signed here."""

from __future__ import annotations

from collections.abc import Iterator

from hsmkme.audit import (
    export_digest,
    export_header,
    export_lines,
    receipt_digest,
    seal_digest,
    signed_header,
    timestamp,
)
from hsmkme.errors import AuditBroken
from hsmkme.hsm.tokens import Tokens
from hsmkme.model import Clock, Seal
from hsmkme.store import Store


class Logbook:
    """The log of ``store``, signed by the first of ``tokens`` that can."""

    def __init__(self, tokens: Tokens, store: Store, clock: Clock) -> None:
        self._tokens = tokens
        self._store = store
        self._clock = clock

    def seal(self) -> Seal | None:
        """Sign the last row of the log; None if it is sealed already.

        Durable writes: one commit with the seal, after the signature.
        """
        seq, row = self._store.log.head()
        last = self._store.log.last_seal()
        if last is not None and last.seq > seq:
            raise _cut(last.seq, seq)
        if seq == 0 or (last is not None and last.seq == seq):
            return None
        signature = self._sign(seal_digest(seq, row))
        seal = Seal(seq, row, timestamp(self._clock()), signature)
        self._store.log.add_seal(seal)
        return seal

    def export(self, kme_id: str) -> Iterator[str]:
        """The lines of an export of the audit log, its header signed by the token. Reads only.

        Raises `AuditBroken` if a sealed row is gone from the end.
        """
        with self._store.log.snapshot() as log_now:
            if log_now.seals and log_now.seals[-1].seq > log_now.seq:
                raise _cut(log_now.seals[-1].seq, log_now.seq)
            header = export_header(kme_id, log_now.seq, log_now.hash, timestamp(self._clock()))
            yield signed_header(header, self._sign(export_digest(header)))
            yield from export_lines(log_now.rows, log_now.seals)

    def sign_receipt(self, text: str) -> bytes:
        """The token's signature over a receipt; every row that is in the log by now is sealed."""
        self.seal()
        return self._sign(receipt_digest(text))

    def public_keys(self) -> bytes:
        """The keys that verify what is signed here, PEM: one of each token that answers."""
        found: list[bytes] = []
        self._tokens.each(lambda token: found.append(token.audit_public_key()))
        return b"".join(found)

    def _sign(self, digest: bytes) -> bytes:
        return self._tokens.any(lambda token: token.sign(digest))


def _cut(sealed: int, last: int) -> AuditBroken:
    return AuditBroken(f"the log was cut: row {sealed} was sealed and row {last} is the last", last + 1)
