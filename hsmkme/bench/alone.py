"""The token without a server, and deposits: work for processes of their own, one login each."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.demo.kme import LOCAL_LINK
from hsmkme.drivers.keyfile import KeyFile
from hsmkme.errors import OperatorFault
from hsmkme.hsm import Token, pace
from hsmkme.model import BlockName, KeyMaterial, Part, RawBlock, SealedKey, segment_bytes
from hsmkme.states import EpochState

KEY_BITS: Final = 256
KEYS: Final = 128

START_SECONDS: Final = 60.0
"""How long one process waits for the others."""

Work = Callable[[Path, float, Callable[[], object]], float]
"""Works on the KME of a configuration for some seconds after calling the function; gives keys, or blocks, a second."""


def side_by_side(work: Work, config: Path, seconds: float, processes: int = 1) -> float:
    """Keys a second of so many processes that do the same at the same time."""
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(processes)]
    together = spawn.Barrier(processes, timeout=START_SECONDS).wait
    started = [spawn.Process(target=_worker, args=(work, config, seconds, together, far)) for _, far in pairs]
    for process, (_, far) in zip(started, pairs, strict=True):
        process.start()
        far.close()  # so that the end of the process is the end of the pipe
    try:
        return sum(float(near.recv()) for near, _ in pairs)
    except EOFError:
        raise OperatorFault("a measurement of the token alone ended early; what it said is above") from None
    finally:
        for process in started:
            process.join()


def _worker(work: Work, config: Path, seconds: float, together: Callable[[], object], out: Connection) -> None:
    out.send(work(config, seconds, together))


def open_bare(config: Path, seconds: float, ready: Callable[[], object]) -> float:
    """``C_Decrypt`` through the binding, in a plain loop."""
    with _turns(config) as turns:
        return _rate(turns.open, seconds, ready)


def seal_bare(config: Path, seconds: float, ready: Callable[[], object]) -> float:
    """``C_Encrypt`` through the binding, in a plain loop."""
    with _turns(config) as turns:
        return _rate(turns.seal, seconds, ready)


def _turns(config: Path) -> AbstractContextManager[pace.Turns]:
    section = configuration.load(config).token[0]
    return pace.turns(bootstrap.token_address(section), bootstrap.pin_source(section.pin_file))


def open_keys(config: Path, seconds: float, ready: Callable[[], object]) -> float:
    """`Token.open` of the keys of one block, in a plain loop."""
    token, epoch = _opened(config)
    try:
        sealed = token.seal(_block(), epoch)
        stride = segment_bytes(KEY_BITS)
        keys = [
            SealedKey(uuid4(), KEY_BITS, (Part(sealed.seal, n, 1, sealed.segments[n * stride : (n + 1) * stride]),))
            for n in range(KEYS)
        ]
        return _rate(lambda: token.open(keys), seconds, ready)
    finally:
        token.close()


def seal_blocks(config: Path, seconds: float, ready: Callable[[], object]) -> float:
    """`Token.seal` of one block after the other, in a plain loop."""
    token, epoch = _opened(config)
    try:
        block = _block()
        return _rate(lambda: token.seal(block, epoch), seconds, ready)
    finally:
        token.close()


def deposit(config: Path, keys: float, ready: Callable[[], object]) -> float:
    """Deposit so many keys of a binary file."""
    parts = bootstrap.open_parts(config)
    stream = io.BytesIO(os.urandom(int(keys) * KEY_BITS // 8))
    file = KeyFile(stream, LOCAL_LINK, str(uuid4()), KEY_BITS, parts.config.keys.block_keys, "binary", "bench")
    ready()
    start = time.perf_counter()
    tally = parts.intake().run(file)
    took = time.perf_counter() - start
    parts.tokens.close()
    return tally.keys / took


def rewrap(config: Path, _seconds: float, ready: Callable[[], object]) -> float:
    """Open a new epoch and move every block of the one before to it, by commands; gives blocks a second."""
    ready()
    (before,) = [one["epoch"] for one in _epoch(config, "list") if one["state"] == EpochState.ACTIVE]
    _epoch(config, "rotate")
    done = _epoch(config, "rewrap", str(before))
    return float(done["moved"] / done["seconds"])


def _epoch(config: Path, *command: str) -> Any:
    """What a command on epochs tells programs."""
    whole = [sys.executable, "-m", "hsmkme", "--config", str(config), "epoch", *command, "--json"]
    return json.loads(subprocess.run(whole, check=True, capture_output=True).stdout)


def _opened(config: Path) -> tuple[Token, int]:
    """The token, and the epoch that is active."""
    settings = configuration.load(config)
    with closing(bootstrap.open_store(settings)) as store:
        (epoch,) = store.epochs.active().values()
        return bootstrap.open_token(settings.token[0]), epoch


def _block() -> RawBlock:
    return RawBlock(BlockName("bench", str(uuid4())), KEY_BITS, KeyMaterial(os.urandom(KEYS * KEY_BITS // 8)))


def _rate(turn: Callable[[], object], seconds: float, ready: Callable[[], object]) -> float:
    """Keys a second of a turn that is repeated: each is `KEYS` of them."""
    turn()
    ready()
    turns, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        turn()
        turns += 1
    return turns * KEYS / took
