"""What a ceremony leaves for the service: a data object on the token that says which transcript made what.

The service reads it when it starts and writes it into the audit log. It cannot be changed, only destroyed,
and proves nothing by itself: the transcript does.
"""

from __future__ import annotations

from typing import Any, Final

from pkcs11 import Attribute, ObjectClass

NOTE_PREFIX: Final = "ceremony/"


def note_template(name: str, text: str) -> dict[Attribute, Any]:
    """A new note; ``name`` is the part of its label after the prefix."""
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.LABEL: NOTE_PREFIX + name,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.MODIFIABLE: False,
        Attribute.VALUE: text.encode(),
    }


def notes(session: Any) -> list[str]:
    """The text of every note on the token, in no order."""
    data = session.get_objects({Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True})
    found = [note for note in data if note[Attribute.LABEL].startswith(NOTE_PREFIX)]
    return [bytes(note[Attribute.VALUE]).decode(errors="replace") for note in found]
