"""What creates token objects: read-write sessions, for ceremonies only.

The service never imports this module (a test watches). Every object made is read back and compared;
one that differs is destroyed before anything could be put under it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from hsmkme.errors import OperatorFault
from hsmkme.hsm import templates
from hsmkme.hsm.anchor import ANCHOR_LABEL, NOTHING, anchor_template, anchored
from hsmkme.hsm.faults import translated
from hsmkme.hsm.masters import generate_master
from hsmkme.hsm.notes import note_template
from hsmkme.hsm.objects import (
    AUDIT_LABEL,
    BRIDGE_LABEL,
    DIGEST_LABEL,
    LINK_KEY_BYTES,
    check_value,
    find_object,
    link_check_value,
    link_label,
    master_label,
    public_pem,
    transport_check_value,
    transport_label,
)
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource, Sessions
from hsmkme.model import CeremonyNote, KeyMaterial

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
"""What a token object is, as read back, fit for a transcript."""


class Officer:
    """A login on the token at ``address``; read-write, unless it is only to look."""

    def __init__(self, address: TokenAddress, user_pin: PinSource, *, writable: bool = True) -> None:
        self._sessions = Sessions(address, user_pin, writable=writable)

    def close(self) -> None:
        """Log out."""
        self._sessions.close()

    def labels(self) -> list[str]:
        """The label of every object on the token, each once."""
        with translated("listing the token"), self._sessions.lane() as lane:
            return sorted({found[Attribute.LABEL] for found in lane.session.get_objects({Attribute.TOKEN: True})})

    def destroy(self, label: str) -> Evidence:
        """Destroy every object labelled ``label``, and look that none is left. None there: none was destroyed.

        Of a master key the check value is reported, so that everybody knows which one it was.
        """
        wanted = {Attribute.LABEL: label, Attribute.TOKEN: True}
        with translated(f"destroying {label}"), self._sessions.lane() as lane:
            found = list(lane.session.get_objects(wanted))
            masters = [one for one in found if label.startswith("master/") and hasattr(one, "wrap_key")]
            values = [check_value(lane.session, one) for one in masters]
            for one in found:
                one.destroy()
            if any(lane.session.get_objects(wanted)):
                raise OperatorFault(f"the token still has an object labelled {label!r} after it was destroyed")
        return {"label": label, "destroyed": len(found), **({"check_value": values[0]} if values else {})}

    def sign(self, digest: bytes) -> bytes:
        """ECDSA P-256 by the audit key over a SHA-256 digest; 64 bytes, r ‖ s."""
        with translated("signing a transcript"), self._sessions.lane() as lane:
            key = find_object(lane.session, AUDIT_LABEL, ObjectClass.PRIVATE_KEY)
            templates.verify_object(AUDIT_LABEL, key, templates.AUDIT_PRIVATE, self._sessions.cryptoki)
            return bytes(key.sign(digest, mechanism=Mechanism.ECDSA))

    def audit_public_key(self) -> bytes:
        """The public half of the audit key, PEM."""
        with translated("reading the audit key"), self._sessions.lane() as lane:
            return public_pem(find_object(lane.session, AUDIT_LABEL, ObjectClass.PUBLIC_KEY))

    def note(self, note: CeremonyNote) -> None:
        """Leave a note for the service, unless it is there already."""
        template = note_template(note)
        with translated("leaving a note"), self._sessions.lane() as lane:
            if not any(lane.session.get_objects({Attribute.LABEL: template[Attribute.LABEL]})):
                lane.session.create_object(template)

    def make_master(self, epoch: int) -> Evidence:
        """Generate the master key of ``epoch``."""
        return self._generate_master(epoch, templates.MASTER, templates.MADE_HERE)

    def _generate_master(self, epoch: int, template: templates.Template, origin: templates.Template) -> Evidence:
        with translated(f"making {master_label(epoch)}"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, master_label(epoch))
            key = generate_master(lane.session, epoch, template)
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
        return self._brought(
            link_label(link_id), value, templates.LINK, lambda key: link_check_value(key, link_id)
        )

    def make_transport_key(self, device: str, value: KeyMaterial) -> Evidence:
        """Bring the key under which ``device`` wraps what it deposits: ``value``, 32 bytes, as the device has it."""
        return self._brought(
            transport_label(device), value, templates.TRANSPORT, lambda _: transport_check_value(value.reveal())
        )

    def make_shared_key(self, label: str, value: KeyMaterial) -> Evidence:
        """Bring a key into the token that every token of a KME has: the digest key or the bridge, 32 bytes."""
        if label == BRIDGE_LABEL:
            return self._brought(label, value, templates.BRIDGE, lambda _: transport_check_value(value.reveal()))
        return self._brought(label, value, templates.LINK, lambda key: link_check_value(key, label))

    def _brought(
        self, label: str, value: KeyMaterial, template: templates.Template, check: Callable[[Any], str]
    ) -> Evidence:
        """Create the object ``label`` of a value that came from outside, read it back and make its check value."""
        secret = value.reveal()
        if len(secret) != LINK_KEY_BYTES:
            raise OperatorFault(f"{label} has {LINK_KEY_BYTES} bytes")
        with translated(f"bringing {label}"), self._sessions.lane() as lane:
            self._refuse_existing(lane.session, label)
            identity = {Attribute.LABEL: label, Attribute.ID: label.encode(), Attribute.VALUE: secret}
            key = lane.session.create_object({Attribute.CLASS: ObjectClass.SECRET_KEY, **template, **identity})
            length = {Attribute.VALUE_LEN: LINK_KEY_BYTES}
            evidence = self._verified(label, [key], {**template, **length}, templates.BROUGHT_HERE)
            return {**evidence, "check_value": check(key)}

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


def expected(label: str, kind: str = "") -> Evidence:
    """What a token will say of the object ``label`` if it is made as it must be; nothing of a check value.

    ``kind``: a master key that is to be ``backed`` up, or is ``restored``; a digest key brought as a ``link``'s.
    """
    form = _FORMS.get(kind or label.partition("/")[0])
    if form is None:
        return {"label": label}
    said = {**form[0], **form[1]}
    return {"label": label, **{shown.name: _plain(said[shown]) for shown in _SHOWN}}


_FORMS: Final = {
    "master": (templates.MASTER, templates.MADE_HERE),
    "backed": (templates.BACKED_MASTER, templates.MADE_TO_LEAVE),
    "restored": (templates.BACKED_MASTER, templates.BROUGHT_HERE),
    "digest": (templates.DIGEST, templates.MADE_HERE),
    "audit": (templates.AUDIT_PRIVATE, templates.MADE_HERE),
    "link": (templates.LINK, templates.BROUGHT_HERE),
    "transport": (templates.TRANSPORT, templates.BROUGHT_HERE),
    "bridge": (templates.BRIDGE, templates.BROUGHT_HERE),
}


def _plain(value: object) -> object:
    return [mechanism.name for mechanism in value] if isinstance(value, tuple) else value
