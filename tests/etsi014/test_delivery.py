"""Who gets which keys, how often, and what is answered when there are none?"""

from __future__ import annotations

import json
import math
import os
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.etsi014.client import JSON, KEYS, Client, key_ids
from tests.etsi014.conftest import register, running, serving
from tests.processes import apart
from tests.sealing import rewrite_of
from tests.world import until

ENC = "sae-2/enc_keys"
DEC = "sae-1/dec_keys"
NOT_FOUND = "one or more keys specified are not found on KME"
NOT_AUTHORISED = "the SAE is not authorised"

METHODS = pytest.mark.parametrize("method", ["GET", "POST"])


def asking(method: str, path: str, *ids: str) -> tuple[Any, ...]:
    """A dec_keys request; of several keys only with POST."""
    return (method, f"{path}?key_ID={ids[0]}") if method == "GET" else (method, path, key_ids(*ids))


def pool_of(kme: Client, keys: int) -> None:
    """Deposit or draw until the pool has exactly ``keys`` keys."""
    while (ready := kme.state()[0]) > keys:
        kme.demo.enc("sae-1", "sae-2", number=min(ready - keys, 128))
    if ready < keys:
        kme.demo.cli("deposit", "-", "--link", "local", stdin=os.urandom(32 * (keys - ready)))
    assert kme.state()[0] == keys


def erased(kme: Client, key_id: str) -> bool:
    """Whether the store holds nothing but zeros where the sealed bytes of a key were."""
    with kme.demo.database() as database:
        (parts,) = database.execute("SELECT parts FROM key WHERE key_id = ?", (UUID(key_id).bytes,)).fetchone()
        for block, first, count in json.loads(parts):
            row = database.execute("SELECT sealed FROM segments WHERE block_pk = ?", (block,)).fetchone()
            stride = 256 // 8 + 16
            if row is not None and any(row[0][first * stride : (first + count) * stride]):
                return False
    return True


def test_point_04_too_few_keys_deliver_nothing_and_say_when_to_come_back(scarce: Client) -> None:
    """The link received all its keys in the last 1000 seconds; what is missing takes its share of such a time."""
    pool_of(scarce, 72)
    with scarce.demo.database() as database:
        blocks, keys = database.execute("SELECT count(*), sum(key_count) FROM block").fetchone()
        assert 1 < blocks <= 16
    apart(rewrite_of, str(scarce.demo.config), "block", "block_pk = 1", "deposited_at", "deposited_at - 1000")
    for missing, request in [(28, ("POST", ENC, {"number": 100})), (1, ("GET", f"{ENC}?number=73"))]:
        message = f"72 of {72 + missing} keys are available"
        answer = scarce.refused(503, "KEY-POOL-1", message, "sae-1", *request)
        expected = missing * 1000 / keys
        assert expected <= int(answer.headers["Retry-After"]) <= math.ceil(expected * 1.2)
    message = "4 of 5 keys are available"
    scarce.refused(503, "KEY-POOL-1", message, "sae-1", "POST", ENC, {"number": 5, "size": 4096})
    assert len(scarce.get("sae-1", f"{ENC}?number=72").key_ids) == 72
    scarce.refused(503, "KEY-POOL-1", "0 of 1 keys are available", "sae-1", "POST", ENC)


def test_point_04_a_link_without_a_measured_rate_says_half_a_minute(scarce: Client) -> None:
    register(scarce.demo, "far-away", masters=("sae-1",), kme="kme-2")
    status = scarce.get("sae-1", "far-away/status").json
    assert (status["source_KME_ID"], status["target_KME_ID"], status["stored_key_count"]) == ("kme-1", "kme-2", 0)
    answer = scarce.refused(503, "KEY-POOL-1", "0 of 1 keys are available", "sae-1", "GET", "far-away/enc_keys")
    assert answer.headers["Retry-After"] == "30"


@METHODS
def test_point_05_unknown_and_used_keys_get_one_answer_and_the_log_knows_more(kme: Client, method: str) -> None:
    unknown, foreign_path = str(uuid4()), kme.get("sae-1", ENC).key_ids[0]
    (used,) = kme.get("sae-1", ENC).key_ids
    (shared,) = kme.send("sae-1", "POST", ENC, {"additional_slave_SAE_IDs": ["sae-3"]}).key_ids
    kme.demo.dec("sae-2", "sae-1", [used])
    kme.demo.dec("sae-2", "sae-1", [shared])
    for rule, path, key_id in [
        ("KEY-ID-1", DEC, unknown),
        ("KEY-ID-1", "sae-3/dec_keys", foreign_path),
        ("KEY-ID-2", DEC, used),
        ("KEY-ID-2", DEC, shared),
    ]:
        kme.refused(400, rule, NOT_FOUND, "sae-2", *asking(method, path, key_id))
        audited = kme.refusals()[0]
        assert (audited["rule"], audited["actor"], audited["key_IDs"]) == (rule, "sae:sae-2", [key_id])
    assert kme.send("sae-3", *asking(method, DEC, shared)).key_ids == [shared]


