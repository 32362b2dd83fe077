"""Fair use: how often an SAE may ask, how many keys a relation may draw. Shared by all workers.

Beyond a limit the answer is 503 with ``Retry-After``: ETSI GS QKD 014 has no 429. A refusal is counted; when
they persist, one row a minute for each SAE and rule goes to the audit log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from hsmkme.config import FairUseSection
from hsmkme.errors import OverLimit
from hsmkme.model import Clock, Entry, Relation

log = logging.getLogger(__name__)

AUDIT_EVERY: Final = parse("1/minute")
"""How often refusals of one SAE by one rule are written to the audit log."""


class FairUse:
    """The limits of ``section``, counted in ``storage``; ``record`` writes to the audit log."""

    def __init__(
        self, section: FairUseSection, storage: Storage, record: Callable[[Entry], object], clock: Clock
    ) -> None:
        self._limiter = FixedWindowRateLimiter(storage)
        self._storage = storage
        self._record = record
        self._clock = clock
        self._per_sae = _item(section.requests_per_sae)
        self._total = _item(section.requests_total)
        self._keys = _item(section.keys_per_relation)

    def admit(self, sae_id: str) -> None:
        """Count one request of an SAE; raises `OverLimit` (USE-RATE-1, USE-RATE-2) beyond a limit."""
        if self._per_sae is not None and not self._limiter.hit(self._per_sae, "sae", sae_id):
            raise self._over(self._per_sae, "USE-RATE-1", sae_id, "sae", sae_id)
        if self._total is not None and not self._limiter.hit(self._total, "total"):
            raise self._over(self._total, "USE-RATE-2", sae_id, "total")

    def check_quota(self, relation: Relation, keys: int) -> None:
        """Whether a relation may draw ``keys`` more; raises `OverLimit` (USE-QUOTA-1). Counts nothing."""
        if self._keys is None:
            return
        name = _relation_name(relation)
        if not self._limiter.test(self._keys, "relation", name, cost=keys):
            raise self._over(self._keys, "USE-QUOTA-1", relation.master, "relation", name)

    def spend(self, relation: Relation, keys: int) -> None:
        """Count ``keys`` delivered to a relation."""
        if self._keys is not None:
            self._limiter.hit(self._keys, "relation", _relation_name(relation), cost=keys)

    def _over(self, item: RateLimitItem, rule: str, sae_id: str, *identifiers: str) -> OverLimit:
        refused = self._storage.incr(f"refused/{rule}/{sae_id}", AUDIT_EVERY.get_expiry())
        if self._limiter.hit(AUDIT_EVERY, "audit", rule, sae_id):
            self._record(Entry("refused.fair-use", f"sae:{sae_id}", {"rule": rule, "refused": refused}))
        reset = self._limiter.get_window_stats(item, *identifiers).reset_time
        log.info("%s is over a limit: %s", sae_id, rule)
        return OverLimit("too many requests", rule=rule, retry_after=max(math.ceil(reset - self._clock()), 1))


def _item(limit: str) -> RateLimitItem | None:
    return parse(limit) if limit else None


def _relation_name(relation: Relation) -> str:
    return "\n".join((relation.master, *relation.slaves))
