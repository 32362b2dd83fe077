"""The one ceremony of a demo's KME: its plan, and the answers of people who are not there."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hsmkme.ceremony.drafts import Subject, draft
from hsmkme.hsm import TokenAddress
from hsmkme.hsm.objects import LINK_CHECK

_CUSTODIANS = """
[[person]]
id = "custodian-1"
role = "custodian"

[[person]]
id = "custodian-2"
role = "custodian"
"""
_LINK = """
[[step]]
do = "bring"
by = ["custodian-1", "custodian-2"]
object = "link/{link}"
other_end = "the-other-end"
"""


def plan(address: TokenAddress, links: Sequence[str], transcript: str) -> str:
    """The first ceremony of a token, in which the keys of ``links`` are brought to it too."""
    first = draft("first", address, Subject(), time.time)
    first = re.sub(r"^policy = .*$", 'policy = "none: a demo"', first, flags=re.MULTILINE)
    first = re.sub(r"^transcript = .*$", f"transcript = {json.dumps(transcript)}", first, flags=re.MULTILINE)
    return first + (_CUSTODIANS if links else "") + "".join(_LINK.format(link=link) for link in links)


def answers(so_pin: str, user_pin: str, links: Mapping[str, tuple[str, str]]) -> str:
    """What the people of that plan answer; ``links`` has the two components of each key, hex."""
    given = {"so-1.new-SO-PIN": so_pin, "op-1.new-user-PIN": user_pin, "op-1.the-user-PIN": user_pin}
    for link, components in links.items():
        for number, component in enumerate(components, start=1):
            given[f"custodian-{number}.component-of-link/{link}"] = component
        given[f"custodian-1.check-value-of-link/{link}"] = _check_value(link, components)
    lines = [f"{json.dumps(key)} = {json.dumps(answer)}" for key, answer in given.items()]
    return "\n".join(["phrases = true", "[answers]", *lines]) + "\n"


def read_components(path: Path) -> tuple[str, str]:
    """The two components of a link key, hex, from the file in which both ends find them."""
    one, other = path.read_text().split()
    return one, other


def _check_value(link: str, components: tuple[str, str]) -> str:
    """What both ends read to each other."""
    one, other = map(bytes.fromhex, components)
    key = bytes(a ^ b for a, b in zip(one, other, strict=True))
    return hmac.digest(key, LINK_CHECK + link.encode(), "sha256")[:5].hex()
