"""Can a request be repeated after its answer was lost?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.pki import Request, TestAuthority
from tests.serving import served
from tests.world import Demo, start_demo, until

SECONDS = 8


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("again"), saes=3, keys=1000) as running:
        yield running


@pytest.fixture(scope="module")
def url(kme: Demo) -> Iterator[str]:
    with served(kme, f"\n[keys]\nidempotency_seconds = {SECONDS}\n") as where:
        yield where


def enc(kme: Demo, url: str, token: str | None, **body: object) -> requests.Response:
    headers = {} if token is None else {"Idempotency-Key": token}
    with kme.session("sae-1") as client:
        return client.post(f"{url}sae-2/enc_keys", json=body, headers=headers, timeout=30)


def dec(kme: Demo, url: str, token: str | None, key_id: str) -> requests.Response:
    headers = {} if token is None else {"Idempotency-Key": token}
    with kme.session("sae-2") as client:
        return client.get(f"{url}sae-1/dec_keys?key_ID={key_id}", headers=headers, timeout=30)


def same(one: requests.Response, other: requests.Response) -> bool:
    return one.status_code == other.status_code == 200 and one.content == other.content


def test_a_repeated_request_gets_the_same_keys_and_consumes_none(kme: Demo, url: str) -> None:
    first = enc(kme, url, "one", number=3)
    before = kme.stored("sae-1", "sae-2")
    assert same(first, enc(kme, url, "one", number=3))
    assert kme.stored("sae-1", "sae-2") == before


def test_a_slave_may_repeat_too_and_its_keys_are_erased_afterwards(kme: Demo, url: str) -> None:
    fetched = enc(kme, url, "two")
    key_id = fetched.json()["keys"][0]["key_ID"]
    first = dec(kme, url, "slave-two", key_id)
    assert same(fetched, first)
    assert same(first, dec(kme, url, "slave-two", key_id))
    assert same(first, enc(kme, url, "two")), "the master's answer may be lost after the slave collected"
    assert dec(kme, url, None, key_id).status_code == 400
    until(lambda: not _waiting_to_be_erased(kme), SECONDS + 20)
    assert dec(kme, url, "slave-two", key_id).status_code == 400
    rows = [row for row in kme.log_rows() if key_id in row.get("key_IDs", [])]
    events = [row["event"] for row in rows]
    assert events == [
        *("key.deliver", "key.collect", "key.repeat", "key.repeat", "refused.dec_keys"),
        *("key.erase", "refused.dec_keys"),
    ]


def _waiting_to_be_erased(kme: Demo) -> bool:
    connection = sqlite3.connect(kme.store)
    try:
        return bool(connection.execute("SELECT count(*) FROM erase_later").fetchone()[0])
    finally:
        connection.close()


def test_an_idempotency_key_stands_for_one_request_of_one_certificate(
    kme: Demo, url: str, tmp_path: Path
) -> None:
    first = enc(kme, url, "three")
    other = enc(kme, url, "three", size=128)
    assert other.status_code == 400
    assert "Idempotency-Key" in other.json()["message"]
    renewed = TestAuthority(Path(kme.description["ca"]).parent).issue(tmp_path, Request(uris=["urn:qkd:sae:sae-1"]))
    answer = requests.post(
        f"{url}sae-2/enc_keys",
        json={},
        headers={"Idempotency-Key": "three"},
        cert=renewed,
        verify=kme.description["ca"],
        timeout=30,
    )
    assert answer.status_code == 200
    assert answer.json()["keys"][0]["key_ID"] != first.json()["keys"][0]["key_ID"]


def test_requests_that_meet_get_one_answer(kme: Demo, url: str) -> None:
    before = kme.stored("sae-1", "sae-2")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: enc(kme, url, "four"), range(8)))
    assert all(same(answers[0], answer) for answer in answers)
    assert kme.stored("sae-1", "sae-2") == before - 1


def test_a_key_that_is_not_one_is_refused(kme: Demo, url: str) -> None:
    assert enc(kme, url, "x" * 256).status_code == 400


def test_without_the_setting_the_header_means_nothing(kme: Demo) -> None:
    first, second = enc(kme, kme.url(""), "five"), enc(kme, kme.url(""), "five")
    assert first.json()["keys"][0]["key_ID"] != second.json()["keys"][0]["key_ID"]
