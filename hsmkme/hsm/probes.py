"""What the product asks of a token, each operation by itself, done with session objects that leave no trace.

A probe does what the product does, compares the outcome with what it must be, and says what this token does.
It raises `Unfit`, or an error of the binding, if the token does something else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag
from pkcs11.util.ec import encode_named_curve_parameters

from hsmkme.hsm import anchor, objects, templates
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.bench import (
    DATA,
    ERRORS,
    KNOWN,
    NONCE,
    SESSION_ONLY,
    Bench,
    Unfit,
    name_of,
    read_back,
    refused,
    same,
    wrapped_key,
)

# Master keys ----------------------------------------------------------------------------------------------


def master_template(bench: Bench) -> str:
    """Make a master key, with all that keeps it in the token."""
    return read_back(bench, bench.master(), {**templates.MASTER, **SESSION_ONLY, **templates.MADE_HERE})


def master_stays(bench: Bench) -> str:
    """Neither wrap a master key nor read its value."""
    master, other = bench.master(), bench.known_key(KeyType.AES, Attribute.WRAP)
    wrapping = refused(lambda: other.wrap_key(master, mechanism=Mechanism.AES_KEY_WRAP))
    return f"{wrapping}, {refused(lambda: master[Attribute.VALUE])}"


def master_fixed(bench: Bench) -> str:
    """Refuse to change or copy a master key."""
    master = bench.master()

    def change() -> None:
        master[Attribute.DECRYPT] = True

    return f"{refused(change)}, {refused(lambda: master.copy({Attribute.DECRYPT: True}))}"


def master_only_wraps(bench: Bench) -> str:
    """Refuse to encrypt with a master key, and to wrap by anything but AES-KW."""
    master = bench.master()
    key = bench.sealing_key()
    other = refused(lambda: master.wrap_key(key, mechanism=Mechanism.AES_ECB))
    return f"{refused(lambda: master.encrypt(KNOWN, mechanism=Mechanism.AES_ECB))}, {other}"


def unwrap_template(bench: Bench) -> str:
    """Unwrap nothing under a master key that could be read afterwards."""
    master = bench.master()
    wrapped = wrapped_key(bench, master)
    return refused(lambda: bench.unwrapped(master, wrapped, SENSITIVE=False)[Attribute.VALUE])


# Block keys -----------------------------------------------------------------------------------------------


def block_key(bench: Bench) -> str:
    """Make a block key that leaves the token only wrapped."""
    return read_back(bench, bench.sealing_key(), templates.SEALING_KEY)


def key_wrap(bench: Bench) -> str:
    """Wrap a known key by AES-KW (RFC 3394) under another."""
    wrapping = bench.known_key(KeyType.AES, Attribute.WRAP)
    target = bench.known_key(KeyType.AES, Attribute.EXTRACTABLE)
    wrapped = bytes(wrapping.wrap_key(target, mechanism=Mechanism.AES_KEY_WRAP))
    same(wrapped, aes_key_wrap(KNOWN, KNOWN), "the wrapped key")
    return f"{len(wrapped)} bytes"


def unwrapping(bench: Bench) -> str:
    """Unwrap a block key into one that only decrypts, and open with it what it sealed before."""
    master, key = bench.master(), bench.sealing_key()
    parameters = GCMParams(NONCE, DATA)
    sealed = key.encrypt(KNOWN, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    again = bench.unwrapped(master, bytes(master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)))
    found = read_back(bench, again, templates.OPENING_KEY)
    same(again.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=parameters), KNOWN, "what it opens")
    return found


def value_length(bench: Bench) -> str:
    """Whether CKA_VALUE_LEN may stand in the template of an unwrapped key; the product leaves it out."""
    master = bench.master()
    wrapped = wrapped_key(bench, master)
    try:
        bench.unwrapped(master, wrapped, VALUE_LEN=32)
    except ERRORS as error:
        return f"forbidden ({name_of(error)})"
    return "allowed"


def gcm(bench: Bench) -> str:
    """Seal by AES-256-GCM with a nonce that the caller gives, 16 bytes of tag, and additional data."""
    key = bench.known_key(KeyType.AES, Attribute.ENCRYPT)
    sealed = bytes(key.encrypt(KNOWN, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(NONCE, DATA)))
    same(sealed, AESGCM(KNOWN).encrypt(NONCE, KNOWN, DATA), "the sealed segment")
    return "nonce of the caller"


def destroyed_key(bench: Bench) -> str:
    """Refuse a key that was destroyed, as handles that were lost."""
    key = bench.sealing_key()
    parameters = GCMParams(NONCE, DATA)
    key.encrypt(KNOWN, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    key.destroy()
    use = {"mechanism": Mechanism.AES_GCM, "mechanism_param": parameters}
    return refused(lambda: key.encrypt(KNOWN, **use), Fault.SESSION)


# Altered blobs --------------------------------------------------------------------------------------------


def altered_segment(bench: Bench) -> str:
    """Refuse a segment of which a bit was changed, as something that may be the record's fault."""
    key = bench.known_key(KeyType.AES, Attribute.DECRYPT)
    sealed = bytearray(AESGCM(KNOWN).encrypt(NONCE, KNOWN, DATA))
    sealed[5] ^= 1
    use = {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(NONCE, DATA)}
    return refused(lambda: key.decrypt(bytes(sealed), **use), Fault.RECORD)


