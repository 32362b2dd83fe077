"""A backup key as shares: any m of n custodians have it together, fewer have nothing (Shamir, 1979).

Each byte of the key is the value at zero of a polynomial of degree m−1 whose other coefficients are random; share i
holds the values at i. The bytes of a share::

    version 1 ‖ set (4) ‖ m−1 and i−1 (4 bits each) ‖ values (32) ‖ checksum (4)

The checksum, of SHA-256, finds what was read or typed wrongly. The commitment is the SHA-256 of all that is before it,
under a name of its own. It is published, so that a share which somebody altered is named when it comes back. The values
of a share are 256 random bits, whatever the other m−1 are: nobody finds them by trying, so a commitment tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hsmkme.ceremony.field import value_at, weighed, weights_at_zero
from hsmkme.errors import ShareRefused
from hsmkme.model import KeyMaterial
from hsmkme.words import bytes_of, words_of

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 42
MOST_SHARES: Final = 16
SCANNED: Final = "HSMKME-SHARE:"
"""How the text in a QR code begins; the bytes follow as hex."""

_VERSION: Final = b"\x01"
_SET_BYTES: Final = 4
_CHECKSUM_BYTES: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one custodian holds: share ``index`` (from 1) of a set of which any ``threshold`` are needed."""

    set_id: bytes
    threshold: int
    index: int
    value: KeyMaterial

    @property
    def commitment(self) -> bytes:
        """32 bytes that may be published: they fit this share and no other."""
        return hashlib.sha256(b"hsmkme/share-commitment/1" + self._body()).digest()

    def encoded(self) -> bytes:
        """The 42 bytes of the share."""
        return self._body() + _checksum(self._body())

    def words(self) -> list[str]:
        """The share as 42 words, for paper."""
        return words_of(self.encoded())

    def scanned(self) -> str:
        """The share as the text of a QR code, capitals and digits only."""
        return SCANNED + self.encoded().hex().upper()

    def _body(self) -> bytes:
        place = (self.threshold - 1) << 4 | self.index - 1
        return _VERSION + self.set_id + bytes([place]) + self.value.reveal()


@dataclass(frozen=True, slots=True)
class ShareSet:
    """What everybody may know of a set of shares; ``commitments`` of share 1, 2, …"""

    set_id: bytes
    threshold: int
    commitments: tuple[bytes, ...]


def split(
    secret: KeyMaterial, threshold: int, count: int, randomness: Callable[[int], bytes] = os.urandom
) -> tuple[ShareSet, tuple[Share, ...]]:
    """``count`` shares of 32 secret bytes, any ``threshold`` of which are the secret.

    Raises `ShareRefused` unless 2 ≤ threshold ≤ count ≤ 16. The shares are put together once before they are given.
    """
    if len(secret) != SECRET_BYTES:
        raise ShareRefused(f"only a key of {SECRET_BYTES} bytes is split, this one has {len(secret)}")
    if not 2 <= threshold <= count <= MOST_SHARES:
        raise ShareRefused(f"{threshold} of {count} shares cannot be: take at least 2 of at most {MOST_SHARES}")
    set_id = randomness(_SET_BYTES)
    polynomials = list(zip(secret.reveal(), *(randomness(SECRET_BYTES) for _ in range(threshold - 1)), strict=True))
    shares = tuple(
        Share(set_id, threshold, index, KeyMaterial(bytes(value_at(index, one) for one in polynomials)))
        for index in range(1, count + 1)
    )
    public = ShareSet(set_id, threshold, tuple(share.commitment for share in shares))
    gathered = Gathering(public)
    for share in shares:
        gathered.add(share)
    if not hmac.compare_digest(gathered.secret().reveal(), secret.reveal()):
        raise ShareRefused("the shares do not give the key back: this machine calculates wrongly, use another")
    return public, shares


def read_share(text: str) -> Share:
    """The share in words or in the text of its QR code; raises `ShareRefused` saying what to look at again."""
    text = text.strip()
    try:
        if text.upper().startswith(SCANNED):
            return decoded(bytes.fromhex(text[len(SCANNED) :]))
        return decoded(bytes_of(text))
    except ValueError as error:
        said = str(error) if str(error).startswith("word ") else "the code was not read whole"
        raise ShareRefused(f"{said}; look at the sheet and enter the share again") from None


def decoded(data: bytes) -> Share:
    """The share that is written as ``data``."""
    if len(data) != SHARE_BYTES:
        raise ShareRefused(f"a share has {SHARE_BYTES} words, these are {len(data)}: enter it again, to its end")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not hmac.compare_digest(_checksum(body), checksum):
        raise ShareRefused("the checksum of the share is wrong, so a word of it is: enter it again, word by word")
    if body[:1] != _VERSION:
        raise ShareRefused("the share is of another version of hsmkme: restore with that version")
    place = body[1 + _SET_BYTES]
    return Share(body[1 : 1 + _SET_BYTES], (place >> 4) + 1, (place & 15) + 1, KeyMaterial(body[2 + _SET_BYTES :]))


class Gathering:
    """Takes shares in any order and refuses, by name, each that is not of the set ``public`` or came before."""

    def __init__(self, public: ShareSet) -> None:
        self._public = public
        self._held: dict[int, Share] = {}

    @property
    def missing(self) -> int:
        """How many more shares are needed."""
        return max(self._public.threshold - len(self._held), 0)

    @property
    def indexes(self) -> list[int]:
        """Which shares were taken, in their order."""
        return sorted(self._held)

    def take(self, text: str) -> None:
        """`add` a share as it was typed or scanned."""
        self.add(read_share(text))

    def add(self, share: Share) -> None:
        """Take one share; raises `ShareRefused`, and what was taken before stays."""
        public, name = self._public, f"share {share.index}"
        if share.set_id != public.set_id:
            raise ShareRefused(
                f"{name} is of set {share.set_id.hex()}, this backup has set {public.set_id.hex()}: bring that one"
            )
        if share.index in self._held:
            raise ShareRefused(f"{name} was entered before: another custodian's is needed")
        committed = dict(enumerate(public.commitments, 1)).get(share.index, b"")
        if share.threshold != public.threshold or not hmac.compare_digest(committed, share.commitment):
            raise ShareRefused(
                f"{name} was altered: it is not the one that was made with this backup. Set it aside, tell the"
                " security officers, and go on with another custodian's"
            )
        self._held[share.index] = share

    def secret(self) -> KeyMaterial:
        """The 32 bytes that were split; raises `ShareRefused` while shares are missing."""
        if self.missing:
            raise ShareRefused(f"{self.missing} more shares are needed")
        weights = weights_at_zero(list(self._held))
        values = zip(*(share.value.reveal() for share in self._held.values()), strict=True)
        return KeyMaterial(bytes(weighed(one, weights) for one in values))


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"hsmkme/share-checksum/1" + body).digest()[:_CHECKSUM_BYTES]
