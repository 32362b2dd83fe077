"""key, relation: what happened to a key, as an operator may see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import click

from hsmkme import bootstrap
from hsmkme.cli.shared import JSON_OPTION, console, load_config, show, with_config
from hsmkme.errors import StoreError

_SIDES: Final = {1: "mine", 0: "theirs"}
_ENDED: Final = ("consumed", "void")


@click.group()
def key() -> None:
    """Keys that were claimed."""


@key.command("show")
@click.argument("key_id", type=click.UUID)
@with_config
@JSON_OPTION
def key_show(key_id: UUID, config: str | None, as_json: bool) -> None:
    """State and history of one key; never its bytes."""
    store = bootstrap.open_store(load_config(config))
    found = store.views.key(key_id)
    history = store.views.history(key_id)
    if found is None and not history:
        raise StoreError(f"no key {key_id} was ever claimed here")
    if as_json:
        click.echo(json.dumps({"key": found, "history": history}))
        return
    kme_of = {name: sae.kme_id for name, sae in store.registry.known().saes.items()}
    for name, value in _lines(found or {}, kme_of).items():
        console.print(f"[bold]{name:>14}[/bold]  {_readable(name, value)}")
    show((found or {}).get("parts", []), ("link", "block", "block_state", "epoch", "first", "count"), as_json=False)
    console.print()
    show(history, ("seq", "at", "event", "actor", "rule"), as_json=False)


@click.group()
def relation() -> None:
    """Relations: a master SAE and the slave SAEs it shares keys with."""


@relation.command("show")
@click.argument("sae_id", required=False)
@with_config
@JSON_OPTION
def relation_show(sae_id: str | None, config: str | None, as_json: bool) -> None:
    """How many keys of each relation (or of those of SAE_ID) are in which state.

    Of keys shared with a peer: offered to it, agreed and not drawn, or accepted from it and not collected.
    """
    rows = bootstrap.open_store(load_config(config)).views.relations(sae_id)
    columns = ("master", "slaves", "side", "keys", "offered", "agreed", "accepted", "uncollected", "partly_collected",
               "consumed", "void")  # fmt: skip
    told = [{**row, "slaves": ", ".join(row["slaves"]), "side": _SIDES.get(row["mine"])} for row in rows]
    show(rows if as_json else told, columns, as_json=as_json)


def _lines(found: dict[str, Any], kme_of: Mapping[str, str]) -> dict[str, object]:
    """What is shown of a key: on which side it is, who still collects it here, and who at which other KME."""
    hidden = ("parts", "mine", "peer", "due", "elsewhere")
    lines = {name: value for name, value in found.items() if name not in hidden}
    if found:
        lines["side"] = "mine: its master is here" if found["mine"] else f"theirs: {found['peer']} assigned it"
        lines["due"] = [slave for slave in found["due"] if slave not in found["collected_by"]]
        if found["state"] in _ENDED:
            lines["due"] = []
        lines["elsewhere"] = [f"{slave} at {kme_of.get(slave, 'an unknown KME')}" for slave in found["elsewhere"]]
    return lines


def _readable(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nobody"
    if name == "claimed_at" and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).isoformat()
    return f"{value} bits" if name == "size" else str(value)
