"""What is wrong with a configuration although each of its values is right by itself, and on which line it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Location = list[str | int]
"""Where in the tree: names of tables and keys, positions in arrays."""


def misfits(tree: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[tuple[Location, str]]:
    """What fits by itself but not together. Works on any tree: the parts may be wrong as well.

    ``sizes`` are the sizes of keys that hold where the tree says nothing, smallest first.
    """
    given = tree.get("keys")
    held = {**sizes}
    held |= {name: given[name] for name in sizes if isinstance(given, dict) and isinstance(given.get(name), int)}
    if list(held.values()) != sorted(held.values()):
        yield ["keys"], f"{' ≤ '.join(held)} does not hold"
    yield from _tokens(tree)
    yield from _peers(tree)
    yield from _links(tree)


def _tokens(tree: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    tables = _tables(tree, "token")
    labels = [table.get("label") for table in tables]
    for number, table in enumerate(tables):
        if labels[number] in labels[:number]:
            yield ["token", number, "label"], "another token has this label"
        if table.get("softhsm_conf") != tables[0].get("softhsm_conf"):
            yield ["token", number, "softhsm_conf"], "SoftHSM reads one in a process: the other tokens have another"
    known = labels or [table.get("label") for table in [tree.get("token")] if isinstance(table, dict)]
    for number, link in enumerate(_tables(tree, "link")):
        named = link.get("tokens", [])
        named = named if isinstance(named, list) else []
        for label in named:
            if label not in known:
                yield ["link", number, "tokens"], f"no token {label!r} is configured"
        if len({*map(str, named)}) != len(named):
            yield ["link", number, "tokens"], "a token is named twice"


def _peers(tree: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    peers = _named(tree, "peer")
    for number, peer_id in enumerate(peers):
        if isinstance(peer_id, str) and peer_id in peers[:number]:
            yield ["peer", number, "id"], "another peer has this id"
        if isinstance(peer_id, str) and peer_id == tree.get("kme_id"):
            yield ["peer", number, "id"], "this KME is no peer of its own"


def _links(tree: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    links, peers = _named(tree, "link"), _named(tree, "peer")
    for number, link in enumerate(_tables(tree, "link")):
        if link.get("id") in links[:number]:
            yield ["link", number, "id"], "another link has this id"
        peer = link.get("peer")
        if not isinstance(peer, str) or peer == tree.get("kme_id"):
            continue
        if peer not in peers:
            yield ["link", number, "peer"], f"no peer {peer!r} is configured"
        if "peering" not in tree:
            yield ["link", number, "peer"], "a link to another KME needs [peering]"
    for number, spool in enumerate(_tables(tree, "spool")):
        if isinstance(spool.get("link"), str) and spool["link"] not in links:
            yield ["spool", number, "link"], f"no link {spool['link']!r} is configured"


def _named(tree: Mapping[str, Any], name: str) -> list[Any]:
    return [table.get("id") for table in _tables(tree, name)]


def _tables(tree: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = tree.get(name)
    return [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []


def line_of(text: str, location: Location) -> int:
    """The line of ``text`` on which the key or table at ``location`` stands; 1 if it does not."""
    tables = [part for part in location if isinstance(part, str)]
    position = next((part for part in location if isinstance(part, int)), 0)
    lines = text.splitlines()
    start = 0
    if len(tables) > 1 or (tables and re.search(rf"^\s*\[+{re.escape(tables[0])}\]+", text, re.MULTILINE)):
        header = re.compile(rf"^\s*\[+\s*{re.escape(tables[0])}\s*\]+")
        found = [number for number, line in enumerate(lines) if header.match(line)]
        start = found[min(position, len(found) - 1)] if found else 0
    key = re.compile(rf"^\s*{re.escape(tables[-1])}\s*=") if tables else re.compile("$^")
    for number in range(start, len(lines)):
        if key.match(lines[number]):
            return number + 1
        if number > start and lines[number].lstrip().startswith("["):
            break
    return start + 1
