"""link: the QKD links of this KME, how they stand, and what an operator may do about that."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hsmkme import bootstrap
from hsmkme.cli.shared import (
    JSON_OPTION,
    config_path,
    console,
    load_config,
    moment,
    operator,
    show,
    show_facts,
    with_config,
)
from hsmkme.config import Config
from hsmkme.errors import StoreError
from hsmkme.messages.bodies import Standing
from hsmkme.model import Entry, Link
from hsmkme.store.claims import AWAY_SECONDS
from hsmkme.store.links import GIVEN_UP, OPERATOR, PEER_RESTORED, RESTORED, STARTING
from hsmkme.store.outbox import OPEN

_STATES: Final = {
    OPEN: ("open", ""),
    STARTING: (
        "frozen: this KME began and does not know yet from the peer whether its store is an old copy",
        "nothing while the peer answers; if it stays so, see that `hsmkme upkeep` runs here and `hsmkme serve-peers`"
        " there, and try `hsmkme link probe {link}`",
    ),
    RESTORED: (
        "frozen: the store of this KME is an old copy and must learn from the peer what it forgot",
        "nothing while `hsmkme upkeep` runs here and the peer answers; `hsmkme link reconcile {link}` does it now. If"
        " the store of the peer is an old copy too: `hsmkme link give-up {link}` at both ends",
    ),
    PEER_RESTORED: (
        "frozen: the store of the peer is an old copy, and it must learn from this KME what it forgot",
        "nothing here: the peer does it by itself; if it stays so, look at `hsmkme link show {link}` there",
    ),
    GIVEN_UP: (
        "frozen: its keys were given up here, and not yet at the peer, whose store is an old copy too",
        "`hsmkme link give-up {link}` at the peer",
    ),
    OPERATOR: ("frozen by an operator", "`hsmkme link thaw {link}`"),
}
"""What a link's state is in words, and what to do next."""

_POOL: Final = ("key_bits", "ready", "theirs", "peer_ready")


@click.group()
def link() -> None:
    """The QKD links."""


@link.command("list")
@with_config
@JSON_OPTION
def link_list(config: str | None, as_json: bool) -> None:
    """Every link: how many keys this end may assign (ready), the peer (theirs), and what the peer says it may."""
    settings = load_config(config)
    links = bootstrap.open_store(settings).views.links()
    of_sizes = [(found, pool) for found in links for pool in found["pools"] or [dict.fromkeys(_POOL)]]
    if as_json:
        told = [{**_told(found, settings.kme_id), **pool} for found, pool in of_sizes]
        click.echo(json.dumps([{name: value for name, value in row.items() if name != "pools"} for row in told]))
        return
    rows = [
        {**found, **pool, "state": _state(found), "last contact": _ago(found["heard"], "")} for found, pool in of_sizes
    ]
    show(rows, ("link", "peer", "state", *_POOL, "unconfirmed", "last contact"), as_json=False)


@link.command("show")
@click.argument("link_id", metavar="LINK")
@with_config
@JSON_OPTION
def link_show(link_id: str, config: str | None, as_json: bool) -> None:
    """How a link stands at this end, what waits, what is known of the other end, and what to do next."""
    settings = load_config(config)
    views = bootstrap.open_store(settings).views
    found = _found(views.links(), link_id, settings)
    facts = {**_told(found, settings.kme_id), "blocks": views.blocks(link_id), **views.waiting(link_id)}
    if as_json:
        click.echo(json.dumps(facts))
        return
    lines = {"link": link_id, "to": _end(settings, facts["peer"]), "state": facts["says"], "next": facts["next"]}
    if facts["peer"] != settings.kme_id:
        lines |= {
            "last contact": _ago(found["heard"], "never"),
            "unconfirmed": _waiting(facts["unconfirmed"], "blocks", found["unconfirmed_since"]),
            "keys": f"{facts['offered']} offered, {facts['agreed']} agreed and not drawn, {facts['accepted']} accepted",
            "outbox": _waiting(facts["outbox"], "messages", found["outbox_since"]),
            "messages": f"{facts['sent']} sent, highest of the peer {facts['seen']}",
            "incarnation": facts["incarnation"],
            "of the peer": facts["peer_incarnation"] or "unknown",
        }
    if facts["locked"]:
        lines["locked"] = f"{facts['locked']} blocks, the first until {moment(facts['locked_until'])}"
    show_facts({name: value for name, value in lines.items() if value})
    console.print()
    show(facts["pools"], _POOL, as_json=False)
    console.print()
    owners = [{**row, "owner": settings.kme_id if row["mine"] else facts["peer"]} for row in facts["blocks"]]
    show(owners, ("state", "owner", "blocks", "keys"), as_json=False)


