"""A running demo KME as tests drive it: through `hsmkme demo`, `demo.json` and HTTPS, like any user."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

START_SECONDS = 120


@dataclass
class Demo:
    """One demo directory and what runs from it."""

    directory: Path
    port: int
    description: dict[str, Any]

    @property
    def kme(self) -> dict[str, Any]:
        return self.description["kmes"][0]

    @property
    def config(self) -> Path:
        return Path(self.kme["config"])

    @property
    def store(self) -> Path:
        return Path(self.kme["store"])

    @property
    def sae_ids(self) -> list[str]:
        return [sae["id"] for sae in self.description["saes"]]

    def session(self, sae_id: str | None) -> requests.Session:
        """A keep-alive client with the certificate of an SAE, or with none."""
        client = requests.Session()
        client.verify = self.description["ca"]
        client.trust_env = False
        if sae_id is not None:
            sae = next(sae for sae in self.description["saes"] if sae["id"] == sae_id)
            client.cert = (sae["cert"], sae["key"])
        return client

    def url(self, path: str) -> str:
        return f"{self.kme['url']}/api/v1/keys/{path}"

    def get(self, sae_id: str | None, path: str, **options: Any) -> requests.Response:
        with self.session(sae_id) as client:
            return client.get(self.url(path), timeout=60, **options)

    def post(self, sae_id: str | None, path: str, body: Any = None, **options: Any) -> requests.Response:
        with self.session(sae_id) as client:
            return client.post(self.url(path), json=body, timeout=60, **options)

    def enc(self, master: str, slave: str, **body: Any) -> dict[str, bytes]:
        """Fetch keys as ``master`` for ``slave``; key bytes by key_ID."""
        return _keys(self.post(master, f"{slave}/enc_keys", body))

    def dec(self, slave: str, master: str, key_ids: list[str]) -> dict[str, bytes]:
        """Collect keys as ``slave``; key bytes by key_ID."""
        return _keys(self.post(slave, f"{master}/dec_keys", {"key_IDs": [{"key_ID": k} for k in key_ids]}))

    def stored(self, master: str, slave: str) -> int:
        """``stored_key_count``."""
        answer = self.get(master, f"{slave}/status")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["stored_key_count"])

    def cli(self, *arguments: str, check: bool = True, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run the command line on this KME's configuration."""
        return run_cli("--config", str(self.config), *arguments, check=check, stdin=stdin)


def _keys(answer: requests.Response) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    return {key["key_ID"]: b64decode(key["key"]) for key in answer.json()["keys"]}


def run_cli(*arguments: str, check: bool = True, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run `hsmkme`; on failure the output is in the assertion."""
    command = [sys.executable, "-m", "hsmkme", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=600, check=False)
    if check:
        assert done.returncode == 0, (arguments, done.stdout.decode(), done.stderr.decode())
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def start_demo(directory: Path, **options: int) -> Iterator[Demo]:
    """A demo in ``directory`` on a free port, stopped afterwards; its state stays."""
    port = free_port()
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run_cli("demo", "up", str(directory), "--port", str(port), *flags)
    try:
        yield Demo(directory, port, json.loads((directory / "demo.json").read_text()))
    finally:
        run_cli("demo", "down", str(directory))
