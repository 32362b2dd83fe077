"""What an operator may see of keys and relations: states, places and history, never bytes."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

import sqlite_utils

from hsmkme.store.database import Database

_KEY: Final = """
SELECT master, slaves, state, size, parts, served, claimed_at, mine, due FROM key JOIN relation USING (relation_id)
WHERE key_id = ?
"""
_PART: Final = """
SELECT link_id AS link, peer, block_id AS block, block.state AS block_state, epoch FROM block
JOIN link USING (link_id) WHERE block_pk = ?
"""
_RELATIONS: Final = """
SELECT master, slaves, count(key_id) AS keys, min(mine) AS mine,
    coalesce(sum(state = 'assigning'), 0) AS offered,
    coalesce(sum(state = 'assigned' AND mine = 1), 0) AS agreed,
    coalesce(sum(state = 'assigned' AND mine = 0), 0) AS accepted,
    coalesce(sum(state = 'delivered' AND served = 0), 0) AS uncollected,
    coalesce(sum(state = 'delivered' AND served <> 0), 0) AS partly_collected,
    coalesce(sum(state = 'consumed'), 0) AS consumed,
    coalesce(sum(state = 'void'), 0) AS void,
    max(claimed_at) AS last_claimed_at
FROM relation LEFT JOIN (SELECT * FROM key WHERE key_id NOT IN (SELECT pad_id FROM pad)) USING (relation_id)
WHERE (:sae IS NULL OR master = :sae OR :sae IN (SELECT value FROM json_each(slaves)))
GROUP BY relation_id ORDER BY master, slaves
"""
_LINK: Final = """
SELECT link_id AS link, peer, state, why, link.incarnation, sent, far_end.incarnation AS peer_incarnation,
    coalesce(seen, 0) AS seen, nullif(heard, 0) AS heard, coalesce(far_end.ready, '{}') AS peer_ready,
    (SELECT count(*) FROM outbox WHERE outbox.link_id = link.link_id) AS outbox,
    (SELECT min(since) FROM outbox WHERE outbox.link_id = link.link_id) AS outbox_since,
    (SELECT count(*) FROM block WHERE block.link_id = link.link_id AND block.state = 'deposited' AND not_before = 0)
        AS unconfirmed,
    (SELECT min(deposited_at) FROM block WHERE block.link_id = link.link_id AND block.state = 'deposited'
        AND not_before = 0) AS unconfirmed_since,
    (SELECT count(*) FROM block WHERE block.link_id = link.link_id AND block.state = 'deposited' AND not_before > 0)
        AS locked,
    (SELECT min(not_before) FROM block WHERE block.link_id = link.link_id AND block.state = 'deposited'
        AND not_before > 0) AS locked_until
FROM link LEFT JOIN far_end USING (link_id) ORDER BY link_id
"""
_POOL: Final = "SELECT key_bits, ready, theirs FROM pool WHERE link_id = ? ORDER BY key_bits"
_BLOCKS: Final = """
SELECT state, mine, count(*) AS blocks,
    sum((key_count - next_index) * (state IN ('deposited', 'ready', 'frozen'))) AS keys
FROM block WHERE link_id = ? GROUP BY state, mine ORDER BY min(block_pk)
"""
_WAITING: Final = """
SELECT coalesce(sum(key.state = 'assigning'), 0) AS offered,
    coalesce(sum(key.state = 'assigned' AND key.mine = 1), 0) AS agreed,
    coalesce(sum(key.state = 'assigned' AND key.mine = 0), 0) AS accepted
