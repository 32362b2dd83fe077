"""The schema, as numbered, forward-only migrations run by `hsmkme migrate`.

They are the files ``migrations/0001.sql`` and so on; ``PRAGMA user_version`` is the number of the last one
applied. A migration is never edited once released.
The state tables repeat ``states.py`` on purpose: the database refuses an illegal transition by itself.
"""

from __future__ import annotations

import sqlite3
from importlib import resources
from typing import Final

from hsmkme.errors import StoreSchema

_FILES: Final = resources.files("hsmkme.store") / "migrations"
MIGRATIONS: Final = tuple((_FILES / f"{number:04}.sql").read_text(encoding="utf-8") for number in range(1, 13))


def version_of(connection: sqlite3.Connection) -> int:
    """The number of the last migration applied to this file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def require_current(connection: sqlite3.Connection) -> None:
    """Refuse a file that needs a migration, or that a newer version wrote."""
    version = version_of(connection)
    if version > len(MIGRATIONS):
        raise StoreSchema(
            f"the store has schema {version}, this version of hsmkme knows up to {len(MIGRATIONS)}: "
            "start the newer version that wrote it"
        )
    if version < len(MIGRATIONS):
        raise StoreSchema(f"the store has schema {version}, this version needs {len(MIGRATIONS)}: run `hsmkme migrate`")


def migrate(connection: sqlite3.Connection) -> list[int]:
    """Apply what is missing, each migration in a transaction of its own; returns the numbers applied."""
    applied = []
    if version_of(connection) > len(MIGRATIONS):
        require_current(connection)
    for number in range(version_of(connection) + 1, len(MIGRATIONS) + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{MIGRATIONS[number - 1]}\nPRAGMA user_version = {number};\nCOMMIT;"
        )
        applied.append(number)
    return applied
