"""Seals and opens with many threads while the login is made anew again and again, and says what came back.

usage: token_resets.py SOFTHSM_CONF LABELS serial|parallel, the PIN on standard input. LABELS, with commas between, are
of tokens that each have some of the threads; they are opened anew in turns, and with them the module that they share.

Prints "right" and exits with 0 only if every key was right and no call failed.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from uuid import uuid4

from hsmkme.hsm import Token, TokenAddress, load_profile
from hsmkme.model import BlockName, KeyMaterial, Part, RawBlock, SealedKey

THREADS = 6
RESETS = 12


def seal_and_open(token: Token) -> str:
    block = RawBlock(BlockName("link", "block"), 256, KeyMaterial(os.urandom(64)))
    try:
        sealed = token.seal(block, 1)
        (opened,) = token.open([SealedKey(uuid4(), 512, (Part(sealed.seal, 0, 2, sealed.segments),))])
    except Exception as error:  # noqa: BLE001 - any error is the answer
        return f"{type(error).__name__}: {error}"
    return "right" if opened.material.reveal() == block.material.reveal() else "wrong"


def main() -> int:
    conf, labels, locking = sys.argv[1:]
    pin = sys.stdin.readline().strip()
    shipped = load_profile("softhsm-2.6")
    lanes = THREADS // 2 if locking == "parallel" else 1
    profile = shipped.model_copy(update={"locking": locking, "max_sessions": lanes})
    addresses = [
        TokenAddress(profile, Path(profile.module), label, softhsm_conf=Path(conf)) for label in labels.split(",")
    ]
    tokens = [Token(address, lambda: pin) for address in addresses]
    found: set[str] = set()
    enough = threading.Event()

    def work(token: Token) -> None:
        while not enough.is_set():
            found.add(seal_and_open(token))

    workers = [threading.Thread(target=work, args=(tokens[n % len(tokens)],)) for n in range(THREADS)]
    for worker in workers:
        worker.start()
    for number in range(RESETS):
        found |= {seal_and_open(token) for token in tokens}
        token = tokens[number % len(tokens)]
        token._sessions.reset(token._sessions.generation, hard=True)
    enough.set()
    for worker in workers:
        worker.join()
    tokens[0]._sessions.cryptoki.finalize()
    for token in tokens:
        found.add(seal_and_open(token))
        token.close()
    print(*sorted(found), sep="\n")
    return 0 if found == {"right"} else 1


if __name__ == "__main__":
    sys.exit(main())
