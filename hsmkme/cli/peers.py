"""peer: the KMEs at the other ends of links."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

import click
from cryptography import x509

from hsmkme import bootstrap
from hsmkme.api.peer_identity import URI_PREFIX, kme_names
from hsmkme.cli.shared import JSON_OPTION, load_config, show, show_facts, with_config
from hsmkme.config import Config, PeerSection
from hsmkme.errors import PeerError
from hsmkme.peers import certificate_at


@click.group()
def peer() -> None:
    """The KMEs at the other ends of links."""


@peer.command("list")
@with_config
@JSON_OPTION
def peer_list(config: str | None, as_json: bool) -> None:
    """Every configured peer, its links, and when it was last in touch."""
    settings = load_config(config)
    links = bootstrap.open_store(settings).views.links()
    peers = [_known(section, links) for section in settings.peer]
    if as_json:
        click.echo(json.dumps(peers))
        return
    rows = [{**known, "links": ", ".join(known["links"]), "last contact": _contact(known)} for known in peers]
    show(rows, ("peer", "url", "links", "last contact"), as_json=False)


@peer.command("show")
@click.argument("kme_id", metavar="PEER")
@with_config
@JSON_OPTION
def peer_show(kme_id: str, config: str | None, as_json: bool) -> None:
    """One peer, and the certificate at its address now. Exit status 0: it is the peer's; 1: not; 75: nobody there."""
    settings = load_config(config)
    section = settings.peer_named(kme_id)
    known = _known(section, bootstrap.open_store(settings).views.links())
    try:
        facts = {**known, "certificate": _certificate(settings, section)}
    except PeerError:
        _tell(known, as_json)
        raise
    _tell(facts, as_json)
    sys.exit(0 if facts["certificate"]["is_the_peers"] else 1)


def _known(section: PeerSection, links: list[dict[str, Any]]) -> dict[str, Any]:
    own = [found for found in links if found["peer"] == section.id]
    heard = max((found["heard"] or 0 for found in own), default=0)
    since = max(int(time.time()) - heard, 0) if heard else None
    return {
        "peer": section.id,
        "url": section.url,
        "links": [found["link"] for found in own],
        "open_links": [found["link"] for found in own if found["state"] == "open"],
        "last_contact_seconds": since,
    }


def _certificate(config: Config, section: PeerSection) -> dict[str, Any]:
    found = x509.load_der_x509_certificate(certificate_at(config.required_peering(), section.url))
    names = [URI_PREFIX + name for name in kme_names(found)]
    days = (found.not_valid_after_utc - datetime.fromtimestamp(time.time(), UTC)).days
    return {
        "uris": names,
        "is_the_peers": names == [URI_PREFIX + section.id],
        "issuer": found.issuer.rfc4514_string(),
        "not_after": found.not_valid_after_utc.isoformat(),
        "days_left": days,
    }


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    lines = {
        "peer": f"{facts['peer']} at {facts['url']}",
        "links": ", ".join(facts["links"]) or "none",
        "open": ", ".join(facts["open_links"]) or "none",
        "last contact": _contact(facts),
    }
    certificate = facts.get("certificate")
    if certificate is not None:
        names = ", ".join(certificate["uris"]) or "no KME"
        right = "" if certificate["is_the_peers"] else f"  [red]is not that of {facts['peer']}[/red]"
        lines["certificate"] = f"{names}{right}"
        lines["issued by"] = certificate["issuer"]
        lines["not after"] = f"{certificate['not_after']}, in {certificate['days_left']} days"
    show_facts(lines)


def _contact(known: dict[str, Any]) -> str:
    since = known["last_contact_seconds"]
    return "never" if since is None else f"{since} s ago"
