"""A client that sends exactly what it is told to, and holds every answer against the OpenAPI description."""

from __future__ import annotations

import http.client
import json
import ssl
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.etsi014.description import Description
from tests.world import Demo

JSON = {"Content-Type": "application/json"}
KEYS = "/api/v1/keys/"

Identity = str | Path | None
"""An SAE of the demo, the directory of a certificate, or no certificate."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def keys(self) -> dict[str, bytes]:
        """The bytes of each key of a container, by key_ID."""
        assert self.status == 200, self.body
        return {key["key_ID"]: b64decode(key["key"], validate=True) for key in self.json["keys"]}

    @property
    def key_ids(self) -> list[str]:
        """The key_IDs of a container."""
        return list(self.keys)


@dataclass(frozen=True)
class Client:
    """Speaks to one server of a demo KME: the demo's own, or another one on its store at ``port``."""

    demo: Demo
    port: int

    @cached_property
    def description(self) -> Description:
        """What the demo's own server says it does."""
        served = Client(self.demo, self.demo.port)._send("sae-1", "GET", "/openapi.json")
        return Description(json.loads(served.body))

    def send(
        self, who: Identity, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request to ``path`` under ``/api/v1/keys/`` on a connection of its own.

        A dict as ``body`` goes as JSON; bytes go as they are, an iterator of bytes in chunks.
        """
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), headers or JSON
        answer = self._send(who, method, KEYS + path, body, headers)
        self.description.check(method, KEYS + path, answer.status, answer.headers, answer.body)
        return answer

    def get(self, who: Identity, path: str) -> Answer:
        return self.send(who, "GET", path)

    def _send(self, who: Identity, *request: Any) -> Answer:
        with self.connection(who) as connection:
            return ask(connection, *request)

    @contextmanager
    def connection(self, who: Identity) -> Iterator[http.client.HTTPSConnection]:
        """A connection that stays open between requests."""
        context = ssl.create_default_context(cafile=self.demo.description["ca"])
        if who is not None:
            home = who if isinstance(who, Path) else self.demo.directory / "saes" / who
            context.load_cert_chain(home / "cert.pem", home / "key.pem")
        with closing(http.client.HTTPSConnection("localhost", self.port, timeout=60, context=context)) as connection:
            yield connection

    def state(self) -> tuple[int, ...]:
        """What delivery changes: keys in the pool, keys claimed, keys not ended, copies collected."""
        with self.demo.database() as database:
            row: tuple[int, ...] = database.execute(
                "SELECT (SELECT coalesce(sum(ready), 0) FROM pool), count(*), coalesce(sum(state = 'delivered'), 0),"
                " coalesce(sum(served), 0) FROM key"
            ).fetchone()
        return row

    def refused(self, status: int, rule: str, message: str, who: Identity, *request: Any) -> Answer:
        """Send what has to be refused with exactly this; nothing may have been delivered or collected."""
        before, written = self.state(), self.server_log()
        answer = self.send(who, *request)
        assert answer.status == status, answer.body
        if request[0] != "HEAD":
            assert answer.json == {"message": message}
        assert self.state() == before
        if rule:
            assert f"refused {rule} ({message})" in self.server_log()[len(written) :]
        return answer

    def server_log(self) -> str:
        """What the server has written so far."""
        return (self.demo.config.parent / "serve.log").read_text(errors="replace")

    def refusals(self) -> list[dict[str, Any]]:
        """The refused dec_keys in the audit log, newest first."""
        with self.demo.database() as database:
            rows = database.execute("SELECT text FROM log ORDER BY seq DESC LIMIT 200")
            facts = [json.loads(text) for (text,) in rows]
        return [fact for fact in facts if fact["event"] == "refused.dec_keys"]


def ask(
    connection: http.client.HTTPSConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request whose path is not touched, and read the answer."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def key_ids(*ids: object) -> dict[str, Any]:
    """The body of a dec_keys request."""
    return {"key_IDs": [{"key_ID": key_id} for key_id in ids]}
