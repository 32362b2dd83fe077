"""The key delivery service: the three methods of ETSI GS QKD 014 in terms of SAEs, keys and relations.

Knows nothing of HTTP. Each method decides everything before it touches a key, so a refused request
consumes none; refusals that an auditor wants to see are written to the log.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from hsmkme import policy
from hsmkme.agreement import Agreement
from hsmkme.config import KeysSection
from hsmkme.custody import Custody
from hsmkme.errors import (
    AnsweredAlready,
    BadRequest,
    KeyNotHeld,
    NotEnoughKeys,
    NotEntitled,
    PoolShort,
    RecordFault,
    RequestRefused,
    StoreUnavailable,
    TokenUnavailable,
)
from hsmkme.fairuse import FairUse
from hsmkme.model import Clock, Demand, Entry, HeldKey, OpenKey, Relation, Retry, Sae
from hsmkme.policy import KeyRequest
from hsmkme.states import KeyState
from hsmkme.store import Known, NewIds, Store

log = logging.getLogger(__name__)

RETRY_UNKNOWN_SECONDS: Final = 30
RETRY_MOST_SECONDS: Final = 3600
_NAMED: Final = 16
_NAME: Final = 64
"""How many key_IDs, and how much of a name, of a refused request the log keeps: a stranger must not fill it."""

_GRANTS_MOST: Final = 4096
"""How many different requests policy's word is remembered of."""

_TRIES: Final = 3
"""How many tampered blocks one request may run into before it is told to come back."""

Release = Callable[[Demand, str, Retry | None], list[OpenKey]]
"""Keys for a demand, an actor and a request that may be repeated."""


@dataclass(frozen=True, slots=True)
class Status:
    """What Get status tells (ETSI GS QKD 014 §6.1); sizes in bits."""

    source_kme: str
    target_kme: str
    master: str
    slave: str
    stored_key_count: int
    limits: KeysSection


@dataclass(frozen=True, slots=True)
class _Grant:
    """What policy decided of a Get key request: who shares the keys, which other KMEs serve slaves, and which slaves
    those are. ``fresh``: see `Demand`."""

    relation: Relation
    peers: tuple[str, ...]
    elsewhere: frozenset[str]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Repeatable:
    """A request that its client may repeat: fingerprint of the client's certificate, and its Idempotency-Key."""

    client: str
    token: str


