"""What officers sign: a request for one destructive act, in one canonical text; and who the officers are.

A file of approval is that text, one line of JSON, and after it any number of signatures in the form of ``ssh-keygen -Y
sign``. Everybody signs the line with its line feed, under the namespace `NAMESPACE`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from hsmkme.audit import canonical
from hsmkme.config import Config
from hsmkme.errors import ApprovalRefused, ConfigRefused
from hsmkme.sshsig import blocks, public_key

NAMESPACE: Final = "approval@hsmkme"
NONCE_BYTES: Final = 16
_VISIBLE: Final = re.compile(r"[!-~]{1,128}")
_MOST_CHARACTERS: Final = 1 << 20


class Operation(StrEnum):
    """The acts that officers approve, and what the target of each is."""

    SHRED = "epoch.shred"  # the number of the epoch
    REVOKE = "epoch.revoke"  # the number of the epoch
    RESTORE = "restore"  # what the token remembers of the store, an old copy of which was put back
    LOWER = "policy.lower"  # the digest of the policy that is to be in force


STRICTNESS: Final[Mapping[str, Callable[[int], float]]] = {
    "keys.min_key_size": float,
    "audit.seal_rows": lambda rows: -rows,
    "audit.seal_seconds": lambda seconds: -seconds,
    "epochs.rotate_seconds": lambda seconds: -(seconds or math.inf),
    "epochs.rotate_blocks": lambda blocks: -(blocks or math.inf),
}
"""Settings that are lowered with the officers' approval only, and how strict a value of each is."""


@dataclass(frozen=True, slots=True)
class Request:
    """An act that ``requester`` asks for: once, on one KME and its store, before ``expires`` (RFC 3339)."""

    operation: str
    target: str
    requester: str
    kme: str
    store: str
    nonce: str
    expires: str

    @classmethod
    def of(cls, text: str) -> Request:
        """The request that ``text`` is; raises `ApprovalRefused` if it is not written as `text` writes it."""
        try:
            said = json.loads(text)
            request = cls(**{field.name: str(said[field.name]) for field in fields(cls)})
            fit = request.text == text and request.until > 0 and request.expires.endswith("Z")
            fit = fit and len(bytes.fromhex(request.nonce)) == NONCE_BYTES
            fit = fit and all(map(_VISIBLE.fullmatch, asdict(request).values()))  # nothing hides from who signs
        except (ValueError, KeyError, TypeError):
            fit = False
        if not fit:
            raise ApprovalRefused("the file is not a request of this version of hsmkme", rule="APPROVAL-FORM-1")
        return request

    @property
    def text(self) -> str:
        """What is signed: canonical JSON and a line feed."""
        return canonical({**asdict(self), "version": 1}) + "\n"

    @property
    def until(self) -> float:
        """``expires`` in seconds since the epoch."""
        return datetime.fromisoformat(self.expires).timestamp()


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A file of approval: the request, and the signatures as they stand there."""

    request: Request
    signatures: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> SignedRequest:
        """The file at ``path``; raises `ApprovalRefused` if it is none."""
        try:
            with path.open(encoding="utf-8") as file:
                head, _, tail = file.read(_MOST_CHARACTERS).partition("\n")
            return cls(Request.of(head + "\n"), tuple(blocks(tail)))
        except OSError as error:
            raise ApprovalRefused(f"{path} cannot be read: {error.strerror}", rule="APPROVAL-FORM-1") from error
        except ValueError as error:
            raise ApprovalRefused(f"{path}: after the request stands {error}", rule="APPROVAL-FORM-1") from error


@dataclass(frozen=True, slots=True)
class Officers:
    """The policy: officers' public keys (32 bytes) by name, how many must approve what another asks for, and the
    ``settings`` that they watch over. Nobody is needed where nobody is enrolled."""

    needed: int = 0
    keys: Mapping[str, bytes] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def configured(cls, config: Config) -> Officers:
        """The policy of the configuration; raises `ConfigRefused` with everything wrong."""
        section = config.approvals
        if section is None:
            return cls()
        keys, findings = {}, []
        for officer in section.officers:
            try:
                keys[officer.name] = public_key(officer.key.read_bytes())
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no Ed25519 public key"
                findings.append(f"the key {officer.key} of officer {officer.name} cannot be used: {why}")
        if len(set(keys.values())) + len(findings) != len(section.officers):
            findings.append("two officers in [approvals] have one name or one key; each needs their own")
        if section.needed >= len(section.officers):
            findings.append(
                f"[approvals] needs {section.needed} officers besides the one who asks, and only"
                f" {len(section.officers)} are enrolled"
            )
        if findings:
            raise ConfigRefused(findings)
        return cls(section.needed, keys, {name: _setting(config, name) for name in STRICTNESS})

    @classmethod
    def of(cls, text: str | None) -> Officers:
        """The policy that `text` wrote; None, before the first: nobody is needed."""
        if text is None:
            return cls()
        said = json.loads(text)
        keys = {name: bytes.fromhex(key) for name, key in said["officers"].items()}
        return cls(said["needed"], keys, said.get("settings", {}))

    @property
    def text(self) -> str:
        """Canonical JSON."""
        keys = {name: key.hex() for name, key in self.keys.items()}
        return canonical({"needed": self.needed, "officers": keys, "settings": dict(self.settings)})

    @property
    def digest(self) -> str:
        """What stands for the policy where it is the target of an act: 32 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def name_of(self, public: bytes) -> str:
        """Whose key it is; raises `ApprovalRefused` if it is nobody's."""
        if not self.keys:
            raise ApprovalRefused(
                "no officers are enrolled: name them in [approvals] and put that in force by `hsmkme approve adopt`",
                rule="APPROVAL-OFFICER-1",
            )
        for name, key in self.keys.items():
            if key == public:
                return name
        raise ApprovalRefused("a key signed that is of no officer in force", rule="APPROVAL-SIGN-1")

    def lowered_from(self, other: Officers) -> list[str]:
        """What makes this policy weaker than the ``other``: who could not have an act done by that and can by this, and
        settings; nothing if it is as strict, or if the ``other`` needs nobody."""
        if not other.needed:
            return []
        lowered = ["approvals.needed"] if self.needed < other.needed else []
        lowered += [f"officer {name}" for name, key in self.keys.items() if other.keys.get(name) != key]
        if self.needed:
            pairs = ((name, STRICTNESS[name], value) for name, value in other.settings.items() if name in STRICTNESS)
            lowered += [name for name, strict, value in pairs if strict(self.settings[name]) < strict(value)]
        return lowered


def _setting(config: Config, name: str) -> int:
    section, _, key = name.partition(".")
    return int(getattr(getattr(config, section), key))


def require_target(target: str) -> str:
    """``target``, if it can be one: up to 128 visible ASCII characters."""
    if not _VISIBLE.fullmatch(target):
        raise ApprovalRefused("a target has from 1 to 128 visible ASCII characters", rule="APPROVAL-FORM-1")
    return target
