"""The objects of a token by their labels, and what tells two master keys apart."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism
from pkcs11.util.ec import encode_ec_public_key

from hsmkme.errors import ObjectMissing, OperatorFault
from hsmkme.hsm import sealing, templates

AUDIT_LABEL: Final = "audit"
DIGEST_LABEL: Final = "digest"
BRIDGE_LABEL: Final = "bridge"
LINK_KEY_BYTES: Final = 32
LINK_CHECK: Final = b"hsmkme/link-check/1"


def master_label(epoch: int) -> str:
    """The label of the master key of ``epoch``."""
    return f"master/{epoch}"


def link_label(link_id: str) -> str:
    """The label of the key that both ends of the link ``link_id`` share."""
    return f"link/{link_id}"


def transport_label(device: str) -> str:
    """The label of the key under which ``device`` wraps what it deposits."""
    return f"transport/{device}"


def find_object(session: Any, label: str, kind: ObjectClass) -> Any:
    """The one token object with this label and class; none or several is for an operator to solve."""
    session.generate_random(8)  # a lost session says so here; a search in one would fail while being tidied up too
    found = list(session.get_objects({Attribute.LABEL: label, Attribute.CLASS: kind, Attribute.TOKEN: True}))
    if not found:
        _require_login(session)
        raise ObjectMissing(f"the token has no {kind.name} labelled {label!r}: run the ceremony that makes it")
    if len(found) > 1:
        raise OperatorFault(f"the token has {len(found)} objects labelled {label!r}: remove the wrong one")
    return found[0]


def _require_login(session: Any) -> None:
    """Make a key that only a logged-in session may make: without a login every secret object seems missing."""
    session.generate_key(
        KeyType.AES, sealing.BLOCK_KEY_BITS, capabilities=MechanismFlag.ENCRYPT, template=templates.SEALING_KEY
    ).destroy()


def check_value(session: Any, master: Any) -> str:
    """The first 5 bytes of the AES-KW form of an all-zero AES-256 key under ``master``, as hex.

    The master key may only wrap and unwrap, so its check value is made by wrapping.
    """
    zero = session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.EXTRACTABLE: True,
            Attribute.VALUE: bytes(32),
        }
    )
    try:
        return bytes(master.wrap_key(zero, mechanism=Mechanism.AES_KEY_WRAP))[:5].hex()
    finally:
        zero.destroy()


def link_check_value(key: Any, link_id: str) -> str:
    """The first 5 bytes, as hex, of what the link key makes of a fixed text: the same at both ends, and says no more.

    HMAC-SHA256 over ``hsmkme/link-check/1`` and the link id; no message between KMEs begins like that.
    """
    return bytes(key.sign(LINK_CHECK + link_id.encode(), mechanism=Mechanism.SHA256_HMAC))[:5].hex()


def transport_check_value(value: bytes) -> str:
    """The check value of a transport key, of the same form as a master's: the device makes it of its own copy.

    The key in the token can only unwrap, so this is made of the bytes that came in.
    """
    return aes_key_wrap(value, bytes(32))[:5].hex()


def public_pem(key: Any) -> bytes:
    """An EC public key object as PEM."""
    return serialization.load_der_public_key(bytes(encode_ec_public_key(key))).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
