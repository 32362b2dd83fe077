"""From a client certificate to the id of the calling SAE. Decided anew on every request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Protocol, runtime_checkable

from cryptography import x509
from cryptography.x509.oid import NameOID

from hsmkme.config import SaeSection
from hsmkme.errors import NotEntitled
from hsmkme.policy import NOT_AUTHORISED

_KEPT: Final = 1024


@runtime_checkable
class TlsConnection(Protocol):
    """What stands in the WSGI environment for the client's connection."""

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The verified client certificate, DER if ``binary_form``; None without one."""
        ...


class Callers:
    """Reads SAE ids from certificates as ``section`` says; the TLS layer has verified them by then."""

    def __init__(self, section: SaeSection) -> None:
        self._section = section
        self._names = lru_cache(maxsize=_KEPT)(self._read)

    def of(self, environ: Mapping[str, Any]) -> str:
        """The SAE id of the request's certificate; raises `NotEntitled` (SAE-CERT-1, SAE-CERT-2)."""
        connection = environ.get("gunicorn.socket")
        certificate = connection.getpeercert(binary_form=True) if isinstance(connection, TlsConnection) else None
        if not certificate:
            raise NotEntitled("a client certificate is required", rule="SAE-CERT-1")
        names = self._names(certificate)
        if len(names) != 1:
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-CERT-2")
        return names[0]

    def _read(self, certificate: bytes) -> tuple[str, ...]:
        """Every SAE id in the certificate's configured field; exactly one is acceptable."""
        parsed = x509.load_der_x509_certificate(certificate)
        if self._section.identity == "cn":
            return tuple(str(name.value) for name in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
        try:
            names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        if self._section.identity == "dns":
            return tuple(names.get_values_for_type(x509.DNSName))
        prefix = self._section.uri_prefix
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return tuple(uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix) and uri != prefix)
