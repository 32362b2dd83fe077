"""Block keys moved from one master key to another, inside the token.

A block key is unwrapped into an object that can do nothing but be wrapped again, wrapped under the new master key, and
destroyed. What comes of it is proved before it counts: AES-KW has no randomness, so the new blob, unwrapped and wrapped
under the old master key, must give the old blob again, bit for bit. The segments of a block do not change.
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
from hsmkme.hsm.objects import find_object, master_label
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
        return self._runner.run("rewrapping block keys", lambda lane: self._rewrap(lane, seals, epoch))

    def _rewrap(self, lane: Lane, seals: Sequence[BlockSeal], epoch: int) -> Rewrapped:
        (old_epoch,) = {seal.epoch for seal in seals}
        old, new = (self._master(lane, number) for number in (old_epoch, epoch))
        result = Rewrapped()
        for seal in seals:
            blob = sealing.wrapped_key_of(seal)
            moved = None if blob is None else self._moved(blob, old, new)
            if moved is None:
                result.bad.append(seal)
            else:
                result.done.append((seal, sealing.with_header(epoch, moved)))
        return result

    def _master(self, lane: Lane, epoch: int) -> Any:
        found = find_object(lane.session, master_label(epoch), ObjectClass.SECRET_KEY)
        templates.verify_object(master_label(epoch), found, templates.MASTER, self._runner.cryptoki)
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
