"""What a soak leaves for its auditor: files in a directory, none of which has key bytes in it.

``clients.jsonl``: who there is, and which key each SAE got, with an HMAC of its bytes under a salt that is forgotten.
``KME.log.jsonl``, ``KME.pem``: the export of a KME's audit log and the key to verify it. ``KME.lost.jsonl``: the same
from just before its store was replaced by an old copy. ``KME.stock.json``: what its store holds at the end.
``run.json``: what was done to the KMEs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from hsmkme.demo.kme import DemoKme
from tests.load import Records
from tests.soak.site import Site

_BLOCKS = (
    "SELECT link_id, block_id, state, key_bits, key_count, next_index, mine, tag IS NOT NULL FROM block"
    " ORDER BY block_pk"
)
_BLOCK_FACTS = ("link", "block", "state", "bits", "keys", "used", "mine", "far")


def keep_records(directory: Path, records: Records, kme_of: dict[str, str]) -> None:
    """Write what the clients know."""
    with (directory / "clients.jsonl").open("w") as output:
        for line in _lines(records, kme_of):
            output.write(json.dumps(line) + "\n")


def _lines(records: Records, kme_of: dict[str, str]) -> Iterator[dict[str, Any]]:
    salt = secrets.token_bytes(32)

    def mark(material: bytes) -> str:
        return hmac.digest(salt, material, hashlib.sha256).hex()

    yield {"saes": kme_of}
    for key in records.fetched:
        relation = {"master": key.relation.master, "slaves": list(key.relation.slaves)}
        yield {"fetched": key.key_id, **relation, "mark": mark(key.material)}
    for collected in records.collected:
        yield {"collected": collected.key_id, "slave": collected.slave, "mark": mark(collected.material)}
    for what, pairs in (("refused", records.refused), ("unanswered", records.untold)):
        for slave, key_id in sorted(pairs):
            yield {what: key_id, "slave": slave}
    for (call, status), times in sorted(records.answers.items()):
        yield {"call": call, "status": status, "times": times}


def keep_log(directory: Path, site: Site, kme: DemoKme, name: str = "log") -> None:
    """Export the audit log of a KME."""
    site.told(kme, "audit", "export", directory / f"{kme.kme_id}.{name}.jsonl")
    (directory / f"{kme.kme_id}.pem").write_text(site.told(kme, "audit", "key"))


def keep_stock(directory: Path, site: Site, kme: DemoKme) -> None:
    """Write which blocks and keys a KME has, and their states."""
    blocks = [dict(zip(_BLOCK_FACTS, row, strict=True)) for row in site.query(kme, _BLOCKS)]
    keys = site.query(kme, "SELECT hex(key_id), state FROM key")
    states = {str(UUID(hex=str(key_id))): state for key_id, state in keys}
    (directory / f"{kme.kme_id}.stock.json").write_text(json.dumps({"blocks": blocks, "keys": states}))
