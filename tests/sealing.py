"""Rows that say something else than they did, as if they had always said so: sealed by the key that the token gives."""

# ruff: noqa: S608 - every statement is of the tests alone

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hsmkme import bootstrap
from hsmkme.store import Store
from hsmkme.store.seals import seal_of


def rewrite(store: Store, table: str, where: str, **becomes: str) -> None:
    """Set columns of the rows of `block`, `epoch` or `key` to what an expression says. Custody has the store."""
    columns = ", ".join(f"{column} = {value}" for column, value in becomes.items())
    source = " FROM relation WHERE relation.relation_id = key.relation_id AND" if table == "key" else " WHERE"
    with store.log._database.write(logged=False) as transaction:
        (guard,) = transaction.execute("SELECT sql FROM sqlite_master WHERE name = 'claim_stays'").fetchone()
        transaction.execute("DROP TRIGGER claim_stays")
        transaction.execute(f"UPDATE {table} SET {columns}, seal = {seal_of(table, **becomes)}{source} {where}")
        transaction.execute(guard)


def rewrite_of(config: str, table: str, where: str, column: str, value: str) -> None:
    """The same, of the store of a KME that works: to be called in a process of its own."""
    parts = bootstrap.open_parts(Path(config))
    with closing(parts.store), closing(parts.tokens):
        rewrite(parts.store, table, where, **{column: value})