@METHODS
def test_point_05_keys_that_expired_or_are_quarantined_get_the_same_answer(scarce: Client, method: str) -> None:
    pool_of(scarce, 2)
    expired, frozen = scarce.send("sae-1", "POST", ENC, {"number": 2}).key_ids
    where = f"key_id = x'{UUID(expired).hex}'"
    apart(rewrite_of, str(scarce.demo.config), "key", where, "claimed_at", "claimed_at - 90000")
    with scarce.demo.upkeep():
        until(lambda: erased(scarce, expired), 30, "the key expires")
    with scarce.demo.database() as database:
        database.execute("UPDATE block SET state = 'frozen' WHERE state = 'exhausted'")
    for rule, key_id in [("KEY-ID-3", expired), ("KEY-ID-4", frozen)]:
        scarce.refused(400, rule, NOT_FOUND, "sae-2", *asking(method, DEC, key_id))
        assert scarce.refusals()[0]["rule"] == rule


@METHODS
@pytest.mark.parametrize(
    "key_id",
    [
        "",
        "1",
        "key-1",
        "0" * 32,
        "00000000-0000-4000-8000-00000000000",
        "00000000-0000-4000-8000-0000000000000",
        "g0000000-0000-4000-8000-000000000000",
        "{00000000-0000-4000-8000-000000000000}",
        "urn:uuid:00000000-0000-4000-8000-000000000000",
        "00000000-0000-4000-8000-000000000000%0A",
        "%2000000000-0000-4000-8000-000000000000",
        "%EF%BC%90" + "0000000-0000-4000-8000-000000000000",
    ],
)
def test_point_05_a_malformed_key_id_is_refused_as_such(kme: Client, method: str, key_id: str) -> None:
    kme.refused(400, "REQ-ID-2", "key_ID shall be a UUID", "sae-2", *asking(method, DEC, key_id))


@pytest.mark.parametrize("key_id", [None, 1, 1.0, True, [], {}], ids=repr)
def test_point_05_a_key_id_of_another_type_is_malformed(kme: Client, key_id: object) -> None:
    kme.refused(400, "REQ-ID-2", "key_ID shall be a UUID", "sae-2", "POST", DEC, key_ids(key_id))


@METHODS
def test_point_06_a_key_of_others_is_refused(kme: Client, method: str) -> None:
    (key_id,) = kme.get("sae-1", ENC).key_ids
    for path in (DEC, "sae-2/dec_keys", "sae-4/dec_keys"):
        kme.refused(401, "KEY-ENT-1", NOT_AUTHORISED, "sae-3", *asking(method, path, key_id))
        assert kme.refusals()[0]["rule"] == "KEY-ENT-1"
    kme.demo.dec("sae-2", "sae-1", [key_id])
    kme.refused(401, "KEY-ENT-1", NOT_AUTHORISED, "sae-3", *asking(method, DEC, key_id))


def test_point_07_entitlement_is_decided_first_and_nothing_is_delivered_in_part(kme: Client) -> None:
    (mine,) = kme.get("sae-1", ENC).key_ids
    (foreign,) = kme.get("sae-1", "sae-3/enc_keys").key_ids
    unknown = str(uuid4())
    for ids in ([mine, foreign], [foreign, mine], [unknown, foreign, mine], [foreign, unknown]):
        kme.refused(401, "KEY-ENT-1", NOT_AUTHORISED, "sae-2", "POST", DEC, key_ids(*ids))
    for ids in ([mine, unknown], [unknown, mine]):
        kme.refused(400, "KEY-ID-1", NOT_FOUND, "sae-2", "POST", DEC, key_ids(*ids))
    assert kme.send("sae-2", "POST", DEC, key_ids(mine)).key_ids == [mine]
    (next_one,) = kme.get("sae-1", ENC).key_ids
    kme.refused(400, "KEY-ID-2", NOT_FOUND, "sae-2", "POST", DEC, key_ids(next_one, mine))
    assert kme.send("sae-2", "POST", DEC, key_ids(next_one)).key_ids == [next_one]


def test_point_07_several_keys_come_in_the_order_they_were_asked_for(kme: Client) -> None:
    fetched = kme.send("sae-1", "POST", ENC, {"number": 5}).keys
    wanted = sorted(fetched, key=lambda key_id: key_id[::-1])
    assert list(kme.send("sae-2", "POST", DEC, key_ids(*wanted)).keys.items()) == [(k, fetched[k]) for k in wanted]


