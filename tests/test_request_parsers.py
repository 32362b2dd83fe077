"""What does the KME read from any path, query or body? Either what the rules allow, or `BadRequest`: nothing else."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hsmkme import policy
from hsmkme.api.requests import METHODS, PREFIX, Reading, idempotency_key, path_of, target_of
from hsmkme.config import KeysSection
from hsmkme.errors import BadRequest
from hsmkme.policy import KeyRequest

LIMITS = KeysSection()
JSON = "application/json"


def request(
    method: str = "POST", body: bytes = b"", query: str = "", content_type: str = JSON, **environ: str
) -> dict[str, Any]:
    """A request as it comes from the server."""
    return {
        "REQUEST_METHOD": method,
        "QUERY_STRING": query,
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
        **environ,
    }


def posted(members: object) -> dict[str, Any]:
    return request(body=json.dumps(members).encode())


def read(parse: Callable[[dict[str, Any]], Any], request_: dict[str, Any]) -> Any:
    """What ``parse`` gives; None if it raises `BadRequest`, with a rule and a message that can be shown."""
    try:
        return parse(request_)
    except BadRequest as error:
        refusal = error
    assert re.fullmatch(r"(REQ|KEY)-[A-Z]+-\d", refusal.rule)
    assert refusal.message
    assert refusal.message.isprintable()
    json.dumps([refusal.message, refusal.details], ensure_ascii=False).encode()
    return None


def key_request(request_: dict[str, Any]) -> KeyRequest | None:
    """A Key request that was read, held against the rules for its values as well."""
    found: KeyRequest | None = read(Reading(LIMITS).key_request, request_)
    if found is not None:
        assert type(found.number) is int
        assert type(found.size) is int
        assert all(is_good_id(sae_id) for sae_id in found.additional_slaves)
        try:
            policy.check_request(found, LIMITS)
        except BadRequest:
            return found
        assert 1 <= found.number <= LIMITS.max_key_per_request
        assert LIMITS.min_key_size <= found.size <= LIMITS.max_key_size
        assert found.size % 8 == 0
    return found


def key_ids(request_: dict[str, Any]) -> list[UUID] | None:
    """Key IDs that were read."""
    found: list[UUID] | None = read(Reading(LIMITS).key_ids, request_)
    if found is not None:
        assert found, "no key_ID at all is refused"
        assert all(isinstance(key_id, UUID) for key_id in found)
    return found


def is_good_id(value: object) -> bool:
    """Not blank, no control characters; text that UTF-8 can carry."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not {"Cc", "Cs"} & {unicodedata.category(character) for character in value}


# Paths --------------------------------------------------------------------------------------------

TELLING_IDS = ["sae-2", "a/b", "ä", "%41", "..", "a b", "SAE?x#y", "名前"]
SAE_IDS = st.sampled_from(TELLING_IDS) | st.text(min_size=1, max_size=30)


@given(SAE_IDS, st.sampled_from(METHODS))
@example("x" * 291, "status")
def test_an_sae_id_in_the_path_is_read_as_it_was_meant(sae_id: str, method: str) -> None:
    path = f"{PREFIX}{quote(sae_id, safe='', errors='surrogatepass')}/{method}"
    assert path_of(request(RAW_URI=f"{path}?number=1")) == path
    target = read(lambda _: target_of(path), request())
    assert target == ((sae_id, method) if is_good_id(sae_id) else None)


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60))
@example("%/status")
@example("%4/status")
@example("%zz/enc_keys")
@example("%ff/dec_keys")
@example("%00/status")
@example("%c0%af/status")
@example("%ed%a0%80/status")
@example("+%20+/status")
@example("/status")
@example("%20/status")
@example("sae-2/status/")
@example("sae-2//status")
@example("sae-2/STATUS")
@example("../keys/sae-2/status")
def test_no_path_does_anything_but_name_a_method_or_be_refused(tail: str) -> None:
    target = read(lambda _: target_of(path_of(request(RAW_URI=PREFIX + tail))), request())
    if target is not None:
        sae_id, method = target
        assert is_good_id(sae_id)
        assert method in METHODS
        assert tail.partition("?")[0].count("/") == 1


@pytest.mark.parametrize("start", ["http://kme", "https://kme:8443", "http://"])
def test_a_whole_url_is_read_like_its_path(start: str) -> None:
    assert path_of(request(RAW_URI=f"{start}{PREFIX}sae-2/status")) == f"{PREFIX}sae-2/status"


# Bodies -------------------------------------------------------------------------------------------

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=2), max_size=2)
KEY_REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "number": st.integers(-1, 200) | VALUES,
        "size": st.sampled_from([256, 64, 4096, 8, 100, 0, 1 << 70]) | VALUES,
        "additional_slave_SAE_IDs": st.lists(SAE_IDS, max_size=3) | VALUES,
        "extension_mandatory": st.just([]) | OBJECTS | VALUES,
        "extension_optional": OBJECTS | VALUES,
        "vendor": VALUES,
    },
)


