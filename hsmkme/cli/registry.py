"""sae, pair: who may exchange keys."""

from __future__ import annotations

import json
from typing import Any

import click

from hsmkme import bootstrap
from hsmkme.cli.shared import JSON_OPTION, load_config, operator, show, with_config
from hsmkme.errors import StoreError
from hsmkme.model import Entry


@click.group()
def sae() -> None:
    """The SAEs this KME knows."""


@sae.command("add")
@click.argument("sae_id")
@click.option("--kme", help="The KME that serves it. Default: this one.")
@with_config
def sae_add(sae_id: str, kme: str | None, config: str | None) -> None:
    """Register an SAE."""
    settings = load_config(config)
    store = bootstrap.open_store(settings)
    new = store.registry.add_sae(sae_id, kme or settings.kme_id, Entry("sae.add", operator()))
    click.echo(f"{sae_id}: {'registered' if new else 'was registered already'}")


@sae.command("revoke")
@click.argument("sae_id")
@with_config
def sae_revoke(sae_id: str, config: str | None) -> None:
    """Refuse every later request of an SAE."""
    revoked = bootstrap.open_store(load_config(config)).registry.revoke_sae(sae_id, Entry("sae.revoke", operator()))
    click.echo(f"{sae_id}: {'revoked' if revoked else 'was revoked already'}")


@sae.command("show")
@click.argument("sae_id")
@with_config
@JSON_OPTION
def sae_show(sae_id: str, config: str | None, as_json: bool) -> None:
    """One SAE: its state, whom it may exchange keys with, and its relations."""
    store = bootstrap.open_store(load_config(config))
    known = store.registry.known()
    found = known.saes.get(sae_id)
    if found is None:
        raise StoreError(f"no SAE {sae_id} is registered")
    pairs = sorted(known.pairs)
    facts: dict[str, Any] = {
        "sae": sae_id,
        "kme": found.kme_id,
        "state": "revoked" if found.revoked else "active",
        "master_for": [slave for master, slave in pairs if master == sae_id],
        "slave_of": [master for master, slave in pairs if slave == sae_id],
        "relations": store.views.relations(sae_id),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name in ("sae", "kme", "state"):
        click.echo(f"{name:>10}  {facts[name]}")
    for name in ("master_for", "slave_of"):
        click.echo(f"{name:>10}  {', '.join(facts[name]) or 'nobody'}")
    show(facts["relations"], ("master", "slaves", "keys", "uncollected", "consumed"), as_json=False)


@sae.command("list")
@with_config
@JSON_OPTION
def sae_list(config: str | None, as_json: bool) -> None:
    """Every SAE."""
    saes = bootstrap.open_store(load_config(config)).registry.known().saes.values()
    rows = [{"sae": s.sae_id, "kme": s.kme_id, "state": "revoked" if s.revoked else "active"} for s in saes]
    show(rows, ("sae", "kme", "state"), as_json=as_json)


@click.group()
def pair() -> None:
    """Which slave SAE may share keys of which master SAE."""


@pair.command("allow")
@click.argument("master")
@click.argument("slave")
@click.option("--ttl", type=click.IntRange(0), default=0, help="Seconds for which a key may be collected. 0: no limit.")
@with_config
def pair_allow(master: str, slave: str, ttl: int, config: str | None) -> None:
    """Let SLAVE share keys that MASTER asks for. Given again with another --ttl, that holds from now on."""
    registry = bootstrap.open_store(load_config(config)).registry
    new = registry.allow(master, slave, Entry("pair.allow", operator()), ttl)
    click.echo(f"{master} → {slave}: {'allowed' if new else 'was allowed already'}{f', for {ttl} s' if ttl else ''}")


@pair.command("deny")
@click.argument("master")
@click.argument("slave")
@with_config
def pair_deny(master: str, slave: str, config: str | None) -> None:
    """End what `allow` allowed; keys not yet collected are not handed out any more."""
    ended = bootstrap.open_store(load_config(config)).registry.deny(master, slave, Entry("pair.deny", operator()))
    click.echo(f"{master} → {slave}: {'denied' if ended else 'was not allowed'}")


@pair.command("list")
@with_config
@JSON_OPTION
def pair_list(config: str | None, as_json: bool) -> None:
    """Every pair that is allowed."""
    pairs = bootstrap.open_store(load_config(config)).registry.known().pairs
    rows = [{"master": master, "slave": slave, "ttl_seconds": ttl} for (master, slave), ttl in sorted(pairs.items())]
    show(rows, ("master", "slave", "ttl_seconds"), as_json=as_json)
