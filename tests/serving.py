"""A second server on a demo's store, with a configuration of its own: for SAEs or for peers."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import requests

from tests.pki import Request, TestAuthority
from tests.world import Demo, free_port, until


@contextmanager
def served(demo: Demo, text: str, *, replace: tuple[str, str] | None = None) -> Iterator[str]:
    """A second server on the demo's store, with ``text`` added to the configuration; gives its URL."""
    port = free_port()
    content = demo.config.read_text().replace(str(demo.port), str(port))
    config = demo.config.with_name(f"also-{port}.toml")
    config.write_text((content.replace(*replace) if replace else content) + text)
    with _running(config, "serve", lambda: _answers(port, demo.description["ca"])):
        yield f"https://localhost:{port}/api/v1/keys/"


@contextmanager
def peers_served(demo: Demo, text: str, ca: str, certificate: tuple[str, str]) -> Iterator[str]:
    """A server for the peers of the demo's KME; gives its URL.

    ``text`` configures ``[peering]``, with PORT for its port, and the peers. ``ca`` and ``certificate`` are a peer's,
    who asks whether it answers.
    """
    port = free_port()
    config = demo.config.with_name(f"peers-{port}.toml")
    config.write_text(demo.config.read_text() + text.replace("PORT", str(port)))
    with _running(config, "serve-peers", lambda: _answers(port, ca, certificate)):
        yield f"https://localhost:{port}"


@contextmanager
def _running(config: Path, command: str, answers: Callable[[], bool]) -> Iterator[None]:
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        arguments = [sys.executable, "-m", "hsmkme", "--config", str(config), command]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        until(answers, 60, str(log))
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(port: int, ca: str, certificate: tuple[str, str] | None = None) -> bool:
    try:
        return requests.get(f"https://localhost:{port}/health", verify=ca, cert=certificate, timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def connected_briefly(
    port: int, ca: str, authority: TestAuthority, directory: Path, uri: str
) -> Iterator[Callable[[str], int]]:
    """A connection with a certificate that ends in seconds; gives what asks on it, and on no other, for a status."""
    for seconds in (3, 9, 27):  # a machine that is slow enough sees the first end before it is used
        request = Request(uris=[uri], ends=timedelta(seconds=seconds))
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(*authority.issue(directory / str(seconds), request))
        connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().read() and connection.sock is not None:
                break
        except OSError:
            connection.close()
    connection.auto_open = 0  # a second connection would prove nothing

    def ask(path: str) -> int:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    try:
        yield ask
    finally:
        connection.close()