@link.command("probe")
@click.argument("link_id", metavar="LINK")
@with_config
@JSON_OPTION
def link_probe(link_id: str, config: str | None, as_json: bool) -> None:
    """Greet the other end now. Exit status 0: good; 1: behind, or refused; 75: the peer is away."""
    asked = _to_peer(load_config(config), link_id)
    parts = bootstrap.open_parts(config_path(config))
    liaison = parts.liaison()
    began = time.monotonic()
    standing = liaison.probe(asked)
    milliseconds = round((time.monotonic() - began) * 1000, 1)
    state = parts.store.links.state(link_id)
    if as_json:
        facts = {"link": link_id, "peer": asked.peer, "milliseconds": milliseconds, **standing.model_dump()}
        click.echo(json.dumps({**facts, "why_here": state.why}))
    else:
        _show_standing(asked, standing, milliseconds, state.why)
    sys.exit(0 if standing.verdict == "good" else 1)


@link.command("freeze")
@click.argument("link_id", metavar="LINK")
@with_config
def link_freeze(link_id: str, config: str | None) -> None:
    """Assign and accept no more keys of LINK until it is thawed. Slaves still collect what their master has."""
    settings = load_config(config)
    store = bootstrap.open_store(settings)
    _found(store.views.links(), link_id, settings)
    was = store.links.halt(link_id, Entry("link.freeze", operator()))
    if was == OPEN:
        click.echo(f"{link_id}: frozen")
    elif was == OPERATOR:
        click.echo(f"{link_id}: was frozen by an operator already")
    else:
        raise StoreError(f"{link_id} is not open and stays as it is: {_STATES[was][0]}")


@link.command("thaw")
@click.argument("link_id", metavar="LINK")
@with_config
def link_thaw(link_id: str, config: str | None) -> None:
    """End a freeze by an operator. A link to a peer opens when the peer was greeted."""
    settings = load_config(config)
    store = bootstrap.open_store(settings)
    local = _found(store.views.links(), link_id, settings)["peer"] == settings.kme_id
    was = store.links.thaw(link_id, OPEN if local else STARTING, Entry("link.thaw", operator()))
    if was == OPERATOR:
        click.echo(f"{link_id}: {'open' if local else 'thawed; it opens when the peer answers'}")
    elif was == OPEN:
        click.echo(f"{link_id}: was open already")
    else:
        raise StoreError(f"{link_id} is not frozen by an operator and stays as it is: {_STATES[was][0]}")


@link.command("reconcile")
@click.argument("link_id", metavar="LINK")
@click.option("--yes", is_flag=True, help="Also if the store is not known to be an old copy.")
@with_config
def link_reconcile(link_id: str, yes: bool, config: str | None) -> None:
    """Learn from the other end what this store, an old copy, forgot of LINK; the link is open afterwards.

    Keys that were agreed and not delivered end, and so does every block that the other end does not have.
    """
    settings = load_config(config)
    asked = _to_peer(settings, link_id)
    was = _found(bootstrap.open_store(settings).views.links(), link_id, settings)["why"]
    if was == PEER_RESTORED:
        raise StoreError(f"{link_id}: it is for {asked.peer} to reconcile, whose store is an old copy")
    if was != RESTORED and not yes:
        raise click.UsageError(
            f"the store is not known to be an old copy (the link is {_STATES[was][0]}); reconciling it burns the keys"
            " that were agreed and not delivered. If that is what you want, say --yes"
        )
    parts = bootstrap.open_parts(config_path(config))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{asked.peer} is asked", total=None)
        entry = Entry("link.freeze", operator())
        blocks = parts.liaison().reconcile(asked, entry, lambda n, of: progress.update(task, completed=n, total=of))
    click.echo(f"{link_id}: reconciled over {blocks} blocks, and open")


