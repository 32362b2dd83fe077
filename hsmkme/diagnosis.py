"""Everything that is wrong with a KME, found at once: each check is made whatever the others find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.api.peer_identity import URI_PREFIX, kme_names
from hsmkme.config import Config
from hsmkme.errors import ConfigRefused, HsmkmeError, OperatorFault
from hsmkme.hsm.tokens import Tokens
from hsmkme.model import Link
from hsmkme.server.listener import listener_for_peers, listener_for_saes
from hsmkme.server.tls import check_files
from hsmkme.store import Store

_KEY_FORMAT: Final = PublicFormat.SubjectPublicKeyInfo


def findings(path: Path) -> list[str]:
    """One line for each thing wrong; none when the KME can be started."""
    config, wrong = configuration.examine(path)
    if config is None:
        return wrong
    files = check_files(listener_for_saes(config))
    found = (*wrong, *files, *_peering(config), *_spools(config), *_token_and_store(config))
    return list(dict.fromkeys(found))


def _peering(config: Config) -> Iterator[str]:
    if config.peering is None:
        return
    listener = listener_for_peers(config)
    wrong = check_files(listener)
    yield from wrong or _certificate_for_peers(listener.certificate, config.kme_id)
    if _authorities(config.peering.ca) & _authorities(config.server.sae_ca):
        yield f"peering: a CA of KMEs is one of SAEs too; they need different ones: {config.peering.ca}"


def _certificate_for_peers(path: Path, kme_id: str) -> Iterator[str]:
    """What our peers will refuse: they know us by one URI, as their client and as their server."""
    certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    if kme_names(certificate) != (kme_id,):
        yield f"peering: {URI_PREFIX}{kme_id} is not the one URI in the SAN of {path}"
    try:
        usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    if not usages >= {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}:
        yield f"peering: the extended key usage is not that of server and client both: {path}"


def _authorities(path: Path) -> frozenset[bytes]:
    """The public keys of the CAs at ``path``; none if it cannot be read, which `check_files` says."""
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return frozenset()
    return frozenset(one.public_key().public_bytes(Encoding.DER, _KEY_FORMAT) for one in certificates)


def _spools(config: Config) -> Iterator[str]:
    for spool in config.spool:
        if spool.directory.exists() and not spool.directory.is_dir():
            yield f"spool.directory: {spool.directory} is not a directory"


def _token_and_store(config: Config) -> Iterator[str]:
    store: list[Store] = []
    tokens = bootstrap.open_tokens(config)
    yield from _attempt("store", lambda: store.append(bootstrap.open_store(config)))
    if store:
        for link in config.links:
            yield from _attempt("store", partial(_link, store[0], link))
        yield from _attempt("clock", partial(_clock, store[0]))
        yield from _attempt("approvals", lambda: bootstrap.approvals(config, store[0]).in_force())
    for section in config.token:
        yield from _attempt("token", bootstrap.pin_source(section.pin_file))
    if store:
        yield from _attempt("token", lambda: bootstrap.custody_of(tokens, store[0]) and None)
    for name in tokens.names:
        subject = f"token {name}" if len(tokens.names) > 1 else "token"
        yield from _attempt(subject, partial(_audit_key, tokens, name))
    tokens.close()


def _audit_key(tokens: Tokens, name: str) -> None:
    tokens[name].audit_public_key()


def _link(store: Store, link: Link) -> None:
    known = {str(row["link"]): str(row["peer"]) for row in store.registry.pools()}
    if known.get(link.link_id, link.peer) != link.peer:
        raise ConfigRefused([f"link {link.link_id} goes to {known[link.link_id]}, not to {link.peer}"])


def _clock(store: Store) -> None:
    if not store.timekeeping.state().is_believed:
        raise OperatorFault("it is not believed: see `hsmkme clock show`")


def _attempt(subject: str, act: Callable[[], object]) -> Iterator[str]:
    try:
        act()
    except ConfigRefused as refusal:
        yield from (f"{subject}: {finding}" for finding in refusal.findings)
    except HsmkmeError as error:
        yield f"{subject}: {error}"
