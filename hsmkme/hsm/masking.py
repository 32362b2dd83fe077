"""One-time pads: a key is carried as key XOR pad. Nothing can be learnt from that without the pad, with any computer.

It holds for a pad that is as long as the key, as random as QKD makes it, and used once: the store sees to the last.
A token has no XOR of two keys that comes out as bytes, so key and pad are in this process's memory while it is done,
as every key is when it is deposited or handed out.
"""

from __future__ import annotations

from collections.abc import Sequence

from hsmkme.errors import TokenMisuse
from hsmkme.model import SEGMENT_BITS_STEP, BlockName, KeyMaterial, RawBlock


def masked(value: bytes, pad: KeyMaterial) -> bytes:
    """``value`` XOR ``pad``, which are equally long; the same again undoes it."""
    if len(value) != len(pad):
        raise TokenMisuse(f"{len(value)} bytes cannot be masked by a pad of {len(pad)}")
    return bytes(one ^ other for one, other in zip(value, pad.reveal(), strict=True))


def block_of(name: BlockName, keys: Sequence[bytes]) -> RawBlock:
    """Keys of one size as a block; each is filled up with zeros to what can be stored, and cut when it is opened."""
    step = SEGMENT_BITS_STEP // 8
    stride = -(-len(keys[0]) // step) * step
    return RawBlock(name, stride * 8, KeyMaterial(b"".join(key.ljust(stride, b"\0") for key in keys)))
