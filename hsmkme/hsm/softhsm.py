"""What SoftHSM itself does not survive, a login that is killed; and what it leaves to others, errors of OpenSSL.

At every login SoftHSM 2.6 cuts a token's ``token.object`` to nothing and then writes it again; a process
killed between leaves the token lost, with every key in it. So before a login, in the turn that one process
has at a time, the file is copied beside itself, and one that is empty is filled again from its copy. The
copy says what the file says, the same PINs wrap the same token key in it, and has the same owner and mode.

A token whose initialisation was killed before it had an SO PIN lets nobody in, holds nothing, and keeps SoftHSM from
starting: every token of the directory is out of reach. It is removed.

It computes by OpenSSL, as TLS in Python does, and leaves its errors in the queue that both have in a thread. TLS takes
those for its own: it would end a connection that has nothing to do with the token.
"""

from __future__ import annotations

import _ssl
import ctypes
import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FILE: Final = "token.object"
_COPY: Final = "token.object.kept"  # SoftHSM takes no notice of names that do not end in `.object`
_UNBORN: Final = frozenset({_FILE, "token.lock", "generation"})
"""All the files that a token has which nobody ever logged in to."""
_SO_PIN: Final = (0x8000_534C).to_bytes(8, "big")
"""How the attribute begins in which SoftHSM keeps what the SO PIN opens (CKA_OS_SOPIN)."""
_SETTING: Final = "directories.tokendir"

_OPENSSL: Final = ctypes.PyDLL(_ssl.__file__)  # that of TLS, whichever it is


def forget_openssl_errors() -> None:
    """Empty this thread's queue of errors, after what a module did and before TLS looks into it."""
    _OPENSSL.ERR_clear_error()


def mend_token_files(conf: Path) -> None:
    """Copy, fill from its copy or remove the file of every token under the token directory that ``conf`` names."""
    for file in token_directory(conf).glob(f"*/{_FILE}"):
        try:
            if not _removed(file):
                _mend(file, file.with_name(_COPY))
        except OSError as error:  # a login may still go well; it has only nothing to fall back on
            log.warning("%s could not be kept or mended before the login: %s", file, error)


def token_directory(conf: Path) -> Path:
    """The directory of tokens that the SoftHSM configuration ``conf`` names."""
    for line in conf.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == _SETTING:
            return Path(value.strip())
    return Path("/var/lib/softhsm/tokens")


def _removed(file: Path) -> bool:
    """Remove the token of this file if its initialisation did not come as far as the SO PIN."""
    content, files = file.read_bytes(), [*file.parent.iterdir()]
    if not content or _SO_PIN in content or not _UNBORN.issuperset(path.name for path in files):
        return False
    for path in files:
        path.unlink()
    file.parent.rmdir()
    log.warning("%s was removed: its initialisation was killed before the token had an SO PIN", file.parent)
    return True


def _mend(file: Path, copy: Path) -> None:
    content, kept = file.read_bytes(), copy.read_bytes() if copy.exists() else b""
    if content and content != kept:
        _replace(copy, content, file.stat())
    elif kept and not content:
        file.write_bytes(kept)
        log.warning("%s was empty, as a killed login leaves it; it was filled from its copy", file)


def _replace(copy: Path, content: bytes, owner: os.stat_result) -> None:
    """Write the copy so that it is there whole or not at all, even after a loss of power."""
    new = copy.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(copy)
