"""The token as the service uses it: verbs on blocks, in read-only sessions.

Guarantees: nothing here can create, change or destroy a token object; every object found has the
attributes a ceremony gave it; every length the token returns is checked; a failing device raises
`TokenUnavailable` and is tried again after a pause; a record that does not open raises `RecordFault`
only after the token opened a known one under the same master key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pkcs11
from pkcs11 import ObjectClass
from pkcs11.mechanisms import Mechanism

from hsmkme.errors import RecordFault, TokenUnavailable
from hsmkme.hsm import objects, sealing, templates
from hsmkme.hsm.anchor import Anchor, anchored
from hsmkme.hsm.answers import Fault
from hsmkme.hsm.cryptoki import CryptokiError
from hsmkme.hsm.faults import fault_of
from hsmkme.hsm.notes import notes
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.running import Runner
from hsmkme.hsm.segments import Segments
from hsmkme.hsm.session import Lane, PinSource, Sessions
from hsmkme.model import (
    BlockSeal,
    CeremonyNote,
    KeyMaterial,
    Lineage,
    OpenKey,
    Part,
    RawBlock,
    SealedBlock,
    SealedKey,
)

SIGNATURE_BYTES: Final = 64
DIGEST_BYTES: Final = 32
TAG_BYTES: Final = 16

_TRIES: Final = 2
"""A device that stumbled once is not held against the record."""


class Token:
    """The token at ``address``, opened with the PIN that ``pin`` gives.

    ``block_keys`` bounds how many unwrapped block keys each lane keeps as session objects.
    Raises `OperatorFault` if PIN or objects are not as a ceremony left them.
    """

    def __init__(
        self,
        address: TokenAddress,
        pin: PinSource,
        *,
        block_keys: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = Sessions(address, pin)
        self._runner = Runner(self._sessions, clock)
        self._block_keys = block_keys
        self._sentinels: dict[int, SealedBlock] = {}

    @property
    def name(self) -> str:
        """Its label: what configuration and store call it."""
        return self._sessions.address.label

    def close(self) -> None:
        """Log out; the token cannot be used afterwards."""
        self._sessions.close()

    def seal(self, block: RawBlock, epoch: int) -> SealedBlock:
        """Seal every key of ``block`` under a new block key, wrapped by the master key of ``epoch``."""
        return self._runner.run("sealing a block", lambda lane: self._seal(lane, block, epoch))

    def open(self, keys: Sequence[SealedKey]) -> list[OpenKey]:
        """The plaintext of ``keys``, in their order.

        Raises `RecordFault` for the first that does not open; none is returned then.
        """
        return self._runner.run_each("opening keys", self._open, keys)

    def seal_carried(self, block: RawBlock, epoch: int) -> SealedBlock:
        """Seal keys that came over other KMEs: as `seal`, but that the digest covers the name and no device repeats."""

        def seal(lane: Lane) -> SealedBlock:
            digest = self._digest(lane, sealing.carried_digest_input(block))
            return replace(self._seal(lane, block, epoch), digest=digest, mine=False)

        return self._runner.run("sealing carried keys", seal)

    def digest(self, block: RawBlock) -> bytes:
        """A keyed tag of the block's bytes, 32 bytes: finds the same bytes again, says nothing of them to a thief."""
        return self._runner.run("reading a digest", lambda lane: self._digest(lane, sealing.digest_input(block)))

    def confirmation_tag(self, block: RawBlock) -> bytes:
        """16 bytes by the key of the block's link: the other end makes the same of the same block, nobody else can."""
        return self.link_mac(block.name.link_id, sealing.tag_input(block))[:TAG_BYTES]

    def link_mac(self, link_id: str, data: bytes) -> bytes:
        """HMAC-SHA256 by the key that both ends of a link hold, 32 bytes."""

        def sign(lane: Lane) -> bytes:
            key = self._object(lane, objects.link_label(link_id), ObjectClass.SECRET_KEY, templates.LINK)
            return _sized(bytes(key.sign(data, mechanism=Mechanism.SHA256_HMAC)), DIGEST_BYTES)

        return self._runner.run("signing for a peer", sign)

    def sign(self, digest: bytes) -> bytes:
        """ECDSA P-256 by the audit key over a SHA-256 digest; 64 bytes, r ‖ s."""

        def sign(lane: Lane) -> bytes:
            key = self._object(lane, objects.AUDIT_LABEL, ObjectClass.PRIVATE_KEY, templates.AUDIT_PRIVATE)
            return _sized(bytes(key.sign(digest, mechanism=Mechanism.ECDSA)), SIGNATURE_BYTES)

        return self._runner.run("signing a seal", sign)

    def audit_public_key(self) -> bytes:
        """The public half of the audit key, PEM."""

        def read(lane: Lane) -> bytes:
            key = self._object(lane, objects.AUDIT_LABEL, ObjectClass.PUBLIC_KEY, templates.AUDIT_PUBLIC)
            return objects.public_pem(key)

        return self._runner.run("reading the audit key", read)

    def check_value(self, epoch: int) -> str:
        """Ten hex digits that tell master keys apart and reveal nothing of them (``ops/adr/0003``)."""

        def read(lane: Lane) -> str:
            self._prove(lane, epoch)  # the sentinel is of the key that is looked at here
            return objects.check_value(lane.session, self._master(lane, epoch))

        return self._runner.run("reading a check value", read)

    def row_key(self) -> bytes:
        """32 bytes that only this token gives: what seals rows of the store, so that who has its file cannot."""
        return self._runner.run("deriving the key of rows", lambda lane: self._digest(lane, sealing.ROW_KEY))

    def anchored(self) -> Lineage:
        """What the token remembers of the store."""
        return self._runner.run("reading the anchor", lambda lane: anchored(lane.session))

    def notes(self) -> list[CeremonyNote]:
        """What ceremonies left on the token for the service to log, in no order."""
        return self._runner.run("reading the notes of ceremonies", lambda lane: notes(lane.session))

    def anchor(self) -> Anchor:
        """What lets the token remember a store: for upkeep alone."""
        return Anchor(self._runner)

    def prove(self, epoch: int) -> None:
        """Open a known answer under the master key of ``epoch``; raises what that meets."""
        self._runner.run("proving the token", lambda lane: self._prove(lane, epoch))

    @property
    def answered_lately(self) -> bool:
        """Whether the token did something within the last second: if not, `prove` it before what cannot be undone."""
        return self._runner.answered_lately

    def forget(self) -> None:
        """Drop every handle and every unwrapped block key of this process: a master key was destroyed."""
        self._runner.begin_anew()

    @property
    def runner(self) -> Runner:
        """This login, for what only upkeep and officers do under it."""
        return self._runner

    # Objects ----------------------------------------------------------------------------------------

    def _object(self, lane: Lane, label: str, kind: ObjectClass, template: templates.Template) -> Any:
        """The one token object of this label and class, its attributes verified; found once for each lane."""
        name = f"{kind.name}:{label}"
        if name not in lane.objects:
            found = objects.find_object(lane.session, label, kind)
            templates.verify_object(label, found, templates.form_of(found, template), self._sessions.cryptoki)
            lane.objects[name] = found
        return lane.objects[name]

    def _master(self, lane: Lane, epoch: int) -> Any:
        return self._object(lane, objects.master_label(epoch), ObjectClass.SECRET_KEY, templates.MASTER)

    # Sealing and opening ----------------------------------------------------------------------------

    def _seal(self, lane: Lane, block: RawBlock, epoch: int) -> SealedBlock:
        master = self._master(lane, epoch)
        key = lane.keys.generate()
        try:
            segments = Segments(key, block.name, block.key_bits).run(0, block.material.reveal())
            wrapped = lane.keys.wrap(key, master.handle)
        finally:
            lane.keys.destroy(key.handle)
        digest = self._digest(lane, sealing.digest_input(block))
        return sealing.sealed_block(block, epoch, wrapped, segments, digest)

    def _digest(self, lane: Lane, covered: bytes) -> bytes:
        key = self._object(lane, objects.DIGEST_LABEL, ObjectClass.SECRET_KEY, templates.DIGEST)
        return _sized(bytes(key.sign(covered, mechanism=Mechanism.SHA256_HMAC)), DIGEST_BYTES)

    def _open(self, lane: Lane, key: SealedKey) -> OpenKey:
        plain = b"".join([self._open_part(lane, part) for part in key.parts])
        if len(plain) * 8 < key.size:
            raise _not_opening(key.parts[0].block)
        return OpenKey(key.key_id, KeyMaterial(plain[: key.size // 8]))

    def _open_part(self, lane: Lane, part: Part) -> bytes:
        if not sealing.is_whole(part):
            raise _not_opening(part.block)
        for _ in range(_TRIES):
            try:
                return self._opened(lane, part.block).run(part.first, part.sealed)
            except (pkcs11.PKCS11Error, CryptokiError) as error:
                if fault_of(error) is not Fault.RECORD:
                    raise
            self._prove(lane, part.block.epoch)  # raises if it is the device that fails
            self._forget(lane, part.block)
        raise _not_opening(part.block)

    def _opened(self, lane: Lane, seal: BlockSeal) -> Segments:
        """A block through its key as a session object that only decrypts; unwrapped once, then kept while in use."""
        kept = lane.opened.pop(seal, None)
        if kept is None:
            wrapped_key = sealing.wrapped_key_of(seal)
            if wrapped_key is None:
                raise _not_opening(seal)
            key = lane.keys.unwrap(wrapped_key, self._master(lane, seal.epoch).handle)
            kept = Segments(key, seal.name, seal.key_bits)
        lane.opened[seal] = kept  # what was used last is forgotten last
        if len(lane.opened) > self._block_keys:
            self._forget(lane, next(iter(lane.opened)))
        return kept

    def _forget(self, lane: Lane, seal: BlockSeal) -> None:
        """Let the block key be unwrapped anew when it is needed again."""
        kept = lane.opened.pop(seal, None)
        if kept is not None:
            lane.keys.destroy(kept.key.handle)

    def _prove(self, lane: Lane, epoch: int) -> None:
        """Open the sentinel of ``epoch``; if that fails, it is the device and not the record.

        It was sealed when the master key was first seen: another key in its place does not open it.
        """
        sentinel = self._sentinels.get(epoch) or self._seal(lane, sealing.SENTINEL, epoch)
        self._sentinels[epoch] = sentinel
        try:
            plain = self._opened(lane, sentinel.seal).run(0, sentinel.segments)
        finally:
            self._forget(lane, sentinel.seal)
        if plain != sealing.SENTINEL.material.reveal():
            raise TokenUnavailable("the token opens a known answer wrongly")


def _not_opening(seal: BlockSeal) -> RecordFault:
    return RecordFault(seal.name.link_id, seal.name.block_id)


def _sized(value: bytes, expected: int) -> bytes:
    if len(value) != expected:
        raise TokenUnavailable(f"the token returned {len(value)} bytes where {expected} are due")
    return value
