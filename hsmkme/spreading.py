"""Block keys in each token that their link is placed on: the copies that are missing are made. For upkeep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final

from hsmkme.burning import quarantine
from hsmkme.hsm.crossing import cross
from hsmkme.hsm.tokens import Tokens
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
        unwrap, which is quarantined. Raises what a token met that does not answer, when the others have theirs.
        """
        if len(self._tokens.names) == 1:
            return
        active = self._store.epochs.active()
        faults = self._tokens.each(lambda token: token.prove(active[token.name]) if token.name in active else None)
        away = [epoch.number for epoch in self._store.epochs.all() if epoch.token in faults]
        for link in links:
            for name in self._tokens.of_link(link.link_id):
                if name in active and name not in faults:
                    self._fill(link.link_id, name, away, limit)
        for fault in faults.values():
            raise fault

    def _fill(self, link_id: str, target: str, away: Collection[int], limit: int) -> None:
        while limit > 0 and (found := self._store.copies.missing(link_id, target, away, min(limit, BATCH))):
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
            for seal in result.bad:
                quarantine(self._store, seal.name, self._actor)
