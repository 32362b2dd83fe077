"""Runs two KMEs through a soak and prints what the auditor finds.

usage: python -m tests.soak --minutes N [--seed S] [--directory D] [--json]

Exit 0 only if no key was delivered to two relations, no bytes differ and every key is accounted for. With a
directory, which must not exist or be empty, everything stays there: KMEs, logs and evidence.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.soak.auditor import audited, printed
from tests.soak.run import Soak


def main() -> int:
    parser = argparse.ArgumentParser(description="Two KMEs under load and chaos.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json", action="store_true", help="Print the verdict as JSON.")
    asked = parser.parse_args()

    def say(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    say(f"seed {asked.seed}, {asked.minutes:g} minutes")
    with TemporaryDirectory() as name:
        directory = asked.directory.resolve() if asked.directory else Path(name)
        verdict = audited(Soak(directory, asked.minutes * 60, asked.seed, say).run())
        return printed(verdict, as_json=asked.json)


if __name__ == "__main__":
    sys.exit(main())
