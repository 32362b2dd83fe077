"""Initialises the module, logs in, uses the token, logs out and finalises the module, many times over.

usage: token_login.py SOFTHSM_CONF LABEL TIMES, the PIN on standard input

Says "ready" and begins when standard input has another line. The temporary directory is its own, as that
of a service with a private one is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pkcs11

from hsmkme.hsm import Token, TokenAddress, load_profile


def main() -> None:
    conf, label, times = sys.argv[1:]
    profile = load_profile("softhsm-2.6")
    address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=Path(conf))
    pin = sys.stdin.readline().strip()
    print("ready", flush=True)
    sys.stdin.readline()
    with tempfile.TemporaryDirectory() as private:
        os.environ["TMPDIR"] = tempfile.tempdir = private
        for _ in range(int(times)):
            token = Token(address, lambda: pin)
            token.prove(1)
            token.close()
            pkcs11.lib(profile.module).finalize()


if __name__ == "__main__":
    main()
