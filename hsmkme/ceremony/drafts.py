"""New plans, from those that ship with this version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from hsmkme.errors import ConfigRefused
from hsmkme.hsm import initialising
from hsmkme.hsm.module import digest_of
from hsmkme.hsm.officer import Evidence
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.model import Clock

VALID: Final = timedelta(hours=24)
_ABOUT: Final = {
    "link-key": "a link",
    "transport-key": "a device",
    "restore": "a backup file",
    "rotate": "an epoch: the next one",
    "destroy-epoch": "an epoch",
    "first-of-several": "the other token: its label",
    "another-token": "a token that the KME has: its label",
}
_NEW: Final = ("first", "first-with-backup", "first-of-several", "another-token", "initialise", "restore")
_STEM_LENGTH: Final = 55
_PLANS: Final = resources.files("hsmkme.ceremony") / "plans"


def kinds() -> list[str]:
    """What there are plans for."""
    return sorted(entry.name.removesuffix(".toml") for entry in _PLANS.iterdir() if entry.name.endswith(".toml"))


@dataclass(frozen=True, slots=True)
class Subject:
    """What a ceremony is about: a link and the KME at its other end, a device, a file, an epoch; and of which KME."""

    name: str = ""
    other_end: str = ""
    config: Path = Path("hsmkme.toml")


def draft(kind: str, address: TokenAddress, subject: Subject, clock: Clock) -> str:
    """The text of a plan of this kind for the token at ``address``; it may be held from now on for a day."""
    if kind in _ABOUT and not subject.name:
        raise ConfigRefused([f"{kind} is about {_ABOUT[kind]}: name it with --about"])
    now = datetime.fromtimestamp(clock(), UTC).replace(microsecond=0)
    about = "" if kind == "restore" else subject.name  # a path is no name
    stem = "-".join(filter(None, (kind, about, address.label)))[:_STEM_LENGTH] + f"-{now:%Y%m%d}"
    return Template((_PLANS / f"{kind}.toml").read_text(encoding="utf-8")).substitute(
        name=stem,
        begins=now.isoformat(),
        ends=(now + VALID).isoformat(),
        token=_token(address, known={} if kind in _NEW else initialising.describe_token(address)),
        about=subject.name,
        other_end=subject.other_end or subject.name,
        config=subject.config.resolve(),
    )


def _token(address: TokenAddress, known: Evidence) -> str:
    """``[token]``, with the digest of the library as it is; ``known`` is what the token says, if there is one."""
    facts = {
        "profile": address.profile.name,
        "label": address.label,
        "serial": address.serial or known.get("serial"),
        "module": str(address.module),
        "module_sha256": digest_of(address.module),
        "softhsm_conf": str(address.softhsm_conf.resolve()) if address.softhsm_conf else None,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in facts.items() if value is not None]
    return "\n".join(["[token]", *lines])
