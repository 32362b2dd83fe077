"""The form of a sealed block: header, nonces, and what the tag of each segment binds.

A wrapped block key is ``version ‖ wrapping ‖ sealing ‖ epoch (4 bytes) ‖ AES-KW of the block key (40 bytes)``.
Segment *i* is AES-256-GCM under the block key, nonce = *i*, and its tag binds link, block, key size and *i*:
a segment moved to another place does not open. A block key seals one block, so no nonce comes twice.
"""

from __future__ import annotations

import struct
from typing import Final

from hsmkme.errors import TokenUnavailable
from hsmkme.model import BlockName, BlockSeal, KeyMaterial, Part, RawBlock, SealedBlock, segment_bytes

_HEADER: Final = struct.Struct(">BBBI")
_LAST_EPOCH: Final = 2**32 - 1
_VERSION: Final = 1
_WRAPPING_AES_KW: Final = 1
_SEALING_GCM: Final = 1
_DOMAIN: Final = b"hsmkme/segment/1"
ROW_KEY: Final = b"hsmkme/row-key/1"
"""What the digest key signs to give the key that seals rows; no digest input begins like that."""
_TAG_DOMAIN: Final = b"kme-peer/1/tag"
_LAST_NUMBER: Final = 0xFFFF_FFFF

NONCE_BYTES: Final = 12
WRAPPED_KEY_BYTES: Final = 40
BLOCK_KEY_BITS: Final = 256

SENTINEL: Final = RawBlock(BlockName("sentinel", "sentinel"), 256, KeyMaterial(bytes(range(32))))
"""A known answer: when it opens, the token works."""


def with_header(epoch: int, wrapped_key: bytes) -> bytes:
    """The stored form of a block key wrapped under ``epoch``."""
    return _HEADER.pack(_VERSION, _WRAPPING_AES_KW, _SEALING_GCM, epoch) + wrapped_key


def wrapped_key_of(seal: BlockSeal) -> bytes | None:
    """The AES-KW blob inside ``seal.wrapped``, or None when it is not a form this code writes."""
    if not 0 < seal.epoch <= _LAST_EPOCH:
        return None
    expected = with_header(seal.epoch, b"")
    header, wrapped_key = seal.wrapped[: _HEADER.size], seal.wrapped[_HEADER.size :]
    return wrapped_key if header == expected and len(wrapped_key) == WRAPPED_KEY_BYTES else None


def binding(seal_name_link: str, block_id: str, key_bits: int) -> bytes:
    """What the tags of a block's segments bind, but for the segment's number."""
    parts = (_DOMAIN, seal_name_link.encode(), block_id.encode())
    return b"".join(struct.pack(">H", len(part)) + part for part in parts) + struct.pack(">I", key_bits)


def digest_input(block: RawBlock) -> bytes:
    """What the keyed digest of a block covers: its bytes, whatever its name and however they are cut into keys."""
    return b"hsmkme/block-digest/1" + block.material.reveal()


def carried_digest_input(block: RawBlock) -> bytes:
    """The same of keys that no device gave: its name too, for the digests of single keys say nothing about a device."""
    parts = (b"hsmkme/carried-digest/1", block.name.link_id.encode(), block.name.block_id.encode())
    return b"".join(struct.pack(">I", len(part)) + part for part in (*parts, block.material.reveal()))


def tag_input(block: RawBlock) -> bytes:
    """What the confirmation tag of a block covers: its names, its form and its bytes, each with its length.

    Its form has the time before which it is not released, if there is one: both ends know the same, or none confirms.
    """
    parts = (_TAG_DOMAIN, block.name.link_id.encode(), block.name.block_id.encode())
    form = struct.pack(">II", block.key_count, block.key_bits)
    form += struct.pack(">Q", block.not_before) if block.not_before else b""
    return b"".join(struct.pack(">I", len(part)) + part for part in (*parts, form, block.material.reveal()))


def is_whole(part: Part) -> bool:
    """Whether a part has as many segments as it says, of a size and at numbers that there can be."""
    key_bits = part.block.key_bits
    return (
        key_bits > 0
        and 0 <= part.first <= _LAST_NUMBER - part.count
        and len(part.sealed) == part.count * segment_bytes(key_bits)
    )


def sealed_block(block: RawBlock, epoch: int, wrapped_key: bytes, segments: bytes, digest: bytes) -> SealedBlock:
    """A sealed block, its parts checked for length; raises `TokenUnavailable` if one is wrong."""
    if len(wrapped_key) != WRAPPED_KEY_BYTES or len(segments) != block.key_count * segment_bytes(block.key_bits):
        raise TokenUnavailable("the token returned a blob of the wrong length")
    seal = BlockSeal(block.name, epoch, block.key_bits, with_header(epoch, wrapped_key))
    return SealedBlock(seal, block.key_count, segments, digest)
