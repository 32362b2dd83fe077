"""How many keys a relation is given ahead of need: the more, the faster it draws them. Inside a transaction."""

from __future__ import annotations

import sqlite3
from typing import Final

from hsmkme.model import Demand, Relation
from hsmkme.store.database import Transaction
from hsmkme.store.rows import relation_id

DEPTH_MOST: Final = 1024
"""The most keys that a relation is given at a time, if it comes back within `RUSH_SECONDS`."""

RUSH_SECONDS: Final = 1
STEADY_MOST: Final = 256
"""The most for one that takes longer: a restart burns them."""

BUSY_SECONDS: Final = 10
"""A relation that comes back within this time is given more ahead; one that stays away much longer, nothing."""

_AGREEING: Final = """
SELECT 1 FROM key JOIN relation USING (relation_id)
WHERE master = ? AND slaves = ? AND state = 'assigning' AND claimed_at >= ? LIMIT 1
"""
_NOTE: Final = """
INSERT INTO draw VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET depth = excluded.depth, at = excluded.at
"""
_THIRSTY: Final = """
SELECT master, slaves, size FROM draw JOIN relation USING (relation_id)
WHERE peer = ? AND at >= ? AND depth > 1 AND depth > (SELECT count(*) FROM key
    WHERE key.relation_id = draw.relation_id AND key.size = draw.size AND state = 'assigned' AND mine = 1)
"""


def depth(transaction: Transaction, demand: Demand, spare: int) -> int:
    """How many keys to agree on ahead of need, ``spare`` at most: twice as many as before while the relation keeps
    coming back.

    None while another request waits for an answer to an offer for the same relation, and none that would have to be
    carried, or would be old when it is drawn.
    """
    now = transaction.now()
    if demand.further or demand.fresh or is_agreeing(transaction.connection, demand, now):
        return 0
    relation = relation_id(transaction, demand.relation)
    row = transaction.execute("SELECT depth, at FROM draw WHERE relation_id = ? AND size = ?", (relation, demand.size))
    before, at = row.fetchone() or (1, 0)
    deep = before if now - at <= 6 * BUSY_SECONDS else 1
    if now - at <= BUSY_SECONDS:
        deep = min(2 * max(before, len(demand.key_ids)), DEPTH_MOST if now - at <= RUSH_SECONDS else STEADY_MOST)
    deep = max(min(deep, spare), 1)
    transaction.execute(_NOTE, (relation, demand.size, demand.peer, deep, now))
    return deep if deep > 1 else 0


def give_none(transaction: Transaction, relation: Relation, size: int) -> None:
    """Nothing ahead of need for a relation, until it comes back."""
    number = relation_id(transaction, relation)
    transaction.execute("DELETE FROM draw WHERE relation_id = ? AND size = ?", (number, size))


def is_agreeing(connection: sqlite3.Connection, demand: Demand, now: int) -> bool:
    """Whether somebody waits for the peer to confirm keys of this relation."""
    values = (demand.relation.master, demand.relation.packed, now - BUSY_SECONDS)
    return connection.execute(_AGREEING, values).fetchone() is not None


def thirsty(connection: sqlite3.Connection, peer: str, now: int) -> list[tuple[Relation, int]]:
    """Relations with slaves at ``peer`` that draw often and have fewer keys ahead than they are given at once, and the
    size they draw. What is left lasts until the next ones are agreed on, so that no request waits for them."""
    rows = connection.execute(_THIRSTY, (peer, now - BUSY_SECONDS)).fetchall()
    return [(Relation.unpacked(master, slaves), size) for master, slaves, size in rows]
