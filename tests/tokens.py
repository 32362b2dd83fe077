"""Tokens for tests: real ones (SoftHSM), made by the ceremonies of the product.

A ceremony is held in a process of its own: the module of this one may look at another token directory, and saw its
tokens when it was loaded.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkme.ceremony import holding, plan
from hsmkme.ceremony.drafts import Subject, draft
from hsmkme.ceremony.plan import TO_CHANGE
from hsmkme.ceremony.prompts import Answers, AnswersDesk
from hsmkme.ceremony.transcript import read
from hsmkme.hsm import TokenAddress, load_profile
from hsmkme.keeping import StoreKeeper
from tests.processes import apart

PIN = "test-user-pin"
SO_PIN = "test-so-pin-1"
PINS = {"so-1.new-SO-PIN": SO_PIN, "op-1.new-user-PIN": PIN, "op-1.the-user-PIN": PIN, "so-1.the-SO-PIN": SO_PIN}
"""What the people of the plans that ship answer."""
OTHER_COMPONENT = bytes([0x55] * 32)


def made_token(label: str, softhsm_conf: Path) -> TokenAddress:
    """A new token in the directory of ``softhsm_conf``, after its first ceremony."""
    profile = load_profile("softhsm-2.6")
    address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=softhsm_conf)
    apart(held, "first", address, softhsm_conf.parent / f"{label}-first.toml", PINS)
    return address


def bring_link_keys(address: TokenAddress, softhsm_conf: Path, first: int, *links: str) -> None:
    """Give the token the keys of ``links``, all of the same value: the 32 bytes that count up from ``first``."""
    apart(_hold_link_ceremonies, address, softhsm_conf.parent, bytes(range(first, first + 32)), links)


def made_pair(first: str, second: str, softhsm_conf: Path) -> tuple[TokenAddress, TokenAddress]:
    """Two new tokens of one KME, after their first ceremonies: custodians brought the same keys to both."""
    return _with_shared_keys("first-of-several", first, second, softhsm_conf), made_another(second, first, softhsm_conf)


def made_another(label: str, other: str, softhsm_conf: Path) -> TokenAddress:
    """A new token of the KME that has the token ``other``."""
    return _with_shared_keys("another-token", label, other, softhsm_conf)


def _with_shared_keys(kind: str, label: str, other: str, softhsm_conf: Path) -> TokenAddress:
    profile = load_profile("softhsm-2.6")
    address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=softhsm_conf)
    plan_file = softhsm_conf.parent / f"{label}-{kind}.toml"
    apart(held, kind, address, plan_file, {**PINS, **shared_answers()}, Subject(other))
    return address


def shared_answers() -> dict[str, str]:
    """What people answer when they bring the keys that all tokens of a KME share, each in two components."""
    digest, bridge = bytes(range(32)), bytes(range(32, 64))
    check_values = {
        "digest": hmac.digest(digest, b"hsmkme/link-check/1digest", "sha256")[:5].hex(),
        "bridge": aes_key_wrap(bridge, bytes(32))[:5].hex(),
    }
    answers = {}
    for label, value in (("digest", digest), ("bridge", bridge)):
        one = bytes(a ^ b for a, b in zip(value, OTHER_COMPONENT, strict=True))
        answers[f"custodian-1.component-of-{label}"] = one.hex()
        answers[f"custodian-2.component-of-{label}"] = OTHER_COMPONENT.hex()
        answers[f"custodian-1.check-value-of-{label}"] = check_values[label]
    return answers


def held(
    kind: str, address: TokenAddress, plan_file: Path, answers: Mapping[str, str], subject: Subject | None = None
) -> Path:
    """Hold a ceremony by the plan that ships, in this process; gives its transcript, which is beside the plan."""
    plan_file.write_text(draft(kind, address, subject or Subject(), time.time).replace(TO_CHANGE, "clause"))
    written = plan.load(plan_file)
    desk = AnswersDesk(Answers(phrases=True, answers=dict(answers)), lambda _text: None)
    holding.hold(written, desk, time.time, StoreKeeper(None, time.time))
    return written.plan.transcript


def link_answers(link: str, value: bytes) -> dict[str, str]:
    """What people answer when they bring the key ``value`` of a link, in two components."""
    one = bytes(a ^ b for a, b in zip(value, OTHER_COMPONENT, strict=True))
    check_value = hmac.digest(value, b"hsmkme/link-check/1" + link.encode(), "sha256")[:5].hex()
    return {
        **PINS,
        f"custodian-1.component-of-link/{link}": one.hex(),
        f"custodian-2.component-of-link/{link}": OTHER_COMPONENT.hex(),
        f"custodian-1.check-value-of-link/{link}": check_value,
    }


def _hold_link_ceremonies(address: TokenAddress, directory: Path, value: bytes, links: tuple[str, ...]) -> None:
    for link in links:
        plan_file = directory / f"{address.label}-{link}.toml"
        held("link-key", address, plan_file, link_answers(link, value), Subject(link, "far-end"))


def evidence_of(transcript: Path) -> list[dict[str, Any]]:
    """What each step of a ceremony reported."""
    return [line["facts"]["evidence"] for line in read(transcript).told("done")]
