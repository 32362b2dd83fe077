"""What the token remembers of the store: which it is, how often an old copy replaced it, how far its log had come.

A data object that upkeep makes anew now and then, in a read-write session, and every process reads when it starts:
somebody who puts an old copy of the store in place cannot make the token forget. The one before is destroyed after the
new one was made, so that a process that is killed leaves one that is whole.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from pkcs11 import Attribute, ObjectClass

from hsmkme.errors import ObjectMissing
from hsmkme.hsm.running import Runner
from hsmkme.hsm.session import Lane
from hsmkme.hsm.templates import mapper
from hsmkme.model import Lineage

ANCHOR_LABEL: Final = "anchor"
NOTHING: Final = Lineage(bytes(16), 0, 0)
"""What the ceremony writes: no store yet."""

_FORM: Final = struct.Struct(">16sQQ32s")
_SHORT: Final = _FORM.size - 32
"""The length of a value of before, without the hash."""


def anchor_template(lineage: Lineage) -> dict[Attribute, Any]:
    """A new object with 64 bytes that say ``lineage``."""
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.LABEL: ANCHOR_LABEL,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.MODIFIABLE: False,
        Attribute.VALUE: _FORM.pack(lineage.store_id, lineage.generation, lineage.log_rows, lineage.log_hash),
    }


def anchored(session: Any) -> Lineage:
    """The latest that the token remembers; raises `ObjectMissing` if it remembers nothing at all."""
    known = [lineage for lineage in map(_said, _all(session)) if lineage is not None]
    if not known:
        raise ObjectMissing("the token has no anchor: run the ceremony that makes it")
    return max(known, key=lambda lineage: (lineage.generation, lineage.log_rows))


class Anchor:
    """Makes the object anew, for upkeep alone."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def drop(self, lineage: Lineage) -> None:
        """Let the token remember ``lineage`` from now on; raises `TokenUnavailable` if it cannot."""
        self._runner.run("anchoring the log", lambda lane: _drop(lane, lineage))


def _drop(lane: Lane, lineage: Lineage) -> None:
    """The lane's login holds for the read-write session too."""
    session = lane.session.token.open(rw=True, attribute_mapper=mapper())
    try:
        before = _all(session)
        session.create_object(anchor_template(lineage))
        for old in before:
            old.destroy()
    finally:
        session.close()


def _all(session: Any) -> list[Any]:
    session.generate_random(8)  # a lost session says so here; a search in one would fail while being tidied up too
    wanted = {Attribute.LABEL: ANCHOR_LABEL, Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True}
    return list(session.get_objects(wanted))


def _said(anchor: Any) -> Lineage | None:
    """What an object says; None for one that a killed process left broken."""
    value = bytes(anchor[Attribute.VALUE])
    return Lineage(*_FORM.unpack(value.ljust(_FORM.size, b"\0"))) if len(value) in (_SHORT, _FORM.size) else None
