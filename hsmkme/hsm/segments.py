"""The segments of a block through its key: AES-256-GCM with two calls of the token for each, nothing asked twice."""

from __future__ import annotations

import struct
from ctypes import addressof, create_string_buffer, sizeof
from typing import Final

from pkcs11 import Mechanism

from hsmkme.hsm import sealing
from hsmkme.hsm.block_keys import BlockKey
from hsmkme.hsm.cryptoki import CKR_ENCRYPTED_DATA_LEN_RANGE, WORD, CkGcmParams, CkMechanism, CryptokiError
from hsmkme.model import GCM_TAG_BYTES, BlockName, segment_bytes

_NUMBER: Final = struct.Struct(">I")
_TAG_BITS: Final = 8 * GCM_TAG_BYTES


class Segments:
    """Seals or opens, whichever ``key`` may do, segments of the block ``name``; for one caller at a time.

    The nonce and what the tag binds are the same bytes in memory for every segment, but for its number.
    """

    def __init__(self, key: BlockKey, name: BlockName, key_bits: int) -> None:
        self.key = key
        bound = sealing.binding(name.link_id, name.block_id, key_bits)
        self._number_at = len(bound)
        self._nonce = create_string_buffer(sealing.NONCE_BYTES)
        self._bound = create_string_buffer(bound, len(bound) + _NUMBER.size)
        self._parameters = CkGcmParams(
            *(addressof(self._nonce), len(self._nonce), 8 * len(self._nonce)),
            *(addressof(self._bound), len(self._bound), _TAG_BITS),
        )
        self._mechanism = CkMechanism(Mechanism.AES_GCM, addressof(self._parameters), sizeof(self._parameters))
        plain, sealed = key_bits // 8, segment_bytes(key_bits)
        self._taken, self._due = (sealed, plain) if key.opens else (plain, sealed)
        self._room = create_string_buffer(sealed)
        self._empty = bytes(sealed)
        self._length = WORD()
        self._where = addressof(self._mechanism), addressof(self._room), addressof(self._length)

    def run(self, first: int, pieces: bytes) -> bytes:
        """What the token makes of consecutive pieces, the first for segment number ``first``.

        Raises `CryptokiError`; also for what does not have the length that is due, as if the data were wrong.
        """
        size = self._taken
        try:
            if len(pieces) == size:
                return self._one(first, pieces)
            starts = range(0, len(pieces), size)
            return b"".join([self._one(first + n, pieces[at : at + size]) for n, at in enumerate(starts)])
        finally:
            self._room.raw = self._empty  # no plain key stays

    def _one(self, number: int, piece: bytes) -> bytes:
        _NUMBER.pack_into(self._nonce, sealing.NONCE_BYTES - _NUMBER.size, number)
        _NUMBER.pack_into(self._bound, self._number_at, number)
        key, (mechanism, room, length) = self.key, self._where
        key.begin(key.session, mechanism, key.handle)
        self._length.value = len(self._empty)
        key.run(key.session, piece, len(piece), room, length)
        if self._length.value != self._due:
            raise CryptokiError("a segment", CKR_ENCRYPTED_DATA_LEN_RANGE)
        return self._room.raw[: self._due]
