"""Driver to custody: blocks are taken one by one, and the driver is told what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    def blocks(self) -> Iterable[RawBlock]:
        """Blocks in order; each is asked for when the one before was dealt with."""
        ...


@dataclass(slots=True)
class Tally:
    """What a run of a driver did; counts of keys and blocks."""

    keys: int = 0
    taken: int = 0
    already: int = 0


Progress = Callable[[Tally], None]
"""Called after every block."""


class Intake:
    """Deposits blocks of ``links`` for the KME ``kme_id``; ``limit`` is `max_key_count` of a link."""

    def __init__(self, custody: Custody, kme_id: str, links: Iterable[Link], limit: int) -> None:
        self._custody = custody
        self._kme_id = kme_id
        self._links = {link.link_id: link for link in links}
        self._limit = limit

    def take(self, block: RawBlock, actor: str) -> Outcome:
        """Deposit one block; raises `DepositRefused` and stores nothing of it then.

        A block of a link to a peer waits until the peer has the same bytes.
        """
        peer = self._links[block.name.link_id].peer
        if peer == self._kme_id:  # a local link has one end: its blocks are ready at once
            return self._custody.deposit(block, BlockState.READY, self._limit, actor)
        mine = owner_of(block.name.link_id, block.name.block_id, self._kme_id, peer) == self._kme_id
        return self._custody.deposit(block, BlockState.DEPOSITED, self._limit, actor, mine=mine)

    def run(self, driver: Driver, progress: Progress = lambda _: None) -> Tally:
        """Deposit what ``driver`` gives until it ends or a block is refused; what was taken stays."""
        tally = Tally()
        for block in driver.blocks():
            if self.take(block, driver.name) is Outcome.TAKEN:
                tally.taken += 1
                tally.keys += block.key_count
            else:
                tally.already += 1
            progress(tally)
        return tally
