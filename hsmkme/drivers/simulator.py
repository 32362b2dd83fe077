"""A QKD device in software: blocks from a seed, so that two KMEs with the same seed hold the same blocks.

For demonstrations and tests only: whoever knows the seed knows the keys.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from hsmkme.drivers.keyfile import BATCH_BLOCKS, batched, check_key_bits
from hsmkme.model import BlockName, KeyMaterial, RawBlock

_TAG_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Simulator:
    """``count`` keys of ``key_bits`` for ``link_id``, in blocks of ``block_keys``.

    ``rate`` is in keys per second, 0 for as fast as they are taken. ``start`` is the number of the first
    block: block *n* of so many keys is the same whoever makes it.
    """

    link_id: str
    seed: bytes
    key_bits: int
    block_keys: int
    count: int
    rate: float = 0.0
    start: int = 0
    name: str = "simulator"
    sleep: Callable[[float], None] = time.sleep

    def blocks(self) -> Iterator[RawBlock]:
        """The blocks, at the rate set."""
        check_key_bits(self.key_bits)
        made, number = 0, self.start
        while made < self.count:
            keys = min(self.block_keys, self.count - made)
            yield self.block(number, keys)
            made, number = made + keys, number + 1
            if self.rate:
                self.sleep(keys / self.rate)

    def batches(self) -> Iterator[list[RawBlock]]:
        """The same; several at a time if they are made as fast as they are taken."""
        return batched(self.blocks(), 1 if self.rate else BATCH_BLOCKS)

    def block(self, number: int, keys: int) -> RawBlock:
        """Block ``number`` with ``keys`` keys: SHAKE-256 over seed, link, number, and how many keys of what size.

        The same stream names the block, so that another seed, or another length, is another block.
        """
        stream = hashlib.shake_256(b"hsmkme/simulator/2")
        numbers = b"".join(value.to_bytes(8, "big") for value in (number, keys, self.key_bits))
        for part in (self.seed, self.link_id.encode(), numbers):
            stream.update(len(part).to_bytes(4, "big") + part)
        digest = stream.digest(_TAG_BYTES + keys * self.key_bits // 8)
        name = BlockName(self.link_id, f"sim-{number}-{digest[:_TAG_BYTES].hex()}")
        return RawBlock(name, self.key_bits, KeyMaterial(digest[_TAG_BYTES:]))
