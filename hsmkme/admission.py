"""What is asked of a token before it is used: is it this store's, and the store no old copy of the one it remembers?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hsmkme.epochs import Epochs
from hsmkme.errors import OperatorFault, StoreTampered, TokenError
from hsmkme.hsm.token import Token
from hsmkme.hsm.tokens import Tokens
from hsmkme.model import Entry
from hsmkme.restoring import require_latest
from hsmkme.store import Store


class Admission:
    """Looks at each of ``tokens``, now or when it comes. Raises `OperatorFault` if none is the store's."""

    def __init__(self, tokens: Tokens, store: Store, epochs: Epochs) -> None:
        self._store = store
        self._epochs = epochs
        self._old_copy: OperatorFault | None = None
        with self._alarmed():
            epochs.require_known_tokens()
        tokens.admit_by(self._admit)
        self.require_latest()

    def require_latest(self) -> None:
        """Raise what the token met that remembers more than this store does, though the others remember less."""
        if self._old_copy is not None:
            raise self._old_copy

    def _admit(self, token: Token) -> None:
        """Look at one. Durable, if there is something: what ceremonies did on it, and what `restoring` gives up."""
        self._store.lineage.seal_rows(token.row_key())
        for note in token.notes():  # the first one begins epoch 1
            self._store.ceremonies.admit(note, token.name, Entry("ceremony.held", "custody"))
        with self._alarmed(token):
            self._epochs.check(token)
        try:
            require_latest(token, self._store)
        except OperatorFault as fault:
            self._old_copy = fault
            raise

    @contextmanager
    def _alarmed(self, *tokens: Token) -> Iterator[None]:
        """Record that the store's epochs are not those of the tokens, once however often somebody starts, unless they
        lost sight of everything."""
        try:
            yield
        except (OperatorFault, StoreTampered) as fault:
            with suppress(TokenError):
                for token in tokens:
                    token.anchored()
                latest = self._store.log.latest(1, "alarm.")
                if not latest or json.loads(latest[0].text).get("reason") != str(fault):
                    self._store.log.append(Entry("alarm.epochs-differ", "custody", {"reason": str(fault)}))
            raise
