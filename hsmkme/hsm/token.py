"""The token as the service uses it: verbs on blocks, in read-only sessions.

Guarantees: nothing here can create, change or destroy a token object; every object found has the
attributes a ceremony gave it; every length the token returns is checked; a failing device raises
`TokenUnavailable` and is tried again after a pause; a record that does not open raises `RecordFault`
only after the token opened a fresh one under the same master key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pkcs11
from pkcs11 import KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism

from hsmkme.errors import RecordFault, TokenUnavailable
from hsmkme.hsm import masking, sealing, templates
from hsmkme.hsm.anchor import Anchor, anchored
from hsmkme.hsm.faults import Fault, fault_of
from hsmkme.hsm.notes import notes
from hsmkme.hsm.objects import (
    AUDIT_LABEL,
    DIGEST_LABEL,
    check_value,
    find_object,
    link_label,
    master_label,
    public_pem,
)
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.running import Runner
from hsmkme.hsm.session import Lane, PinSource, Sessions
from hsmkme.model import (
    BlockName,
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

_PROOF: Final = RawBlock(BlockName("sentinel", "sentinel"), 256, KeyMaterial(bytes(range(32))))


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
        return self._runner.run("opening keys", lambda lane: [self._open(lane, key) for key in keys])

    def mask(self, keys: Sequence[SealedKey], pads: Sequence[SealedKey]) -> list[bytes]:
        """Each key XOR its pad, which must be as long and mask nothing else, ever: nobody learns anything without it.

        Raises `RecordFault` for the first of both that does not open.
        """

        def mask(lane: Lane) -> list[bytes]:
            opened = ((self._open(lane, key), self._open(lane, pad)) for key, pad in zip(keys, pads, strict=True))
            return [masking.masked(key.material.reveal(), pad.material) for key, pad in opened]

        return self._runner.run("masking keys", mask)

    def unmask(self, values: Sequence[bytes], pads: Sequence[SealedKey], name: BlockName, epoch: int) -> SealedBlock:
        """What `mask` made elsewhere, sealed as a block of this end's own, of which no key leaves unsealed.

        Raises `RecordFault` for the first pad that does not open.
        """

        def unmask(lane: Lane) -> SealedBlock:
            opened = ((value, self._open(lane, pad).material) for value, pad in zip(values, pads, strict=True))
            block = masking.block_of(name, [masking.masked(value, pad) for value, pad in opened])
            digest = self._digest(lane, sealing.carried_digest_input(block))
            return replace(self._seal(lane, block, epoch), digest=digest, mine=False)

        return self._runner.run("unmasking keys", unmask)

    def digest(self, block: RawBlock) -> bytes:
        """A keyed tag of the block's bytes, 32 bytes: finds the same bytes again, says nothing of them to a thief."""
        return self._runner.run("reading a digest", lambda lane: self._digest(lane, sealing.digest_input(block)))

    def confirmation_tag(self, block: RawBlock) -> bytes:
        """16 bytes by the key of the block's link: the other end makes the same of the same block, nobody else can."""
        return self.link_mac(block.name.link_id, sealing.tag_input(block))[:TAG_BYTES]

    def link_mac(self, link_id: str, data: bytes) -> bytes:
        """HMAC-SHA256 by the key that both ends of a link hold, 32 bytes."""

        def sign(lane: Lane) -> bytes:
            key = self._object(lane, link_label(link_id), ObjectClass.SECRET_KEY, templates.LINK)
            return _sized(bytes(key.sign(data, mechanism=Mechanism.SHA256_HMAC)), DIGEST_BYTES)

        return self._runner.run("signing for a peer", sign)

    def sign(self, digest: bytes) -> bytes:
        """ECDSA P-256 by the audit key over a SHA-256 digest; 64 bytes, r ‖ s."""

        def sign(lane: Lane) -> bytes:
            key = self._object(lane, AUDIT_LABEL, ObjectClass.PRIVATE_KEY, templates.AUDIT_PRIVATE)
            return _sized(bytes(key.sign(digest, mechanism=Mechanism.ECDSA)), SIGNATURE_BYTES)

        return self._runner.run("signing a seal", sign)

    def audit_public_key(self) -> bytes:
        """The public half of the audit key, PEM."""

        def read(lane: Lane) -> bytes:
            key = self._object(lane, AUDIT_LABEL, ObjectClass.PUBLIC_KEY, templates.AUDIT_PUBLIC)
            return public_pem(key)

        return self._runner.run("reading the audit key", read)

    def check_value(self, epoch: int) -> str:
        """Ten hex digits that tell master keys apart and reveal nothing of them (``ops/adr/0003``)."""
        doing = "reading a check value"
        return self._runner.run(doing, lambda lane: check_value(lane.session, self._master(lane, epoch)))

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
        """Seal and open a known answer under the master key of ``epoch``; raises what that meets."""
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
            found = find_object(lane.session, label, kind)
            templates.verify_object(label, found, templates.form_of(found, template), self._sessions.cryptoki)
            lane.objects[name] = found
        return lane.objects[name]

    def _master(self, lane: Lane, epoch: int) -> Any:
        return self._object(lane, master_label(epoch), ObjectClass.SECRET_KEY, templates.MASTER)

    # Sealing and opening ----------------------------------------------------------------------------

    def _seal(self, lane: Lane, block: RawBlock, epoch: int) -> SealedBlock:
        master = self._master(lane, epoch)
        block_key = lane.session.generate_key(
            KeyType.AES, sealing.BLOCK_KEY_BITS, capabilities=MechanismFlag.ENCRYPT, template=templates.SEALING_KEY
        )
        try:
            templates.verify_object("block key", block_key, templates.SEALING_KEY, self._sessions.cryptoki)
            segments = self._encrypt_all(block_key, block)
            wrapped = bytes(master.wrap_key(block_key, mechanism=Mechanism.AES_KEY_WRAP))
        finally:
            block_key.destroy()
        digest = self._digest(lane, sealing.digest_input(block))
        return sealing.sealed_block(block, epoch, wrapped, segments, digest)

    def _encrypt_all(self, block_key: Any, block: RawBlock) -> bytes:
        bound = sealing.binding(block.name.link_id, block.name.block_id, block.key_bits)
        plain, stride = block.material.reveal(), block.key_bits // 8
        return b"".join(
            block_key.encrypt(
                plain[index * stride : (index + 1) * stride],
                mechanism=Mechanism.AES_GCM,
                mechanism_param=sealing.gcm_parameters(bound, index),
            )
            for index in range(block.key_count)
        )

    def _digest(self, lane: Lane, covered: bytes) -> bytes:
        key = self._object(lane, DIGEST_LABEL, ObjectClass.SECRET_KEY, templates.DIGEST)
        return _sized(bytes(key.sign(covered, mechanism=Mechanism.SHA256_HMAC)), DIGEST_BYTES)

    def _open(self, lane: Lane, key: SealedKey) -> OpenKey:
        plain = b"".join(self._open_part(lane, part) for part in key.parts)
        if len(plain) * 8 < key.size:
            raise RecordFault(key.parts[0].block.name.link_id, key.parts[0].block.name.block_id)
        return OpenKey(key.key_id, KeyMaterial(plain[: key.size // 8]))

    def _open_part(self, lane: Lane, part: Part) -> bytes:
        seal = part.block
        try:
            block_key = self._opening_key(lane, seal)
            bound = sealing.binding(seal.name.link_id, seal.name.block_id, seal.key_bits)
            opened = [
                block_key.decrypt(
                    segment,
                    mechanism=Mechanism.AES_GCM,
                    mechanism_param=sealing.gcm_parameters(bound, part.first + offset),
                )
                for offset, segment in enumerate(sealing.slices(part.sealed, seal.key_bits))
            ]
        except pkcs11.PKCS11Error as error:
            if fault_of(error) is not Fault.RECORD:
                raise
            self._prove(lane, seal.epoch)  # raises if it is the device that fails
            raise RecordFault(seal.name.link_id, seal.name.block_id) from error
        if len(opened) != part.count or any(len(plain) * 8 != seal.key_bits for plain in opened):
            raise RecordFault(seal.name.link_id, seal.name.block_id)
        return b"".join(opened)

    def _opening_key(self, lane: Lane, seal: BlockSeal) -> Any:
        """The block key as a session object that only decrypts; unwrapped once, then kept while in use."""
        wrapped_key = sealing.wrapped_key_of(seal)
        if wrapped_key is None:
            raise RecordFault(seal.name.link_id, seal.name.block_id)
        cached = lane.block_keys.get(seal.wrapped)
        if cached is not None:
            lane.block_keys.move_to_end(seal.wrapped)
            return cached
        block_key = self._master(lane, seal.epoch).unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            wrapped_key,
            mechanism=Mechanism.AES_KEY_WRAP,
            capabilities=MechanismFlag.DECRYPT,
            template=templates.OPENING_KEY,
        )
        templates.verify_object("block key", block_key, templates.OPENING_KEY, self._sessions.cryptoki)
        lane.block_keys[seal.wrapped] = block_key
        while len(lane.block_keys) > self._block_keys:
            lane.block_keys.popitem(last=False)[1].destroy()
        return block_key

    def _prove(self, lane: Lane, epoch: int) -> None:
        """Seal and open a known answer; if that fails too, it is the device and not the record."""
        sealed = self._seal(lane, _PROOF, epoch)
        try:
            block_key = self._opening_key(lane, sealed.seal)
            bound = sealing.binding(_PROOF.name.link_id, _PROOF.name.block_id, _PROOF.key_bits)
            plain = block_key.decrypt(
                sealed.segments, mechanism=Mechanism.AES_GCM, mechanism_param=sealing.gcm_parameters(bound, 0)
            )
        finally:
            kept = lane.block_keys.pop(sealed.seal.wrapped, None)
            if kept is not None:
                kept.destroy()
        if plain != _PROOF.material.reveal():
            raise TokenUnavailable("the token opens a known answer wrongly")


def _sized(value: bytes, expected: int) -> bytes:
    if len(value) != expected:
        raise TokenUnavailable(f"the token returned {len(value)} bytes where {expected} are due")
    return value