def is_good_key_request(members: dict[str, Any]) -> bool:
    """ETSI GS QKD 014 §6.2 in other words than the product's."""
    extensions = [members[name] for name in ("extension_mandatory", "extension_optional") if name in members]
    additional = members.get("additional_slave_SAE_IDs", ["some"])
    return (
        all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in extensions)
        and not any(members.get("extension_mandatory", []))
        and all(type(members.get(name, 1)) is int for name in ("number", "size"))
        and isinstance(additional, list)
        and bool(additional)
        and all(is_good_id(sae_id) for sae_id in additional)
    )


def is_utf8(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=400)
@given(KEY_REQUESTS)
def test_a_key_request_is_read_as_it_says_or_refused(members: dict[str, Any]) -> None:
    found = key_request(posted(members))
    if is_good_key_request(members) and is_utf8(members):
        assert found == KeyRequest(
            number=members.get("number", 1),
            size=members.get("size", LIMITS.key_size),
            additional_slaves=tuple(members.get("additional_slave_SAE_IDs", ())),
        )
    else:
        assert found is None


UUIDS = st.uuids().map(str) | st.uuids().map(lambda key_id: str(key_id).upper())
ENTRIES = st.fixed_dictionaries(
    {"key_ID": UUIDS | UUIDS | VALUES}, optional={"key_ID_extension": st.just({}) | VALUES, "vendor": VALUES}
)
KEY_IDS = st.fixed_dictionaries(
    {},
    optional={
        "key_IDs": st.lists(ENTRIES, min_size=1, max_size=3) | VALUES,
        "key_IDs_extension": st.just({}) | VALUES,
        "vendor": VALUES,
    },
)
UUID_TEXT = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def is_good_key_ids(members: dict[str, Any]) -> bool:
    """ETSI GS QKD 014 §6.4 in other words than the product's."""
    entries = members.get("key_IDs")
    return (
        isinstance(members.get("key_IDs_extension", {}), dict)
        and isinstance(entries, list)
        and bool(entries)
        and all(isinstance(entry, dict) for entry in entries)
        and all(isinstance(entry.get("key_ID_extension", {}), dict) for entry in entries)
        and all(isinstance(entry.get("key_ID"), str) and UUID_TEXT.fullmatch(entry["key_ID"]) for entry in entries)
    )


@settings(max_examples=400)
@given(KEY_IDS)
def test_key_ids_are_read_as_they_say_or_refused(members: dict[str, Any]) -> None:
    found = key_ids(posted(members))
    if is_good_key_ids(members) and is_utf8(members):
        assert found == [UUID(entry["key_ID"]) for entry in members["key_IDs"]]
    else:
        assert found is None


