"""How people sign a transcript: with their Ed25519 key, a file of OpenSSH or PEM that they bring and take away."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmkme.ceremony.people import People
from hsmkme.ceremony.plan import Person
from hsmkme.ceremony.verifying import SIGNED
from hsmkme.errors import OperatorFault, PinRefused
from hsmkme.secrecy import private_text
from hsmkme.sshsig import OtherKind, private_key


def signature_of(person: Person, digest: bytes, people: People) -> str:
    """Have ``person`` sign the transcript of this digest; base64. A key that is not theirs is asked for again."""
    key = people.text(person.id, "the file with your private key", lambda text: _key_of(person, Path(text), people))
    return base64.b64encode(key.sign(SIGNED + digest)).decode()


def _key_of(person: Person, path: Path, people: People) -> Ed25519PrivateKey:
    content = private_text(path.expanduser(), "the private key").encode()
    try:
        key = _load(content, None)
    except TypeError:  # it is encrypted
        key = people.secret(person.id, "the passphrase of your key", lambda secret: _load(content, secret.encode()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1].decode()
    if person.key is None or public != person.key.split()[1]:
        raise OperatorFault(f"that is not the key of {person.id} in the plan")
    return key


def _load(content: bytes, passphrase: bytes | None) -> Ed25519PrivateKey:
    """A key file; raises ``TypeError`` if it needs a passphrase."""
    try:
        return private_key(content, passphrase)
    except OtherKind as error:
        raise OperatorFault("the key is not of Ed25519") from error
    except ValueError as error:
        if passphrase is None:
            raise OperatorFault("that file holds no private key of OpenSSH or PEM") from error
        raise PinRefused("the passphrase does not open the key") from error
