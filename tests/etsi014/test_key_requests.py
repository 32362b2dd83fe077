"""What may a Key request and a list of key IDs look like, and what is answered to those that look otherwise?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.etsi014.client import JSON, KEYS, Client, ask, key_ids
from tests.etsi014.conftest import register

ENC = "sae-2/enc_keys"
DEC = "sae-1/dec_keys"
NUMBER = "number shall be an integer from 1 to 128"
SIZE = "size shall be an integer from 64 to 4096"
MULTIPLE = "size shall be a multiple of 8"
ADDITIONAL = "additional_slave_SAE_IDs shall be an array of at least one SAE ID, none of them blank"
ONCE = "additional_slave_SAE_IDs shall name each SAE once, and neither the master nor the slave SAE"
INVALID = "the body is not valid JSON"
TWICE = "the body has a member twice"
UNSUPPORTED = "not all extension_mandatory parameters are supported"
NO_KEY_ID = "a key_ID shall be given: one in the query or an array in the body"
NO_KEY_IDS = "key_IDs shall be an array of at least one object with a key_ID"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"

NOT_INTEGERS = ["1", "", "one", 1.0, 64.0, 1.5, 1e2, True, False, None, [], [1], {}]
NOT_INTEGERS_IN_QUERY = (
    ["", "one", "1.0", "1e2", "%2B1", "%201", "1%20", "0x1", "true", "null", "%EF%BC%91", "1,2", "1_0", "9" * 30]
)


@pytest.mark.parametrize("number", [0, -1, 129, 2**31, 2**32 + 1, 10**17])
def test_point_01_a_number_out_of_range_is_refused(kme: Client, number: int) -> None:
    kme.refused(400, "KEY-NUM-1", NUMBER, "sae-1", "POST", ENC, {"number": number})
    kme.refused(400, "KEY-NUM-1", NUMBER, "sae-1", "GET", f"{ENC}?number={number}")


@pytest.mark.parametrize("number", NOT_INTEGERS, ids=repr)
def test_point_01_a_number_that_is_no_integer_is_refused(kme: Client, number: object) -> None:
    kme.refused(400, "REQ-TYPE-1", NUMBER, "sae-1", "POST", ENC, {"number": number})


@pytest.mark.parametrize("number", NOT_INTEGERS_IN_QUERY)
def test_point_01_a_number_in_the_query_that_is_no_integer_is_refused(kme: Client, number: str) -> None:
    kme.refused(400, "REQ-TYPE-1", NUMBER, "sae-1", "GET", f"{ENC}?number={number}")


def test_point_01_numbers_too_long_to_be_read_are_refused(kme: Client) -> None:
    kme.refused(400, "KEY-NUM-1", NUMBER, "sae-1", "POST", ENC, {"number": 10**4000})
    kme.refused(400, "REQ-BODY-2", INVALID, "sae-1", "POST", ENC, b'{"number": %s}' % (b"9" * 5000), JSON)


def test_point_01_the_limit_itself_is_delivered(kme: Client) -> None:
    assert len(kme.send("sae-1", "POST", ENC, {"number": 128}).key_ids) == 128
    assert len(kme.send("sae-1", "GET", f"{ENC}?number=128").key_ids) == 128


@pytest.mark.parametrize("size", [0, -8, -1, 8, 56, 4104, 2**31, 2**40])
def test_point_02_a_size_out_of_range_is_refused(kme: Client, size: int) -> None:
    kme.refused(400, "KEY-SIZE-2", SIZE, "sae-1", "POST", ENC, {"size": size})
    kme.refused(400, "KEY-SIZE-2", SIZE, "sae-1", "GET", f"{ENC}?size={size}")


@pytest.mark.parametrize("size", NOT_INTEGERS, ids=repr)
def test_point_02_a_size_that_is_no_integer_is_refused(kme: Client, size: object) -> None:
    kme.refused(400, "REQ-TYPE-1", SIZE, "sae-1", "POST", ENC, {"size": size})


@pytest.mark.parametrize("size", NOT_INTEGERS_IN_QUERY)
def test_point_02_a_size_in_the_query_that_is_no_integer_is_refused(kme: Client, size: str) -> None:
    kme.refused(400, "REQ-TYPE-1", SIZE, "sae-1", "GET", f"{ENC}?size={size}")


@pytest.mark.parametrize("size", [1, 63, 65, 100, 255, 257, 4095, 4097, 2**31 + 1])
def test_point_03_a_size_that_is_no_multiple_of_8_is_refused(kme: Client, size: int) -> None:
    kme.refused(400, "KEY-SIZE-1", MULTIPLE, "sae-1", "POST", ENC, {"size": size})
    kme.refused(400, "KEY-SIZE-1", MULTIPLE, "sae-1", "GET", f"{ENC}?size={size}")


@pytest.mark.parametrize("size", [64, 72, 80, 128, 192, 248, 256, 264, 512, 1000, 2048, 4096])
def test_point_03_any_multiple_of_8_in_range_is_delivered(kme: Client, size: int) -> None:
    fetched = kme.demo.enc("sae-1", "sae-2", size=size, number=2)
    assert {len(key) * 8 for key in fetched.values()} == {size}
    assert kme.demo.dec("sae-2", "sae-1", list(fetched)) == fetched
    (key,) = kme.get("sae-1", f"{ENC}?size={size}").keys.values()
    assert len(key) * 8 == size


@pytest.mark.parametrize(
    ("additional", "rule", "message"),
    [
        ([], "REQ-TYPE-2", ADDITIONAL),
        ([""], "REQ-TYPE-2", ADDITIONAL),
        (["sae-3", "  "], "REQ-TYPE-2", ADDITIONAL),
        (["\t\n"], "REQ-TYPE-2", ADDITIONAL),
        (["sae-3\0"], "REQ-TYPE-2", ADDITIONAL),
        (["sae-3", 4], "REQ-TYPE-2", ADDITIONAL),
        ([["sae-3"]], "REQ-TYPE-2", ADDITIONAL),
        ([None], "REQ-TYPE-2", ADDITIONAL),
        ("sae-3", "REQ-TYPE-2", ADDITIONAL),
        ({"sae-3": True}, "REQ-TYPE-2", ADDITIONAL),
        (None, "REQ-TYPE-2", ADDITIONAL),
        (False, "REQ-TYPE-2", ADDITIONAL),
        (["nobody"], "SAE-MULTI-3", "additional_slave_SAE_IDs names an unknown SAE"),
        (["sae-3", "SAE-4"], "SAE-MULTI-3", "additional_slave_SAE_IDs names an unknown SAE"),
        (["sae-3", "sae-4", "sae-3"], "SAE-MULTI-2", ONCE),
        (["sae-3", "sae-1"], "SAE-MULTI-2", ONCE),
        (["sae-2"], "SAE-MULTI-2", ONCE),
        ([f"s{n}" for n in range(9)], "SAE-MULTI-1", "additional_slave_SAE_IDs shall have at most 8 entries"),
        (["\ud800"], "REQ-BODY-2", INVALID),
        (["sae-3", "\udfff\ud800"], "REQ-BODY-2", INVALID),
    ],
    ids=repr,
)
def test_point_10_additional_slaves_are_known_distinct_and_few(
    kme: Client, additional: object, rule: str, message: str
) -> None:
    kme.refused(400, rule, message, "sae-1", "POST", ENC, {"additional_slave_SAE_IDs": additional})


def test_point_10_a_link_leads_to_every_kme_that_serves_a_slave(kme: Client) -> None:
    register(kme.demo, "far-away", masters=("sae-1",), kme="kme-2")
    body = {"additional_slave_SAE_IDs": ["sae-3", "far-away"]}
    unlinked = "a slave SAE is served by a KME to which no link leads"
    kme.refused(400, "SAE-MULTI-4", unlinked, "sae-1", "POST", ENC, body)


@pytest.mark.parametrize(
    ("body", "headers"),
    [(None, {}), (b"", {}), (b"", JSON), (b"", {"Content-Type": "text/plain"}), (b"{}", JSON)],
    ids=["none", "empty", "empty JSON", "empty text", "empty object"],
)
def test_point_12_an_empty_post_gets_one_key_of_the_default_size(
    kme: Client, body: bytes | None, headers: dict[str, str]
) -> None:
    (key,) = kme.send("sae-1", "POST", ENC, body, headers).keys.values()
    assert len(key) == 32


def test_point_12_an_empty_post_names_no_key_id(kme: Client) -> None:
    kme.refused(400, "REQ-ID-1", NO_KEY_ID, "sae-2", "POST", DEC)
    kme.refused(400, "REQ-ID-1", NO_KEY_ID, "sae-2", "POST", DEC, {})
    kme.refused(400, "REQ-ID-1", NO_KEY_ID, "sae-2", "GET", DEC)


BAD_BODIES: list[tuple[bytes, str, str]] = [
    (b"{", "REQ-BODY-2", INVALID),
    (b"   ", "REQ-BODY-2", INVALID),
    (b"number=1", "REQ-BODY-2", INVALID),
    (b"{'number': 1}", "REQ-BODY-2", INVALID),
    (b'{"number": 1,}', "REQ-BODY-2", INVALID),
    (b'{"number": 1} {}', "REQ-BODY-2", INVALID),
    (b'{"number": 1}x', "REQ-BODY-2", INVALID),
    (b'{"number": 01}', "REQ-BODY-2", INVALID),
    (b'{"number": NaN}', "REQ-BODY-2", INVALID),
    (b'{"x": Infinity}', "REQ-BODY-2", INVALID),
    (b'{"x": -Infinity}', "REQ-BODY-2", INVALID),
    (b'{"x": "\xff"}', "REQ-BODY-2", INVALID),
    (b'{"x": "\xed\xa0\x80"}', "REQ-BODY-2", INVALID),
    (b'{"x": "\\ud800"}', "REQ-BODY-2", INVALID),
    (b'{"\\uDFFF": 1}', "REQ-BODY-2", INVALID),
    (b'{"x": "a\nb"}', "REQ-BODY-2", INVALID),
    (b'\xef\xbb\xbf{"number": 1}', "REQ-BODY-2", INVALID),
    ('{"number": 1}'.encode("utf-16"), "REQ-BODY-2", INVALID),
    (b"\x1f\x8b\x08\x00", "REQ-BODY-2", INVALID),
    (b"[" * 60_000, "REQ-BODY-2", INVALID),
    (b'{"x":' * 10_000 + b"1" + b"}" * 10_000, "REQ-BODY-2", INVALID),
    (b"[" * 30_000 + b"]" * 30_000, "REQ-BODY-2", INVALID),
    (b"[]", "REQ-BODY-3", "the body shall be a JSON object"),
    (b"[{}]", "REQ-BODY-3", "the body shall be a JSON object"),
    (b"null", "REQ-BODY-3", "the body shall be a JSON object"),
    (b"true", "REQ-BODY-3", "the body shall be a JSON object"),
    (b"1", "REQ-BODY-3", "the body shall be a JSON object"),
    (b'"number"', "REQ-BODY-3", "the body shall be a JSON object"),
    (b'{"number": 1, "number": 1}', "REQ-BODY-4", TWICE),
    (b'{"number": 1, "n\\u0075mber": 2}', "REQ-BODY-4", TWICE),
    (b'{"x": {"y": 1, "y": 2}}', "REQ-BODY-4", TWICE),
    (b'{"key_IDs": [], "key_IDs": []}', "REQ-BODY-4", TWICE),
]


@pytest.mark.parametrize(("who", "path"), [("sae-1", ENC), ("sae-2", DEC)], ids=["enc", "dec"])
@pytest.mark.parametrize(("body", "rule", "message"), BAD_BODIES, ids=lambda part: repr(part)[:40])
def test_point_13_a_body_that_is_no_json_object_is_refused(
    kme: Client, who: str, path: str, body: bytes, rule: str, message: str
) -> None:
    kme.refused(400, rule, message, who, "POST", path, body, JSON)


@pytest.mark.parametrize(("who", "path"), [("sae-1", ENC), ("sae-2", DEC)], ids=["enc", "dec"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/json"},
        {"Content-Type": "application/jsonx"},
    ],
    ids=repr,
)
def test_point_13_a_body_of_another_content_type_is_refused(
    kme: Client, who: str, path: str, headers: dict[str, str]
) -> None:
    kme.refused(400, "REQ-BODY-1", "Content-Type shall be application/json", who, "POST", path, b"{}", headers)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
def test_point_13_the_content_type_may_be_written_in_any_way(kme: Client, content_type: str) -> None:
    assert kme.send("sae-1", "POST", ENC, b"{}", {"Content-Type": content_type}).key_ids


@pytest.mark.parametrize(
    ("body", "rule", "message"),
    [
        ({"key_IDs": []}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": None}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": UNKNOWN_ID}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": {"key_ID": UNKNOWN_ID}}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": [UNKNOWN_ID]}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": [[UNKNOWN_ID]]}, "REQ-ID-1", NO_KEY_IDS),
        ({"key_IDs": [{}]}, "REQ-ID-2", "key_ID shall be a UUID"),
        ({"key_IDs": [{"key_id": UNKNOWN_ID}]}, "REQ-ID-2", "key_ID shall be a UUID"),
        ({"key_IDs": [{"key_ID": 1}]}, "REQ-ID-2", "key_ID shall be a UUID"),
        ({"key_ID": UNKNOWN_ID}, "REQ-ID-1", NO_KEY_ID),
        ({**key_ids(UNKNOWN_ID), "key_IDs_extension": []}, "REQ-TYPE-4", "key_IDs_extension shall be an object"),
        (
            {"key_IDs": [{"key_ID": UNKNOWN_ID, "key_ID_extension": 1}]},
            "REQ-TYPE-4",
            "key_ID_extension shall be an object",
        ),
        (key_ids(UNKNOWN_ID, UNKNOWN_ID), "KEY-ID-5", "a key_ID is given twice"),
        (key_ids(*[f"{n:08x}-0000-4000-8000-000000000000" for n in range(129)]), "KEY-NUM-1", "at most 128 key_IDs"),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_point_13_key_ids_of_a_wrong_shape_are_refused(
    kme: Client, body: dict[str, Any], rule: str, message: str
) -> None:
    kme.refused(400, rule, message, "sae-2", "POST", DEC, body)


def test_point_14_unknown_members_are_ignored_and_counted(kme: Client) -> None:
    written = kme.server_log()
    body: dict[str, Any] = {"number": 2, "Number": 99, "priority": "high", "": [{"deep": None}], "size": 128}
    keys = kme.send("sae-1", "POST", ENC, body).keys
    assert [len(key) for key in keys.values()] == [16, 16]
    first, second = keys
    ids = {"key_IDs": [{"key_ID": first, "size": 1}, {"key_ID": second, "key_ID_extension": {}}], "number": "x"}
    assert kme.send("sae-2", "POST", DEC, {**ids, "key_IDs_extension": {"any": "thing"}}).keys == keys
    told = kme.server_log()[len(written) :]
    assert "ignored 3 unknown members" in told
    assert told.count("ignored 1 unknown members") == 2


@pytest.mark.parametrize("body", [b'{"number": 0}', b"{", b"x" * 3000, b'{"key_IDs": []}'], ids=lambda b: repr(b)[:20])
def test_point_15_the_body_of_a_get_is_ignored(kme: Client, body: bytes) -> None:
    """And its bytes are not taken for a next request on the same connection."""
    with kme.connection("sae-1") as master:
        (key_id,) = ask(master, "GET", f"{KEYS}{ENC}", body, JSON).key_ids
        assert ask(master, "GET", f"{KEYS}sae-2/status", body).status == 200
        assert ask(master, "GET", f"{KEYS}sae-2/status").json["slave_SAE_ID"] == "sae-2"
    with kme.connection("sae-2") as slave:
        assert ask(slave, "GET", f"{KEYS}{DEC}?key_ID={key_id}", body).key_ids == [key_id]
        assert ask(slave, "GET", f"{KEYS}{DEC}", json.dumps(key_ids(key_id)).encode(), JSON).status == 400


def test_point_16_a_post_may_have_a_query_that_agrees_with_its_body(kme: Client) -> None:
    assert len(kme.send("sae-1", "POST", f"{ENC}?number=2").key_ids) == 2
    keys = kme.send("sae-1", "POST", f"{ENC}?number=2&size=64", {"size": 64}).keys
    assert [len(key) for key in keys.values()] == [8, 8]
    first, second = keys
    assert kme.send("sae-2", "POST", f"{DEC}?key_ID={first}").key_ids == [first]
    assert kme.send("sae-2", "POST", f"{DEC}?key_ID={second.upper()}", key_ids(second)).key_ids == [second]


@pytest.mark.parametrize(
    ("query", "body", "name"),
    [
        ("number=2", {"number": 3}, "number"),
        ("number=1", {"number": None}, "number"),
        ("number=one", {"number": 1}, "number"),
        ("size=64&number=1", {"size": 128, "number": 1}, "size"),
    ],
)
def test_point_16_a_query_that_contradicts_the_body_is_refused(
    kme: Client, query: str, body: dict[str, Any], name: str
) -> None:
    message = f"the query and the body give different values for {name}"
    kme.refused(400, "REQ-QUERY-2", message, "sae-1", "POST", f"{ENC}?{query}", body)


def test_point_16_a_query_that_names_other_keys_than_the_body_is_refused(kme: Client) -> None:
    message = "the query and the body name different keys"
    first, second = kme.send("sae-1", "POST", ENC, {"number": 2}).key_ids
    for ids in ([second], [first, second], [second, first]):
        kme.refused(400, "REQ-QUERY-2", message, "sae-2", "POST", f"{DEC}?key_ID={first}", key_ids(*ids))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_point_17_a_query_parameter_given_twice_is_refused(kme: Client, method: str) -> None:
    for name, query in [("number", "number=1&number=1"), ("size", "size=64&n=1&size=128"), ("size", "s%69ze=1&size=2")]:
        kme.refused(400, "REQ-QUERY-1", f"{name} is given twice", "sae-1", method, f"{ENC}?{query}")
    (key_id,) = kme.get("sae-1", ENC).key_ids
    for query in (f"key_ID={key_id}&key_ID={key_id}", f"key_ID={key_id}&key_ID={UNKNOWN_ID}"):
        kme.refused(400, "REQ-QUERY-1", "key_ID is given twice", "sae-2", method, f"{DEC}?{query}")
    assert kme.send("sae-2", method, f"{DEC}?key_ID={key_id}").key_ids == [key_id]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_point_17_an_unknown_query_parameter_is_ignored(kme: Client, method: str) -> None:
    (key_id,) = kme.send("sae-1", method, f"{ENC}?Number=7&x=1&x=2&&key_ID=y&size%20=1").key_ids
    assert kme.send("sae-2", method, f"{DEC}?number=0&key_ID={key_id}&key_id=x&").key_ids == [key_id]
    assert kme.get("sae-1", "sae-2/status?number=0&number=x").status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_point_17_a_query_that_cannot_be_decoded_is_refused(kme: Client, method: str) -> None:
    for who, path in [("sae-1", ENC), ("sae-2", DEC)]:
        kme.refused(400, "REQ-QUERY-3", "the query cannot be decoded", who, method, f"{path}?x=%FF")


def test_point_20_details_are_given_only_where_the_standard_shows_them(kme: Client) -> None:
    """`refused` compares whole bodies in every other test: none of them has details."""
    refusal = kme.send("sae-1", "POST", ENC, {"extension_mandatory": [{"x": 1}]})
    assert list(refusal.json) == ["message", "details"]


@pytest.mark.parametrize("asked", [{}, {"extension_optional": [{"abc_max_age": 30000}]}], ids=["nothing", "an option"])
def test_point_21_answers_have_no_extension_members(kme: Client, asked: dict[str, Any]) -> None:
    """No extension is known, so none can have been asked for."""
    container = kme.send("sae-1", "POST", ENC, {"number": 3, **asked}).json
    ids = [entry["key_ID"] for entry in container["keys"]]
    for answer in (container, kme.send("sae-2", "POST", DEC, {**key_ids(*ids), "key_IDs_extension": {}}).json):
        assert list(answer) == ["keys"]
        assert all(list(entry) == ["key_ID", "key"] for entry in answer["keys"])
    assert "status_extension" not in kme.get("sae-1", "sae-2/status").json


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ([{"abc_route_type": "direct"}], ["abc_route_type"]),
        ([{"abc_route_type": "direct"}, {"abc_transfer_method": "qkd"}], ["abc_route_type", "abc_transfer_method"]),
        ([{"a": None, "b": {"c": [1]}}, {}, {"ключ": 1.5}], ["a", "b", "ключ"]),
    ],
    ids=repr,
)
def test_point_22_an_unknown_mandatory_extension_is_refused(
    kme: Client, asked: list[dict[str, Any]], names: list[str]
) -> None:
    before = kme.state()
    refusal = kme.send("sae-1", "POST", ENC, {"extension_mandatory": asked, "extension_optional": [{"x": 1}]})
    assert refusal.status == 400
    assert refusal.json == {
        "message": UNSUPPORTED,
        "details": [{"extension_mandatory_unsupported": f"{name} is not supported"} for name in names],
    }
    assert kme.state() == before
    assert f"refused KEY-EXT-1 ({UNSUPPORTED})" in kme.server_log()


@pytest.mark.parametrize("optional", [[], [{}], [{"abc_max_age": 30000}], [{"a": [{"b": None}]}, {"c": ""}]], ids=repr)
def test_point_22_optional_extensions_are_ignored(kme: Client, optional: list[Any]) -> None:
    assert kme.send("sae-1", "POST", ENC, {"extension_optional": optional, "extension_mandatory": []}).key_ids


@pytest.mark.parametrize("name", ["extension_mandatory", "extension_optional"])
@pytest.mark.parametrize("value", [{}, {"a": 1}, "a", 1, True, None, ["a"], [1], [None], [[{}]], [{}, "a"]], ids=repr)
def test_point_22_extensions_are_arrays_of_objects(kme: Client, name: str, value: object) -> None:
    kme.refused(400, "REQ-TYPE-3", f"{name} shall be an array of objects", "sae-1", "POST", ENC, {name: value})
