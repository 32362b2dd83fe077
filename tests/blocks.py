"""Sealed blocks as tests take them apart and put them together again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from hsmkme.hsm import Token
from hsmkme.model import Part, SealedBlock, SealedKey, segment_bytes


def part_of(sealed: SealedBlock, first: int = 0, count: int | None = None) -> Part:
    """``count`` segments of the block from number ``first`` on; all that follow if no count is given."""
    count = sealed.key_count - first if count is None else count
    stride = segment_bytes(sealed.seal.key_bits)
    return Part(sealed.seal, first, count, sealed.segments[first * stride : (first + count) * stride])


def key_of(*parts: Part, size: int | None = None) -> SealedKey:
    """A key made of ``parts``, cut to ``size`` bits if that is given."""
    return SealedKey(uuid4(), size or sum(part.count * part.block.key_bits for part in parts), parts)


def altered(part: Part, **seal: Any) -> Part:
    """The part with other fields in its block's seal."""
    return replace(part, block=part.block._replace(**seal))


def flipped(blob: bytes, position: int, mask: int = 0x01) -> bytes:
    """The blob with bits of one byte inverted."""
    return blob[:position] + bytes([blob[position] ^ mask]) + blob[position + 1 :]


def open_bytes(token: Token, key: SealedKey) -> bytes:
    """The plaintext of one key."""
    (opened,) = token.open([key])
    return opened.material.reveal()
