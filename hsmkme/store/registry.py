"""SAEs, the pairs that may exchange keys, links and epochs."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import sqlite_utils

from hsmkme.errors import StoreError
from hsmkme.model import Entry, Link, Sae
from hsmkme.store.database import Database
from hsmkme.store.links import new_incarnation
from hsmkme.waiting import moment

_SHORT_LIVED: Final = """
SELECT relation_id, max(pair.ttl) FROM relation, json_each(slaves) AS one
JOIN pair ON pair.master = relation.master AND pair.slave = one.value
WHERE relation.master IN (SELECT master FROM pair WHERE ttl > 0)
GROUP BY relation_id HAVING min(pair.ttl) > 0 AND count(*) = json_array_length(slaves)
"""


@dataclass(frozen=True, slots=True)
class Known:
    """The registry at one moment: every SAE, in the order of their ids, and every (master, slave) that is allowed, with
    the seconds that their keys live; 0: no limit."""

    version: int
    saes: Mapping[str, Sae] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def ttl(self, master: str, slave: str) -> float:
        """For how many seconds a key of this pair may be collected once it was made; infinite without a limit."""
        return self.pairs.get((master, slave)) or math.inf

    def allowed(self, master: str, slaves: Sequence[str]) -> frozenset[str]:
        """Those of ``slaves`` that may share keys of ``master``."""
        return frozenset(slave for slave in slaves if (master, slave) in self.pairs)


class Registry:
    """Who and what this KME knows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest = Known(version=0)
        self._looked_at = object()

    def known(self) -> Known:
        """The registry as it is now. Read again only when its version is another: what any process changed, a
        revocation above all, is seen by the next request of every other. Requests that came before one look share it.
        """
        now = moment()
        if now is not self._looked_at:
            self._look()
            self._looked_at = now
        return self._latest

    def _look(self) -> None:
        row = self._database.ask("SELECT version FROM registry")
        if row is None:
            raise StoreError("the store does not say which version its registry has: nobody can be admitted")
        if row[0] != self._latest.version:
            with self._database.read() as connection:
                self._latest = _read(connection)

    def add_sae(self, sae_id: str, kme_id: str, entry: Entry) -> bool:
        """Register an SAE; False if it is already registered so. Raises `StoreError` if at another KME."""
        with self._database.write() as transaction:
            row = transaction.execute("SELECT kme_id, revoked FROM sae WHERE sae_id = ?", (sae_id,)).fetchone()
            if row == (kme_id, 0):
                return False
            if row is not None:
                raise StoreError(f"SAE {sae_id} is registered at {row[0]}" + (", revoked" if row[1] else ""))
            transaction.execute("INSERT INTO sae (sae_id, kme_id) VALUES (?, ?)", (sae_id, kme_id))
            transaction.append(entry.knowing(sae=sae_id, kme=kme_id))
            return True

    def revoke_sae(self, sae_id: str, entry: Entry) -> bool:
        """Refuse every later request of an SAE; False if it was revoked before."""
        with self._database.write() as transaction:
            row = transaction.execute("SELECT revoked FROM sae WHERE sae_id = ?", (sae_id,)).fetchone()
            if row is None:
                raise StoreError(f"no SAE {sae_id} is registered")
            if row[0]:
                return False
            transaction.execute("UPDATE sae SET revoked = 1 WHERE sae_id = ?", (sae_id,))
            transaction.append(entry.knowing(sae=sae_id))
            return True

    def allow(self, master: str, slave: str, entry: Entry, ttl: int = 0) -> bool:
        """Let ``slave`` share keys of ``master``, each for ``ttl`` seconds (0: no limit); False if it may just so."""
        with self._database.write() as transaction:
            cursor = transaction.execute(
                "INSERT INTO pair VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET ttl = excluded.ttl"
                " WHERE ttl <> excluded.ttl",
                (master, slave, ttl),
            )
            if cursor.rowcount:
                transaction.append(entry.knowing(master=master, slave=slave, ttl=ttl))
            return bool(cursor.rowcount)

    def deny(self, master: str, slave: str, entry: Entry) -> bool:
        """End what `allow` allowed; False if it was not allowed."""
        with self._database.write() as transaction:
            cursor = transaction.execute("DELETE FROM pair WHERE master = ? AND slave = ?", (master, slave))
            if cursor.rowcount:
                transaction.append(entry.knowing(master=master, slave=slave))
            return bool(cursor.rowcount)

    def short_lived(self) -> list[tuple[int, int]]:
        """Relations in which every pair has a limit: their numbers, and how long the last slave may collect."""
        with self._database.read() as connection:
            return connection.execute(_SHORT_LIVED).fetchall()

    def admit_links(self, links: Sequence[Link], entry: Entry) -> None:
        """Make links of the configuration known, and how long their keys live; one that changed its peer is refused."""
        with self._database.write() as transaction:
            for link in links:
                row = transaction.execute("SELECT peer, ttl FROM link WHERE link_id = ?", (link.link_id,)).fetchone()
                if row is not None and row[0] != link.peer:
                    raise StoreError(f"link {link.link_id} goes to {row[0]}, the configuration says {link.peer}")
                if row is None:
                    transaction.execute(
                        "INSERT INTO link (link_id, peer, incarnation) VALUES (?, ?, ?)",
                        (link.link_id, link.peer, new_incarnation(transaction.now())),
                    )
                if row is None or row[1] != link.ttl_seconds:
                    transaction.execute("UPDATE link SET ttl = ? WHERE link_id = ?", (link.ttl_seconds, link.link_id))
                    transaction.append(entry.knowing(link=link.link_id, peer=link.peer, ttl=link.ttl_seconds))

    def pools(self) -> list[dict[str, object]]:
        """Links, their state, and how many keys of each size can be claimed."""
        with self._database.read() as connection:
            return list(
                sqlite_utils.Database(connection).query(
                    "SELECT link_id AS link, peer, state, key_bits, ready FROM link LEFT JOIN pool USING (link_id)"
                    " ORDER BY link_id, key_bits"
                )
            )


def _read(connection: sqlite3.Connection) -> Known:
    (version,) = connection.execute("SELECT version FROM registry").fetchone()
    rows = connection.execute("SELECT sae_id, kme_id, revoked FROM sae ORDER BY sae_id")
    saes = {sae_id: Sae(sae_id, kme_id, bool(revoked)) for sae_id, kme_id, revoked in rows}
    pairs = connection.execute("SELECT master, slave, ttl FROM pair")
    return Known(version, saes, {(master, slave): ttl for master, slave, ttl in pairs})
