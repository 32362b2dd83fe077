"""The client certificate of a request: from our own TLS, or from a proxy that the configuration trusts.

TLS verified it when the connection began; whether it still holds is asked in `leaves`, on every request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from hsmkme.config import ProxySection, ServerSection
from hsmkme.errors import NotEntitled
from hsmkme.policy import NOT_AUTHORISED

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often the revocation list is looked at."""

PROXIED: Final = "hsmkme.proxied"
"""Set in the WSGI environment by the server for connections of a trusted proxy, and by nobody else."""

CERTIFICATE_REQUIRED: Final = "a client certificate is required"

_PEM_END: Final = b"-----END X509 CRL-----"


def certificate_of(environ: Mapping[str, Any]) -> bytes | None:
    """The certificate, DER, that TLS of our own verified for the request's connection; None without one."""
    getpeercert = getattr(environ.get("gunicorn.socket"), "getpeercert", None)
    der = getpeercert(binary_form=True) if getpeercert is not None else None
    return bytes(der) if der else None


class Certificates:
    """Gives verified client certificates, DER."""

    def __init__(self, server: ServerSection, proxy: ProxySection) -> None:
        self._header = "HTTP_" + proxy.header.upper().replace("-", "_")
        authorities = x509.load_pem_x509_certificates(server.sae_ca.read_bytes()) if proxy.bind else []
        self._proxied = PolicyBuilder().store(Store(authorities)) if authorities else None

    def of(self, environ: Mapping[str, Any]) -> bytes:
        """The certificate of the request; raises `NotEntitled` (SAE-CERT-1)."""
        if environ.get(PROXIED):
            return self._from_proxy(environ.get(self._header, ""))
        der = certificate_of(environ)
        if der is None:
            raise NotEntitled(CERTIFICATE_REQUIRED, rule="SAE-CERT-1")
        return der

    def _from_proxy(self, header: str) -> bytes:
        """What the proxy says it verified, verified again: it may be set up to pass on anything."""
        if not header or self._proxied is None:
            raise NotEntitled(CERTIFICATE_REQUIRED, rule="SAE-CERT-1")
        verifier = self._proxied.build_client_verifier()  # made anew: it keeps the time at which it was made
        try:
            certificate = x509.load_pem_x509_certificate(unquote(header).encode("ascii"))
            verifier.verify(certificate, [])
        except (ValueError, VerificationError):
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-1") from None
        return certificate.public_bytes(serialization.Encoding.DER)


class RevocationList:
    """The certificates that the file at ``path`` revokes; read again within a second when it changes.

    A file that cannot be read changes nothing: what was revoked stays revoked.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._seen = path.stat().st_mtime_ns
        self._revoked = _read(path)

    def has(self, issuer: bytes, serial_number: int) -> bool:
        """Whether the certificate of ``issuer`` (its name, DER) with this number is revoked now."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = self._clock()
            self._reload_if_changed()
        return (issuer, serial_number) in self._revoked

    def _reload_if_changed(self) -> None:
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._seen:
                self._revoked = _read(self._path)
                self._seen = stamp
                log.info("revocation list %s read: %d certificates", self._path, len(self._revoked))
        except (OSError, ValueError) as error:
            log.error("revocation list %s cannot be read, the one read before stays: %s", self._path, error)


def _read(path: Path) -> frozenset[tuple[bytes, int]]:
    """Issuer and serial number of every certificate in the PEM lists at ``path``."""
    lists = [x509.load_pem_x509_crl(part + _PEM_END) for part in path.read_bytes().split(_PEM_END)[:-1]]
    if not lists:
        raise ValueError("it holds no PEM revocation list")
    return frozenset((crl.issuer.public_bytes(), entry.serial_number) for crl in lists for entry in crl)
