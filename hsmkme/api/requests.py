"""Reading what an SAE sent: path, query and body. Strict where the standard is, tolerant where clients are."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote_to_bytes
from uuid import UUID

from werkzeug import Request
from werkzeug.exceptions import RequestEntityTooLarge

from hsmkme.config import KeysSection
from hsmkme.errors import BadRequest
from hsmkme.policy import KeyRequest, number_rule, size_rule

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

PREFIX: Final = "/api/v1/keys/"
METHODS: Final = ("status", "enc_keys", "dec_keys")
_KEY_REQUEST: Final = frozenset(
    {"number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"}
)
_KEY_IDS: Final = frozenset({"key_IDs", "key_IDs_extension"})
_KEY_ID: Final = frozenset({"key_ID", "key_ID_extension"})
_JSON: Final = "application/json"
_ABSOLUTE: Final = re.compile(r"^https?://[^/]*")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,255}")
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"\\u[dD][89A-Fa-f]")


def path_of(environ: WSGIEnvironment) -> str:
    """The path as it was sent: an escaped slash inside an SAE id is not yet a slash."""
    raw: str = environ.get("RAW_URI") or Request(environ, populate_request=False).full_path
    if not raw.startswith("/"):
        raw = _ABSOLUTE.sub("", raw)
    return raw.partition("?")[0]


@lru_cache(maxsize=1024)
def target_of(path: str) -> tuple[str, str] | None:
    """The SAE id and the method that a path under `PREFIX` names, or None if it is none of the three methods."""
    segments = path.removeprefix(PREFIX).split("/")
    if len(segments) != 2 or segments[1] not in METHODS:
        return None
    return _unquoted(segments[0]), segments[1]


def _unquoted(segment: str) -> str:
    try:
        if _BAD_ESCAPE.search(segment):
            raise ValueError
        sae_id = unquote_to_bytes(segment).decode("utf-8")
    except (ValueError, UnicodeError):
        raise BadRequest("the SAE ID in the path cannot be decoded", rule="REQ-PATH-1") from None
    if not _is_sae_id(sae_id):
        raise BadRequest("the SAE ID in the path is blank or has control characters", rule="REQ-PATH-1")
    return sae_id


def _is_sae_id(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _CONTROL.search(value)


def idempotency_key(environ: WSGIEnvironment) -> str | None:
    """The Idempotency-Key of a request, if it has one; what an SAE does not repeat needs none (point 24)."""
    token: str | None = environ.get("HTTP_IDEMPOTENCY_KEY")
    if token is not None and not _TOKEN.fullmatch(token):
        raise BadRequest("an Idempotency-Key has from 1 to 255 visible ASCII characters", rule="REQ-IDEM-1")
    return token


class Reading:
    """Reads Key requests and key IDs; members that the standard does not know are ignored and counted.

    A body of more than ``body_most`` bytes is refused.
    """

    def __init__(self, limits: KeysSection, body_most: int | None = None) -> None:
        self._limits = limits
        self._body_most = body_most
        self._number_rule, self._size_rule = number_rule(limits), size_rule(limits)
        self._in_query = lru_cache(maxsize=256)(partial(self._asked, body={}))
        self._lock = Lock()
        self.unknown = 0
        """How many unknown members this process has ignored."""

    def key_request(self, environ: WSGIEnvironment) -> KeyRequest:
        """The Key request of a GET or POST on enc_keys (§6.2); raises `BadRequest`."""
        query = environ.get("QUERY_STRING") or ""
        body = self._body(environ, _KEY_REQUEST)
        return self._asked(query, body) if body else self._in_query(query)

    def _asked(self, text: str, body: Mapping[str, Any]) -> KeyRequest:
        """The Key request of a query as it was sent and the members of a body."""
        query: dict[str, Any] = {name: _number(value) for name, value in _query(text, ("number", "size")).items()}
        for name, value in query.items():
            if name in body and body[name] != value:
                raise BadRequest(f"the query and the body give different values for {name}", rule="REQ-QUERY-2")
        asked = {"number": 1, "size": self._limits.key_size, **query, **body}
        _refuse_extensions(asked)
        return KeyRequest(
            number=_integer(asked["number"], self._number_rule),
            size=_integer(asked["size"], self._size_rule),
            additional_slaves=_additional(asked),
        )

    def key_ids(self, environ: WSGIEnvironment) -> list[UUID]:
        """The key_IDs of a GET or POST on dec_keys (§6.4), at least one; raises `BadRequest`."""
        in_query = [_uuid(text) for text in _query(environ.get("QUERY_STRING") or "", ("key_ID",)).values()]
        body = self._body(environ, _KEY_IDS)
        _objects_if_any(body, "key_IDs_extension")
        if "key_IDs" not in body:
            if not in_query:
                raise BadRequest("a key_ID shall be given: one in the query or an array in the body", rule="REQ-ID-1")
            return in_query
        in_body = self._listed(body["key_IDs"])
        if in_query and in_query != in_body:
            raise BadRequest("the query and the body name different keys", rule="REQ-QUERY-2")
        return in_body

    def _listed(self, entries: object) -> list[UUID]:
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise BadRequest("key_IDs shall be an array of at least one object with a key_ID", rule="REQ-ID-1")
        for entry in entries:
            _objects_if_any(entry, "key_ID_extension")
            self._count_unknown(entry, _KEY_ID)
        return [_uuid(entry.get("key_ID")) for entry in entries]

    def _body(self, environ: WSGIEnvironment, known: Collection[str]) -> dict[str, Any]:
        """The JSON object in the body of a POST; an empty body, and whatever a GET carries, is an empty object."""
        if environ["REQUEST_METHOD"] == "GET":
            return {}
        data = _data(environ, self._body_most)
        if not data:
            return {}
        if environ.get("CONTENT_TYPE") != _JSON and Request(environ, populate_request=False).mimetype != _JSON:
            raise BadRequest("Content-Type shall be application/json", rule="REQ-BODY-1")
        value = _parsed(data)
        if not isinstance(value, dict):
            raise BadRequest("the body shall be a JSON object", rule="REQ-BODY-3")
        self._count_unknown(value, known)
        return value

    def _count_unknown(self, members: Mapping[str, Any], known: Collection[str]) -> None:
        unknown = sum(name not in known for name in members)
        if unknown:
            with self._lock:
                self.unknown += unknown
            log.info("ignored %d unknown members, %d since the start", unknown, self.unknown)


def _query(query: str, names: Iterable[str]) -> dict[str, str]:
    """The known query parameters; one given twice is refused, unknown ones are ignored."""
    found: dict[str, str] = {}
    if not query:
        return found
    try:
        pairs = _pairs(query)
    except (ValueError, UnicodeError):
        raise BadRequest("the query cannot be decoded", rule="REQ-QUERY-3") from None
    for name, value in pairs:
        if name not in names:
            continue
        if name in found:
            raise BadRequest(f"{name} is given twice", rule="REQ-QUERY-1")
        found[name] = value
    return found


def _pairs(query: str) -> list[tuple[str, str]]:
    """Names and values. Where nothing is escaped, which is nearly always, nothing is to be undone."""
    if "%" in query or "+" in query:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    return [(name, value) for name, _, value in [one.partition("=") for one in query.split("&") if one]]


def _data(environ: WSGIEnvironment, most: int | None) -> bytes:
    """The body; one of more than ``most`` bytes, or of a length that is only known in the end, werkzeug reads."""
    length = environ.get("CONTENT_LENGTH", "")
    if "HTTP_TRANSFER_ENCODING" not in environ and length.isdecimal() and (most is None or int(length) <= most):
        data: bytes = environ["wsgi.input"].read(int(length))
        return data
    request = Request(environ, populate_request=False)
    request.max_content_length = most
    try:
        return request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise RequestEntityTooLarge(f"the body is longer than {most} bytes") from None


def _parsed(data: bytes) -> Any:
    """JSON as RFC 8259 has it, and only text that UTF-8 can carry: no lone surrogate behind an escape."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON", rule="REQ-BODY-2") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("the body has a member twice", rule="REQ-BODY-4")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _number(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def _integer(value: object, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(rule, rule="REQ-TYPE-1")
    return value


def _additional(body: Mapping[str, Any]) -> tuple[str, ...]:
    if "additional_slave_SAE_IDs" not in body:
        return ()
    listed = body["additional_slave_SAE_IDs"]
    if not isinstance(listed, list) or not listed or not all(_is_sae_id(sae_id) for sae_id in listed):
        raise BadRequest(
            "additional_slave_SAE_IDs shall be an array of at least one SAE ID, none of them blank", rule="REQ-TYPE-2"
        )
    return tuple(listed)


def _objects_if_any(members: Mapping[str, Any], name: str) -> None:
    if not isinstance(members.get(name, {}), dict):
        raise BadRequest(f"{name} shall be an object", rule="REQ-TYPE-4")


def _refuse_extensions(body: Mapping[str, Any]) -> None:
    """No extension is known: mandatory ones are refused in the standard's words, optional ones ignored (point 22)."""
    for name in ("extension_mandatory", "extension_optional"):
        listed = body.get(name, [])
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise BadRequest(f"{name} shall be an array of objects", rule="REQ-TYPE-3")
    unknown = [name for entry in body.get("extension_mandatory", []) for name in entry]
    if unknown:
        raise BadRequest(
            "not all extension_mandatory parameters are supported",
            rule="KEY-EXT-1",
            details=[{"extension_mandatory_unsupported": f"{name} is not supported"} for name in unknown],
        )


def _uuid(text: object) -> UUID:
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise BadRequest("key_ID shall be a UUID", rule="REQ-ID-2")
    return UUID(text)
