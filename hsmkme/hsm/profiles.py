"""What is known of a token model: a small TOML file for each, proved by operating the token. And which token."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hsmkme.errors import OperatorFault


class Profile(BaseModel):
    """One token model.

    ``locking``: ``serial`` puts one process-wide lock around every use of the module; ``parallel`` asks the
    module to lock by itself (``CKF_OS_LOCKING_OK``) and uses up to ``max_sessions`` sessions at once.
    ``library`` is the module's own (major, minor) version that the profile was proved with. ``found`` is what
    `hsmkme hsm check` saw of each operation: for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    module: str
    library: tuple[int, int]
    locking: Literal["serial", "parallel"]
    max_sessions: int
    found: dict[str, str] = {}


def profile_names() -> list[str]:
    """The profiles that ship with this version."""
    files = resources.files("hsmkme.hsm") / "profiles"
    return sorted(entry.name.removesuffix(".toml") for entry in files.iterdir() if entry.name.endswith(".toml"))


def load_profile(name: str) -> Profile:
    """The shipped profile ``name``; raises `OperatorFault` naming those that exist."""
    if name not in profile_names():
        raise OperatorFault(f"no token profile {name!r}; there are: {', '.join(profile_names())}")
    return _profile((resources.files("hsmkme.hsm") / "profiles" / f"{name}.toml").read_text())


def read_profile(path: Path) -> Profile:
    """The profile in the file at ``path``; raises `OperatorFault` saying what is wrong with it."""
    try:
        return _profile(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorFault(f"the token profile {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise OperatorFault(f"{path} is no token profile: {error}") from error


def _profile(text: str) -> Profile:
    return Profile.model_validate(tomllib.loads(text))


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Which token: exactly one in ``module`` must match ``label``, and ``serial`` if it is given.

    ``softhsm_conf`` is what SoftHSM reads as SOFTHSM2_CONF; ``module_sha256`` pins the library file.
    """

    profile: Profile
    module: Path
    label: str
    serial: str | None = None
    softhsm_conf: Path | None = None
    module_sha256: str | None = None
