"""Exchanges of one key between two SAEs of a demo, shown step by step."""

from __future__ import annotations

import hmac
import http.client
import json
import shlex
import ssl
from base64 import b64decode
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table

from hsmkme.errors import OperatorFault

Description = dict[str, Any]
"""The content of ``demo.json``."""

Sae = dict[str, str]
"""An entry of its ``saes``."""


def pairs(demo: Description) -> list[tuple[Sae, Sae]]:
    """Master and slave of the exchanges to show: at two KMEs if there are two, and then in both directions."""
    master, slave, *_ = demo["saes"]
    across = next((sae for sae in demo["saes"] if sae["kme"] != master["kme"]), None)
    return [(master, slave)] if across is None else [(master, across), (across, master)]


def exchange(console: Console, demo: Description, master: Sae, slave: Sae) -> str:
    """``master`` gets a key, ``slave`` collects it; the bytes are compared and not shown. Returns the key_ID."""
    steps = Table("step", "who", "asks", Column("answer", overflow="fold"), box=None, header_style="bold")
    before = _call(demo, master, f"{slave['id']}/status")
    steps.add_row("1", master["id"], "status", f"{before['stored_key_count']} keys for {slave['id']}")
    (fetched,) = _call(demo, master, f"{slave['id']}/enc_keys")["keys"]
    steps.add_row("2", master["id"], "enc_keys", f"key_ID {fetched['key_ID']}")
    (collected,) = _call(demo, slave, f"{master['id']}/dec_keys", {"key_IDs": [{"key_ID": fetched["key_ID"]}]})["keys"]
    steps.add_row("3", slave["id"], "dec_keys", f"key_ID {collected['key_ID']}")
    same = hmac.compare_digest(fetched["key"], collected["key"]) and fetched["key_ID"] == collected["key_ID"]
    steps.add_row("4", "", "", _verdict(same, len(b64decode(fetched["key"])) * 8))
    after = _call(demo, master, f"{slave['id']}/status")
    steps.add_row("5", master["id"], "status", f"{after['stored_key_count']} keys left")
    places = f"{master['id']} at {master['kme']}, {slave['id']} at {slave['kme']}"
    console.print(Panel(steps, title=f"One key (ETSI GS QKD 014): {places}", border_style="cyan"))
    if not same:
        raise OperatorFault("the two SAEs did not get the same key")
    return str(fetched["key_ID"])


def curl_lines(demo: Description) -> list[str]:
    """Commands to paste; each SAE asks the KME that serves it."""
    master, slave = pairs(demo)[0]
    return [
        _curl(demo, master, f"{slave['id']}/status"),
        _curl(demo, master, f"{slave['id']}/enc_keys"),
        _curl(demo, slave, f"{master['id']}/dec_keys?key_ID=KEY_ID"),
    ]


def _curl(demo: Description, sae: Sae, path: str) -> str:
    url = f"{_url(demo, sae)}/api/v1/keys/{path}"
    return f"curl -s --cacert {demo['ca']} --cert {sae['cert']} --key {sae['key']} {shlex.quote(url)}"


def _url(demo: Description, sae: Sae) -> str:
    """Of the KME that serves an SAE."""
    return str(next(kme["url"] for kme in demo["kmes"] if kme["id"] == sae["kme"]))


def _verdict(same: bool, bits: int) -> str:
    verdict = f"[green]both have the same {bits} bits[/green]" if same else "[red]the bytes differ[/red]"
    return f"compared, not shown: {verdict}"


def _call(demo: Description, sae: Sae, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=demo["ca"])
    context.load_cert_chain(sae["cert"], sae["key"])
    where = urlsplit(_url(demo, sae))
    connection = http.client.HTTPSConnection(str(where.hostname), where.port, timeout=30, context=context)
    try:
        if body is None:
            connection.request("GET", f"/api/v1/keys/{path}")
        else:
            connection.request("POST", f"/api/v1/keys/{path}", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content: dict[str, Any] = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise OperatorFault(f"{sae['id']} {path}: HTTP {answer.status}: {content.get('message')}")
    return content
