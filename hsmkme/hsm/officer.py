"""What creates token objects: read-write sessions, for ceremonies only.

The service never imports this module (a test watches). Every object made is read back and compared;
one that differs is destroyed before anything could be put under it.
"""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Sequence
from typing import Any, Final

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from hsmkme.errors import OperatorFault
from hsmkme.hsm import templates
from hsmkme.hsm.anchor import ANCHOR_LABEL, NOTHING, anchor_template, anchored
from hsmkme.hsm.cryptoki import Cryptoki
from hsmkme.hsm.faults import translated
from hsmkme.hsm.module import load_module
from hsmkme.hsm.objects import (
    AUDIT_LABEL,
    DIGEST_LABEL,
    LINK_KEY_BYTES,
    check_value,
    link_check_value,
    link_label,
    master_label,
)
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource, Sessions, find_token, login_turn
from hsmkme.model import KeyMaterial

_SHOWN: Final = (
    Attribute.LOCAL,
    Attribute.NEVER_EXTRACTABLE,
    Attribute.ALWAYS_SENSITIVE,
    Attribute.EXTRACTABLE,
    Attribute.MODIFIABLE,
    Attribute.COPYABLE,
    Attribute.ALLOWED_MECHANISMS,
)

Evidence = dict[str, object]
"""Attributes of a new object as read back, fit for a transcript."""


def initialise_token(address: TokenAddress, so_pin: PinSource, user_pin: PinSource) -> str:
    """Initialise a free slot as the token ``address.label`` and set both PINs; returns the serial number.

    Refuses if a token of that label exists: initialising erases.
    """
    with login_turn(address), translated("initialising the token"):
        module = load_module(address)
        cryptoki = Cryptoki(str(address.module))
        slot = _free_slot(module, address.label)
        cryptoki.init_token(slot, so_pin(), address.label)
        module.reinitialize()
        token = find_token(module, address)
        session = token.open(rw=True, so_pin=so_pin())
        session.init_pin(user_pin())
        session.close()
        serial = token.serial.decode()
        module.finalize()
    return str(serial)


def _free_slot(module: Any, label: str) -> int:
    slots = {slot.slot_id: slot.get_token() for slot in module.get_slots(token_present=True)}
    if any(token.label == label for token in slots.values()):
        raise OperatorFault(f"a token labelled {label!r} exists already; initialising would erase it")
    free = [slot_id for slot_id, token in slots.items() if not token.label]
    if not free:
        raise OperatorFault("no slot holds an uninitialised token")
    return int(free[0])


def joined(components: Sequence[KeyMaterial]) -> KeyMaterial:
    """The XOR of ``components`` of 32 bytes each, at least one: who lacks one of them knows nothing of it.

    Raises `OperatorFault` for another length, and for one component given twice: it would cancel itself out.
    """
    values = [component.reveal() for component in components]
    if not values or any(len(value) != LINK_KEY_BYTES for value in values):
        raise OperatorFault(f"a link key is made of one or more components of {LINK_KEY_BYTES} bytes each")
    if any(hmac.compare_digest(one, other) for one, other in itertools.combinations(values, 2)):
        raise OperatorFault("two components are the same: they would cancel each other out")
    result = bytes(LINK_KEY_BYTES)
    for value in values:
        result = bytes(one ^ other for one, other in zip(result, value, strict=True))
    if not any(result):
        raise OperatorFault("the components cancel each other out")
    return KeyMaterial(result)


