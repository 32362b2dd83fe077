"""The token by itself: its calls through the binding with nothing around them, for measurements only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pkcs11 import GCMParams, KeyType, MechanismFlag
from pkcs11.mechanisms import Mechanism

from hsmkme.hsm import sealing
from hsmkme.hsm.profiles import TokenAddress
from hsmkme.hsm.session import PinSource, Sessions

SEGMENTS: Final = 128
"""Of 256 bits each, sealed or opened by one turn."""

_SEGMENT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Turns:
    """What can be repeated as fast as the token goes: each takes `SEGMENTS` calls."""

    seal: Callable[[], None]
    open: Callable[[], None]


@contextmanager
def turns(address: TokenAddress, pin: PinSource) -> Iterator[Turns]:
    """Turns under a key that is made for them and ends with them."""
    sessions = Sessions(address, pin)
    try:
        with sessions.lane() as lane:
            capabilities, gcm = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT, Mechanism.AES_GCM
            key = lane.session.generate_key(KeyType.AES, sealing.BLOCK_KEY_BITS, capabilities=capabilities)
            plain = os.urandom(_SEGMENT_BYTES)
            parameters = [GCMParams(index.to_bytes(sealing.NONCE_BYTES, "big"), b"pace") for index in range(SEGMENTS)]
            sealed = [key.encrypt(plain, mechanism=gcm, mechanism_param=parameter) for parameter in parameters]

            def seal() -> None:
                for parameter in parameters:
                    key.encrypt(plain, mechanism=gcm, mechanism_param=parameter)

            def unseal() -> None:
                for segment, parameter in zip(sealed, parameters, strict=True):
                    key.decrypt(segment, mechanism=gcm, mechanism_param=parameter)

            yield Turns(seal, unseal)
    finally:
        sessions.close()
