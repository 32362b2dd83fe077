"""What an operator may see of keys and relations: states, places and history, never bytes."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

import sqlite_utils

from hsmkme.store.database import Database

_KEY: Final = """
SELECT master, slaves, state, size, parts, served, claimed_at FROM key JOIN relation USING (relation_id)
WHERE key_id = ?
"""
_PART: Final = """
SELECT link_id AS link, block_id AS block, state AS block_state, epoch FROM block WHERE block_pk = ?
"""
_RELATIONS: Final = """
SELECT master, slaves, count(key_id) AS keys,
    coalesce(sum(state = 'delivered' AND served = 0), 0) AS uncollected,
    coalesce(sum(state = 'delivered' AND served <> 0), 0) AS partly_collected,
    coalesce(sum(state = 'consumed'), 0) AS consumed,
    coalesce(sum(state = 'void'), 0) AS void,
    max(claimed_at) AS last_claimed_at
FROM relation LEFT JOIN key USING (relation_id)
WHERE (:sae IS NULL OR master = :sae OR :sae IN (SELECT value FROM json_each(slaves)))
GROUP BY relation_id ORDER BY master, slaves
"""

View = dict[str, Any]


class Views:
    """Read-only views of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def key(self, key_id: UUID) -> View | None:
        """State, relation, places and collectors of a key; None if no such key was ever claimed."""
        with self._database.read() as connection:
            database = sqlite_utils.Database(connection)
            found = next(iter(database.query(_KEY, [key_id.bytes])), None)
            if found is None:
                return None
            parts = []
            for block_pk, first, count in json.loads(found.pop("parts")):
                (part,) = database.query(_PART, [block_pk])
                parts.append({**part, "first": first, "count": count})
            slaves, served = json.loads(found["slaves"]), found.pop("served")
            collected = [slave for number, slave in enumerate(slaves) if served >> number & 1]
            return {"key_ID": str(key_id), **found, "slaves": slaves, "collected_by": collected, "parts": parts}

    def history(self, key_id: UUID) -> list[View]:
        """Every row of the audit log that names the key, oldest first. Reads the whole log."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT text FROM log WHERE instr(text, ?) ORDER BY seq", (str(key_id),))
            return [json.loads(text) for (text,) in rows]

    def unconfirmed(self) -> dict[str, int]:
        """How many blocks of each link wait until its other end confirms them; links without such are left out."""
        with self._database.read() as connection:
            statement = "SELECT link_id, count(*) FROM block WHERE state = 'deposited' GROUP BY link_id"
            return dict(connection.execute(statement).fetchall())

    def relations(self, sae_id: str | None = None) -> list[View]:
        """Relations, or those of one SAE, with how many of their keys are in which state."""
        with self._database.read() as connection:
            rows = list(sqlite_utils.Database(connection).query(_RELATIONS, {"sae": sae_id}))
            return [{**row, "slaves": json.loads(row["slaves"])} for row in rows]
