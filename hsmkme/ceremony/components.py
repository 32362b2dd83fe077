"""Reading what officers bring to a ceremony: components of keys, in files of their own."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from hsmkme.errors import OperatorFault
from hsmkme.model import KeyMaterial


def read_component(path: Path) -> KeyMaterial:
    """The component in the file at ``path``: 64 hex digits, 32 bytes. Refuses a file that others may read."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise OperatorFault(f"{path} can be read by others: chmod 0400 {path}")
        content = path.read_bytes().strip()
    except OSError as error:
        raise OperatorFault(f"the component file {path} cannot be read: {error.strerror}") from error
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", content):
        raise OperatorFault(f"the component file {path} does not hold 64 hex digits")
    return KeyMaterial(bytes.fromhex(content.decode("ascii")))
