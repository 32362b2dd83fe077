"""The steps that ceremonies are made of. Each acts on the token, reads back what it made, and records it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hsmkme.ceremony.transcript import Transcript
from hsmkme.hsm.officer import Evidence, Officer, initialise_token, joined
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.model import KeyMaterial

Pin = Callable[[], str]
"""Gives a PIN when it is needed."""


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """What the first ceremony leaves: the token's serial number and the check value of ``master/1``."""

    serial: str
    check_value: str


def first(address: TokenAddress, so_pin: Pin, user_pin: Pin, transcript: Transcript) -> FirstKeys:
    """The first ceremony: a token, master key epoch 1, digest key, audit key, anchor.

    Order of durable acts: token initialised, PINs set, ``master/1``, ``digest``, ``audit``, ``anchor``; each is in the
    transcript after it was read back. Refuses if a token of this label exists.
    """
    transcript.record("begin", {"ceremony": "first", "label": address.label, "module": str(address.module)})
    serial = initialise_token(address, so_pin, user_pin)
    officer = Officer(address, user_pin)
    try:
        transcript.record("token", officer.describe_token())
        master = _made(transcript, "master", lambda: officer.make_master(1))
        _made(transcript, "digest", officer.make_digest_key)
        _made(transcript, "audit", officer.make_audit_key)
        _made(transcript, "anchor", officer.make_anchor)
    finally:
        officer.close()
    transcript.record("end", {"ceremony": "first"})
    return FirstKeys(serial, str(master["check_value"]))


def link(
    address: TokenAddress, user_pin: Pin, link_id: str, components: Sequence[KeyMaterial], transcript: Transcript
) -> str:
    """The ceremony of a link: its key, the XOR of ``components`` (32 bytes each), comes into the token.

    Returns the check value, which officers at both ends compare: it is the same where the keys are.
    Order of durable acts: ``link/<link_id>``, read back and compared, then the transcript. Refuses if the token
    has a key of that link. Of the components the transcript has only how many they were.
    """
    value = joined(components)
    transcript.record(
        "begin", {"ceremony": "link", "label": address.label, "link": link_id, "components": len(components)}
    )
    officer = Officer(address, user_pin)
    try:
        transcript.record("token", officer.describe_token())
        key = _made(transcript, "link", lambda: officer.make_link_key(link_id, value))
    finally:
        officer.close()
    transcript.record("end", {"ceremony": "link"})
    return str(key["check_value"])


def _made(transcript: Transcript, step: str, make: Callable[[], Evidence]) -> Evidence:
    evidence = make()
    transcript.record(step, evidence)
    return evidence
