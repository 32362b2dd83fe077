"""Keys that people carry: components of 32 bytes, each worth nothing without the others."""

from __future__ import annotations

import hmac
import itertools
import re
from collections.abc import Sequence

from hsmkme.errors import OperatorFault
from hsmkme.hsm.objects import LINK_KEY_BYTES
from hsmkme.model import KeyMaterial


def component(text: str) -> KeyMaterial:
    """A component as officers write it down: 64 hex digits, blanks between them as one likes. Refuses anything else."""
    digits = "".join(text.split())
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digits):
        raise OperatorFault("a component has 64 hex digits")
    return KeyMaterial(bytes.fromhex(digits))


def joined(components: Sequence[KeyMaterial]) -> KeyMaterial:
    """The XOR of ``components`` of 32 bytes each, at least one: who lacks one of them knows nothing of it.

    Raises `OperatorFault` for another length, and for one component given twice: it would cancel itself out.
    """
    values = [component.reveal() for component in components]
    if not values or any(len(value) != LINK_KEY_BYTES for value in values):
        raise OperatorFault(f"a key is made of one or more components of {LINK_KEY_BYTES} bytes each")
    if any(hmac.compare_digest(one, other) for one, other in itertools.combinations(values, 2)):
        raise OperatorFault("two components are the same: they would cancel each other out")
    result = bytes(LINK_KEY_BYTES)
    for value in values:
        result = bytes(one ^ other for one, other in zip(result, value, strict=True))
    if not any(result):
        raise OperatorFault("the components cancel each other out")
    return KeyMaterial(result)