@link.command("give-up")
@click.argument("link_id", metavar="LINK")
@click.option("--yes", is_flag=True, help="Burn the keys of LINK that nobody claimed.")
@with_config
def link_give_up(link_id: str, yes: bool, config: str | None) -> None:
    """Give up the keys of LINK here, where the stores of both ends are old copies and neither can tell the other.

    What slaves may collect stays. Do it at both ends: the link opens then, and needs new keys. Deposit nothing again
    that was deposited before. Exit status 75: the peer is away, and nothing was given up.
    """
    settings = load_config(config)
    asked = _to_peer(settings, link_id)
    was = _found(bootstrap.open_store(settings).views.links(), link_id, settings)["why"]
    if was not in (RESTORED, GIVEN_UP):
        raise StoreError(f"{link_id}: nothing is to be given up while the link is {_STATES[was][0]}")
    if not yes:
        raise click.UsageError("this burns every key of the link that nobody claimed. If you want that, say --yes")
    parts = bootstrap.open_parts(config_path(config))
    blocks = parts.liaison().give_up(asked, Entry("link.give-up", operator()))
    opens = "open" if parts.store.links.state(link_id).is_open else "it opens when the peer gives up its own"
    click.echo(f"{link_id}: {blocks} blocks given up; {opens}")


def _to_peer(config: Config, link_id: str) -> Link:
    found = config.link_named(link_id)
    if found.peer == config.kme_id:
        raise click.UsageError(f"link {link_id} is local: it has no other end")
    return found


def _found(links: list[dict[str, Any]], link_id: str, config: Config) -> dict[str, Any]:
    """The link of this name; raises `StoreError` or `ConfigRefused` naming those there are."""
    for found in links:
        if found["link"] == link_id:
            return found
    config.link_named(link_id)
    raise StoreError(f"link {link_id} is configured, and known when the KME was started with it")


def _told(found: dict[str, Any], kme_id: str) -> dict[str, Any]:
    """A link as programs see it, with its state in words."""
    says, what_next = _words(found, kme_id)
    heard = found["heard"]
    since = None if heard is None else max(int(time.time()) - heard, 0)
    hidden = ("heard", "unconfirmed_since", "outbox_since")
    rest = {name: value for name, value in found.items() if name not in hidden}
    return {**rest, "says": says, "next": what_next, "last_contact_seconds": since}


def _words(found: dict[str, Any], kme_id: str) -> tuple[str, str]:
    says, what_next = _STATES[found["why"]]
    away = found["why"] == OPEN and found["peer"] != kme_id and (found["heard"] or 0) < time.time() - AWAY_SECONDS
    if away:
        says = "open, but the peer was not heard of lately: until it answers no more keys are agreed on"
        what_next = "see that `hsmkme upkeep` runs here and `hsmkme serve-peers` there; `hsmkme link probe {link}`"
    return says, what_next.format(link=found["link"])


def _state(found: dict[str, Any]) -> str:
    return f"frozen: {found['why']}" if found["why"] else str(found["state"])


def _end(config: Config, peer: str) -> str:
    if peer == config.kme_id:
        return "this KME: a local link"
    urls = [known.url for known in config.peer if known.id == peer]
    return f"{peer} at {urls[0]}" if urls else f"{peer}, which is not configured"


def _ago(moment: int | None, never: str) -> str:
    return never if moment is None else f"{max(int(time.time()) - moment, 0)} s ago"


def _waiting(count: int, what: str, since: int | None) -> str:
    return f"{count} {what}" + (f", the oldest from {_ago(since, '')}" if since is not None else "")


def _show_standing(asked: Link, standing: Standing, milliseconds: float, why_here: str) -> None:
    good = standing.verdict == "good"
    console.print(f"[green]good[/green]    {asked.peer} answers in {milliseconds} ms" if good else "[red]behind[/red]")
    if not good:
        console.print(f"{asked.peer} says that the store here is an old copy: `hsmkme link reconcile {asked.link_id}`")
    keys = ", ".join(f"{count} of {bits} bits" for bits, count in standing.ready.items()) or "none"
    lines = {
        "link there": f"frozen: {standing.why}" if standing.why else "open",
        "link here": f"frozen: {why_here}" if why_here else "open",
        "its keys": f"{keys} may be assigned there",
        "its log": f"{standing.log_rows} rows",
        "incarnation": standing.incarnation,
    }
    show_facts(lines)
