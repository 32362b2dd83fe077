"""What of each row is sealed: all that is believed of it and that nothing else proves. The only place that lists it.

A row's ``seal`` is made by the SQL function ``row_seal``, looked at by ``is_sealed`` and insisted on by
``require_sealed`` (``store/database.py``), under a key that only the token gives. Not sealed are a block's wrapped key
and epoch, which the token proves, and what changes with every delivery: states, cursors, counts. A statement that
changes what is sealed makes the seal anew, and only of a row whose seal was good before.
"""

from __future__ import annotations

from typing import Final

_COLUMNS: Final = {
    "block": "block_pk link_id block_id key_bits key_count digest deposited_at not_before tag mine own_epoch",
    "copy": "block_pk epoch wrapped",
    "epoch": "epoch check_value token since wraps proof state",
    "key": "key_id relation.master relation.slaves size parts mine due claimed_at",
}
"""A key's relation by its names: the row that has its number may be altered too."""

_TEXTS: Final = frozenset({"link_id", "block_id", "check_value", "token", "state"})
"""What may be no text any more is given to the function as bytes."""


def _said(table: str, becomes: dict[str, str]) -> str:
    values = [f"'{table}'"]
    for column in _COLUMNS[table].split():
        name = column.rpartition(".")[2]
        value = becomes.get(name, column if name != column else f"{table}.{name}")
        values.append(f"CAST({value} AS BLOB)" if name in _TEXTS else value)
    return ", ".join(values)


def seal_of(table: str, **becomes: str) -> str:
    """The expression that seals a row of a table, some columns of which are to become what an expression says."""
    return f"row_seal({_said(table, becomes)})"


def is_sealed(table: str) -> str:
    """The condition that a row of a table is what was sealed."""
    return f"is_sealed({table}.seal, {_said(table, {})})"


BLOCK_IS_SOUND: Final = f"""
CASE WHEN block.state IN ('frozen', 'revoked', 'retired') THEN 1
    ELSE require_sealed(block.seal, {_said("block", {})}) END
"""
"""The condition that a block's row is what was sealed, which raises `StoreTampered` if it is not. Of one in these
states nothing is believed any more."""
