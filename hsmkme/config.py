"""One strict, frozen configuration from one TOML file. No secret is in it.

An unknown key is refused by name, and a number in quotes too. Paths are relative to the file. `load` finds
everything wrong with the text at once, each with the line to change; what only the machine can tell is
checked in `diagnosis`.
"""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hsmkme.errors import ConfigRefused
from hsmkme.fitting import Location, line_of, misfits
from hsmkme.model import SEGMENT_BITS_STEP, Link
from hsmkme.values import Bits, FilePath, Limit, Name, Positive

Found = TypeVar("Found")


def _listed(value: object) -> object:
    """One table is a list of one."""
    return [value] if isinstance(value, dict) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TokenSection(_Section):
    """``[token]``, or ``[[token]]`` for each of several: which, and where its PIN is read from (a file of mode 0400).

    ``profile_file`` is a profile of one's own, as `hsmkme hsm check` saves it, instead of a shipped one.
    """

    profile: str = "softhsm-2.6"
    profile_file: FilePath | None = None
    label: Annotated[str, Field(min_length=1, max_length=32)]
    pin_file: FilePath
    module: FilePath | None = None
    module_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    serial: str | None = None
    softhsm_conf: FilePath | None = None
    block_keys: Positive = 64


class ServerSection(_Section):
    """``[server]``: the SAE side. ``sae_ca`` holds the CAs whose certificates are SAEs."""

    bind: list[str] = ["127.0.0.1:8443"]
    certificate: FilePath
    key: FilePath
    sae_ca: FilePath
    sae_crl: FilePath | None = None
    workers: Positive = 2
    max_body_bytes: Positive = 65536


class ProxySection(_Section):
    """``[proxy]``: a TLS-terminating proxy in front. Off without ``bind``.

    ``bind`` are plain listeners: Unix sockets, or addresses at which only the ``trusted`` may connect. The proxy
    puts the client's certificate into ``header``, PEM and URL-encoded; elsewhere that header means nothing.
    """

    bind: list[str] = []
    trusted: list[str] = []
    header: str = "X-SSL-Client-Cert"


class SaeSection(_Section):
    """``[sae]``: where in a certificate the SAE id stands (ETSI GS QKD 014 point 27)."""

    identity: Literal["uri", "dns", "cn"] = "uri"
    uri_prefix: str = "urn:qkd:sae:"


class KeysSection(_Section):
    """``[keys]``: limits of ETSI GS QKD 014 §6.2; sizes in bits."""

    key_size: Bits = 256
    min_key_size: Bits = 64
    max_key_size: Bits = 4096
    max_key_per_request: Positive = 128
    max_sae_id_count: Annotated[int, Field(ge=0, le=62)] = 8  # a bit of a stored integer for each slave
    max_key_count: Positive = 1_000_000
    block_keys: Positive = 128
    uncollected_seconds: Positive = 86400
    idempotency_seconds: Annotated[int, Field(ge=0, le=300)] = 0


class FairUseSection(_Section):
    """``[fair_use]``: limits such as ``"200/second"`` or ``"100000/day"``; empty for none. Shared by all workers.

    ``waiting`` is how many requests one worker takes on at a time; it answers 503 to those on top.
    """

    requests_per_sae: Limit = ""
    requests_total: Limit = ""
    keys_per_relation: Limit = ""
    waiting: Positive = 32


class OfficerSection(_Section):
    """One of ``[approvals] officers``: a name, and the file with the Ed25519 public key, PEM or OpenSSH."""

    name: Name
    key: FilePath


class ApprovalsSection(_Section):
    """``[approvals]``: destructive acts need ``needed`` officers besides the one who asks for them."""

    needed: Positive
    officers: list[OfficerSection]


class AuditSection(_Section):
    """``[audit]``: a seal is made after this many rows or seconds, whichever comes first."""

    seal_rows: Positive = 1000
    seal_seconds: Positive = 10


class EpochsSection(_Section):
    """``[epochs]``: when upkeep opens the next master key, and how fast block keys move to it.

    After so many seconds, or so many block keys wrapped, whichever comes first; 0: never, an officer does it.
    """

    rotate_seconds: Annotated[int, Field(ge=0)] = 86400
    rotate_blocks: Annotated[int, Field(ge=0)] = 1_000_000
    rewrap_per_second: Positive = 200


class PeeringSection(_Section):
    """``[peering]``: the listener for other KMEs, and this KME's certificate towards them as server and as client.

    The certificate names ``urn:qkd:kme:<kme_id>``; ``ca`` holds the CAs whose certificates are KMEs, and no SAE.
    """

    bind: list[str] = ["127.0.0.1:9443"]
    certificate: FilePath
    key: FilePath
    ca: FilePath
    crl: FilePath | None = None
    workers: Positive = 1
    max_body_bytes: Positive = 1_048_576


class PeerSection(_Section):
    """``[[peer]]``: a KME at the other end of links, and where its listener for peers is."""

    id: Name
    url: Annotated[str, Field(pattern=r"^https://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$")]


