"""Do clients that CI cannot install get their keys? Their known habits, replayed; ``ops/interop.md`` has the list.

What is built on libcurl is replayed with `curl`, which is libcurl; the rest request by request. Keys are compared by
their SHA-256, so that no failure prints one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509

from tests.etsi014.certificates import issue
from tests.world import Demo

JSON = "Content-Type: application/json"
INT32_MAX = 2**31 - 1
Prints = dict[str, str]
"""SHA-256 of each key, by key_ID."""


def prints(body: dict[str, Any]) -> Prints:
    return {key["key_ID"]: hashlib.sha256(b64decode(key["key"], validate=True)).hexdigest() for key in body["keys"]}


def wanted(key_ids: Iterable[str], **more: str) -> str:
    """A list of key IDs as a body, with ``more`` members in each entry."""
    return json.dumps({"key_IDs": [{"key_ID": key_id, **more} for key_id in key_ids]})


class Curl:
    """curl with the certificate of an SAE, or with the one in a directory."""

    def __init__(self, demo: Demo, home: Path) -> None:
        self._demo = demo
        self._identity = ["--cert", str(home / "cert.pem"), "--key", str(home / "key.pem")]

    def run(self, path: str, *options: str, stdin: bytes | None = None) -> str:
        """Standard output of one transfer."""
        url = self._demo.url(path)
        command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", "60", "--cacert", self._demo.description["ca"]]
        done = subprocess.run([*command, *self._identity, *options, url], input=stdin, capture_output=True, check=False)
        code = done.returncode
        assert code == 0, done.stderr.decode()
        return done.stdout.decode()

    def answer(self, path: str, *options: str, stdin: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON."""
        body, _, status = self.run(path, "-w", "\n%{http_code}", *options, stdin=stdin).rpartition("\n")
        return int(status), json.loads(body)

    def keys(self, path: str, *options: str, stdin: bytes | None = None) -> Prints:
        """The keys in an answer of status 200."""
        status, body = self.answer(path, *options, stdin=stdin)
        assert status == 200, body.get("message")
        return prints(body)


@pytest.fixture
def curl(demo: Demo) -> Callable[[str], Curl]:
    return lambda sae_id: Curl(demo, demo.directory / "saes" / sae_id)


# libcurl in C: the OpenSSL provider and the strongSwan plugin that use qkd-etsi-api-c-wrapper, and its kin

LIBCURL_WAYS = {
    "http 1.0": ("--http1.0",),
    "offers http 2": ("--http2",),
    "tls 1.2": ("--tls-max", "1.2"),
    "tls 1.3": ("--tlsv1.3",),
    "does not verify the host name": ("--insecure",),
    "no keep-alive": ("-H", "Connection: close"),
    "accepts anything": ("-H", "Accept:", "-H", "User-Agent:", "--compressed"),
}

LIBCURL_BODIES = {
    "with a length": (),
    "chunked": ("-H", "Transfer-Encoding: chunked"),
    "waiting for 100 Continue": ("-H", "Expect: 100-continue"),
}


@pytest.mark.parametrize("way", LIBCURL_WAYS.values(), ids=LIBCURL_WAYS)
def test_libcurl_gets_by_get_and_collects_by_post(curl: Callable[[str], Curl], way: tuple[str, ...]) -> None:
    fetched = curl("sae-1").keys("sae-2/enc_keys?number=2&size=256", *way)
    assert len(fetched) == 2
    assert curl("sae-2").keys("sae-1/dec_keys", *way, "-H", JSON, "-d", wanted(fetched)) == fetched


@pytest.mark.parametrize("way", LIBCURL_BODIES.values(), ids=LIBCURL_BODIES)
def test_libcurl_sends_a_long_body_in_three_ways(curl: Callable[[str], Curl], way: tuple[str, ...]) -> None:
    fetched = curl("sae-1").keys("sae-2/enc_keys", *way, "-H", JSON, "-d", '{"number": 128}')
    assert len(fetched) == 128
    body = wanted(fetched).encode()
    assert curl("sae-2").keys("sae-1/dec_keys", *way, "-H", JSON, "--data-binary", "@-", stdin=body) == fetched


@pytest.mark.parametrize("empty", [("-X", "POST"), ("-d", ""), ("-H", JSON, "-d", "")], ids=str)
def test_libcurl_posts_nothing(curl: Callable[[str], Curl], empty: tuple[str, ...]) -> None:
    assert len(curl("sae-1").keys("sae-2/enc_keys", *empty)) == 1


