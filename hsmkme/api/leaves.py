"""What a client certificate says of its owner, and whether it still holds: the same questions of SAEs and of KMEs.

TLS verified the certificate when the connection began. What may have changed since is asked on every request: a
certificate that was revoked or that ended meanwhile is refused on connections that are open already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509

from hsmkme.api.certificates import RevocationList
from hsmkme.errors import NotEntitled
from hsmkme.model import Clock

_KEPT: Final = 1024
_UNREADABLE: Final = (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
"""What `cryptography` raises on a certificate that OpenSSL let pass and that does not say clearly whose it is."""

Names = Callable[[x509.Certificate], tuple[str, ...]]
"""Every id that a certificate gives its owner; exactly one is acceptable."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The identifiers of what a certificate must be, and what one is told whose certificate is not."""

    one_name: str
    no_authority: str
    not_revoked: str
    in_time: str
    message: str


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What matters of a certificate; ``issuer`` is its issuer's name, DER; times are in seconds since 1970, UTC."""

    names: tuple[str, ...]
    issuer: bytes
    serial_number: int
    is_authority: bool
    not_before: float
    not_after: float


class Leaves:
    """Reads whose certificates are. ``wall`` is the time of day, in seconds since 1970, UTC."""

    def __init__(self, rules: Rules, names: Names, wall: Clock, revoked: RevocationList | None = None) -> None:
        self._rules = rules
        self._names = names
        self._wall = wall
        self._revoked = revoked
        self._leaf = lru_cache(maxsize=_KEPT)(self._read)

    def owner(self, der: bytes) -> str:
        """The id in the certificate; raises `NotEntitled` unless it is good now and has exactly one."""
        rules = self._rules
        try:
            leaf = self._leaf(der)
        except _UNREADABLE:
            raise NotEntitled(rules.message, rule=rules.one_name) from None
        if leaf.is_authority:
            raise NotEntitled(rules.message, rule=rules.no_authority)
        if self._revoked is not None and self._revoked.has(leaf.issuer, leaf.serial_number):
            raise NotEntitled(rules.message, rule=rules.not_revoked)
        if not leaf.not_before <= self._wall() <= leaf.not_after:
            raise NotEntitled(rules.message, rule=rules.in_time)
        if len(leaf.names) != 1:
            raise NotEntitled(rules.message, rule=rules.one_name)
        return leaf.names[0]

    def _read(self, der: bytes) -> _Leaf:
        certificate = x509.load_der_x509_certificate(der)
        return _Leaf(
            self._names(certificate),
            certificate.issuer.public_bytes(),
            certificate.serial_number,
            _is_authority(certificate),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    """The certificate's SAN; None without one."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate may itself certify others: such a one is nobody's who calls."""
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False
