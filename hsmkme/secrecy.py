"""Files that hold secrets: read when they are needed, refused when others may read them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hsmkme.errors import OperatorFault, PinRefused
from hsmkme.sshsig import OtherKind, private_key

Unlock = Callable[[Callable[[str], Ed25519PrivateKey]], Ed25519PrivateKey]
"""Asks for a passphrase and gives what it is used for; again, if it likes, where that raises `PinRefused`."""


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


def signing_key(path: Path, unlock: Unlock) -> Ed25519PrivateKey:
    """A person's Ed25519 private key, PEM or OpenSSH, in the file at ``path``; ``unlock`` if it has a passphrase."""
    content = private_text(path, "the private key").encode()
    try:
        return private_key(content, None)
    except TypeError:  # it is encrypted
        return unlock(lambda passphrase: _unlocked(content, passphrase))
    except OtherKind as error:
        raise OperatorFault(f"the key in {path} is not of Ed25519: ssh-keygen -t ed25519 makes one") from error
    except ValueError as error:
        raise OperatorFault(f"{path} holds no private key of OpenSSH or PEM") from error


def _unlocked(content: bytes, passphrase: str) -> Ed25519PrivateKey:
    try:
        return private_key(content, passphrase.encode())
    except OtherKind as error:
        raise OperatorFault("the key is not of Ed25519: ssh-keygen -t ed25519 makes one") from error
    except ValueError as error:
        raise PinRefused("the passphrase does not open the key") from error
