"""Who may ask for what. Pure rules over facts; each refusal carries a rule identifier.

The identifiers appear in the audit log, in ``ops/rules.md`` and in the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hsmkme.config import KeysSection
from hsmkme.errors import BadRequest, NotEntitled
from hsmkme.identifiers import made_at
from hsmkme.model import HeldKey, Sae

NOT_FOUND: Final = "one or more keys specified are not found on KME"
"""The one message for unknown, consumed and expired keys (ETSI GS QKD 014, Get key with key IDs)."""

NOT_AUTHORISED: Final = "the SAE is not authorised"


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a Get key call asks for, defaults applied (ETSI GS QKD 014 §6.2); ``size`` in bits."""

    number: int
    size: int
    additional_slaves: tuple[str, ...] = ()


def number_rule(limits: KeysSection) -> str:
    """KEY-NUM-1 in words."""
    return f"number shall be an integer from 1 to {limits.max_key_per_request}"


def size_rule(limits: KeysSection) -> str:
    """KEY-SIZE-2 in words; bits."""
    return f"size shall be an integer from {limits.min_key_size} to {limits.max_key_size}"


def check_caller(sae_id: str, registered: Mapping[str, Sae], kme_id: str) -> None:
    """SAE-ID-1 … 3: the caller is registered, not revoked, and served by the KME ``kme_id``, which is this one."""
    sae = registered.get(sae_id)
    if sae is None:
        raise NotEntitled(NOT_AUTHORISED, rule="SAE-ID-1")
    if sae.revoked:
        raise NotEntitled(NOT_AUTHORISED, rule="SAE-ID-2")
    if sae.kme_id != kme_id:
        raise NotEntitled(NOT_AUTHORISED, rule="SAE-ID-3")


def check_distinct(caller: str, other: str) -> None:
    """SAE-PAIR-2: master and slave are two SAEs."""
    if caller == other:
        raise BadRequest("the slave SAE and the master SAE shall be different SAEs", rule="SAE-PAIR-2")


def check_pairs(slaves: Sequence[str], registered: Mapping[str, Sae], allowed: Collection[str]) -> None:
    """SAE-PAIR-1: each slave is registered, not revoked, and may share keys of the master."""
    for slave in slaves:
        sae = registered.get(slave)
        if sae is None or sae.revoked or slave not in allowed:
            raise NotEntitled(NOT_AUTHORISED, rule="SAE-PAIR-1")


def check_request(request: KeyRequest, limits: KeysSection) -> None:
    """KEY-NUM-1, KEY-SIZE-1, KEY-SIZE-2: number and size are within the limits."""
    if not 1 <= request.number <= limits.max_key_per_request:
        raise BadRequest(number_rule(limits), rule="KEY-NUM-1")
    if request.size > 0 and request.size % 8:
        raise BadRequest("size shall be a multiple of 8", rule="KEY-SIZE-1")
    if not limits.min_key_size <= request.size <= limits.max_key_size:
        raise BadRequest(size_rule(limits), rule="KEY-SIZE-2")


def check_additional(
    request: KeyRequest, master: str, slave: str, registered: Mapping[str, Sae], limits: KeysSection
) -> None:
    """SAE-MULTI-1 … 3: additional slaves are few enough, distinct, known, and neither master nor slave."""
    additional = request.additional_slaves
    if len(additional) > limits.max_sae_id_count:
        raise BadRequest(
            f"additional_slave_SAE_IDs shall have at most {limits.max_sae_id_count} entries", rule="SAE-MULTI-1"
        )
    if len({*additional, master, slave}) != len(additional) + 2:
        raise BadRequest(
            "additional_slave_SAE_IDs shall name each SAE once, and neither the master nor the slave SAE",
            rule="SAE-MULTI-2",
        )
    if any(sae_id not in registered for sae_id in additional):
        raise BadRequest("additional_slave_SAE_IDs names an unknown SAE", rule="SAE-MULTI-3")


def check_linked(peers: Iterable[str], linked: Collection[str]) -> None:
    """SAE-MULTI-4: a link leads to every other KME that serves a slave; nobody else can carry keys there."""
    if any(peer not in linked for peer in peers):
        raise BadRequest("a slave SAE is served by a KME to which no link leads", rule="SAE-MULTI-4")


def check_entitled(caller: str, held: Iterable[HeldKey]) -> None:
    """KEY-ENT-1: the caller was among the slaves of the Get key call of every key that exists.

    ETSI GS QKD 014, Get key with key IDs: otherwise 401. Ended keys are still known by their tombstones.
    """
    if any(caller not in key.relation.slaves for key in held):
        raise NotEntitled(NOT_AUTHORISED, rule="KEY-ENT-1")


def check_collectable(caller: str, master: str, wanted: Sequence[UUID], held: Mapping[UUID, HeldKey]) -> None:
    """KEY-ID-1 … 4: every key exists under this master, is live, and was not collected by the caller."""
    for key_id in wanted:
        key = held.get(key_id)
        if key is None or key.relation.master != master:
            raise BadRequest(NOT_FOUND, rule="KEY-ID-1")
        if caller in key.collected:
            raise BadRequest(NOT_FOUND, rule="KEY-ID-2")
        if key.state in ("frozen", "revoked"):
            raise BadRequest(NOT_FOUND, rule="KEY-ID-4")
        if not key.collectable:
            raise BadRequest(NOT_FOUND, rule="KEY-ID-3")


def check_age(wanted: Iterable[UUID], ttl: float, now: float) -> None:
    """KEY-AGE-1: every key was made at most ``ttl`` seconds ago, by its key_ID."""
    if any(made_at(key_id) + ttl < now for key_id in wanted):
        raise BadRequest(NOT_FOUND, rule="KEY-AGE-1")
