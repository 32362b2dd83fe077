"""A second server on a demo's store, with a configuration of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from tests.world import Demo, free_port, until


@contextmanager
def served(demo: Demo, text: str, *, replace: tuple[str, str] | None = None) -> Iterator[str]:
    """A second server on the demo's store, with ``text`` added to the configuration; gives its URL."""
    port = free_port()
    config = demo.config.with_name(f"also-{port}.toml")
    content = demo.config.read_text().replace(str(demo.port), str(port))
    config.write_text((content.replace(*replace) if replace else content) + text)
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hsmkme", "--config", str(config), "serve"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        until(lambda: _answers(port, demo), 60, log.name)
        yield f"https://localhost:{port}/api/v1/keys/"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(port: int, demo: Demo) -> bool:
    try:
        return requests.get(f"https://localhost:{port}/health", verify=demo.description["ca"], timeout=5).ok
    except requests.RequestException:
        return False
