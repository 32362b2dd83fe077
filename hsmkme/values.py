"""The kinds of values that configurations and plans have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import limits
from pydantic import AfterValidator, Field, Strict, ValidationInfo

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Positive = Annotated[int, Field(gt=0)]
Bits = Annotated[int, Field(gt=0, multiple_of=8)]


def _limit(text: str) -> str:
    """A limit that the ``limits`` library can read, or nothing."""
    try:
        return text if not text or limits.parse(text) else ""
    except ValueError:
        raise ValueError(f'{text!r} is not a limit; write for example "200/second"') from None


Limit = Annotated[str, AfterValidator(_limit)]


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """A path relative to the configuration file's directory, which is the context of the validation."""
    return Path(info.context or "") / path


FilePath = Annotated[Path, Strict(False), AfterValidator(_absolute)]
