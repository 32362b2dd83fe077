"""Starts a demo KME, plays, checks, and says what it found.

usage: python -m tests.hostile [--requests N] [--seed N]

Exit 0 only if everything that must be true was.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.hostile.game import CHECKS, Outcome, play
from tests.world import start_demo


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile clients at a demo KME.")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with TemporaryDirectory() as name:
        home = Path(name)
        with start_demo(home / "demo", saes=4, keys=20_000 + asked.requests) as demo:
            outcome = play(demo, home, asked.requests, asked.seed)
            print(outcome.report(), flush=True)
            return 1 if failed(outcome) else 0


def failed(outcome: Outcome) -> int:
    """Run every check, say what it found; how many failed."""
    count = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(outcome)
        except AssertionError as error:
            count += 1
            print(f"FAILED  {name}: {str(error)[:2000]}")
        else:
            print(f"good    {name}")
    return count


if __name__ == "__main__":
    sys.exit(main())