class Kme:
    """The service of one KME."""

    def __init__(
        self,
        kme_id: str,
        custody: Custody,
        store: Store,
        limits: KeysSection,
        fair_use: FairUse,
        clock: Clock,
        new_ids: NewIds,
        agreement: Agreement | None = None,
    ) -> None:
        self.kme_id = kme_id
        self.limits = limits
        self._custody = custody
        self._store = store
        self._fair_use = fair_use
        self._clock = clock
        self._new_ids = new_ids
        self._agreement = agreement
        self._grants: tuple[Known | None, dict[tuple[str, str, KeyRequest], _Grant]] = None, {}

    def admit(self, caller: str) -> None:
        """Raises `NotEntitled` unless ``caller`` is registered and not revoked (SAE-ID-1, SAE-ID-2)."""
        policy.check_caller(caller, self._store.registry.known().saes, self.kme_id)

    def status(self, caller: str, slave: str) -> Status:
        """Get status: what ``caller`` as master can have for ``slave``."""
        known = self._store.registry.known()
        policy.check_caller(caller, known.saes, self.kme_id)
        self._fair_use.admit(caller)
        policy.check_distinct(caller, slave)
        (peer,) = self._peers_of(caller, [slave], known) or [self.kme_id]
        stored = sum(vein.keys for vein in self._store.blocks.veins(peer, self.limits.key_size))
        if peer != self.kme_id and known.ttl(caller, slave) == math.inf:
            stored += self._store.agreed.count(Relation.of(caller, [slave]), self.limits.key_size)
        return Status(self.kme_id, peer, caller, slave, stored, self.limits)

    def get_key(self, caller: str, slave: str, request: KeyRequest, again: Repeatable | None = None) -> list[OpenKey]:
        """Get key: fresh keys for ``caller`` as master, shared with ``slave`` and the additional slaves."""
        known = self._store.registry.known()
        policy.check_caller(caller, known.saes, self.kme_id)
        self._fair_use.admit(caller)
        grant = self._granted(known, caller, slave, request)
        if request.additional_slaves:
            policy.check_linked(grant.peers, self._store.links.peers())
        peer, *further = grant.peers or (self.kme_id,)
        key_ids = self._new_ids(request.number)
        demand = Demand(grant.relation, peer, request.size, key_ids, grant.elsewhere, tuple(further), grant.fresh)
        retry = self._retry(again, "enc_keys", slave, request)
        answered = self._answered(retry, caller)
        if answered is not None:
            return answered
        self._fair_use.check_quota(demand.relation, request.number)
        try:
            keys = self._release(demand, retry)
        except AnsweredAlready:
            return self._answered_meanwhile(retry, caller)
        self._fair_use.spend(demand.relation, request.number)
        return keys

    def _granted(self, known: Known, caller: str, slave: str, request: KeyRequest) -> _Grant:
        """What policy says of a request: the same as long as the registry stays as it is."""
        by, grants = self._grants
        if by is not known or len(grants) >= _GRANTS_MOST:
            _, grants = self._grants = known, {}
        asked = caller, slave, request
        grant = grants.get(asked)
        if grant is None:
            grant = grants[asked] = self._grant(known, *asked)
        return grant

    def _grant(self, known: Known, caller: str, slave: str, request: KeyRequest) -> _Grant:
        policy.check_distinct(caller, slave)
        policy.check_request(request, self.limits)
        policy.check_additional(request, caller, slave, known.saes, self.limits)
        slaves = (slave, *request.additional_slaves)
        peers = self._peers_of(caller, slaves, known)
        elsewhere = frozenset(sae for sae in slaves if known.saes[sae].kme_id != self.kme_id)
        fresh = any(known.ttl(caller, slave) < math.inf for slave in slaves)
        return _Grant(Relation.of(caller, slaves), tuple(peers), elsewhere, fresh)

    def get_key_with_ids(
        self, caller: str, master: str, key_ids: Sequence[UUID], again: Repeatable | None = None
    ) -> list[OpenKey]:
        """Get key with key IDs: the same keys for ``caller`` as slave; all of them or none.

        Entitlement is decided first, over every key that exists; then whether each can be had.
        """
        try:
            return self._collect(caller, master, key_ids, self._retry(again, "dec_keys", master, tuple(key_ids)))
        except (BadRequest, NotEntitled) as refusal:
            self._record_refusal(refusal, caller, master, key_ids)
            raise

    def _collect(
        self, caller: str, master: str, key_ids: Sequence[UUID], retry: Retry | None
    ) -> list[OpenKey]:
        known = self._store.registry.known()
        policy.check_caller(caller, known.saes, self.kme_id)
        self._fair_use.admit(caller)
        if len(key_ids) > 1 and len(set(key_ids)) != len(key_ids):
            raise BadRequest("a key_ID is given twice", rule="KEY-ID-5")
        if len(key_ids) > self.limits.max_key_per_request:
            raise BadRequest(f"at most {self.limits.max_key_per_request} key_IDs", rule="KEY-NUM-1")
        held = self._held(key_ids, known.saes.get(master))
        policy.check_entitled(caller, held.values())
        policy.check_distinct(caller, master)
        policy.check_pairs([caller], known.saes, known.allowed(master, [caller]))
        answered = self._answered(retry, caller)
        if answered is not None:
            return answered
        policy.check_collectable(caller, master, key_ids, held)
        policy.check_age(key_ids, known.ttl(master, caller), self._clock())
        keys = list(held.values())  # all of them, in the order in which they were asked for
        try:
            return self._custody.collect(caller, keys, f"sae:{caller}", retry, self.limits.idempotency_seconds)
        except AnsweredAlready:
            return self._answered_meanwhile(retry, caller)
        except KeyNotHeld:
            raise BadRequest(policy.NOT_FOUND, rule="KEY-ID-2") from None
        except RecordFault:
            raise BadRequest(policy.NOT_FOUND, rule="KEY-ID-4") from None

    def _held(self, key_ids: Sequence[UUID], master: Sae | None) -> dict[UUID, HeldKey]:
        """What is known of the keys; of those that are not, the KME of ``master`` is asked if this one may forget."""
        held = self._custody.held(key_ids)
        if len(held) == len(key_ids) or self._agreement is None or master is None or master.kme_id == self.kme_id:
            return held
        self._agreement.pull(master.kme_id, [key_id for key_id in key_ids if key_id not in held])
        return self._custody.held(key_ids)

    def _retry(self, again: Repeatable | None, method: str, other: str, request: object) -> Retry | None:
        """What to remember of a request that may be repeated (point 24); None while that is switched off."""
        if again is None or not self.limits.idempotency_seconds:
            return None
        digest = hashlib.sha256(repr((method, other, request)).encode()).digest()
        return Retry(again.client, again.token, digest, self.limits.idempotency_seconds)

    def _answered(self, retry: Retry | None, caller: str) -> list[OpenKey] | None:
        """The keys that this request was answered with before; None if it was not."""
        if retry is None:
            return None
        answer = self._store.answers.find(retry, self._clock())
        if answer is None:
            return None
        if answer.request != retry.request:
            raise BadRequest("this Idempotency-Key was used for another request", rule="KEY-IDEM-1")
        held = self._custody.held(answer.key_ids)
        if not all(_can_be_repeated(held.get(key_id)) for key_id in answer.key_ids):
            raise BadRequest(policy.NOT_FOUND, rule="KEY-ID-3")
        return self._custody.repeat([held[key_id].key for key_id in answer.key_ids], f"sae:{caller}")

    def _answered_meanwhile(self, retry: Retry | None, caller: str) -> list[OpenKey]:
        """The keys that another request with the same Idempotency-Key got a moment ago; never an empty answer."""
        known = self._answered(retry, caller)
        if known is None:
            raise StoreUnavailable("the answer to the same request was over before it could be repeated")
        return known

    def _release(self, demand: Demand, retry: Retry | None) -> list[OpenKey]:
        for _ in range(_TRIES):
            try:
                return self._source(demand.peer)(demand, f"sae:{demand.relation.master}", retry)
            except PoolShort as short:
                raise NotEnoughKeys(
                    f"{short.available} of {len(demand.key_ids)} keys are available",
                    rule="KEY-POOL-1",
                    retry_after=_retry_after(len(demand.key_ids) - short.available, short.per_second),
                ) from short
            except RecordFault as fault:
                log.warning("%s: trying other keys", fault)
                demand = replace(demand, key_ids=self._new_ids(len(demand.key_ids)))
        raise TokenUnavailable("several blocks in turn did not open", retry_after=RETRY_UNKNOWN_SECONDS)

    def _peers_of(self, master: str, slaves: Sequence[str], known: Known) -> list[str]:
        """The other KMEs that serve some of ``slaves``; each of these must be allowed for ``master``."""
        policy.check_pairs(slaves, known.saes, known.allowed(master, slaves))
        return sorted({known.saes[slave].kme_id for slave in slaves} - {self.kme_id})

    def _source(self, peer: str) -> Release:
        """Where keys come from: this KME alone, or an agreement with a peer."""
        if peer == self.kme_id:
            return self._custody.release
        if self._agreement is None:
            raise PoolShort(0, 0.0)  # without [peering] there are no keys to agree on
        return self._agreement.release

    def _record_refusal(self, refusal: RequestRefused, caller: str, master: str, key_ids: Sequence[UUID]) -> None:
        named = [str(key_id) for key_id in key_ids[:_NAMED]]
        facts: dict[str, object] = {"rule": refusal.rule, "master": master[:_NAME], "key_IDs": named}
        if len(key_ids) > _NAMED:
            facts["key_IDs_in_all"] = len(key_ids)
        self._store.log.append(Entry("refused.dec_keys", f"sae:{caller}", facts))


def _can_be_repeated(key: HeldKey | None) -> bool:
    """Whether a key is there still, and nothing is wrong with its block."""
    return key is not None and key.state in (KeyState.DELIVERED, KeyState.CONSUMED) and bool(key.key.parts)


def _retry_after(missing: int, per_second: float) -> int:
    """Whole seconds until ``missing`` keys can have arrived at the measured rate."""
    if per_second <= 0:
        return RETRY_UNKNOWN_SECONDS
    return min(max(math.ceil(missing / per_second), 1), RETRY_MOST_SECONDS)
