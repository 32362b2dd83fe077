"""Is the description whole, valid, true to the configuration, and told only to SAEs?"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from openapi_spec_validator import OpenAPIV31SpecValidator

from hsmkme.api.description import described
from hsmkme.config import KeysSection
from tests.etsi014.certificates import issue
from tests.etsi014.client import Client, ask
from tests.etsi014.conftest import serving

ROOT = Path(__file__).parents[2]


def written() -> dict[str, Any]:
    """The description as it is written, before limits are put in."""
    text = importlib.resources.files("hsmkme.api").joinpath("etsi014.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def test_it_is_valid_openapi_31() -> None:
    OpenAPIV31SpecValidator(written()).validate()


def test_it_describes_the_three_methods_and_their_access() -> None:
    access = {path.rpartition("/")[2]: sorted(set(of) - {"parameters"}) for path, of in written()["paths"].items()}
    assert access == {"status": ["get"], "enc_keys": ["get", "post"], "dec_keys": ["get", "post"]}


def test_every_operation_describes_what_the_standard_the_routing_and_the_transport_answer() -> None:
    for operations in written()["paths"].values():
        for method in set(operations) - {"parameters"}:
            transport = ["413"] if method == "post" else []
            assert sorted(operations[method]["responses"]) == ["200", "400", "401", "404", "405", *transport, "503"]


def examples(part: object) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each example in the description, with the schema it stands beside."""
    if isinstance(part, dict):
        for example in part.get("examples", {}).values() if "schema" in part else ():
            yield part["schema"], example["value"]
        for value in part.values():
            yield from examples(value)


def test_its_examples_fit_its_schemas(kme: Client) -> None:
    found = list(examples(kme.description.tree))
    assert len(found) >= 8
    for schema, example in found:
        kme.description.validate(schema, example)


def test_what_is_written_are_the_limits_of_an_empty_configuration() -> None:
    assert json.loads(described(KeysSection())) == written()


def test_it_is_served_with_the_limits_that_are_configured(kme: Client) -> None:
    limits = "key_size = 352\nmin_key_size = 128\nmax_key_size = 1024\nmax_key_per_request = 7\nmax_sae_id_count = 2"
    with serving(kme.demo, f"[keys]\n{limits}") as other, other.connection("sae-1") as connection:
        served = ask(connection, "GET", "/openapi.json")
    assert served.headers["Content-Type"] == "application/json"
    schemas = served.json["components"]["schemas"]
    assert schemas["Number"]["maximum"] == schemas["KeyIds"]["properties"]["key_IDs"]["maxItems"] == 7
    size = schemas["Size"]
    assert (size["minimum"], size["default"], size["maximum"]) == (128, 352, 1024)
    assert schemas["AdditionalSlaves"]["maxItems"] == 2


def test_it_is_served_to_saes_only(kme: Client, enrol: Callable[..., Path]) -> None:
    stranger = issue(kme.demo, [x509.UniformResourceIdentifier("urn:qkd:sae:who")])
    for who, status in [(None, 401), (stranger, 401), (enrol("reader"), 200), ("sae-3", 200)]:
        with kme.connection(who) as connection:
            answer = ask(connection, "GET", "/openapi.json")
        assert answer.status == status
        assert status == 200 or list(answer.json) == ["message"]
        assert answer.headers["Cache-Control"] == "no-store"


def test_it_is_part_of_the_package() -> None:
    """A wheel has every file of the package that is not Python."""
    patterns = (ROOT / "pyproject.toml").read_text()
    assert '"api/*.yaml"' in patterns


RULE = re.compile(r"\b(?:SAE|KEY|USE|REQ|PEER|APPROVAL)-[A-Z]+-[0-9]\b")


def test_every_rule_in_the_code_is_documented_and_the_other_way_round() -> None:
    code = "".join(path.read_text() for path in (ROOT / "hsmkme").rglob("*.py"))
    raised = set(re.findall(rf'"({RULE.pattern})"', code))
    documented = re.findall(rf"^\| ({RULE.pattern}) \|", (ROOT / "ops" / "rules.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(raised)


def test_every_rule_in_a_docstring_or_a_test_exists() -> None:
    documented = set(RULE.findall((ROOT / "ops" / "rules.md").read_text()))
    for path in [*(ROOT / "hsmkme").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert set(RULE.findall(path.read_text())) <= documented, path


def test_every_point_of_the_standard_has_its_row_and_its_tests() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "ops" / "etsi014.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 30))
    tests = {path.stem: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    for number, cell in rows:
        named = re.findall(r"`(test_\w+)::(test_point_\d\d)`", cell)
        assert named, f"point {number} names no test"
        for module, prefix in named:
            assert prefix == f"test_point_{int(number):02}"
            assert f"def {prefix}_" in tests[module], (module, prefix)
