"""Seals and opens in one process with many threads, as a worker of the service does, for some seconds.

usage: token_load.py LABEL SECONDS THREADS serial|unlocked|parallel < PIN
Says "ready" when logged in, begins on a line from standard input.
Exit 0: every key opened to its own bytes. 1: the token refused something. 2: it gave wrong bytes.
``unlocked`` is the service's code without the process-wide lock, each thread with a session of its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

from hsmkme.errors import HsmkmeError
from hsmkme.hsm import Profile, Token, TokenAddress, load_profile, session
from hsmkme.model import BlockName, KeyMaterial, Part, RawBlock, SealedKey

KEYS = 4


def profile_for(locking: str, threads: int) -> Profile:
    shipped = load_profile("softhsm-2.6")
    if locking == "serial":
        return shipped
    if locking == "unlocked":
        session._PROCESS_LOCK = nullcontext()
        return shipped.model_copy(update={"max_sessions": threads})
    return shipped.model_copy(update={"locking": "parallel", "max_sessions": threads})


def seal_and_open(token: Token, name: str) -> bool:
    """Whether the keys of a new block open to what was sealed."""
    block = RawBlock(BlockName("load", name), 256, KeyMaterial(os.urandom(32 * KEYS)))
    sealed = token.seal(block, 1)
    part = Part(sealed.seal, 0, KEYS, sealed.segments)
    (opened,) = token.open([SealedKey(uuid4(), 256 * KEYS, (part,))])
    return opened.material.reveal() == block.material.reveal()


def work(token: Token, until: Callable[[], bool], thread: int, findings: list[str], done: list[int]) -> None:
    count = 0
    while not until():
        try:
            right = seal_and_open(token, f"{thread}-{count}")
        except Exception as error:  # noqa: BLE001 - the finding is the point
            findings.append(f"{type(error).__name__}: {error}")
        else:
            if not right:
                findings.insert(0, "wrong bytes")
        count += 1
    done.append(count)


def main() -> int:
    label, seconds, threads, locking = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    pin = sys.stdin.readline().strip()
    profile = profile_for(locking, threads)
    token = Token(TokenAddress(profile, Path(profile.module), label), lambda: pin)
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    findings: list[str] = []
    done: list[int] = []
    started = time.monotonic()
    workers = [
        threading.Thread(target=work, args=(token, lambda: time.monotonic() > end, number, findings, done))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(sum(done), round(time.monotonic() - started, 3), *findings[:1], flush=True)
    if not findings:
        return 0
    return 2 if findings[0] == "wrong bytes" else 1


if __name__ == "__main__":
    sys.exit(main())
