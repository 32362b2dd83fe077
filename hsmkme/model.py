"""Frozen values that cross the borders between layers.

Sizes are in bits where the name says ``bits`` or ``size``, in bytes otherwise. Times are whole
seconds since the Unix epoch, UTC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

SEGMENT_BITS_STEP: Final = 64
"""Keys are stored in multiples of 64 bits: AES-KW pads anything else without saying so."""

GCM_TAG_BYTES: Final = 16


def segment_bytes(key_bits: int) -> int:
    """Length of one sealed segment: the key and its GCM tag."""
    return key_bits // 8 + GCM_TAG_BYTES


Clock = Callable[[], float]
"""Seconds since the Unix epoch, UTC."""


class KeyMaterial:
    """Plaintext key bytes. Made in ``hsm/`` and ``drivers/``, revealed only in ``hsm/`` and ``api/``.

    Cannot be printed, compared, pickled or copied by accident. Python cannot wipe memory: keep the
    life of these objects short.
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes = value

    def reveal(self) -> bytes:
        """The bytes themselves; call it only where they leave or enter the token."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._bytes)

    def __repr__(self) -> str:
        return f"<KeyMaterial {len(self._bytes) * 8} bits>"

    def __eq__(self, other: object) -> bool:
        raise TypeError("key material is not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("key material cannot be pickled or copied")


@dataclass(frozen=True, slots=True)
class CeremonyNote:
    """What a ceremony left on the token for the service: the digest of its transcript, and what it made.

    ``made``: the check value of each object by its label, None for objects that have none.
    """

    name: str
    transcript: bytes
    made: Mapping[str, str | None]


class BlockName(NamedTuple):
    """What both ends of a link call a block."""

    link_id: str
    block_id: str


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block as a device gives it: ``material`` holds ``key_count`` keys of ``key_bits`` each, in order.

    No key of it is released ``not_before`` a time; 0: at once."""

    name: BlockName
    key_bits: int
    material: KeyMaterial
    not_before: int = 0

    @property
    def key_count(self) -> int:
        """How many keys the block holds."""
        return len(self.material) * 8 // self.key_bits


class BlockSeal(NamedTuple):
    """What the token needs, with a segment, to open a key of this block."""

    name: BlockName
    epoch: int
    key_bits: int
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A block as the store keeps it. ``digest`` is a keyed tag of the bytes, made in the token.

    On a link to a peer: ``tag`` confirms the same bytes at both ends, ``mine`` says that this end owns the block.
    ``copies``: its key as further tokens wrap it.
    """

    seal: BlockSeal
    key_count: int
    segments: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    tag: bytes | None = None
    mine: bool = True
    copies: tuple[BlockSeal, ...] = ()
    not_before: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` consecutive sealed segments of one block, the first being number ``first``."""

    block: BlockSeal
    first: int
    count: int
    sealed: bytes = field(repr=False)


class SealedKey(NamedTuple):
    """A key as claimed: its parts joined and cut to ``size`` bits are the key."""

    key_id: UUID
    size: int
    parts: tuple[Part, ...]


class OpenKey(NamedTuple):
    """A key on its way to an SAE."""

    key_id: UUID
    material: KeyMaterial


class Relation(NamedTuple):
    """The only parties that may ever see a given key: one master SAE and its slave SAEs, sorted."""

    master: str
    slaves: tuple[str, ...]

    @classmethod
    def of(cls, master: str, slaves: Sequence[str]) -> Relation:
        """The relation of these parties, whatever the order in which the slaves were named."""
        return cls(master, tuple(sorted(slaves)))

    @classmethod
    def unpacked(cls, master: str, packed: str) -> Relation:
        """The relation whose slaves the store keeps as ``packed``."""
        return cls(master, tuple(json.loads(packed)))

    @property
    def packed(self) -> str:
        """The slaves as the store keeps them."""
        return _packed(self.slaves)


@lru_cache(maxsize=1024)
def _packed(slaves: tuple[str, ...]) -> str:
    return json.dumps(slaves, separators=(",", ":"))


def due_bits(relation: Relation, elsewhere: Collection[str]) -> int:
    """Bit *i* is set when slave *i* of ``relation`` is not served ``elsewhere``."""
    return sum(1 << place for place, slave in enumerate(relation.slaves) if slave not in elsewhere)


@dataclass(frozen=True, slots=True)
class Demand:
    """A claim: ``len(key_ids)`` keys of ``size`` bits for ``relation`` from links to the KME ``peer``.

    ``elsewhere`` are the slaves that other KMEs serve: the peer, and those ``further`` ones, to which the same keys
    are carried. ``away``: epochs whose token does not answer now; what only they open is not claimed. ``fresh``: keys
    of the relation do not live long, so none is made ahead of need.
    """

    relation: Relation
    peer: str
    size: int
    key_ids: tuple[UUID, ...]
    elsewhere: frozenset[str] = frozenset()
    further: tuple[str, ...] = ()
    fresh: bool = False
    away: frozenset[int] = frozenset()

    @property
    def due(self) -> int:
        """Bit *i* is set when slave *i* of the relation is served here; -1 when all are."""
        return due_bits(self.relation, self.elsewhere) if self.elsewhere else -1


@dataclass(frozen=True, slots=True)
class Retry:
    """A client's word that it may send this request again: its certificate, its Idempotency-Key, the digest of
    the request, and for how many ``seconds`` the same keys are given."""

    client: str
    token: str
    request: bytes
    seconds: int


class HeldKey(NamedTuple):
    """A claimed key as dec_keys sees it. ``collected`` says which of the relation's slaves have it.

    ``collectable``: its master has it, or a peer assigned it and may have given it to its master. ``due``: bits of the
    slaves that this KME serves. ``places``: where the store has it.
    """

    key: SealedKey
    relation: Relation
    state: str
    collected: frozenset[str]
    collectable: bool
    due: int
    places: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Sae:
    """A registered SAE and the KME that serves it."""

    sae_id: str
    kme_id: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A QKD link to the KME ``peer``; a local link when that is this KME. ``key_bits`` is the default.

    What nobody claimed of a block ends ``ttl_seconds`` after its deposit; 0: never."""

    link_id: str
    peer: str
    key_bits: int = 256
    ttl_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which store it is (16 bytes), how often it was replaced by an old copy of itself, the rows of its log, and the
    hash of the last (32 bytes; zeros: unknown)."""

    store_id: bytes
    generation: int
    log_rows: int
    log_hash: bytes = bytes(32)


class Entry(NamedTuple):
    """What is to be written in the audit log with a transition: who did what. The store adds the facts
    that only its transaction knows (blocks, epochs, counts) and the log's clock."""

    event: str
    actor: str
    facts: Mapping[str, object] = MappingProxyType({})

    def knowing(self, **facts: object) -> Entry:
        """The same entry with more facts."""
        return Entry(self.event, self.actor, {**self.facts, **facts})


class LogRow(NamedTuple):
    """One row of the audit log: ``text`` is canonical JSON, ``hash`` chains it to the row before."""

    seq: int
    text: str
    hash: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """A signature by the token's audit key over the hash of row ``seq``."""

    seq: int
    hash: bytes
    at: str
    signature: bytes
