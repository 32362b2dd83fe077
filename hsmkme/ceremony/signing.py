"""How people sign a transcript: with their Ed25519 key, a file of OpenSSH or PEM that they bring and take away."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmkme.ceremony.people import People
from hsmkme.ceremony.plan import Person
from hsmkme.ceremony.verifying import SIGNED
from hsmkme.errors import OperatorFault
from hsmkme.secrecy import signing_key


def signature_of(person: Person, digest: bytes, people: People) -> str:
    """Have ``person`` sign the transcript of this digest; base64. A key that is not theirs is asked for again."""
    key = people.text(person.id, "the file with your private key", lambda text: _key_of(person, Path(text), people))
    return base64.b64encode(key.sign(SIGNED + digest)).decode()


def _key_of(person: Person, path: Path, people: People) -> Ed25519PrivateKey:
    key = signing_key(path.expanduser(), partial(people.secret, person.id, "the passphrase of your key"))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1].decode()
    if person.key is None or public != person.key.split()[1]:
        raise OperatorFault(f"that is not the key of {person.id} in the plan")
    return key
