"""From a client certificate to the id of the calling SAE. Decided anew on every request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from hsmkme.api.certificates import Certificates, RevocationList
from hsmkme.config import Config, SaeSection
from hsmkme.errors import NotEntitled
from hsmkme.policy import NOT_AUTHORISED

_KEPT: Final = 1024
_UNREADABLE: Final = (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
"""What `cryptography` raises on a certificate that OpenSSL let pass and that does not say clearly whose it is."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What matters of a certificate; ``issuer`` is its issuer's name, DER."""

    names: tuple[str, ...]
    issuer: bytes
    serial_number: int
    is_authority: bool


class Callers:
    """Reads SAE ids from certificates as ``config.sae`` says."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._section = config.sae
        self._certificates = Certificates(config.server, config.proxy)
        crl = config.server.sae_crl
        self._revoked = RevocationList(crl, clock) if crl is not None else None
        self._leaf = lru_cache(maxsize=_KEPT)(self._read)

    def of(self, environ: Mapping[str, Any]) -> str:
        """The SAE id of the request's certificate; raises `NotEntitled` (SAE-CERT-1 … 4)."""
        der = self._certificates.of(environ)
        try:
            leaf = self._leaf(der)
        except _UNREADABLE:
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-2") from None
        if leaf.is_authority:
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-3")
        if self._revoked is not None and self._revoked.has(leaf.issuer, leaf.serial_number):
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-4")
        if len(leaf.names) != 1:
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-2")
        return leaf.names[0]

    def fingerprint(self, environ: Mapping[str, Any]) -> str:
        """SHA-256 of the request's certificate, hex: who may repeat a request."""
        return hashlib.sha256(self._certificates.of(environ)).hexdigest()

    def _read(self, der: bytes) -> _Leaf:
        certificate = x509.load_der_x509_certificate(der)
        return _Leaf(
            _names(certificate, self._section),
            certificate.issuer.public_bytes(),
            certificate.serial_number,
            _is_authority(certificate),
        )


def _names(certificate: x509.Certificate, section: SaeSection) -> tuple[str, ...]:
    """Every SAE id in the configured field; exactly one is acceptable."""
    if section.identity == "cn":
        return tuple(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    if section.identity == "dns":
        return tuple(names.get_values_for_type(x509.DNSName))
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    prefix = section.uri_prefix
    return tuple(uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix))


def _is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate may itself certify others: such a one is no SAE's."""
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False
