"""From a client certificate to the id of the calling SAE. Decided anew on every request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from hsmkme.api.certificates import Certificates, RevocationList
from hsmkme.api.leaves import Leaves, Rules, alternative_names
from hsmkme.config import Config, SaeSection
from hsmkme.model import Clock
from hsmkme.policy import NOT_AUTHORISED

_RULES: Final = Rules(
    one_name="SAE-CERT-2",
    no_authority="SAE-CERT-3",
    not_revoked="SAE-CERT-4",
    in_time="SAE-CERT-5",
    message=NOT_AUTHORISED,
)


class Callers:
    """Reads SAE ids from certificates as ``config.sae`` says.

    ``wall`` is the time of day, in seconds since 1970, UTC; ``clock`` says when to look at the revocation list.
    """

    def __init__(self, config: Config, wall: Clock, clock: Clock = time.monotonic) -> None:
        self._certificates = Certificates(config.server, config.proxy)
        crl = config.server.sae_crl
        revoked = RevocationList(crl, clock) if crl is not None else None
        self._leaves = Leaves(_RULES, partial(_names, section=config.sae), wall, revoked)

    def of(self, environ: Mapping[str, Any]) -> str:
        """The SAE id of the request's certificate; raises `NotEntitled` (SAE-CERT-1 … 5)."""
        return self._leaves.owner(self._certificates.of(environ))

    def fingerprint(self, environ: Mapping[str, Any]) -> str:
        """SHA-256 of the request's certificate, hex: who may repeat a request."""
        return hashlib.sha256(self._certificates.of(environ)).hexdigest()


def _names(certificate: x509.Certificate, section: SaeSection) -> tuple[str, ...]:
    """Every SAE id in the configured field; exactly one is acceptable."""
    if section.identity == "cn":
        return tuple(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    names = alternative_names(certificate)
    if names is None:
        return ()
    if section.identity == "dns":
        return tuple(names.get_values_for_type(x509.DNSName))
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    prefix = section.uri_prefix
    return tuple(uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix))