NOT_JSON = {
    "not UTF-8": b'{"number": 1, "a": "\xff"}',
    "UTF-16": '{"number": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"number": 1}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "trailing data": b'{"number": 1} {}',
    "a trailing comma": b'{"number": 1,}',
    "single quotes": b"{'number': 1}",
    "a comment": b'{"number": 1 /* one */}',
    "a member twice": b'{"number": 1, "number": 1}',
    "a member twice, further in": b'{"extension_optional": [{"a": 1, "a": 2}]}',
    "a member twice by an escape": b'{"number": 1, "n\\u0075mber": 2}',
    "a lone surrogate": b'{"additional_slave_SAE_IDs": ["\\ud800"]}',
    "a lone surrogate as a name": b'{"\\udfff": 1}',
    "surrogates in the wrong order": b'{"a": "\\udc00\\ud800"}',
    "a raw control character": b'{"a": "\n"}',
    "an integer of five thousand digits": b'{"number": ' + b"1" * 5000 + b"}",
    "a number in hexadecimal": b'{"number": 0x1}',
    "a number with a leading zero": b'{"number": 01}',
    "depth": b'{"a": ' + b"[" * 60_000,
    "depth that ends": b'{"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "depth of objects": b'{"a":' * 12_000,
    "half of it": b'{"number": 1',
    "a NUL": b'{"number": 1}\0',
    "only spaces": b"   ",
    "an array": b"[1]",
    "a string": b'"number"',
    "null": b"null",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert key_request(request(body=body)) is None
    assert key_ids(request(body=body)) is None


SPARKS = [b"\\ud800", b"\\", b'"', b"[", b"]", b"{", b"}", b",", b":", b"-", b"e9", b"NaN", b"\0"]
GOOD_BODIES = [b'{"number": 3, "size": 256}', b'{"key_IDs": [{"key_ID": "01234567-89ab-cdef-0123-456789abcdef"}]}']


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A good body in which something was replaced, inserted or left out."""
    body = bytearray(draw(st.sampled_from(GOOD_BODIES)))
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, len(body))), draw(st.sampled_from([0, 1, 2, 9]))
        body[place : place + length] = draw(st.sampled_from(SPARKS) | st.binary(max_size=3))
    return bytes(body)


@settings(max_examples=400)
@given(broken() | st.binary(max_size=60), st.sampled_from(["GET", "POST"]), st.sampled_from([JSON, "", "text/plain"]))
def test_any_bytes_are_a_key_request_or_refused(body: bytes, method: str, content_type: str) -> None:
    found = key_request(request(method, body, content_type=content_type))
    ids = key_ids(request(method, body, content_type=content_type))
    if method == "GET" or not body:
        assert found == KeyRequest(1, LIMITS.key_size)
        assert ids is None
    elif found is not None or ids is not None:
        assert content_type == JSON
        assert isinstance(json.loads(body.decode()), dict)


@given(st.text(max_size=30))
@example("application/json; charset=utf-8")
@example("APPLICATION/JSON")
@example("application/json, text/plain")
@example("application/jsonp")
@example(";;;=")
def test_a_body_is_read_only_as_json(content_type: str) -> None:
    found = key_request(request(body=GOOD_BODIES[0], content_type=content_type))
    assert (found is not None) is (content_type.partition(";")[0].strip().lower() == JSON)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=6))
def test_members_that_the_standard_does_not_know_are_counted_and_ignored(members: dict[str, Any]) -> None:
    reading = Reading(LIMITS)
    if read(reading.key_request, posted({f"x-{name}": value for name, value in members.items()})) is not None:
        assert reading.unknown == len(members)


# Queries ------------------------------------------------------------------------------------------

QUERY_NAMES = st.sampled_from(["number", "size", "key_ID", "NUMBER", "x"]) | st.text(max_size=5)
QUERY_VALUES = (
    st.integers(-1, 5000).map(str)
    | st.sampled_from(["", "1.0", "1e2", "٣", "+1", " 1", "0x10", "1_0", "9" * 19, "9" * 5000, "true"])
    | UUIDS
    | st.text(max_size=5)
)
INTEGER = re.compile("-?[0-9]+", re.ASCII)


@settings(max_examples=400)
@given(st.lists(st.tuples(QUERY_NAMES, QUERY_VALUES), max_size=4))
def test_a_query_is_read_as_it_says_or_refused(pairs: list[tuple[str, str]]) -> None:
    query = urlencode(pairs, errors="surrogatepass")
    found = key_request(request("GET", query=query))
    asked = dict(pairs)
    known = [(name, value) for name, value in pairs if name in ("number", "size")]
    good = (
        len(dict(known)) == len(known)
        and all(INTEGER.fullmatch(value) and len(value) < 19 for _, value in known)
        and is_utf8(pairs)
    )
    if good:
        assert found == KeyRequest(int(asked.get("number", "1")), int(asked.get("size", str(LIMITS.key_size))))
    else:
        assert found is None
    ids = [value for name, value in pairs if name == "key_ID"]
    read_ids = key_ids(request("GET", query=query))
    if len(ids) == 1 and UUID_TEXT.fullmatch(ids[0]) and is_utf8(pairs):
        assert read_ids == [UUID(ids[0])]
    else:
        assert read_ids is None


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60))
@example("number=%")
@example("number=%ff")
@example("%ff=1")
@example("number=1&number=1")
@example("number=1;size=8")
@example("&&&=&==")
@example("number")
@example("number[]=1")
@example("x=1&" * 15_000)
def test_any_query_is_read_or_refused(query: str) -> None:
    key_request(request("GET", query=query))
    key_ids(request("GET", query=query))


@given(st.integers(0, 3), st.integers(0, 3) | VALUES)
def test_query_and_body_may_not_disagree(in_query: int, in_body: Any) -> None:
    found = key_request(request(body=json.dumps({"number": in_body}).encode(), query=f"number={in_query}"))
    if type(in_body) is int and in_body == in_query:
        assert found is not None
        assert found.number == in_query
    else:
        assert found is None


@given(UUIDS, st.lists(UUIDS, min_size=1, max_size=2))
def test_a_key_id_in_the_query_is_the_one_in_the_body(in_query: str, in_body: list[str]) -> None:
    body = json.dumps({"key_IDs": [{"key_ID": key_id} for key_id in in_body]}).encode()
    same = key_ids(request(body=body, query=f"key_ID={in_body[0]}"))
    assert same == (None if in_body[1:] else [UUID(in_body[0])])
    if UUID(in_query) != UUID(in_body[0]):
        assert key_ids(request(body=body, query=f"key_ID={in_query}")) is None


# Idempotency-Key ----------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(max_codepoint=0xFF), max_size=300))
@example("a" * 255)
@example("a" * 256)
def test_an_idempotency_key_is_visible_ascii_or_refused(token: str) -> None:
    found = read(idempotency_key, request(HTTP_IDEMPOTENCY_KEY=token))
    good = 1 <= len(token) <= 255 and all("!" <= character <= "~" for character in token)
    assert found == (token if good else None)


def test_a_request_without_idempotency_key_has_none() -> None:
    assert idempotency_key(request()) is None
