"""Block keys in each token that their link is placed on: the copies that are missing are made. For upkeep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from hsmkme.epochs import quarantine
from hsmkme.errors import TokenError
from hsmkme.hsm.crossing import cross
from hsmkme.hsm.tokens import FAILING, Tokens
from hsmkme.model import BlockSeal, Entry, Link
from hsmkme.store import Store

BATCH: Final = 64
"""Blocks whose keys cross in one turn of the tokens and one commit."""


class Spreading:
    """Copies block keys between ``tokens``; ``actor`` is who does so, for the log."""

    def __init__(self, tokens: Tokens, store: Store, actor: str) -> None:
        self._tokens = tokens
        self._store = store
        self._actor = actor

    def keep(self, links: Iterable[Link], limit: int) -> None:
        """Make up to ``limit`` missing copies for each link and token, as far as the tokens answer.

        Durable: a commit for each batch, with the copies and an audit row; an alarm for each block whose key does not
        unwrap, which is quarantined. Raises what the last token met that could not.
        """
        fault: TokenError | None = None
        for link in links:
            names = self._tokens.of_link(link.link_id)
            for name in names if len(names) > 1 else ():
                try:
                    self._fill(link.link_id, name, limit)
                except FAILING as failing:
                    fault = failing
        if fault is not None:
            raise fault

    def _fill(self, link_id: str, target: str, limit: int) -> None:
        if target not in self._store.epochs.active():
            return  # its first master key is not made yet
        while limit > 0 and (found := self._store.copies.missing(link_id, target, min(limit, BATCH))):
            limit -= len(found)
            by_epoch: dict[int, list[BlockSeal]] = defaultdict(list)
            for seal in found:
                by_epoch[seal.epoch].append(seal)
            for seals in by_epoch.values():
                self._copy(seals, target)

    def _copy(self, seals: list[BlockSeal], target: str) -> None:
        old, active = self._store.epochs.one(seals[0].epoch), self._store.epochs.active()[target]
        source = self._tokens[old.token]
        result = cross(seals, source, self._tokens[target], active)
        if result.done:
            self._store.copies.add(result.done, active, Entry("block.copy", self._actor))
        if result.bad:
            source.prove(old.number)  # raises if it is the device that fails
            quarantine(self._store, result.bad, self._actor)