def test_libcurl_keeps_the_connection(curl: Callable[[str], Curl], demo: Demo) -> None:
    twice = ("-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", demo.url("sae-2/status"))
    assert curl("sae-1").run("sae-2/enc_keys", *twice).splitlines() == ["200 1", "200 0"]


def test_libcurl_asks_for_the_head_only_and_consumes_nothing(curl: Callable[[str], Curl], demo: Demo) -> None:
    before = demo.stored("sae-1", "sae-2")
    assert " 405 " in curl("sae-1").run("sae-2/enc_keys", "--head").splitlines()[0]
    assert demo.stored("sae-1", "sae-2") == before


def test_libcurl_reads_413_for_a_body_without_end(curl: Callable[[str], Curl], demo: Demo) -> None:
    before = demo.stored("sae-1", "sae-2")
    body = b'{"number": 1}' + b" " * 200_000
    for way in LIBCURL_BODIES.values():
        status, answer = curl("sae-1").answer("sae-2/enc_keys", *way, "-H", JSON, "--data-binary", "@-", stdin=body)
        assert (status, list(answer)) == (413, ["message"])
    assert demo.stored("sae-1", "sae-2") == before


def test_the_wrapper_for_qukaydee_names_the_master_in_every_entry(curl: Callable[[str], Curl]) -> None:
    fetched = curl("sae-1").keys("sae-2/enc_keys?number=3&size=256")
    body = wanted(fetched, master_SAE_ID="sae-1")
    assert curl("sae-2").keys("sae-1/dec_keys", "-H", JSON, "-H", "Accept: application/json", "-d", body) == fetched


def test_the_wrapper_that_sets_no_content_type_is_told_so_and_loses_no_key(curl: Callable[[str], Curl]) -> None:
    """libcurl calls a body a form unless it is told otherwise; the standard has one Content-Type (point 13)."""
    fetched = curl("sae-1").keys("sae-2/enc_keys?number=1&size=256")
    status, answer = curl("sae-2").answer("sae-1/dec_keys", "-d", wanted(fetched))
    assert (status, answer["message"]) == (400, "Content-Type shall be application/json")
    assert curl("sae-2").keys("sae-1/dec_keys", "-H", JSON, "-d", wanted(fetched)) == fetched


def test_curl_takes_certificate_and_key_from_one_file(demo: Demo, curl: Callable[[str], Curl]) -> None:
    bundle = next(sae["bundle"] for sae in demo.description["saes"] if sae["id"] == "sae-1")
    assert len(curl("sae-1").keys("sae-2/enc_keys", "--cert", bundle, "--key", bundle)) == 1


# Go: GET only, both parameters always sent, every answer but 200 tried again up to five times

GO = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
GO_TRIES = 6


def go(demo: Demo, sae_id: str, path: str) -> list[requests.Response]:
    """Every answer that a call gets."""
    answers: list[requests.Response] = []
    with demo.session(sae_id) as client:
        while len(answers) < GO_TRIES and (not answers or answers[-1].status_code != 200):
            answers.append(client.get(demo.url(path), headers=GO, timeout=60))
    return answers


def test_go_gets_one_key_by_get_and_collects_it_by_get(demo: Demo) -> None:
    (answer,) = go(demo, "sae-1", "sae-2/enc_keys?number=1&size=256")
    ((key_id, print_),) = prints(answer.json()).items()
    (answer,) = go(demo, "sae-2", f"sae-1/dec_keys?key_ID={key_id}")
    assert prints(answer.json()) == {key_id: print_}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("sae-2/enc_keys?number=1&size=257", 400),
        ("nobody/enc_keys?number=1&size=256", 401),
        ("sae-2/dec_keys?key_ID=00000000-0000-4000-8000-000000000000", 400),
    ],
)
def test_go_may_try_a_refused_request_again_and_consumes_nothing(demo: Demo, path: str, status: int) -> None:
    before = demo.stored("sae-1", "sae-2")
    assert [answer.status_code for answer in go(demo, "sae-1", path)] == [status] * GO_TRIES
    assert demo.stored("sae-1", "sae-2") == before


def test_go_at_the_wrong_sae_does_not_lock_out_the_right_one(demo: Demo) -> None:
    (answer,) = go(demo, "sae-1", "sae-2/enc_keys?number=1&size=256")
    (key_id,) = prints(answer.json())
    assert [refused.status_code for refused in go(demo, "sae-3", f"sae-1/dec_keys?key_ID={key_id}")] == [401] * GO_TRIES
    (answer,) = go(demo, "sae-2", f"sae-1/dec_keys?key_ID={key_id}")
    assert list(prints(answer.json())) == [key_id]


# Rust: POST only, unsigned 32-bit integers; the etsi014-client crate sends its additional SAEs under a name of its own


