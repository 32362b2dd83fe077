"""Driver to custody: blocks are taken batch by batch, and a driver is asked for more when a batch is durable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hsmkme.custody import Custody
from hsmkme.messages.signing import owner_of
from hsmkme.model import Link, RawBlock
from hsmkme.states import BlockState
from hsmkme.store import Outcome


class Driver(Protocol):
    """A QKD device, or what stands for one."""

    @property
    def name(self) -> str:
        """Who deposits, for the audit log."""
        ...

    def batches(self) -> Iterable[Sequence[RawBlock]]:
        """Blocks of one link in order. A batch is asked for when the one before was dealt with: until then the
        device keeps what it gave."""
        ...


@dataclass(slots=True)
class Tally:
    """What a run of a driver did; counts of keys and blocks."""

    keys: int = 0
    taken: int = 0
    already: int = 0


Progress = Callable[[Tally], None]
"""Called after every batch."""


class Intake:
    """Deposits blocks of ``links`` for the KME ``kme_id``; ``limit`` is `max_key_count` of a link."""

    def __init__(self, custody: Custody, kme_id: str, links: Iterable[Link], limit: int) -> None:
        self._custody = custody
        self._kme_id = kme_id
        self._links = {link.link_id: link for link in links}
        self._limit = limit

    def take(self, blocks: Sequence[RawBlock], actor: str) -> list[Outcome]:
        """Deposit blocks of one link in one commit. Raises `DepositRefused` for the first that is refused: it and
        those after it are not stored, those before it are.

        Blocks of a link to a peer wait until the peer has the same bytes.
        """
        (link_id,) = {block.name.link_id for block in blocks}
        peer = self._links[link_id].peer
        if peer == self._kme_id:  # a local link has one end: its blocks are ready at once
            return self._custody.deposit(blocks, BlockState.READY, self._limit, actor)
        names = [block.name for block in blocks]
        theirs = [name for name in names if owner_of(link_id, name.block_id, self._kme_id, peer) == peer]
        return self._custody.deposit(blocks, BlockState.DEPOSITED, self._limit, actor, theirs=theirs)

    def run(self, driver: Driver, progress: Progress = lambda _: None) -> Tally:
        """Deposit what ``driver`` gives until it ends or a block is refused; what was taken stays."""
        tally = Tally()
        for blocks in driver.batches():
            for block, outcome in zip(blocks, self.take(blocks, driver.name), strict=True):
                if outcome is Outcome.TAKEN:
                    tally.taken += 1
                    tally.keys += block.key_count
                else:
                    tally.already += 1
            progress(tally)
        return tally
