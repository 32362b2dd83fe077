"""The template of every object the product makes, and the comparison of what the token made of it.

One object has one role. A wrapping key never decrypts: with default attributes, code that knows the
PIN could set DECRYPT on it and read everything; MODIFIABLE, COPYABLE, ALLOWED_MECHANISMS and
UNWRAP_TEMPLATE stop that, and each is read back after creation and whenever the object is found.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.attributes import AttributeMapper

from hsmkme.errors import OperatorFault
from hsmkme.hsm.cryptoki import Cryptoki, PackedTemplate

Template = dict[Attribute, Any]

A = Attribute

_CAPABILITIES: Final = (A.ENCRYPT, A.DECRYPT, A.WRAP, A.UNWRAP, A.SIGN, A.VERIFY, A.DERIVE)


def _role(*capabilities: Attribute) -> Template:
    """Exactly these capabilities, every other one off."""
    return {capability: capability in capabilities for capability in _CAPABILITIES}


def _secret(*, token: bool, extractable: bool) -> Template:
    return {
        A.TOKEN: token,
        A.PRIVATE: True,
        A.SENSITIVE: True,
        A.EXTRACTABLE: extractable,
        A.MODIFIABLE: False,
        A.COPYABLE: False,
    }


# What the master key may unwrap: secret AES session keys that wrap nothing themselves.
UNWRAPPED_FORM: Final[Mapping[Attribute, Any]] = {
    A.CLASS: ObjectClass.SECRET_KEY,
    A.KEY_TYPE: KeyType.AES,
    A.TOKEN: False,
    A.PRIVATE: True,
    A.SENSITIVE: True,
    A.WRAP: False,
    A.UNWRAP: False,
}

MASTER: Final[Template] = {
    **_role(A.WRAP, A.UNWRAP),
    **_secret(token=True, extractable=False),
    A.ALLOWED_MECHANISMS: (Mechanism.AES_KEY_WRAP,),
    A.UNWRAP_TEMPLATE: UNWRAPPED_FORM,
}

# A master key that has a backup leaves the token wrapped under a trusted key, which only the security officer can make.
BACKED_MASTER: Final[Template] = {**MASTER, A.EXTRACTABLE: True, A.WRAP_WITH_TRUSTED: True}

# That key. TRUSTED is given in a login of the security officer alone, who sees no private object: so it is not one.
BACKUP_KEY: Final[Template] = {
    A.KEY_TYPE: KeyType.AES,
    **_role(A.WRAP),
    **_secret(token=False, extractable=False),
    A.PRIVATE: False,
    A.TRUSTED: True,
    A.ALLOWED_MECHANISMS: (Mechanism.AES_KEY_WRAP,),
}

DIGEST: Final[Template] = {
    **_role(A.SIGN),
    **_secret(token=True, extractable=False),
    A.ALLOWED_MECHANISMS: (Mechanism.SHA256_HMAC,),
}

# The key that both ends of a link share; its value comes from outside, so the token says less of its past.
LINK: Final[Template] = {
    A.KEY_TYPE: KeyType.GENERIC_SECRET,
    **_role(A.SIGN),
    **_secret(token=True, extractable=False),
    A.ALLOWED_MECHANISMS: (Mechanism.SHA256_HMAC,),
}

# The key that a device wraps its keys under before it deposits them; its value comes from outside too.
TRANSPORT: Final[Template] = {
    A.KEY_TYPE: KeyType.AES,
    **_role(A.UNWRAP),
    **_secret(token=True, extractable=False),
    A.ALLOWED_MECHANISMS: (Mechanism.AES_KEY_WRAP,),
    A.UNWRAP_TEMPLATE: UNWRAPPED_FORM,
}

# The key that the tokens of one KME share: block keys are wrapped under it on their way from one to another.
BRIDGE: Final[Template] = {**TRANSPORT, **_role(A.WRAP, A.UNWRAP)}

AUDIT_PRIVATE: Final[Template] = {
    **{capability: capability is A.SIGN for capability in (A.DECRYPT, A.UNWRAP, A.SIGN, A.SIGN_RECOVER, A.DERIVE)},
    **_secret(token=True, extractable=False),
    A.ALLOWED_MECHANISMS: (Mechanism.ECDSA,),
}

AUDIT_PUBLIC: Final[Template] = {
    **{capability: capability is A.VERIFY for capability in (A.ENCRYPT, A.WRAP, A.VERIFY, A.VERIFY_RECOVER, A.DERIVE)},
    A.TOKEN: True,
    A.PRIVATE: False,
    A.MODIFIABLE: False,
    A.COPYABLE: False,
}

# A block key while a block is sealed: encrypts, and may leave the token only wrapped.
SEALING_KEY: Final[Template] = {**_role(A.ENCRYPT), **_secret(token=False, extractable=True)}

# The same key while keys of the block are opened: decrypts, and leaves the token in no form.
# SoftHSM cannot unwrap into an unmodifiable object; SENSITIVE and EXTRACTABLE never relax in any case.
OPENING_KEY: Final[Template] = {
    kind: value
    for kind, value in {**_role(A.DECRYPT), **_secret(token=False, extractable=False)}.items()
    if kind is not A.MODIFIABLE
}

# The same key while it moves to another master key: does nothing, and may leave the token only wrapped.
MOVING_KEY: Final[Template] = {
    kind: value
    for kind, value in {**_role(), **_secret(token=False, extractable=True)}.items()
    if kind is not A.MODIFIABLE
}

# What the token alone can say of a key it made itself.
MADE_HERE: Final[Template] = {A.LOCAL: True, A.NEVER_EXTRACTABLE: True, A.ALWAYS_SENSITIVE: True}

# What it says of a key it made itself that may leave it, wrapped.
MADE_TO_LEAVE: Final[Template] = {**MADE_HERE, A.NEVER_EXTRACTABLE: False}

# What it says of a key that was brought to it.
BROUGHT_HERE: Final[Template] = {A.LOCAL: False, A.NEVER_EXTRACTABLE: False, A.ALWAYS_SENSITIVE: False}


def mapper() -> AttributeMapper:
    """The binding's attribute mapper with the three array-valued attributes it lacks."""
    known = AttributeMapper()

    def pack_template(template: Mapping[Attribute, Any]) -> bytes:
        packed = PackedTemplate({int(kind): known.pack_attribute(kind, v) for kind, v in template.items()})
        kept.append(packed)
        return bytes(packed)

    kept: list[PackedTemplate] = []  # the module reads through these pointers during C_GenerateKey
    known.register_handler(A.UNWRAP_TEMPLATE, pack_template, bytes)
    known.register_handler(A.ALLOWED_MECHANISMS, _pack_mechanisms, _unpack_mechanisms)
    return known


