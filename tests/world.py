"""A running demo KME as tests drive it: through `hsmkme demo`, `demo.json` and HTTPS, like any user."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import requests

from hsmkme import verify
from hsmkme.api.description import described
from hsmkme.config import KeysSection
from tests.etsi014.description import Description
from tests.processes import hsmkme

FIRST_PORT = 10_240
PORTS_ABOVE = 32
"""How many ports above its ``--port`` a demo may take."""
WORKER, WORKERS = "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"
"""Which of the processes that run tests this is, ``gw0`` on, and how many there are."""
Found = TypeVar("Found")
_EXPORTS = itertools.count(1)


class KeyBytes(bytes):
    """A key that pytest cannot print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@dataclass
class Demo:
    """One demo directory and what runs from it."""

    directory: Path
    port: int
    description: dict[str, Any]
    kme_id: str | None = None
    """The KME that is meant. None: the first one, and for requests the one that serves the calling SAE."""

    def at(self, kme_id: str) -> Demo:
        """The same demo, with ``kme_id`` as the one that is meant, whoever calls."""
        (kme,) = (kme for kme in self.description["kmes"] if kme["id"] == kme_id)
        return replace(self, kme_id=kme_id, port=int(kme["url"].rpartition(":")[2]))

    def serving(self, sae_id: str) -> Demo:
        """The view of the KME that serves an SAE."""
        return self.at(self.sae(sae_id)["kme"])

    @property
    def kme(self) -> dict[str, Any]:
        kmes: list[dict[str, Any]] = self.description["kmes"]
        return next(kme for kme in kmes if self.kme_id in (None, kme["id"]))

    @property
    def kme_ids(self) -> list[str]:
        return [kme["id"] for kme in self.description["kmes"]]

    def sae(self, sae_id: str) -> dict[str, str]:
        """An SAE's entry in ``demo.json``."""
        found: dict[str, str] = next(sae for sae in self.description["saes"] if sae["id"] == sae_id)
        return found

    @property
    def config(self) -> Path:
        return Path(self.kme["config"])

    @property
    def store(self) -> Path:
        return Path(self.kme["store"])

    @property
    def sae_ids(self) -> list[str]:
        return [sae["id"] for sae in self.description["saes"]]

    @property
    def spool(self) -> Path:
        """Where a device leaves its files."""
        return self.config.parent / "spool"

    @property
    def server_pid(self) -> int:
        """The process whose children are the workers."""
        return int(self.kme["pids"][0])

    @property
    def upkeep_pid(self) -> int:
        return int(self.kme["pids"][1])

    @property
    def peers_pid(self) -> int:
        """The process that serves peers, where there are any."""
        return int(self.kme["pids"][2])

    def workers(self) -> list[int]:
        """The server's children that run now."""
        return children_of(self.server_pid)

    def health(self) -> int:
        """The HTTP status of ``/health``."""
        with self.session(None) as client:
            return client.get(f"{self.kme['url']}/health", timeout=60).status_code

    @contextmanager
    def upkeep(self) -> Iterator[subprocess.Popen[bytes]]:
        """An upkeep process started as the demo starts it, in place of one that was ended."""
        command = [sys.executable, "-m", "hsmkme", "--config", str(self.config), "upkeep"]
        with (self.config.parent / "upkeep.log").open("ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The store's file, opened behind the KME's back; what is changed is committed at the end."""
        connection = sqlite3.connect(self.store, timeout=30)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def log_rows(self) -> list[dict[str, Any]]:
        """The audit log as an auditor has it: exported, and proved by the verifier that shares no code."""
        export, key = self.directory / f"export-{next(_EXPORTS)}.jsonl", self.config.parent / "audit.pem"
        self.cli("audit", "export", str(export))
        if not key.exists():
            key.write_bytes(self.cli("audit", "key").stdout)
        assert verify.main([str(export), str(key)]) == 0
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        return [json.loads(line["row"]) for line in lines if "row" in line]

    def log_now(self) -> list[dict[str, Any]]:
        """The rows of the audit log as they are in the database: quickly read, and not proved."""
        with self.database() as connection:
            return [json.loads(text) for (text,) in connection.execute("SELECT text FROM log ORDER BY seq")]

    def session(self, sae_id: str | None, *, judged: bool = True) -> requests.Session:
        """A keep-alive client with the certificate of an SAE, or with none; its answers are those described."""
        client = requests.Session()
        if judged:
            client.hooks["response"].append(judge)
        client.verify = self.description["ca"]
        client.trust_env = False
        if sae_id is not None:
            sae = self.sae(sae_id)
            client.cert = (sae["cert"], sae["key"])
        return client

    def url(self, path: str, sae_id: str | None = None) -> str:
        """Of a method of the KME that is meant; where none is, of the one that serves ``sae_id``."""
        asked = self if self.kme_id or sae_id is None else self.serving(sae_id)
        return f"{asked.kme['url']}/api/v1/keys/{path}"

    def get(self, sae_id: str | None, path: str, **options: Any) -> requests.Response:
        with self.session(sae_id) as client:
            return client.get(self.url(path, sae_id), timeout=60, **options)

    def post(self, sae_id: str | None, path: str, body: Any = None, **options: Any) -> requests.Response:
        with self.session(sae_id) as client:
            return client.post(self.url(path, sae_id), json=body, timeout=60, **options)

    def enc(self, master: str, slave: str, **body: Any) -> dict[str, bytes]:
        """Fetch keys as ``master`` for ``slave``; key bytes by key_ID."""
        return self.keys(self.post(master, f"{slave}/enc_keys", body))

    def dec(self, slave: str, master: str, key_ids: list[str]) -> dict[str, bytes]:
        """Collect keys as ``slave``; key bytes by key_ID."""
        return self.keys(self.post(slave, f"{master}/dec_keys", {"key_IDs": [{"key_ID": k} for k in key_ids]}))

    @staticmethod
    def keys(answer: requests.Response) -> dict[str, bytes]:
        """The keys in an answer: bytes by key_ID."""
        assert answer.status_code == 200, answer.text
        listed = answer.json()["keys"]
        keys = {key["key_ID"]: KeyBytes(b64decode(key["key"])) for key in listed}
        assert len(keys) == len(listed), "a key_ID is twice in one answer"
        return keys

    def stored(self, master: str, slave: str) -> int:
        """``stored_key_count``."""
        answer = self.get(master, f"{slave}/status")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["stored_key_count"])

    def cli(
        self, *arguments: str, check: bool = True, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command line on this KME's configuration."""
        return run_cli("--config", str(self.config), *arguments, check=check, stdin=stdin)


@cache
def _api() -> Description:
    return Description(json.loads(described(KeysSection())))


def judge(answer: requests.Response, **_: Any) -> None:
    """Fails unless an answer of the API is one that the OpenAPI description has for its request."""
    path = str(answer.request.path_url)
    if path.startswith("/api/"):
        _api().check(str(answer.request.method), path, answer.status_code, answer.headers, answer.content)


def run_cli(*arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `hsmkme`; on failure the output is in the assertion."""
    done = hsmkme(*arguments, stdin=stdin)
    if check:
        assert done.status == 0, (arguments, done.out, done.err)
    return subprocess.CompletedProcess(arguments, done.status, done.out.encode(), done.err.encode())


def until(condition: Callable[[], Found], seconds: float = 30, what: str = "") -> Found:
    """Ask ``condition`` until what it gives is true, and return that: for what no event tells of."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.02)
    return found


def children_of(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, those that ended and wait to be reaped left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def free_port() -> int:
    """A port that nothing listens at, and that the system gives to no connection before something does.

    Tests that run in several processes at once take theirs from parts of their own: nobody is there first.
    """
    first_of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    part, parts = int(os.environ.get(WORKER, "gw0")[2:]), int(os.environ.get(WORKERS, "1"))
    ports = (max(first_of_connections, 12_000) - FIRST_PORT) // parts
    while True:
        port = FIRST_PORT + part * ports + random.randrange(ports - PORTS_ABOVE)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def free_ports(kmes: int) -> int:
    """The ``--port`` of a demo of so many KMEs, all of whose ports are free."""
    while True:
        port = free_port()
        try:
            with ExitStack() as stack:
                for offset in (*range(kmes), *(range(10, 10 + kmes) if kmes > 1 else ())):
                    stack.enter_context(socket.create_server(("127.0.0.1", port + offset)))
                return port
        except (OSError, OverflowError):  # taken, or beyond the last port
            continue


@contextmanager
def start_demo(directory: Path, kmes: int = 1, **options: int) -> Iterator[Demo]:
    """A demo in ``directory`` on free ports, stopped afterwards; its state stays."""
    port = free_ports(kmes)
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run_cli("demo", "up", str(directory), "--port", str(port), "--kmes", str(kmes), *flags)
    try:
        yield Demo(directory, port, json.loads((directory / "demo.json").read_text()))
    finally:
        run_cli("demo", "down", str(directory))
