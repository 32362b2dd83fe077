"""Sealed blocks as tests take them apart and put them together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from hsmkme.hsm import Token
from hsmkme.model import Demand, Entry, Part, Retry, SealedBlock, SealedKey, segment_bytes
from hsmkme.store import Claim, Collection, Store


def part_of(sealed: SealedBlock, first: int = 0, count: int | None = None) -> Part:
    """``count`` segments of the block from number ``first`` on; all that follow if no count is given."""
    count = sealed.key_count - first if count is None else count
    stride = segment_bytes(sealed.seal.key_bits)
    return Part(sealed.seal, first, count, sealed.segments[first * stride : (first + count) * stride])


def key_of(*parts: Part, size: int | None = None) -> SealedKey:
    """A key made of ``parts``, cut to ``size`` bits if that is given."""
    return SealedKey(uuid4(), size or sum(part.count * part.block.key_bits for part in parts), parts)


def claim(store: Store, demand: Demand, entry: Entry, retry: Retry | None = None) -> list[SealedKey]:
    """Keys for one demand alone."""
    (keys,) = store.blocks.claim(lambda: [Claim(demand, entry, retry)])
    return keys


def collect(
    store: Store, slave: str, key_ids: Sequence[UUID], entry: Entry, retry: Retry | None = None, keep_seconds: int = 0
) -> None:
    """Let one SAE collect keys that the store has."""
    held = store.keys.held(key_ids)
    store.keys.collect([Collection(slave, [held[key_id] for key_id in key_ids], entry, retry, keep_seconds)])


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