def _pack_mechanisms(mechanisms: tuple[Mechanism, ...]) -> bytes:
    return struct.pack(f"@{len(mechanisms)}L", *(int(mechanism) for mechanism in mechanisms))


def _unpack_mechanisms(raw: bytes) -> tuple[Mechanism, ...]:
    return tuple(Mechanism(code) for code in struct.unpack(f"@{len(raw) // 8}L", raw))


def form_of(found: Any, template: Template) -> Template:
    """The attributes that the object ``found`` must have: ``template``, or the other form of a master key."""
    return BACKED_MASTER if template is MASTER and found[A.WRAP_WITH_TRUSTED] else template


def verify_object(label: str, found: Any, expected: Template, cryptoki: Cryptoki) -> None:
    """Read every attribute of ``expected`` back from the object ``found`` and compare.

    Raises `OperatorFault` naming the attributes that differ: such an object was not made by a ceremony.
    """
    flat = {kind: value for kind, value in expected.items() if kind is not A.UNWRAP_TEMPLATE}
    actual = found.get_attributes(list(flat))
    wrong = [kind.name for kind, value in flat.items() if actual.get(kind) != value]
    if A.UNWRAP_TEMPLATE in expected and _nested(found, cryptoki) != dict(UNWRAPPED_FORM):
        wrong.append(A.UNWRAP_TEMPLATE.name)
    refuse_differing(label, wrong)


def refuse_differing(label: str, wrong: Sequence[str]) -> None:
    """Raise `OperatorFault` naming the attributes that are ``wrong``, if any are."""
    if wrong:
        raise OperatorFault(
            f"token object {label!r} does not have the attributes a ceremony gives it: "
            f"{', '.join(sorted(wrong))} differ. Do not use this token until an officer has looked at it."
        )


def _nested(found: Any, cryptoki: Cryptoki) -> dict[Attribute, Any]:
    raw = cryptoki.nested_template(found.session.handle, found.handle, int(A.UNWRAP_TEMPLATE))
    known = AttributeMapper()
    return {A(kind): known.unpack_attributes(A(kind), value) for kind, value in raw.items()}