class LinkSection(_Section):
    """``[[link]]``: a QKD link to the KME ``peer`` (this KME itself: a local link).

    What nobody claimed of a block ends ``ttl_seconds`` after its deposit; 0: never. ``tokens``: the labels of those
    that wrap its block keys, the preferred one first; the first token that is configured if it names none."""

    id: Name
    peer: Name
    key_bits: Annotated[int, Field(gt=0, multiple_of=SEGMENT_BITS_STEP)] = 256
    ttl_seconds: Annotated[int, Field(ge=0)] = 0
    tokens: list[str] = []


class SpoolSection(_Section):
    """``[[spool]]``: a directory into which a device renames its key files."""

    link: Name
    directory: FilePath
    format: Literal["auto", "binary", "hex", "base64"] = "auto"


class Config(_Section):
    """The whole file."""

    kme_id: Name
    store: FilePath
    token: Annotated[list[TokenSection], BeforeValidator(_listed), Field(min_length=1)]
    server: ServerSection
    proxy: ProxySection = ProxySection()
    sae: SaeSection = SaeSection()
    keys: KeysSection = KeysSection()
    fair_use: FairUseSection = FairUseSection()
    approvals: ApprovalsSection | None = None
    audit: AuditSection = AuditSection()
    epochs: EpochsSection = EpochsSection()
    peering: PeeringSection | None = None
    peer: list[PeerSection] = []
    link: list[LinkSection] = []
    spool: list[SpoolSection] = []

    @property
    def links(self) -> list[Link]:
        """The configured links."""
        return [Link(link.id, link.peer, link.key_bits, link.ttl_seconds) for link in self.link]

    def links_on(self, token: str) -> list[str]:
        """The links that are placed on the token with this label."""
        return [link.id for link in self.link if token in (link.tokens or [self.token[0].label])]

    def token_named(self, label: str | None) -> TokenSection:
        """The configured token with this label, the first for None; raises `ConfigRefused` naming those that exist."""
        return self.token[0] if label is None else _one("token", label, {one.label: one for one in self.token})

    def link_named(self, link_id: str) -> Link:
        """The configured link ``link_id``; raises `ConfigRefused` naming those that exist."""
        return _one("link", link_id, {link.link_id: link for link in self.links})

    def peer_named(self, kme_id: str) -> PeerSection:
        """The configured peer ``kme_id``; raises `ConfigRefused` naming those that exist."""
        return _one("peer", kme_id, {peer.id: peer for peer in self.peer})

    def required_peering(self) -> PeeringSection:
        """``[peering]``; raises `ConfigRefused` saying what to configure."""
        if self.peering is None:
            raise ConfigRefused(["[peering] is not configured; it needs certificate, key and ca: see ops/config.md"])
        return self.peering


def _one(kind: str, wanted: str, configured: Mapping[str, Found]) -> Found:
    if wanted in configured:
        return configured[wanted]
    raise ConfigRefused([f"no {kind} {wanted!r} is configured; configured: {', '.join(configured) or 'none'}"])


def load(path: Path) -> Config:
    """The configuration in the file at ``path``; raises `ConfigRefused` with everything that is wrong."""
    config, findings = examine(path)
    if config is None or findings:
        raise ConfigRefused(findings)
    return config


def examine(path: Path) -> tuple[Config | None, list[str]]:
    """The configuration in the file at ``path`` as far as it makes sense, and everything that is wrong with it.

    What is wrong is left out of the configuration; None if what is left is none. For `diagnosis` only.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [f"{path}: {error}"]
    config, wrong = _validated(tree, path.resolve().parent)
    wrong += misfits(tree, {name: KeysSection.model_fields[name].default for name in _SIZES})
    findings = [(line_of(text, location), ".".join(map(str, location)), message) for location, message in wrong]
    return config, [f"{path}:{line}: {name}: {message}" for line, name, message in sorted(findings)]


def digest(path: Path) -> str:
    """SHA-256 of the file, for the log at start."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


_SIZES: Final = ("min_key_size", "key_size", "max_key_size")
_MESSAGES: Final = {"extra_forbidden": "unknown key", "missing": "is missing"}


def _validated(tree: Mapping[str, Any], base: Path) -> tuple[Config | None, list[tuple[Location, str]]]:
    """The configuration in ``tree`` without what is wrong with it, and what that is."""
    try:
        return Config.model_validate(tree, context=base), []
    except ValidationError as error:
        wrong = [(_place(tree, list(one["loc"])), _MESSAGES.get(one["type"], one["msg"])) for one in error.errors()]
    rest = copy.deepcopy(tree)
    for location, _ in wrong:
        _leave_out(rest, location)
    try:
        return Config.model_validate(rest, context=base), wrong
    except ValidationError:
        return None, wrong


def _place(tree: Mapping[str, Any], location: Location) -> Location:
    """Where something stands in the file: the table that was read as a list of one has no number there."""
    alone = len(location) > 1 and location[1] == 0 and isinstance(tree.get(str(location[0])), dict)
    return [location[0], *location[2:]] if alone else location


def _leave_out(tree: Any, location: Location) -> None:
    for step in location[:-1]:
        tree = tree[step]
    if isinstance(tree, dict):
        tree.pop(location[-1], None)
