"""Raw key files as QKD devices give them: binary, or lines of hex or base64.

A file is cut into blocks of at most ``block_keys`` keys. The first has the deposit's block id, the others
add their number to it (``ID/1``, ``ID/2`` …; no file name has a slash in it): the same file gives the same
blocks at both ends of a link, and depositing it again after an interruption goes on where it stopped.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import BinaryIO, Final, Literal
from uuid import uuid4

from hsmkme.errors import DepositRefused, WrongSize
from hsmkme.model import SEGMENT_BITS_STEP, BlockName, KeyMaterial, RawBlock

Format = Literal["auto", "binary", "hex", "base64"]

FORMATS: Final = ("auto", "binary", "hex", "base64")
BATCH_BLOCKS: Final = 16
"""How many blocks share a commit, where a device can give them all again. Others wait for the store meanwhile."""

_SAMPLE_BYTES: Final = 4096
_LINE_LIMIT: Final = 1 << 20
"""Longer lines are read in pieces of this length, which is a whole number of hex and base64 groups."""
_HEX: Final = re.compile(rb"[0-9A-Fa-f]+")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e]{16,}")
_ENCODING: Final = re.compile(rb"\A(\xef\xbb\xbf|\xff\xfe|\xfe\xff)|\0")
"""What UTF-8 with a byte order mark and UTF-16 add to ASCII."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """An open key file to be deposited on ``link_id`` as ``block_id``; ``identify`` gives the id if that is None.

    No key of it is released ``not_before`` a time (seconds since the epoch); 0: at once.
    """

    stream: BinaryIO
    link_id: str
    block_id: str | None
    key_bits: int
    block_keys: int
    format: Format = "auto"
    name: str = "operator"
    on_bytes: Callable[[int], None] = lambda _: None
    identify: Callable[[RawBlock], str] = lambda _: str(uuid4())
    not_before: int = 0

    def blocks(self) -> Iterator[RawBlock]:
        """The file's blocks; raises `WrongSize` if it is not a whole number of keys, `DepositRefused` if it is unclear.

        Of a pipe, blocks before the part that is wrong were given by then.
        """
        check_key_bits(self.key_bits)
        if self.block_id is not None:
            check_block_id(self.block_id)
        if self.stream.seekable():
            # Nothing of a file is taken unless all of it can be. A pipe can only be judged as it comes.
            check_whole(sum(len(piece) for piece in self._decoded()), self.key_bits)
            self.stream.seek(0)
        size, first_id = self.key_bits // 8 * self.block_keys, self.block_id
        for number, chunk in enumerate(rechunk(self._decoded(self.on_bytes), size)):
            check_whole(len(chunk), self.key_bits)
            block = RawBlock(BlockName(self.link_id, ""), self.key_bits, KeyMaterial(chunk), self.not_before)
            first_id = first_id or self.identify(block)
            block_id = first_id if number == 0 else f"{first_id}/{number}"
            yield replace(block, name=BlockName(self.link_id, block_id))

    def batches(self) -> Iterator[list[RawBlock]]:
        """The same, several at a time of a file, which is there for another try. Of a pipe each at once."""
        return batched(self.blocks(), BATCH_BLOCKS if self.stream.seekable() else 1)

    def _decoded(self, on_bytes: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        sample = self.stream.read(_SAMPLE_BYTES)
        if not sample:
            raise WrongSize("the key file is empty")
        found = detect(sample) if self.format == "auto" else self.format
        return self._binary(sample, on_bytes) if found == "binary" else self._lines(sample, found, on_bytes)

    def _binary(self, sample: bytes, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
        while sample:
            on_bytes(len(sample))
            yield sample
            sample = self.stream.read(1 << 16)

    def _lines(self, sample: bytes, form: str, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
        *whole, last = io.BytesIO(sample).readlines()
        if not last.endswith(b"\n"):
            last += self.stream.readline(_LINE_LIMIT - len(last))
        number = 1
        for line in chain(whole, [last], iter(partial(self.stream.readline, _LINE_LIMIT), b"")):
            on_bytes(len(line))
            yield decode_line(line.strip(), form, number)
            number += line.endswith(b"\n")


def batched(blocks: Iterator[RawBlock], most: int) -> Iterator[list[RawBlock]]:
    """The same blocks, ``most`` at a time."""
    while batch := list(islice(blocks, most)):
        yield batch


def check_key_bits(key_bits: int) -> None:
    """Keys are stored in multiples of 64 bits; raises `WrongSize` for anything else."""
    if key_bits <= 0 or key_bits % SEGMENT_BITS_STEP:
        raise WrongSize(
            f"keys of {key_bits} bits cannot be stored: the size shall be a multiple of {SEGMENT_BITS_STEP} bits, "
            "because the token's key wrapping pads any other without saying so"
        )


def check_whole(length: int, key_bits: int) -> None:
    """``length`` bytes are a whole number of keys; raises `WrongSize` otherwise."""
    if length % (key_bits // 8):
        raise WrongSize(
            f"the last {length % (key_bits // 8)} bytes are not a whole key of {key_bits} bits: "
            f"deposit a file whose length is a multiple of {key_bits // 8} bytes, or name another --key-bits"
        )


def check_block_id(block_id: str) -> None:
    """A block id is 1 to 255 printable characters; raises `DepositRefused` for anything else."""
    if not 0 < len(block_id) < 256 or not block_id.isprintable():
        raise DepositRefused("a block id shall be 1 to 255 printable characters of UTF-8")


def detect(sample: bytes) -> Format:
    """What the beginning of a file looks like. A text file of hex digits is hex, also if it were valid base64.

    Raises `DepositRefused` for text that is neither: taken as binary, its characters would become keys.
    """
    lines = [line.strip() for line in sample.splitlines() if line.strip()]
    whole = lines[:-1]  # the last line of a sample may be cut
    if lines and all(map(_HEX.fullmatch, lines)) and all(len(line) % 2 == 0 for line in whole):
        return "hex"
    if lines and all(map(_BASE64.fullmatch, lines)) and all(len(line) % 4 == 0 for line in whole):
        return "base64"
    if _TEXT.fullmatch(_ENCODING.sub(b"", sample)):
        raise DepositRefused(
            "the key file is text, but not lines of hex or base64 that each stand for whole bytes: "
            "name its --format, binary if these characters themselves are the keys"
        )
    return "binary"


def decode_line(line: bytes, form: str, number: int) -> bytes:
    """The bytes that a line of hex or base64 stands for; raises `WrongSize` naming the line, not showing it."""
    try:
        return binascii.unhexlify(line) if form == "hex" else base64.b64decode(line, validate=True)
    except ValueError:
        raise WrongSize(f"line {number} is not {form}") from None


def rechunk(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of ``size``, the last one shorter."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)
