"""Block keys moved from one wrapping key to another, inside the token.

A block key is unwrapped into an object that can do nothing but be wrapped again, wrapped under the new key, and
destroyed. What comes of it is proved before it counts: AES-KW has no randomness, so the new blob, unwrapped and wrapped
under the old key, must give the old blob again, bit for bit. The segments of a block do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pkcs11
from pkcs11 import KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism

from hsmkme.errors import TokenUnavailable
from hsmkme.hsm import sealing, templates
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.faults import fault_of
from hsmkme.hsm.objects import BRIDGE_LABEL, find_object, master_label
from hsmkme.hsm.running import Runner
from hsmkme.hsm.session import Lane
from hsmkme.model import BlockSeal


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """Seals as they were and what their ``wrapped`` becomes; ``bad`` are those that do not unwrap."""

    done: list[tuple[BlockSeal, bytes]] = field(default_factory=list)
    bad: list[BlockSeal] = field(default_factory=list)


class Rewrapping:
    """Rewraps in the token that ``runner`` has logged in to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def rewrap(self, seals: Sequence[BlockSeal], epoch: int) -> Rewrapped:
        """Wrap the block keys of ``seals``, all of one epoch, under the master key of ``epoch``.

        Whether it is a bad seal or a bad device that does not unwrap is for the caller to find out.
        """
        (old,) = {seal.epoch for seal in seals}
        moved = self.move([sealing.wrapped_key_of(seal) for seal in seals], master_label(old), master_label(epoch))
        return sorted_out(seals, moved, epoch)

    def move(self, blobs: Sequence[bytes | None], old: str, new: str) -> list[bytes | None]:
        """``blobs``, which the key labelled ``old`` wrapped, as ``new`` wraps them; None for what does not unwrap."""

        def move(lane: Lane) -> list[bytes | None]:
            unwraps, wraps = (self._key(lane, label) for label in (old, new))
            return [None if blob is None else self._moved(blob, unwraps, wraps) for blob in blobs]

        return self._runner.run("rewrapping block keys", move)

    def _key(self, lane: Lane, label: str) -> Any:
        found = find_object(lane.session, label, ObjectClass.SECRET_KEY)
        expected = templates.BRIDGE if label == BRIDGE_LABEL else templates.MASTER
        templates.verify_object(label, found, templates.form_of(found, expected), self._runner.cryptoki)
        return found

    def _moved(self, blob: bytes, old: Any, new: Any) -> bytes | None:
        """``blob`` as ``new`` wraps it, proved; None if ``old`` does not unwrap it."""
        try:
            moved = self._wrapped_by(new, blob, old)
        except pkcs11.PKCS11Error as error:
            if fault_of(error) is not Fault.RECORD:
                raise
            return None
        if len(moved) != sealing.WRAPPED_KEY_BYTES or self._wrapped_by(old, moved, new) != blob:
            raise TokenUnavailable("the token does not wrap back what it rewrapped")
        return moved

    def _wrapped_by(self, master: Any, blob: bytes, unwraps: Any) -> bytes:
        with self._unwrapped(unwraps, blob) as key:
            return bytes(master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP))

    @contextmanager
    def _unwrapped(self, master: Any, blob: bytes) -> Iterator[Any]:
        """A block key as a session object that may only be wrapped."""
        key = master.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            blob,
            mechanism=Mechanism.AES_KEY_WRAP,
            capabilities=MechanismFlag(0),
            template=templates.MOVING_KEY,
        )
        try:
            templates.verify_object("block key", key, templates.MOVING_KEY, self._runner.cryptoki)
            yield key
        finally:
            key.destroy()


def sorted_out(seals: Sequence[BlockSeal], moved: Sequence[bytes | None], epoch: int) -> Rewrapped:
    """What became of ``seals``, whose block keys are ``moved`` to ``epoch``."""
    result = Rewrapped()
    for seal, blob in zip(seals, moved, strict=True):
        if blob is None:
            result.bad.append(seal)
        else:
            result.done.append((seal, sealing.with_header(epoch, blob)))
    return result
