"""Uses a token on both sides of a fork and says what came of it.

usage: token_fork.py SOFTHSM_CONF LABEL, the PIN on standard input
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from uuid import uuid4

from hsmkme.errors import HsmkmeError
from hsmkme.hsm import Token, TokenAddress, load_profile
from hsmkme.model import BlockName, KeyMaterial, Part, RawBlock, SealedKey

BLOCK = RawBlock(BlockName("link", "block"), 256, KeyMaterial(bytes(range(32))))


def seal_and_open(token: Token) -> str:
    try:
        sealed = token.seal(BLOCK, 1)
        (opened,) = token.open([SealedKey(uuid4(), 256, (Part(sealed.seal, 0, 1, sealed.segments),))])
    except HsmkmeError as error:
        return type(error).__name__
    return "right" if opened.material.reveal() == BLOCK.material.reveal() else "wrong"


def main() -> int:
    conf, label = sys.argv[1:]
    pin = sys.stdin.readline().strip()
    profile = load_profile("softhsm-2.6")
    address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=Path(conf))
    clock = [0.0]
    token = Token(address, lambda: pin, clock=lambda: clock[0])
    seal_and_open(token)
    child = os.fork()
    if child == 0:
        print("child: open", seal_and_open(token))
        token._runner._down_until = -1.0  # as after a failure whose pause is over: the next call would log in again
        print("child: after a failure", seal_and_open(token))
        token.close()
        print("child: own login", seal_and_open(Token(address, lambda: pin)), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("parent:", seal_and_open(token))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
