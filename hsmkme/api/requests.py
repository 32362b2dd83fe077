"""Reading what an SAE sent: path, query and body. Strict where the standard is, tolerant where clients are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote_to_bytes
from uuid import UUID

from flask import Request

from hsmkme.config import KeysSection
from hsmkme.errors import BadRequest
from hsmkme.policy import KeyRequest

PREFIX: Final = "/api/v1/keys/"
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")


def target_of(raw_uri: str) -> tuple[str, str] | None:
    """The SAE id and the method that a request URI names, or None if it is none of the three methods.

    Works on the URI as sent, so that an escaped slash inside an SAE id stays inside it.
    """
    path = re.sub(r"^https?://[^/]*", "", raw_uri).partition("?")[0]
    if not path.startswith(PREFIX):
        return None
    segments = path.removeprefix(PREFIX).split("/")
    if len(segments) != 2 or segments[1] not in ("status", "enc_keys", "dec_keys"):
        return None
    return _sae_id(segments[0]), segments[1]


def _sae_id(segment: str) -> str:
    try:
        if _BAD_ESCAPE.search(segment):
            raise ValueError
        sae_id = unquote_to_bytes(segment).decode("utf-8")
    except (ValueError, UnicodeError):
        raise BadRequest("the SAE ID in the path cannot be decoded", rule="REQ-PATH-1") from None
    if not sae_id.strip() or not sae_id.isprintable():
        raise BadRequest("the SAE ID in the path is blank", rule="REQ-PATH-1")
    return sae_id


def key_request(request: Request, limits: KeysSection) -> KeyRequest:
    """The Key request of a GET or POST on enc_keys (§6.2); raises `BadRequest`."""
    body = _merged(request, ("number", "size"))
    _refuse_extensions(body)
    return KeyRequest(
        number=_integer(body, "number", 1),
        size=_integer(body, "size", limits.key_size),
        additional_slaves=_additional(body),
    )


def key_ids(request: Request) -> list[UUID]:
    """The key_IDs of a GET or POST on dec_keys (§6.4), at least one; raises `BadRequest`."""
    query = _query(request, ("key_ID",))
    body = {} if request.method == "GET" else _body(request)
    listed = body.get("key_IDs")
    if listed is None and "key_ID" in query:
        return [_uuid(query["key_ID"])]
    if not isinstance(listed, list) or not listed:
        raise BadRequest("key_IDs shall be an array of at least one object with a key_ID", rule="REQ-ID-1")
    found = [_uuid(entry.get("key_ID") if isinstance(entry, dict) else None) for entry in listed]
    if "key_ID" in query and found != [_uuid(query["key_ID"])]:
        raise BadRequest("the query and the body name different keys", rule="REQ-QUERY-2")
    return found


def _merged(request: Request, names: Iterable[str]) -> dict[str, Any]:
    """The body of a POST, or the query of a GET; a query that contradicts the body is refused."""
    query: dict[str, Any] = {name: _number(name, value) for name, value in _query(request, names).items()}
    if request.method == "GET":
        return query
    body = _body(request)
    for name, value in query.items():
        if name in body and body[name] != value:
            raise BadRequest(f"the query and the body give different values for {name}", rule="REQ-QUERY-2")
    return {**query, **body}


def _query(request: Request, names: Iterable[str]) -> dict[str, str]:
    """The known query parameters; one given twice is refused, unknown ones are ignored."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(request.environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="strict")
    except (ValueError, UnicodeError):
        raise BadRequest("the query cannot be decoded", rule="REQ-QUERY-3") from None
    for name, value in pairs:
        if name not in names:
            continue
        if name in found:
            raise BadRequest(f"{name} is given twice", rule="REQ-QUERY-1")
        found[name] = value
    return found


def _body(request: Request) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty object."""
    data = request.get_data(cache=False)
    if not data:
        return {}
    if request.mimetype != "application/json":
        raise BadRequest("Content-Type shall be application/json", rule="REQ-BODY-1")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON", rule="REQ-BODY-2") from None
    if not isinstance(value, dict):
        raise BadRequest("the body shall be a JSON object", rule="REQ-BODY-3")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("the body has a member twice", rule="REQ-BODY-4")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _integer(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{name} shall be an integer", rule="REQ-TYPE-1")
    return value


def _number(name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise BadRequest(f"{name} shall be an integer", rule="REQ-TYPE-1")
    return int(text)


def _additional(body: Mapping[str, Any]) -> tuple[str, ...]:
    if "additional_slave_SAE_IDs" not in body:
        return ()
    listed = body["additional_slave_SAE_IDs"]
    if not isinstance(listed, list) or not listed:
        raise BadRequest("additional_slave_SAE_IDs shall be an array of at least one SAE ID", rule="REQ-TYPE-2")
    if not all(isinstance(sae_id, str) and sae_id.strip() for sae_id in listed):
        raise BadRequest("additional_slave_SAE_IDs shall hold SAE IDs, none of them blank", rule="REQ-TYPE-2")
    return tuple(listed)


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
