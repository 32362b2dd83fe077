"""Seals and opens blocks in one process with many threads, as a worker of the service does, for some seconds.

usage: token_load.py SOFTHSM_CONF LABEL SECONDS THREADS serial|parallel|unlocked, the PIN on standard input

Says "ready" when logged in and begins when standard input has another line. Ends with a line of JSON:
how many blocks were sealed and opened, how many came back with other bytes, which errors there were.
Exit 0 only if there was neither. ``unlocked`` makes the same calls without the process-wide lock, a
session for each thread, and goes on after errors: what ends it early is the library's own crash.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

from hsmkme.hsm import Profile, Token, TokenAddress, load_profile, session
from hsmkme.model import BlockName, KeyMaterial, Part, RawBlock, SealedKey

KEYS = 4


def profile(locking: str, threads: int) -> Profile:
    shipped = load_profile("softhsm-2.6")
    match locking:
        case "serial":
            return shipped
        case "parallel":
            return shipped.model_copy(update={"locking": "parallel", "max_sessions": threads})
        case "unlocked":
            session._Module.lock = threading.Semaphore(1_000_000)  # lets everyone in
            return shipped.model_copy(update={"max_sessions": threads})
    raise SystemExit(__doc__)


def seal_and_open(token: Token, block: RawBlock) -> bytes:
    sealed = token.seal(block, 1)
    (opened,) = token.open([SealedKey(uuid4(), 256 * KEYS, (Part(sealed.seal, 0, KEYS, sealed.segments),))])
    return opened.material.reveal()


def seal_and_open_bare(token: Token, block: RawBlock) -> bytes:
    """The same calls without the recovery around them: it would pause the load after the first error."""
    with token._sessions.lane() as lane:
        sealed = token._seal(lane, block, 1)
        key = SealedKey(uuid4(), 256 * KEYS, (Part(sealed.seal, 0, KEYS, sealed.segments),))
        return token._open(lane, key).material.reveal()


def main() -> int:
    conf, label, seconds, threads, locking = sys.argv[1:]
    pin = sys.stdin.readline().strip()
    model = profile(locking, int(threads))
    token = Token(TokenAddress(model, Path(model.module), label, softhsm_conf=Path(conf)), lambda: pin)
    exercise = seal_and_open_bare if locking == "unlocked" else seal_and_open
    tally: Counter[str] = Counter()  # the interpreter's lock makes single additions safe enough for a count
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + float(seconds)

    def work(thread: int) -> None:
        count = 0
        while time.monotonic() < end:
            count += 1
            block = RawBlock(BlockName("load", f"{thread}-{count}"), 256, KeyMaterial(os.urandom(32 * KEYS)))
            try:
                right = exercise(token, block) == block.material.reveal()
                tally["right" if right else "wrong"] += 1
            except Exception as error:  # noqa: BLE001 - which errors there are is what is asked
                tally[type(error).__name__] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps(tally))
    return 0 if set(tally) == {"right"} else 1


if __name__ == "__main__":
    sys.exit(main())
