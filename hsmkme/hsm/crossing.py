"""Block keys copied from one token to another, never in the clear (``ops/adr/0017``).

The first token wraps them under the bridge, a key that the tokens of a KME share; the second unwraps them into objects
that can only be wrapped, and wraps them under a master key of its own. Each half is proved as a rewrap is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from hsmkme.errors import OperatorFault
from hsmkme.hsm import sealing
from hsmkme.hsm.objects import BRIDGE_LABEL, master_label
from hsmkme.hsm.rewrapping import Rewrapped, Rewrapping, sorted_out
from hsmkme.hsm.token import Token
from hsmkme.model import BlockSeal


def cross(seals: Sequence[BlockSeal], source: Token, target: Token, epoch: int) -> Rewrapped:
    """The block keys of ``seals``, all of one epoch of ``source``, under the master key of ``epoch`` of ``target``.

    Whether it is a bad seal or a bad device that does not unwrap is for the caller to find out. Raises `OperatorFault`
    if the tokens do not share the bridge. What crosses is in this process's memory alone.
    """
    (old,) = {seal.epoch for seal in seals}
    blobs = [sealing.wrapped_key_of(seal) for seal in seals]
    bridged = Rewrapping(source.runner).move(blobs, master_label(old), BRIDGE_LABEL)
    moved = Rewrapping(target.runner).move(bridged, BRIDGE_LABEL, master_label(epoch))
    if moved.count(None) != bridged.count(None):
        raise OperatorFault(
            f"the tokens {source.name!r} and {target.name!r} do not hold the same {BRIDGE_LABEL} key: hold the "
            "ceremony that brings it, with the same components on both"
        )
    return sorted_out(seals, moved, epoch)
