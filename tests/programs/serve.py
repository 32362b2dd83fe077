"""Serves a configuration as `hsmkme serve` does, with other settings of gunicorn or fewer open files.

usage: serve.py CONFIG OPTIONS FILES: settings of gunicorn as JSON; open files at most, 0 for no limit of its own.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from pathlib import Path

from hsmkme import bootstrap, config
from hsmkme.applications import application
from hsmkme.server import Server
from hsmkme.server.listener import listener_for_saes


def main() -> None:
    path, options, files = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    bootstrap.forbid_core_dumps()
    os.environ[bootstrap.CONFIG_VARIABLE] = str(path.resolve())
    logging.getLogger("hsmkme").setLevel(logging.INFO)
    Server(listener_for_saes(config.load(path)), application, options).run()


if __name__ == "__main__":
    main()
