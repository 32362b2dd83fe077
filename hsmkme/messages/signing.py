"""The form of a message of kme-peer/1: its headers, and what its signature and that of its answer cover.

Signatures have the form of RFC 9421, digests that of RFC 9530; the HMAC is made by the token key ``link/<id>``,
which both ends hold. A message is accepted in exactly the form that this module writes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.errors import PeerRefused

PREFIX: Final = "/kme-peer/v1/"
FIELDS: Final = ("Content-Digest", "KME-ID", "KME-Seq", "KME-Incarnation", "Signature-Input", "Signature")
"""The headers of a message."""

VERSION: Final = "kme-peer/1"
LIFE_SECONDS: Final = 30
"""How long a message may be under way."""

SKEW_SECONDS: Final = 30
"""By how much the clocks of two KMEs may differ."""

_INPUT: Final = re.compile(
    r'kme=\("@method" "@path" "content-digest" "kme-id" "kme-seq" "kme-incarnation"\)'
    r';expires=(\d{1,12});nonce="([0-9a-f-]{36})";keyid="link/([A-Za-z0-9._-]{1,64})";alg="hmac-sha256"'
)
_ANSWER: Final = '("@status" "content-digest" "signature";req;key="kme")'
_SEQ: Final = re.compile(r"\d{1,18}")
_INCARNATION: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every message carries: of which link, from whom, which one it is; ``expires`` in seconds since the epoch."""

    link_id: str
    sender: str
    txid: UUID
    seq: int
    incarnation: str
    expires: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is signed when it is sent: ``call`` such as ``keys/assign``, ``body`` JSON."""

    call: str
    envelope: Envelope
    body: bytes

    def headers(self) -> dict[str, str]:
        """The headers that the signature covers, and the one that says so."""
        envelope = self.envelope
        return {
            "Content-Digest": content_digest(self.body),
            "KME-ID": envelope.sender,
            "KME-Seq": str(envelope.seq),
            "KME-Incarnation": envelope.incarnation,
            "Signature-Input": "kme=" + self._parameters(),
        }

    def covered(self) -> bytes:
        """The signature base (RFC 9421 §2.5)."""
        envelope = self.envelope
        lines = (
            '"@method": POST',
            f'"@path": {PREFIX}{self.call}',
            f'"content-digest": {content_digest(self.body)}',
            f'"kme-id": {envelope.sender}',
            f'"kme-seq": {envelope.seq}',
            f'"kme-incarnation": {envelope.incarnation}',
            f'"@signature-params": {self._parameters()}',
        )
        return "\n".join(lines).encode()

    def _parameters(self) -> str:
        envelope = self.envelope
        return (
            '("@method" "@path" "content-digest" "kme-id" "kme-seq" "kme-incarnation")'
            f';expires={envelope.expires};nonce="{envelope.txid}";keyid="link/{envelope.link_id}";alg="hmac-sha256"'
        )


def received(call: str, headers: Mapping[str, str], body: bytes) -> tuple[Message, bytes]:
    """The message with these headers, and its signature, which nobody has checked yet.

    Raises `PeerRefused` unless it has exactly the form of this module.
    """
    found = _INPUT.fullmatch(headers.get("Signature-Input", ""))
    seq, incarnation = headers.get("KME-Seq", ""), headers.get("KME-Incarnation", "")
    if found is None or not _SEQ.fullmatch(seq) or not _INCARNATION.fullmatch(incarnation):
        raise PeerRefused("the message does not carry the fields of kme-peer/1", alarm=False)
    expires, nonce, link_id = found.groups()
    try:
        txid = UUID(nonce)
    except ValueError:
        raise PeerRefused("the nonce of the message is no UUID", alarm=False) from None
    envelope = Envelope(link_id, headers.get("KME-ID", ""), txid, int(seq), incarnation, int(expires))
    message = Message(call, envelope, body)
    if headers.get("Content-Digest") != content_digest(body):
        raise PeerRefused("the body is not the one that the digest is of", alarm=True)
    return message, signature_of(headers)


def answer_parameters(link_id: str) -> str:
    """The value of ``Signature-Input`` of an answer, after its label."""
    return f'{_ANSWER};keyid="link/{link_id}";alg="hmac-sha256"'


def answer_covered(link_id: str, status: int, body: bytes, request_signature: bytes) -> bytes:
    """The signature base of an answer: it belongs to one request, whose signature it covers."""
    lines = (
        f'"@status": {status}',
        f'"content-digest": {content_digest(body)}',
        f'"signature";req;key="kme": {_item(request_signature)}',
        f'"@signature-params": {answer_parameters(link_id)}',
    )
    return "\n".join(lines).encode()


def signature_header(mac: bytes) -> str:
    """The ``Signature`` header."""
    return f"kme={_item(mac)}"


def signature_of(headers: Mapping[str, str]) -> bytes:
    """The signature in ``headers``; empty if there is none."""
    text = headers.get("Signature", "")
    if not (text.startswith("kme=:") and text.endswith(":")):
        return b""
    try:
        return base64.b64decode(text[5:-1], validate=True)
    except binascii.Error:
        return b""


def content_digest(body: bytes) -> str:
    """The ``Content-Digest`` header of ``body``."""
    return f"sha-256={_item(hashlib.sha256(body).digest())}"


def _item(value: bytes) -> str:
    return f":{base64.b64encode(value).decode()}:"


def owner_of(link_id: str, block_id: str, one: str, other: str) -> str:
    """Which of the two KMEs of a link owns a new block: the hash picks the lower or the higher id."""
    low, high = sorted((one, other))
    return high if hashlib.sha256(b"own/1" + link_id.encode() + block_id.encode()).digest()[0] & 1 else low
