"""What do HTTP methods, sizes and connections do to keys?"""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest

from tests.etsi014.client import JSON, KEYS, Client, ask, key_ids
from tests.etsi014.conftest import serving

ENC = "sae-2/enc_keys"
DEC = "sae-1/dec_keys"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_point_18_other_http_methods_are_refused_and_consume_nothing(kme: Client, method: str) -> None:
    (key_id,) = kme.get("sae-1", ENC).key_ids
    for who, path, allowed in [
        ("sae-1", "sae-2/status", "GET"),
        ("sae-1", ENC, "GET, POST"),
        ("sae-1", f"{ENC}?number=2", "GET, POST"),
        ("sae-2", f"{DEC}?key_ID={key_id}", "GET, POST"),
    ]:
        name = path.partition("/")[2].partition("?")[0]
        message = f"{name} takes {allowed.replace(', ', ' and ')}"
        answer = kme.refused(405, "", message, who, method, path)
        assert answer.headers["Allow"] == allowed
    assert kme.get("sae-2", f"{DEC}?key_ID={key_id}").key_ids == [key_id]


def test_point_18_a_post_asks_for_no_status(kme: Client) -> None:
    for body in (None, {"number": 1}):
        assert kme.refused(405, "", "status takes GET", "sae-1", "POST", "sae-2/status", body).headers["Allow"] == "GET"


def test_point_18_the_answer_to_head_has_no_body(kme: Client) -> None:
    with kme.connection("sae-1") as connection:
        assert ask(connection, "HEAD", f"{KEYS}{ENC}").body == b""
        assert ask(connection, "GET", f"{KEYS}sae-2/status").status == 200


@pytest.mark.parametrize(
    "path", ["sae-2", "sae-2/", "sae-2/keys", "sae-2/Status", "sae-2/status/", "sae-2/enc_keys/1", "a/b/status", ""]
)
def test_a_path_that_is_none_of_the_three_methods_is_not_found(kme: Client, path: str) -> None:
    message = "no such method: status, enc_keys, dec_keys exist"
    for method in ("GET", "POST", "HEAD"):
        kme.refused(404, "", message, "sae-1", method, path)


@pytest.mark.parametrize(("who", "path"), [("sae-1", ENC), ("sae-2", DEC)], ids=["enc", "dec"])
def test_point_19_a_body_over_the_limit_is_refused_before_it_is_parsed(kme: Client, who: str, path: str) -> None:
    message = "the body is longer than 65536 bytes"
    whole = b'{"x": "%s"}' % (b"x" * 65528)
    assert len(whole) == 65537
    for body in (whole, b"{" * 65537, b"\xff" * 200_000):
        kme.refused(413, "", message, who, "POST", path, body, JSON)
        kme.refused(413, "", message, who, "POST", path, body, {"Content-Type": "text/plain"})
        kme.refused(413, "", message, who, "POST", path, iter([body[:40000], body[40000:]]), JSON)


def test_point_19_a_body_of_the_limit_is_read_in_chunks_too(kme: Client) -> None:
    body = b'{"number": 2, "x": "%s"}' % (b"x" * 65514)
    assert len(body) == 65536
    assert len(kme.send("sae-1", "POST", ENC, body, JSON).key_ids) == 2
    ids = kme.send("sae-1", "POST", ENC, iter([body[:3], body[3:50000], body[50000:]]), JSON).key_ids
    assert kme.send("sae-2", "POST", DEC, key_ids(*ids)).key_ids == ids


def test_point_19_the_limit_is_configured(kme: Client) -> None:
    with serving(kme.demo, "", max_body_bytes="100") as other:
        assert other.send("sae-1", "POST", ENC, b"{}".ljust(100), JSON).key_ids
        message = "the body is longer than 100 bytes"
        other.refused(413, "", message, "sae-1", "POST", ENC, b"{}".ljust(101), JSON)


@pytest.mark.parametrize("size", [64, 72, 80, 256, 520])
def test_point_29_keys_are_in_canonical_base64(kme: Client, size: int) -> None:
    container = kme.get("sae-1", f"{ENC}?number=8&size={size}").json
    for entry in container["keys"]:
        assert b64encode(b64decode(entry["key"], validate=True)).decode() == entry["key"]
        assert entry["key_ID"] == entry["key_ID"].lower()


def test_point_29_no_answer_may_be_stored(kme: Client) -> None:
    """`Client.send` requires the header of every answer in these tests, as the description does."""
    (key_id,) = kme.get("sae-1", ENC).key_ids
    for who, request in [("sae-1", ENC), ("sae-2", f"{DEC}?key_ID={key_id}"), ("sae-2", f"{DEC}?key_ID={key_id}")]:
        assert kme.get(who, request).headers["Cache-Control"] == "no-store"


def test_point_29_connections_stay_open_after_keys_and_after_refusals(kme: Client) -> None:
    with kme.connection("sae-1") as connection:
        connection.connect()
        opened = connection.sock
        for path, status in [(ENC, 200), (f"{ENC}?number=0", 400), ("nobody/status", 401), ("x", 404), (ENC, 200)]:
            assert ask(connection, "GET", KEYS + path).status == status
        assert ask(connection, "HEAD", KEYS + ENC).status == 405
        assert ask(connection, "POST", KEYS + ENC, b"{}", JSON).status == 200
        assert connection.sock is opened
