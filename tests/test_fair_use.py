"""What becomes of those who ask too often, or for too much?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.serving import served
from tests.world import Demo, start_demo


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("fair"), saes=3, keys=2000) as running:
        yield running


def refused_rows(kme: Demo) -> list[dict[str, object]]:
    rows = json.loads(kme.cli("audit", "show", "--last", "500", "--json").stdout)
    return [row for row in rows if row["event"] == "refused.fair-use"]


def test_an_sae_that_asks_too_often_is_told_when_to_come_back(kme: Demo) -> None:
    before = kme.stored("sae-1", "sae-2")
    with served(kme, '\n[fair_use]\nrequests_per_sae = "10/hour"\n') as url:
        clients = [kme.session("sae-1") for _ in range(6)]  # connections spread over both workers
        answers = [client.get(url + "sae-2/enc_keys", timeout=30) for client in clients for _ in range(3)]
        other = kme.session("sae-3").get(url + "sae-2/status", timeout=30)
    assert [a.status_code for a in answers] == [200] * 10 + [503] * 8
    assert all(1 <= int(a.headers["Retry-After"]) <= 3600 and a.json()["message"] for a in answers[10:])
    assert other.status_code == 200
    assert kme.stored("sae-1", "sae-2") == before - 10
    assert [(row["rule"], row["actor"]) for row in refused_rows(kme)] == [("USE-RATE-1", "sae:sae-1")]


def test_all_saes_together_have_a_limit_too(kme: Demo) -> None:
    with served(kme, '\n[fair_use]\nrequests_total = "4/hour"\n') as url:
        asked = ["sae-1", "sae-3"] * 3
        answers = [kme.session(sae_id).get(url + "sae-2/status", timeout=30).status_code for sae_id in asked]
    assert answers == [200] * 4 + [503] * 2


def test_a_relation_has_a_quota_of_keys_and_a_refused_request_does_not_count(kme: Demo) -> None:
    with served(kme, '\n[fair_use]\nkeys_per_relation = "20/hour"\n') as url, kme.session("sae-3") as client:

        def ask(slave: str, number: int) -> requests.Response:
            return client.post(f"{url}{slave}/enc_keys", json={"number": number}, timeout=30)

        assert [ask("sae-1", 15).status_code, ask("sae-1", 6).status_code] == [200, 503]
        assert [ask("sae-1", 5).status_code, ask("sae-1", 1).status_code] == [200, 503]
        assert ask("sae-2", 20).status_code == 200, "another relation has its own quota"


def test_a_limit_ends_with_its_period(kme: Demo) -> None:
    with served(kme, '\n[fair_use]\nrequests_per_sae = "1/second"\n') as url, kme.session("sae-2") as client:
        statuses = [client.get(url + "sae-1/status", timeout=30).status_code for _ in range(3)]
        assert statuses[0] == 200
        assert 503 in statuses
        time.sleep(1.1)  # the period itself
        assert client.get(url + "sae-1/status", timeout=30).status_code == 200


def test_more_requests_than_may_wait_are_answered_at_once_and_not_queued(kme: Demo) -> None:
    narrow = ("workers = 2", "workers = 1")
    before = kme.stored("sae-1", "sae-2")
    with served(kme, "\n[fair_use]\nwaiting = 1\n", replace=narrow) as url:
        clients = [kme.session("sae-1") for _ in range(12)]
        for client in clients:
            client.get(url + "sae-2/status", timeout=30)

        def ask(client: requests.Session) -> requests.Response:
            return client.post(url + "sae-2/enc_keys", json={"number": 100}, timeout=30)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, clients))
        good = [a for a in answers if a.status_code == 200]
        busy = [a for a in answers if a.status_code == 503]
        assert len(good) + len(busy) == 12
        assert good
        assert busy
        assert all(a.headers["Retry-After"] == "1" and a.json() == {"message": "the KME is busy"} for a in busy)
        assert ask(clients[0]).status_code == 200, "the connection of a refused request goes on"
    assert kme.stored("sae-1", "sae-2") == before - 100 * (len(good) + 1)
