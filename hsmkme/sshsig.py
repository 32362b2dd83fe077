"""Signatures of people: Ed25519 keys in files of PEM or OpenSSH, signatures in the form of ``ssh-keygen -Y sign``.

The form is that of OpenSSH's PROTOCOL.sshsig: what is signed names a namespace, so that a signature made for one
purpose is none for another. Everything wrong is a ``ValueError``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_KEY_TYPE: Final = b"ssh-ed25519"
_HASHES: Final = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_ARMOURED: Final = re.compile(rf"{_BEGIN}\n([A-Za-z0-9+/=\n]+)\n{_END}\n?")
_LINE: Final = 70


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that was verified: the 32 bytes of the public key, and the signature as it was given."""

    public: bytes
    armoured: str


def sign(message: bytes, key: Ed25519PrivateKey, namespace: str) -> str:
    """The signature of ``message``, as a block of text."""
    public = _string(_KEY_TYPE) + _string(key.public_key().public_bytes_raw())
    signature = _string(_KEY_TYPE) + _string(key.sign(_signed(message, namespace.encode(), b"sha512")))
    head = _MAGIC + struct.pack(">I", _VERSION)
    text = base64.b64encode(
        head + b"".join(map(_string, (public, namespace.encode(), b"", b"sha512", signature)))
    ).decode()
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return "\n".join([_BEGIN, *lines, _END, ""])


def verified(message: bytes, armoured: str, namespace: str) -> Signature:
    """The signature in the block of text ``armoured``, if it is of ``message``."""
    found = _ARMOURED.fullmatch(armoured)
    if found is None:
        raise ValueError("not a block of an SSH signature")
    blob = base64.b64decode(found[1].replace("\n", ""), validate=True)
    if blob[:10] != _MAGIC + struct.pack(">I", _VERSION):
        raise ValueError("not version 1 of an SSH signature")
    public, said_namespace, _, algorithm, signature = _strings(blob[10:], 5)
    if said_namespace != namespace.encode() or algorithm not in _HASHES:
        raise ValueError("a signature that was made for something else")
    (key_type, raw), (signed_by, value) = _strings(public, 2), _strings(signature, 2)
    if (key_type, signed_by) != (_KEY_TYPE, _KEY_TYPE):
        raise ValueError("a signature of another kind of key than Ed25519")
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(value, _signed(message, said_namespace, algorithm))
    except InvalidSignature:
        raise ValueError("a signature of something else") from None
    return Signature(raw, armoured)


def blocks(text: str) -> list[str]:
    """The signatures in ``text``, which has nothing else."""
    found = [match[0] for match in _ARMOURED.finditer(text)]
    if "".join(found) != text:
        raise ValueError("something other than signatures")
    return found


class OtherKind(ValueError):
    """A key that is read, and is not of Ed25519."""


def public_key(content: bytes) -> bytes:
    """The 32 bytes of a public key in PEM, or in the line that OpenSSH writes."""
    load = load_pem_public_key if content.startswith(b"-----") else load_ssh_public_key
    try:
        key = load(content.strip())
    except UnsupportedAlgorithm as error:
        raise ValueError("an unknown kind of key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a key of another kind than Ed25519")
    return key.public_bytes_raw()


def private_key(content: bytes, passphrase: bytes | None) -> Ed25519PrivateKey:
    """A private key in PEM or OpenSSH's form.

    Raises ``TypeError`` if it needs a passphrase, or has none; `OtherKind` if not of Ed25519; else ``ValueError``.
    """
    load = load_ssh_private_key if b"OPENSSH" in content else load_pem_private_key
    try:
        key = load(content, passphrase)
    except UnsupportedAlgorithm as error:
        raise ValueError("an unknown kind of key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OtherKind("a key of another kind than Ed25519")
    return key


def _signed(message: bytes, namespace: bytes, algorithm: bytes) -> bytes:
    """What the key signs."""
    digest = _HASHES[algorithm](message).digest()
    return _MAGIC + b"".join(map(_string, (namespace, b"", algorithm, digest)))


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _strings(data: bytes, count: int) -> list[bytes]:
    """``count`` strings, and nothing after them (RFC 4251 §5)."""
    found = []
    for _ in range(count):
        if len(data) < 4:
            raise ValueError("a signature that is cut short")
        (length,) = struct.unpack(">I", data[:4])
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
        if len(found[-1]) != length:
            raise ValueError("a signature that is cut short")
    if data:
        raise ValueError("a signature with something after it")
    return found