FROM key JOIN block ON block_pk = parts ->> '$[0][0]'
WHERE key.state IN ('assigning', 'assigned', 'delivered') AND link_id = ?
"""

View = dict[str, Any]


class Views:
    """Read-only views of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def key(self, key_id: UUID) -> View | None:
        """State, relation, places and collectors of a key; None if no such key was ever claimed.

        ``mine``: this KME assigned it, and serves its master; else the ``peer`` did. ``due`` are the slaves that
        collect it here, ``elsewhere`` the others.
        """
        with self._database.read() as connection:
            database = sqlite_utils.Database(connection)
            found = next(iter(database.query(_KEY, [key_id.bytes])), None)
            if found is None:
                return None
            parts = []
            for block_pk, first, count in json.loads(found.pop("parts")):
                (part,) = database.query(_PART, [block_pk])
                parts.append({**part, "first": first, "count": count})
            slaves, served, due = json.loads(found["slaves"]), found.pop("served"), found.pop("due")
            return {
                "key_ID": str(key_id),
                **found,
                "mine": bool(found["mine"]),
                "peer": parts[0]["peer"] if parts else None,
                "slaves": slaves,
                "due": _named(slaves, due),
                "elsewhere": _named(slaves, ~due),
                "collected_by": _named(slaves, served),
                "parts": parts,
            }

    def history(self, said: UUID | str) -> list[View]:
        """Every row of the audit log that names a key, or has some text, oldest first. Reads the whole log."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT text FROM log WHERE instr(text, ?) ORDER BY seq", (str(said),))
            return [json.loads(text) for (text,) in rows]

    def unconfirmed(self) -> dict[str, int]:
        """How many blocks of each link wait until its other end confirms them; links without such are left out, and so
        are blocks that wait for a time."""
        with self._database.read() as connection:
            statement = "SELECT link_id, count(*) FROM block WHERE state = 'deposited' AND not_before = 0 GROUP BY 1"
            return dict(connection.execute(statement).fetchall())

    def relations(self, sae_id: str | None = None) -> list[View]:
        """Relations, or those of one SAE, with how many of their keys are in which state. A one-time pad is no key."""
        with self._database.read() as connection:
            rows = list(sqlite_utils.Database(connection).query(_RELATIONS, {"sae": sae_id}))
            return [{**row, "slaves": json.loads(row["slaves"])} for row in rows]

    def links(self) -> list[View]:
        """Every link: its state, what the two ends may assign, what waits (for the peer, or ``locked`` until a time),
        and what is known of the peer.

        ``pools``: of each key size how many keys this end may assign (``ready``), how many of the peer's blocks are
        here (``theirs``), and how many the peer said it may assign when it was last in touch (``peer_ready``).
        """
        with self._database.read() as connection:
            database = sqlite_utils.Database(connection)
            return [_with_pools(row, list(database.query(_POOL, [row["link"]]))) for row in list(database.query(_LINK))]

    def blocks(self, link_id: str) -> list[View]:
        """Blocks of a link by state and owner, and how many of their keys nobody has claimed. Reads every block."""
        with self._database.read() as connection:
            rows = sqlite_utils.Database(connection).query(_BLOCKS, [link_id])
            return [{**row, "mine": bool(row["mine"])} for row in rows]

    def waiting(self, link_id: str) -> dict[str, int]:
        """Keys of a link on their way: ``offered`` to the peer, ``agreed`` and not drawn, ``accepted`` from the peer
        and not collected."""
        with self._database.read() as connection:
            (row,) = sqlite_utils.Database(connection).query(_WAITING, [link_id])
            return {name: int(count) for name, count in row.items()}


def _named(slaves: list[str], bits: int) -> list[str]:
    """The slaves whose bits are set."""
    return [slave for number, slave in enumerate(slaves) if bits >> number & 1]


def _with_pools(link: View, pools: list[View]) -> View:
    theirs = json.loads(link.pop("peer_ready"))
    here = {pool["key_bits"]: pool for pool in pools}
    sizes = sorted({*here, *(int(bits) for bits in theirs)})
    none = {"ready": 0, "theirs": 0}
    return {
        **link,
        "pools": [
            {"key_bits": bits, **none, **here.get(bits, {}), "peer_ready": theirs.get(str(bits), 0)} for bits in sizes
        ],
    }