@METHODS
def test_point_08_the_master_does_not_get_its_own_key_again(kme: Client, method: str) -> None:
    (key_id,) = kme.get("sae-1", ENC).key_ids
    for path in (DEC, "sae-2/dec_keys", "sae-3/dec_keys"):
        kme.refused(401, "KEY-ENT-1", NOT_AUTHORISED, "sae-1", *asking(method, path, key_id))


@METHODS
def test_point_23_each_slave_collects_once_and_the_last_one_ends_the_key(kme: Client, method: str) -> None:
    body = {"additional_slave_SAE_IDs": ["sae-4", "sae-3"]}
    ((key_id, key),) = kme.send("sae-1", "POST", ENC, body).keys.items()
    for slave in ("sae-4", "sae-2", "sae-3"):
        assert not erased(kme, key_id)
        assert kme.send(slave, *asking(method, DEC, key_id)).keys == {key_id: key}
        kme.refused(400, "KEY-ID-2", NOT_FOUND, slave, *asking(method, DEC, key_id))
    assert erased(kme, key_id)
    for slave in ("sae-2", "sae-3", "sae-4"):
        kme.refused(400, "KEY-ID-2", NOT_FOUND, slave, *asking(method, DEC, key_id))


def test_point_23_a_key_that_not_every_slave_collects_ends_when_it_expires(scarce: Client) -> None:
    pool_of(scarce, 1)
    (key_id,) = scarce.send("sae-1", "POST", ENC, {"additional_slave_SAE_IDs": ["sae-3"]}).key_ids
    scarce.demo.dec("sae-2", "sae-1", [key_id])
    assert not erased(scarce, key_id)
    where = f"key_id = x'{UUID(key_id).hex}'"
    apart(rewrite_of, str(scarce.demo.config), "key", where, "claimed_at", "claimed_at - 30")
    with running(scarce.demo, "upkeep", "[keys]\nuncollected_seconds = 20"):
        until(lambda: erased(scarce, key_id), 30, "the key expires")
    scarce.refused(400, "KEY-ID-3", NOT_FOUND, "sae-3", "POST", DEC, key_ids(key_id))
    scarce.refused(400, "KEY-ID-2", NOT_FOUND, "sae-2", "POST", DEC, key_ids(key_id))


def test_point_24_a_retry_gets_other_keys_and_a_replay_none(kme: Client) -> None:
    """By default the header that makes retries safe is ignored as any unknown header is."""
    once = {**JSON, "Idempotency-Key": "7b8c1f0e-retry"}
    (first,) = kme.send("sae-1", "POST", ENC, b"{}", once).key_ids
    (second,) = kme.send("sae-1", "POST", ENC, b"{}", once).key_ids
    assert first != second
    assert kme.send("sae-1", "POST", ENC, b"{}", {**JSON, "Idempotency-Key": "two words " * 50}).key_ids
    body = json.dumps(key_ids(first)).encode()
    assert kme.send("sae-2", "POST", DEC, body, once).key_ids == [first]
    kme.refused(400, "KEY-ID-2", NOT_FOUND, "sae-2", "POST", DEC, body, once)
    assert kme.refusals()[0]["rule"] == "KEY-ID-2"


def test_point_24_a_key_whose_answer_is_lost_counts_as_delivered(kme: Client) -> None:
    ready, claimed, *_ = kme.state()
    with kme.connection("sae-1") as connection:
        connection.request("GET", f"{KEYS}{ENC}?number=3")
    until(lambda: kme.state()[1] == claimed + 3, 30, "the keys are claimed")
    assert kme.state()[0] == ready - 3


def test_point_25_the_count_is_of_keys_that_can_be_delivered_now(kme: Client) -> None:
    count = kme.demo.stored("sae-1", "sae-2")
    assert count == kme.state()[0]
    for size, number, used in [(256, 3, 3), (64, 2, 2), (264, 1, 2), (4096, 2, 32)]:
        kme.demo.enc("sae-1", "sae-2", number=number, size=size)
        count -= used
        assert kme.demo.stored("sae-1", "sae-2") == count == kme.demo.stored("sae-4", "sae-3")


def test_point_25_the_count_is_of_keys_of_the_default_size(scarce: Client) -> None:
    pool_of(scarce, 11)
    with serving(scarce.demo, "[keys]\nkey_size = 520") as other:
        status = other.get("sae-1", "sae-2/status").json
        assert (status["key_size"], status["stored_key_count"]) == (520, 11 // 3)
        other.refused(503, "KEY-POOL-1", "3 of 4 keys are available", "sae-1", "GET", f"{ENC}?number=4")
        assert [len(key) for key in other.get("sae-1", f"{ENC}?number=3").keys.values()] == [65] * 3
        assert other.get("sae-1", "sae-2/status").json["stored_key_count"] == 0
