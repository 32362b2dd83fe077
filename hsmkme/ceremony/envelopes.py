"""A share on its way to a custodian who is not in the room, sealed to a key that only the custodian has.

HPKE (RFC 9180) with MLKEM768-X25519, known as X-Wing, HKDF-SHA256 and AES-256-GCM: who keeps the envelope for a
quantum computer has nothing either. An envelope is a line of JSON; what it says in the clear is bound to what is in it.
A key is two PEM blocks, one of ML-KEM-768 and one of X25519, in one file.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from hsmkme.audit import canonical
from hsmkme.ceremony.shares import Share, decoded
from hsmkme.errors import ShareRefused

_FORM: Final = "hsmkme-envelope/1"
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_END: Final = b"-----END"


def new_key() -> tuple[bytes, bytes]:
    """A new private key, which the custodian keeps, and its public key; PEM."""
    parts = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    private = (part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for part in parts)
    public = (part.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for part in parts)
    return b"".join(private), b"".join(public)


def seal(share: Share, public_key: bytes) -> str:
    """``share`` in an envelope that only the private key of ``public_key`` opens."""
    match _parts(load_pem_public_key, public_key):
        case [MLKEM768PublicKey() as lattice, X25519PublicKey() as curve]:
            recipient = MLKEM768X25519PublicKey(lattice, curve)
        case _:
            raise ShareRefused("that is no custodian's public key: take the one that `hsmkme custodian key` wrote")
    outside = {"form": _FORM, "set": share.set_id.hex(), "index": share.index, "commitment": share.commitment.hex()}
    sealed = _SUITE.encrypt(share.encoded(), recipient, info=canonical(outside).encode())
    return canonical({**outside, "sealed": base64.b64encode(sealed).decode()}) + "\n"


def open_envelope(envelope: str, private_key: bytes) -> Share:
    """The share in ``envelope``; raises `ShareRefused` for another's envelope, or one that was altered."""
    try:
        outside = json.loads(envelope)
        sealed = base64.b64decode(outside.pop("sealed"), validate=True)
        share = decoded(_SUITE.decrypt(sealed, _recipient(private_key), info=canonical(outside).encode()))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, InvalidTag):
        raise ShareRefused(
            "the envelope does not open with this key: it is another custodian's, or it was altered on its way"
        ) from None
    if outside.get("form") != _FORM or outside.get("commitment") != share.commitment.hex():
        raise ShareRefused("the share is not the one that is named on the envelope: tell the security officers")
    return share


def _recipient(private_key: bytes) -> MLKEM768X25519PrivateKey:
    match _parts(lambda block: load_pem_private_key(block, None), private_key):
        case [MLKEM768PrivateKey() as lattice, X25519PrivateKey() as curve]:
            return MLKEM768X25519PrivateKey(lattice, curve)
    raise ShareRefused("that is no custodian's private key: take the one that `hsmkme custodian key` wrote")


def _parts(load: Callable[[bytes], object], pem: bytes) -> list[object]:
    """The keys in the PEM blocks of a file; none if one is not a key."""
    lines = pem.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if line.startswith(_END)]
    try:
        return [load(b"".join(lines[start:end])) for start, end in zip([0, *ends], ends, strict=False)]
    except (ValueError, UnsupportedAlgorithm):
        return []
