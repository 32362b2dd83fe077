"""One strict, frozen configuration from one TOML file. No secret is in it.

An unknown key is refused by name. Paths are relative to the file. `load` finds everything wrong with
the text at once, each with the line to change; what only the machine can tell is checked in `bootstrap`.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hsmkme.errors import ConfigRefused
from hsmkme.model import SEGMENT_BITS_STEP, Link

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenSection(_Section):
    """``[token]``: which token, and where its PIN is read from (a file of mode 0400)."""

    profile: str = "softhsm-2.6"
    label: Annotated[str, Field(min_length=1, max_length=32)]
    pin_file: Path
    module: Path | None = None
    module_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    serial: str | None = None
    softhsm_conf: Path | None = None
    block_keys: Positive = 64


class ServerSection(_Section):
    """``[server]``: the SAE side. ``sae_ca`` holds the CAs whose certificates are SAEs."""

    bind: list[str] = ["127.0.0.1:8443"]
    certificate: Path
    key: Path
    sae_ca: Path
    workers: Positive = 2
    threads: Positive = 8
    max_body_bytes: Positive = 65536


class SaeSection(_Section):
    """``[sae]``: where in a certificate the SAE id stands (ETSI GS QKD 014 point 27)."""

    identity: Literal["uri", "dns", "cn"] = "uri"
    uri_prefix: str = "urn:qkd:sae:"


class KeysSection(_Section):
    """``[keys]``: limits of ETSI GS QKD 014 §6.2; sizes in bits."""

    key_size: Positive = 256
    min_key_size: Positive = 64
    max_key_size: Positive = 4096
    max_key_per_request: Positive = 128
    max_sae_id_count: Annotated[int, Field(ge=0)] = 8
    max_key_count: Positive = 1_000_000
    block_keys: Positive = 128
    uncollected_seconds: Positive = 86400

    @model_validator(mode="after")
    def _sizes_fit(self) -> KeysSection:
        for name in ("key_size", "min_key_size", "max_key_size"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} shall be a multiple of 8")
        if not self.min_key_size <= self.key_size <= self.max_key_size:
            raise ValueError("min_key_size ≤ key_size ≤ max_key_size does not hold")
        return self


class AuditSection(_Section):
    """``[audit]``: a seal is made after this many rows or seconds, whichever comes first."""

    seal_rows: Positive = 1000
    seal_seconds: Positive = 10


class LinkSection(_Section):
    """``[[link]]``: a QKD link to the KME ``peer`` (this KME itself: a local link)."""

    id: Name
    peer: Name
    key_bits: Positive = 256

    @model_validator(mode="after")
    def _can_be_stored(self) -> LinkSection:
        if self.key_bits % SEGMENT_BITS_STEP:
            raise ValueError(f"key_bits shall be a multiple of {SEGMENT_BITS_STEP}")
        return self


class SpoolSection(_Section):
    """``[[spool]]``: a directory into which a device renames its key files."""

    link: Name
    directory: Path
    format: Literal["auto", "binary", "hex", "base64"] = "auto"


class Config(_Section):
    """The whole file."""

    kme_id: Name
    store: Path
    token: TokenSection
    server: ServerSection
    sae: SaeSection = SaeSection()
    keys: KeysSection = KeysSection()
    audit: AuditSection = AuditSection()
    link: list[LinkSection] = []
    spool: list[SpoolSection] = []

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        known = [link.id for link in self.link]
        if len(set(known)) != len(known):
            raise ValueError("two links have the same id")
        for spool in self.spool:
            if spool.link not in known:
                raise ValueError(f"spool {spool.directory} names link {spool.link}, which is not configured")
        return self

    @property
    def links(self) -> list[Link]:
        """The configured links."""
        return [Link(link.id, link.peer, link.key_bits) for link in self.link]

    def link_named(self, link_id: str) -> Link:
        """The configured link ``link_id``; raises `ConfigRefused` naming those that exist."""
        for link in self.links:
            if link.link_id == link_id:
                return link
        known = ", ".join(link.link_id for link in self.links) or "none"
        raise ConfigRefused([f"no link {link_id!r} is configured; configured: {known}"])


_PATHS = {"store", "pin_file", "module", "softhsm_conf", "certificate", "key", "sae_ca", "directory"}


def load(path: Path) -> Config:
    """The configuration in the file at ``path``; raises `ConfigRefused` with everything that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigRefused([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigRefused([f"{path}: {error}"]) from error
    try:
        return Config.model_validate(_resolved(tree, path.resolve().parent))
    except ValidationError as error:
        raise ConfigRefused([_finding(path, text, one) for one in error.errors()]) from error


def digest(path: Path) -> str:
    """SHA-256 of the file, for the log at start."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _resolved(tree: Any, base: Path) -> Any:
    """The tree with every path made absolute."""
    if isinstance(tree, dict):
        return {
            name: str(base / value) if name in _PATHS and isinstance(value, str) else _resolved(value, base)
            for name, value in tree.items()
        }
    return [_resolved(entry, base) for entry in tree] if isinstance(tree, list) else tree


def _finding(path: Path, text: str, error: Any) -> str:
    location = [part for part in error["loc"] if not str(part).startswith("function-")]
    name = ".".join(str(part) for part in location)
    message = {"extra_forbidden": "unknown key", "missing": "is missing"}.get(
        error["type"], error["msg"].removeprefix("Value error, ")
    )
    return f"{path}:{line_of(text, location)}: {name + ': ' if name else ''}{message}"


def line_of(text: str, location: list[Any]) -> int:
    """The line of ``text`` on which the key or table at ``location`` stands; 1 if it does not."""
    tables = [part for part in location if isinstance(part, str)]
    position = next((part for part in location if isinstance(part, int)), 0)
    lines = text.splitlines()
    start = 0
    if len(tables) > 1 or (tables and re.search(rf"^\s*\[+{re.escape(tables[0])}\]+", text, re.MULTILINE)):
        header = re.compile(rf"^\s*\[+\s*{re.escape(tables[0])}\s*\]+")
        found = [number for number, line in enumerate(lines) if header.match(line)]
        start = found[min(position, len(found) - 1)] if found else 0
    key = re.compile(rf"^\s*{re.escape(tables[-1])}\s*=") if tables else re.compile("$^")
    for number in range(start, len(lines)):
        if key.match(lines[number]):
            return number + 1
        if number > start and lines[number].lstrip().startswith("["):
            break
    return start + 1
