"""Files that hold secrets: read when they are needed, refused when others may read them."""

from __future__ import annotations

import stat
from pathlib import Path

from hsmkme.errors import OperatorFault


def private_text(path: Path, what: str) -> str:
    """The text of the file at ``path``; raises `OperatorFault`, which says ``what`` it is and nothing that is in it."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise OperatorFault(f"{path} can be read by others: chmod 0400 {path}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise OperatorFault(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise OperatorFault(f"{what} {path} is not UTF-8 text") from None
