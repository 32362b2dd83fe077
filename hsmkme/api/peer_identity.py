"""From the client certificate of a KME to its id: SAN URI ``urn:qkd:kme:<id>``. Decided anew on every request.

No body and no header says who a peer is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509

from hsmkme.api.certificates import CERTIFICATE_REQUIRED, RevocationList, certificate_of
from hsmkme.api.leaves import Leaves, Rules, alternative_names
from hsmkme.config import Config
from hsmkme.errors import NotEntitled
from hsmkme.model import Clock

URI_PREFIX: Final = "urn:qkd:kme:"
NO_PEER: Final = "the KME is not authorised"

_RULES: Final = Rules(
    one_name="PEER-CERT-2",
    no_authority="PEER-CERT-3",
    not_revoked="PEER-CERT-4",
    in_time="PEER-CERT-5",
    message=NO_PEER,
)


class PeerCallers:
    """Reads the ids of peers from certificates. Raises `ConfigRefused` without ``[peering]``.

    ``wall`` is the time of day, in seconds since 1970, UTC; ``clock`` says when to look at the revocation list.
    """

    def __init__(self, config: Config, wall: Clock, clock: Clock = time.monotonic) -> None:
        self._known = frozenset(peer.id for peer in config.peer)
        crl = config.required_peering().crl
        self._leaves = Leaves(_RULES, kme_names, wall, RevocationList(crl, clock) if crl is not None else None)

    def of(self, environ: Mapping[str, Any]) -> str:
        """The id of the peer that sent the request; raises `NotEntitled` (PEER-CERT-1 … 5, PEER-ID-1)."""
        der = certificate_of(environ)
        if der is None:
            raise NotEntitled(CERTIFICATE_REQUIRED, rule="PEER-CERT-1")
        kme_id = self._leaves.owner(der)
        if kme_id not in self._known:
            raise NotEntitled(NO_PEER, rule="PEER-ID-1")
        return kme_id


def kme_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The KME ids in the certificate's SAN; none if a URI of another kind stands beside them."""
    names = alternative_names(certificate)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if not all(uri.startswith(URI_PREFIX) for uri in uris):
        return ()
    return tuple(uri.removeprefix(URI_PREFIX) for uri in uris)
