"""The bodies of kme-peer/1, one class for each call and each answer. JSON, strict in both directions."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final, Literal, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hsmkme.errors import PeerRefused

KEYS_MOST: Final = 1024
PARTS_MOST: Final = 64
BLOCKS_MOST: Final = 256
"""How much one message may carry."""

REASON_MOST: Final = 200
"""How many characters say why a block was revoked."""

Id = Annotated[str, Field(min_length=1, max_length=512)]
BlockId = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=0, le=2**62)]
Positive = Annotated[int, Field(gt=0, le=2**31)]
Tag = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
KeyId = Annotated[UUID, Field(strict=False)]


class Body(BaseModel):
    """A body of JSON; a member that is not of kme-peer/1 is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def encoded(self) -> bytes:
        """The bytes on the wire."""
        return self.model_dump_json().encode()


class Hello(Body):
    """Where the sender stands: the number of its last message, how many rows its log has, why its link is frozen.

    ``reconciled``: it was restored, has learnt from the other end what it forgot, and begins a new incarnation.
    ``ready`` counts the keys of each size that it may assign.
    """

    versions: list[str]
    sent: Count
    log_rows: Count
    why: str
    ready: dict[str, Count]
    reconciled: bool = False


class Standing(Body):
    """The answer: ``good``, or ``behind`` (your store is an old copy), and where the answering end stands."""

    verdict: Literal["good", "behind"]
    incarnation: str
    log_rows: Count
    why: str
    ready: dict[str, Count]


class BlockTag(Body):
    """A block as one end has it; ``bits`` of one key."""

    block_id: BlockId
    count: Positive
    bits: Positive
    tag: Tag


class Announce(Body):
    """Blocks that this end has sealed."""

    blocks: Annotated[list[BlockTag], Field(max_length=BLOCKS_MOST)]


class Announced(Body):
    """For each block ``match``, ``unknown`` or ``mismatch``."""

    results: dict[str, Literal["match", "unknown", "mismatch"]]


class Place(Body):
    """Consecutive segments of a block that its owner has in ``own_epoch``."""

    block_id: BlockId
    first: Annotated[int, Field(ge=0, le=2**31)]
    count: Positive
    own_epoch: Count


class Assign(Body):
    """Keys of ``size`` bits for one relation, all of them or none: ``places`` joined, and cut for one key after the
    other into as many segments each. ``key_ids``: 32 hex digits each, nothing between them."""

    master: Id
    slaves: Annotated[list[Id], Field(min_length=1, max_length=63)]
    size: Positive
    key_ids: Annotated[str, Field(pattern=r"^([0-9a-f]{32})+$", max_length=32 * KEYS_MOST)]
    places: Annotated[list[Place], Field(min_length=1, max_length=PARTS_MOST * KEYS_MOST)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sum(place.count for place in self.places) % self.count:
            raise ValueError("places have as many segments for each key")
        return self

    @property
    def count(self) -> int:
        """How many keys."""
        return len(self.key_ids) // 32

    @cached_property
    def named(self) -> list[UUID]:
        """The key_IDs."""
        raw = bytes.fromhex(self.key_ids)
        return [UUID(bytes=raw[at : at + 16]) for at in range(0, len(raw), 16)]

    @property
    def per_key(self) -> int:
        """How many segments of a block each of them is."""
        return sum(place.count for place in self.places) // self.count


AssignResult = Literal["assigned", "already", "conflict", "unknown", "void", "not_owner", "frozen"]


class Assigned(Body):
    """What became of an assign, and how many rows the log has that says so: a store with fewer is an old copy."""

    result: AssignResult
    log_rows: Count = 0


class Carry(Body):
    """Keys that are not of this link. ``pads`` tells, as an assign does, of each key and of the segments that are its
    pad; ``masked``: key XOR pad, base64 on the wire, in the same order."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    pads: Assign
    masked: list[bytes]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if [len(value) * 8 for value in self.masked] != [self.pads.size] * self.pads.count:
            raise ValueError("masked has one value of the keys' size for each key")
        return self


class Void(Body):
    """Keys that are never to be delivered."""

    key_ids: Annotated[list[KeyId], Field(min_length=1, max_length=KEYS_MOST)]
    reason: Annotated[str, Field(max_length=64)]


class Voided(Body):
    """For each key ``voided``, ``already_delivered`` or ``unknown``."""

    results: dict[str, Literal["voided", "already_delivered", "unknown"]]


class GrantedBlock(Body):
    """A block that changes its owner."""

    block_id: BlockId
    own_epoch: Positive


class Grant(Body):
    """Blocks that the receiver owns from now on."""

    blocks: Annotated[list[GrantedBlock], Field(min_length=1, max_length=BLOCKS_MOST)]


class Granted(Body):
    """For each block ``accepted`` or ``stale``."""

    results: dict[str, Literal["accepted", "stale"]]


class Query(Body):
    """Asks what the receiver knows of ``blocks`` and of ``key_ids`` that it assigned, and for the ids of its live
    blocks that come after ``after``; for none of them without it."""

    blocks: Annotated[list[BlockId], Field(max_length=BLOCKS_MOST)] = []
    key_ids: Annotated[list[KeyId], Field(max_length=KEYS_MOST)] = []
    after: Annotated[str, Field(max_length=256)] | None = None


class KeyReport(Body):
    """A key that may have been delivered. ``mine``: its master is at the end that reports."""

    key_id: KeyId
    master: Id
    slaves: list[Id]
    size: Positive
    parts: list[Place]
    mine: bool


class BlockReport(Body):
    """A block as the reporting end knows it: ``used`` of its first segments may have been given away.

    ``mine``: the reporting end owns it.
    """

    block_id: BlockId
    tag: Tag
    state: str
    mine: bool
    own_epoch: Count
    used: Count
    keys: list[KeyReport]


class Report(Body):
    """The answer; a block or a key that was asked for and is not in it is not known.

    ``live``: ids of live blocks in order, not all of them if ``more``.
    """

    blocks: list[BlockReport]
    keys: list[KeyReport]
    live: list[BlockId]
    more: bool


class Missing(Body):
    """Blocks that the sender, who was restored, does not have any more."""

    block_ids: Annotated[list[BlockId], Field(min_length=1, max_length=BLOCKS_MOST)]


class Revoke(Body):
    """Blocks that the sender has revoked: nobody gets anything of them any more."""

    block_ids: Annotated[list[BlockId], Field(min_length=1, max_length=BLOCKS_MOST)]
    reason: Annotated[str, Field(max_length=REASON_MOST)]


class Done(Body):
    """The message was acted upon."""

    done: Literal[True] = True


class Refusal(Body):
    """Why a message was refused."""

    message: str


Kind = TypeVar("Kind", bound=Body)


def parsed(kind: type[Kind], body: bytes) -> Kind:
    """``body`` as a message of ``kind``; raises `PeerRefused` naming what is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PeerRefused(f"the body is no {kind.__name__}: {where} {first['msg']}", alarm=False) from None
