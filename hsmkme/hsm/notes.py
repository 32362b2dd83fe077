"""What a ceremony leaves for the service: a data object on the token that says which transcript made what.

The service reads it when it starts and writes it into the audit log. It cannot be changed, only destroyed,
and proves nothing by itself: the transcript does.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from pkcs11 import Attribute, ObjectClass

from hsmkme.model import CeremonyNote

log = logging.getLogger(__name__)

_PREFIX: Final = "ceremony/"
_DIGEST_BYTES: Final = 32


def note_template(note: CeremonyNote) -> dict[Attribute, Any]:
    """A new object that says ``note``."""
    facts = {"ceremony": note.name, "transcript": note.transcript.hex(), "made": dict(note.made)}
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.LABEL: _PREFIX + note.transcript.hex()[:16],
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.MODIFIABLE: False,
        Attribute.VALUE: json.dumps(facts, sort_keys=True).encode(),
    }


def notes(session: Any) -> list[CeremonyNote]:
    """Every note on the token, in no order. One that a killed process left broken is made again by its ceremony."""
    data = session.get_objects({Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True})
    found = [bytes(one[Attribute.VALUE]) for one in data if one[Attribute.LABEL].startswith(_PREFIX)]
    return [note for note in map(_said, found) if note is not None]


def _said(value: bytes) -> CeremonyNote | None:
    try:
        facts = json.loads(value)
        made = {str(label): None if check is None else str(check) for label, check in facts["made"].items()}
        note = CeremonyNote(str(facts["ceremony"]), bytes.fromhex(facts["transcript"]), made)
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("a note of a ceremony on the token cannot be read")
        return None
    return note if len(note.transcript) == _DIGEST_BYTES else None