class Officer:
    """A read-write login on the token at ``address``."""

    def __init__(self, address: TokenAddress, user_pin: PinSource) -> None:
        self._sessions = Sessions(address, user_pin, writable=True)

    def close(self) -> None:
        """Log out."""
        self._sessions.close()

    def describe_token(self) -> Evidence:
        """Which token this is, as it says of itself."""
        with translated("reading the token"), self._sessions.lane() as lane:
            token = lane.session.token
            return {
                "label": token.label,
                "serial": token.serial.decode(),
                "manufacturer": token.manufacturer_id,
                "model": token.model,
                "firmware": ".".join(map(str, token.firmware_version)),
            }

    def make_master(self, epoch: int) -> Evidence:
        """Generate the master key of ``epoch``."""
        return self._generate_master(epoch, templates.MASTER, templates.MADE_HERE)

    def _generate_master(self, epoch: int, template: templates.Template, origin: templates.Template) -> Evidence:
        with translated(f"making {master_label(epoch)}"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, master_label(epoch))
            key = lane.session.generate_key(
                KeyType.AES,
                256,
                label=master_label(epoch),
                id=master_label(epoch).encode(),
                store=True,
                capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
                template=template,
            )
            evidence = self._verified(master_label(epoch), [key], template, origin)
            return {**evidence, "check_value": check_value(lane.session, key)}

    def make_digest_key(self) -> Evidence:
        """Generate the HMAC key that finds bytes deposited twice."""
        with translated("making the digest key"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, DIGEST_LABEL)
            key = lane.session.generate_key(
                KeyType.GENERIC_SECRET,
                256,
                label=DIGEST_LABEL,
                id=DIGEST_LABEL.encode(),
                store=True,
                capabilities=MechanismFlag.SIGN,
                template=templates.DIGEST,
            )
            return self._verified(DIGEST_LABEL, [key], templates.DIGEST)

    def make_anchor(self) -> Evidence:
        """Make the data object in which the token remembers the store; it says of none yet."""
        with translated("making the anchor"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, ANCHOR_LABEL)
            lane.session.create_object(anchor_template(NOTHING))
            if anchored(lane.session) != NOTHING:
                raise OperatorFault("the token does not keep what is written into a data object")
            return {"label": ANCHOR_LABEL}

    def make_audit_key(self) -> Evidence:
        """Generate the EC P-256 pair that signs seals of the audit log."""
        with translated("making the audit key"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, AUDIT_LABEL)
            curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            domain = lane.session.create_domain_parameters(KeyType.EC, curve, local=True)
            public, private = domain.generate_keypair(
                label=AUDIT_LABEL,
                id=AUDIT_LABEL.encode(),
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template=templates.AUDIT_PRIVATE,
                public_template=templates.AUDIT_PUBLIC,
            )
            return self._verified(AUDIT_LABEL, [private, public], templates.AUDIT_PRIVATE)

    def make_link_key(self, link_id: str, value: KeyMaterial) -> Evidence:
        """Bring the key of the link ``link_id`` into the token: ``value``, 32 bytes, the same at both ends."""
        label, secret = link_label(link_id), value.reveal()
        if len(secret) != LINK_KEY_BYTES:
            raise OperatorFault(f"a link key has {LINK_KEY_BYTES} bytes")
        with translated(f"bringing {label}"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, label)
            identity = {Attribute.LABEL: label, Attribute.ID: label.encode(), Attribute.VALUE: secret}
            key = lane.session.create_object(
                {Attribute.CLASS: ObjectClass.SECRET_KEY, **templates.LINK, **identity}
            )
            length = {Attribute.VALUE_LEN: LINK_KEY_BYTES}
            evidence = self._verified(label, [key], {**templates.LINK, **length}, templates.BROUGHT_HERE)
            return {**evidence, "check_value": link_check_value(key, link_id)}

    def _refuse_existing(self, session: Any, label: str) -> None:
        if any(session.get_objects({Attribute.LABEL: label, Attribute.TOKEN: True})):
            raise OperatorFault(f"the token already has an object labelled {label!r}; nothing was made")

    def _verified(
        self,
        label: str,
        made: list[Any],
        template: templates.Template,
        origin: templates.Template = templates.MADE_HERE,
    ) -> Evidence:
        """Read the first of ``made`` back and compare; on any difference destroy all of them."""
        key = made[0]
        try:
            templates.verify_object(label, key, {**template, **origin}, self._sessions.cryptoki)
        except OperatorFault:
            for unfit in made:
                unfit.destroy()
            raise
        shown = key.get_attributes(list(_SHOWN))
        return {"label": label, **{kind.name: _plain(shown[kind]) for kind in _SHOWN}}


def _plain(value: object) -> object:
    return [mechanism.name for mechanism in value] if isinstance(value, tuple) else value
