"""The OpenAPI description as a judge of answers: status documented, headers, content type and body as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator


class Description:
    """An OpenAPI 3.1 description."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree

    def check(self, method: str, uri: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Fails unless the answer is one that is described for this request."""
        response = self.resolved(self._responses(method, uri, status)[str(status)])
        for name, header in response["headers"].items():
            self._check_header(name, self.resolved(header), headers.get(name))
        ((content_type, content),) = response["content"].items()
        assert headers["Content-Type"] == content_type
        if method != "HEAD":
            self.validate(content["schema"], json.loads(body))

    def validate(self, schema: dict[str, Any], value: object) -> None:
        """Fails unless ``value`` fits ``schema``, which is part of this description."""
        whole = {"components": self.tree["components"], **schema}
        Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """``part``, or what it refers to."""
        if "$ref" not in part:
            return part
        found = self.tree
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return found

    def _responses(self, method: str, uri: str, status: int) -> dict[str, Any]:
        """The described responses; what no operation describes has to be refused as any operation would."""
        path = uri.partition("?")[0]
        for template, operations in self.tree["paths"].items():
            if re.fullmatch(re.sub(r"\{.*?\}", "[^/]*", template), path):
                operation = operations.get(method.lower())
                assert operation or status != 200, f"{method} {path} is not described"
                return dict((operation or operations["get"])["responses"])
        assert status in (401, 404), f"{path} is not described"
        return dict(next(iter(self.tree["paths"].values()))["get"]["responses"])

    def _check_header(self, name: str, header: dict[str, Any], value: str | None) -> None:
        assert value is not None or not header["required"], f"{name} is missing"
        schema = self.resolved(header["schema"])
        self.validate(schema, int(value or "") if schema.get("type") == "integer" else value)