def altered_key(bench: Bench) -> str:
    """Refuse a wrapped key of which a bit was changed, as something that may be the record's fault."""
    master = bench.master()
    wrapped = bytearray(wrapped_key(bench, master))
    wrapped[5] ^= 1
    return refused(lambda: bench.unwrapped(master, bytes(wrapped)), Fault.RECORD)


# Other keys -----------------------------------------------------------------------------------------------


def hmac_sha256(bench: Bench) -> str:
    """Sign by HMAC-SHA256 with a generic secret that was brought here."""
    key = bench.known_key(KeyType.GENERIC_SECRET, Attribute.SIGN)
    found = bytes(key.sign(DATA, mechanism=Mechanism.SHA256_HMAC))
    same(found, hmac.digest(KNOWN, DATA, "sha256"), "the tag")
    return "CKK_GENERIC_SECRET"


def ecdsa(bench: Bench) -> str:
    """Make an EC P-256 pair and sign a digest with it."""
    curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    domain = bench.session.create_domain_parameters(KeyType.EC, curve, local=True)
    flags = MechanismFlag.SIGN | MechanismFlag.VERIFY
    private_template = {**templates.AUDIT_PRIVATE, **SESSION_ONLY}
    public, private = domain.generate_keypair(capabilities=flags, private_template=private_template)
    digest = hashlib.sha256(DATA).digest()
    signature = bytes(private.sign(digest, mechanism=Mechanism.ECDSA))
    key = load_pem_public_key(objects.public_pem(public))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Unfit("the public key is of another kind")
    numbers = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(encode_dss_signature(*numbers), digest, ec.ECDSA(Prehashed(SHA256())))
    except InvalidSignature as error:
        raise Unfit("its signature does not verify") from error
    return f"{len(signature)} bytes"


def cmac(bench: Bench) -> str:
    """Whether there is AES-CMAC; the product makes its check values by wrapping."""
    key = bench.known_key(KeyType.AES, Attribute.SIGN)
    return f"{len(key.sign(DATA, mechanism=Mechanism.AES_CMAC))} bytes"


def data_object(bench: Bench) -> str:
    """Keep a data object, as the one in which the token remembers the store."""
    template = {**anchor.anchor_template(anchor.NOTHING), **SESSION_ONLY}
    made = bench.session.create_object(template)
    same(bytes(made[Attribute.VALUE]), template[Attribute.VALUE], "its value")
    return f"{len(template[Attribute.VALUE])} bytes"


def read_only(bench: Bench) -> str:
    """Refuse to make a token object in the session of the service, which is read-only."""

    def make() -> None:
        made = bench.session.generate_key(KeyType.AES, 256, store=True, label="hsmkme-check")
        made.destroy()

    return refused(make)


@dataclass(frozen=True, slots=True)
class Probe:
    """``needed``: the product cannot use a token without it."""

    name: str
    try_on: Callable[[Bench], str]
    needed: bool = True


PROBES: Final = (
    Probe("master key made", master_template),
    Probe("master key does not leave", master_stays),
    Probe("master key does not change", master_fixed),
    Probe("master key only wraps, by AES-KW", master_only_wraps),
    Probe("unwrapped keys stay secret", unwrap_template),
    Probe("block key made", block_key),
    Probe("AES-KW", key_wrap),
    Probe("block key unwrapped", unwrapping),
    Probe("VALUE_LEN at unwrapping", value_length, needed=False),
    Probe("AES-GCM", gcm),
    Probe("altered segment refused", altered_segment),
    Probe("altered wrapped key refused", altered_key),
    Probe("destroyed key refused", destroyed_key),
    Probe("HMAC-SHA256", hmac_sha256),
    Probe("ECDSA P-256", ecdsa),
    Probe("AES-CMAC", cmac, needed=False),
    Probe("data object kept", data_object),
    Probe("read-only sessions", read_only),
)
