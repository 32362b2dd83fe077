"""What a listener is: addresses, certificate, whom it lets in, what it may use. One value for SAEs, one for peers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from hsmkme.config import Config


@dataclass(frozen=True, slots=True)
class Listener:
    """A TLS listener of section ``section``, whose clients are of the CAs in ``ca`` and not revoked by ``crl``.

    ``plain`` are addresses without TLS: for the proxies at ``trusted`` addresses, and Unix sockets. ``waiting`` is
    how many requests a worker takes on at a time.
    """

    section: str
    bind: tuple[str, ...]
    certificate: Path
    key: Path
    ca: Path
    crl: Path | None
    workers: int
    waiting: int
    max_body_bytes: int
    certificate_required: bool
    minimum_version: ssl.TLSVersion
    plain: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files that its TLS is made of."""
        given = (self.certificate, self.key, self.ca, self.crl)
        return [path for path in given if path is not None]


def listener_for_saes(config: Config) -> Listener:
    """The listener of ``[server]``, with that of ``[proxy]``: TLS 1.2 or 1.3.

    A client without certificate gets through the handshake and then a 401 that says so (point 11); one whose
    certificate is not of ``sae_ca`` does not.
    """
    section = config.server
    return Listener(
        section="server",
        bind=tuple(section.bind),
        certificate=section.certificate,
        key=section.key,
        ca=section.sae_ca,
        crl=section.sae_crl,
        workers=section.workers,
        waiting=config.fair_use.waiting,
        max_body_bytes=section.max_body_bytes,
        certificate_required=False,
        minimum_version=ssl.TLSVersion.TLSv1_2,
        plain=tuple(config.proxy.bind),
        trusted=tuple(config.proxy.trusted),
    )


def listener_for_peers(config: Config) -> Listener:
    """The listener of ``[peering]``: TLS 1.3, nobody without certificate, no proxy.

    Raises `ConfigRefused` without that section.
    """
    section = config.required_peering()
    return Listener(
        section="peering",
        bind=tuple(section.bind),
        certificate=section.certificate,
        key=section.key,
        ca=section.ca,
        crl=section.crl,
        workers=section.workers,
        waiting=config.fair_use.waiting,
        max_body_bytes=section.max_body_bytes,
        certificate_required=True,
        minimum_version=ssl.TLSVersion.TLSv1_3,
    )
