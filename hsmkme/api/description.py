"""The OpenAPI description of what this KME serves: ``etsi014.yaml`` with the limits of the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from hsmkme.config import KeysSection

_FILE: Final = Path(__file__).with_name("etsi014.yaml")


def described(limits: KeysSection) -> bytes:
    """The description as JSON, UTF-8."""
    tree: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    schemas = tree["components"]["schemas"]
    schemas["Number"]["maximum"] = limits.max_key_per_request
    schemas["Size"] |= {
        "minimum": limits.min_key_size,
        "maximum": limits.max_key_size,
        "default": limits.key_size,
    }
    schemas["AdditionalSlaves"]["maxItems"] = limits.max_sae_id_count
    schemas["KeyIds"]["properties"]["key_IDs"]["maxItems"] = limits.max_key_per_request
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
