"""Tokens for tests: real ones (SoftHSM), made by the ceremonies of the product.

A ceremony is held in a process of its own: the module of this one may look at another token directory, and saw its
tokens when it was loaded.
"""

from __future__ import annotations

import time
from pathlib import Path

from hsmkme.ceremony import steps
from hsmkme.ceremony.transcript import Transcript
from hsmkme.hsm import TokenAddress, load_profile
from hsmkme.model import KeyMaterial
from tests.processes import apart

PIN = "test-user-pin"
SO_PIN = "test-so-pin-1"


def made_token(label: str, softhsm_conf: Path) -> TokenAddress:
    """A new token in the directory of ``softhsm_conf``, after its first ceremony."""
    profile = load_profile("softhsm-2.6")
    address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=softhsm_conf)
    apart(_hold_first_ceremony, address, softhsm_conf)
    return address


def bring_link_keys(address: TokenAddress, softhsm_conf: Path, first: int, *links: str) -> None:
    """Give the token the keys of ``links``, all of the same value: the 32 bytes that count up from ``first``."""
    apart(_hold_link_ceremonies, address, softhsm_conf, bytes(range(first, first + 32)), links)


def _hold_first_ceremony(address: TokenAddress, softhsm_conf: Path) -> None:
    steps.first(address, lambda: SO_PIN, lambda: PIN, _transcript(address, softhsm_conf, "first"))


def _hold_link_ceremonies(address: TokenAddress, softhsm_conf: Path, value: bytes, links: tuple[str, ...]) -> None:
    for link in links:
        steps.link(address, lambda: PIN, link, [KeyMaterial(value)], _transcript(address, softhsm_conf, link))


def _transcript(address: TokenAddress, softhsm_conf: Path, name: str) -> Transcript:
    return Transcript(softhsm_conf.parent / f"{address.label}-{name}.jsonl", time.time)