def test_rust_exchanges_keys_by_post_and_sends_a_member_that_nobody_knows(demo: Demo) -> None:
    fetched = demo.post("sae-1", "sae-2/enc_keys", {"number": 3, "size": 256, "additional_target_sae_ids": []})
    assert fetched.status_code == 200
    body = {"key_IDs": [{"key_ID": key_id} for key_id in prints(fetched.json())]}
    collected = demo.post("sae-2", "sae-1/dec_keys", body)
    assert collected.status_code == 200
    assert prints(collected.json()) == prints(fetched.json())


def test_rust_reads_every_integer_of_the_status_into_32_bits(demo: Demo) -> None:
    status = demo.get("sae-1", "sae-2/status").json()
    integers = {name: value for name, value in status.items() if isinstance(value, int)}
    assert len(integers) == 7
    assert all(0 <= value <= INT32_MAX for value in integers.values())


@pytest.mark.parametrize(
    "filled",
    [
        {"size": None},
        {"additional_slave_SAE_IDs": None},
        {"additional_slave_SAE_IDs": []},
        {"extension_optional": None},
    ],
    ids=str,
)
def test_a_client_that_fills_in_what_it_does_not_mean_is_told_which_member(demo: Demo, filled: dict[str, Any]) -> None:
    """Some serialise every optional member, as null or []; points 10 and 13 refuse that."""
    before = demo.stored("sae-1", "sae-2")
    answer = demo.post("sae-1", "sae-2/enc_keys", {"number": 1, **filled})
    assert answer.status_code == 400
    assert next(iter(filled)) in answer.json()["message"]
    assert demo.stored("sae-1", "sae-2") == before


@pytest.mark.parametrize("answer", ["status", "enc_keys", "dec_keys", "error"])
def test_a_client_that_rejects_unknown_members_finds_none(demo: Demo, answer: str) -> None:
    members = {
        "status": "source_KME_ID target_KME_ID master_SAE_ID slave_SAE_ID key_size stored_key_count max_key_count "
        "max_key_per_request max_key_size min_key_size max_SAE_ID_count",
        "enc_keys": "keys",
        "dec_keys": "keys",
        "error": "message",
    }
    (key_id,) = demo.enc("sae-1", "sae-2")
    body = {
        "status": lambda: demo.get("sae-1", "sae-2/status"),
        "enc_keys": lambda: demo.get("sae-1", "sae-2/enc_keys"),
        "dec_keys": lambda: demo.get("sae-2", f"sae-1/dec_keys?key_ID={key_id}"),
        "error": lambda: demo.get("sae-1", "sae-2/enc_keys?size=257"),
    }[answer]().json()
    assert sorted(body) == sorted(members[answer].split())
    assert all(sorted(key) == ["key", "key_ID"] for key in body.get("keys", []))


# Firewalls, routers, VPN daemons: one 256-bit key for a rekey, a new connection each time


def test_a_router_announces_json_on_a_get_that_has_no_body(curl: Callable[[str], Curl]) -> None:
    """Juniper's MACsec script: no parameters, the header all the same."""
    ((key_id, print_),) = curl("sae-1").keys("sae-2/enc_keys", "-H", JSON).items()
    assert curl("sae-2").keys(f"sae-1/dec_keys?key_ID={key_id}", "-H", JSON) == {key_id: print_}


def test_a_vpn_rekeys_in_both_directions_with_a_connection_for_each_call(demo: Demo) -> None:
    seen: set[str] = set()
    for initiator, responder in [("sae-1", "sae-2"), ("sae-2", "sae-1")] * 5:
        assert demo.stored(initiator, responder) > 0
        ((key_id, print_),) = prints(demo.get(initiator, f"{responder}/enc_keys").json()).items()
        assert prints(demo.get(responder, f"{initiator}/dec_keys?key_ID={key_id}").json()) == {key_id: print_}
        seen.add(print_)
    assert len(seen) == 10


def test_a_firewall_has_an_sae_id_of_291_characters(demo: Demo, curl: Callable[[str], Curl]) -> None:
    sae_id = ("firewall-" + "0123456789" * 30)[:291]
    demo.cli("sae", "add", sae_id)
    demo.cli("pair", "allow", "sae-1", sae_id)
    home = issue(demo, [x509.UniformResourceIdentifier(f"urn:qkd:sae:{sae_id}")])
    fetched = curl("sae-1").keys(f"{sae_id}/enc_keys")
    assert Curl(demo, home).keys("sae-1/dec_keys", "-H", JSON, "-d", wanted(fetched)) == fetched
