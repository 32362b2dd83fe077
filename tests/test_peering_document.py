"""Is what ``ops/peering.md`` says of kme-peer/1 what the code does?"""

from __future__ import annotations

import hmac
import re
import textwrap
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from hsmkme import agreement, liaison, peering, peers, upkeep
from hsmkme import config as configuration
from hsmkme.messages import bodies, signing
from hsmkme.messages.bodies import Body
from hsmkme.messages.signing import Envelope, Message, answer_covered, received, signature_header
from hsmkme.store import ahead, claims, inbox, links, reconciling

ROOT: Final = Path(__file__).parent.parent
DOCUMENT: Final = (ROOT / "ops" / "peering.md").read_text()
LINK_KEY: Final = bytes(range(32))
CALLS: Final[dict[str, tuple[type[Body], type[Body]]]] = {
    "hello": (bodies.Hello, bodies.Standing),
    "blocks/announce": (bodies.Announce, bodies.Announced),
    "blocks/grant": (bodies.Grant, bodies.Granted),
    "blocks/missing": (bodies.Missing, bodies.Done),
    "blocks/revoke": (bodies.Revoke, bodies.Done),
    "keys/assign": (bodies.Assign, bodies.Assigned),
    "keys/carry": (bodies.Carry, bodies.Assigned),
    "keys/void": (bodies.Void, bodies.Voided),
    "keys/query": (bodies.Query, bodies.Report),
}


def blocks(language: str, text: str = DOCUMENT) -> list[str]:
    return [found.rstrip("\n") for found in re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def headers_of(message: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in message.partition("\n\n")[0].splitlines()[1:])


def test_the_example_of_a_message_is_one() -> None:
    request, answer = blocks("http")
    covered, answer_base = blocks("base")
    headers, body = headers_of(request), request.partition("\n\n")[2].encode()
    message, signature = received("keys/void", headers, body)
    assert message.covered().decode() == covered
    assert hmac.digest(LINK_KEY, message.covered(), "sha256") == signature
    envelope = message.envelope
    again = Message("keys/void", Envelope("kme-1.kme-2", "kme-1", envelope.txid, 812, *(
        envelope.incarnation, envelope.expires)), body)  # fmt: skip
    assert {**again.headers(), "Signature": headers["Signature"], "Content-Type": "application/json"} == headers
    assert isinstance(envelope.txid, UUID)
    content = answer.partition("\n\n")[2].encode()
    base = answer_covered("kme-1.kme-2", 200, content, signature)
    assert base.decode() == answer_base
    assert headers_of(answer)["Signature"] == signature_header(hmac.digest(LINK_KEY, base, "sha256"))
    assert headers_of(answer)["Signature-Input"] == "kme=" + signing.answer_parameters("kme-1.kme-2")


def test_every_call_is_there() -> None:
    assert set(re.findall(r"^### (.*)$", DOCUMENT, re.MULTILINE)) == set(peering._EVENTS) == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_the_examples_of_a_call_are_bodies_of_it(call: str) -> None:
    texts = blocks("json", DOCUMENT.partition(f"\n### {call}\n")[2].partition("\n##")[0])
    for kind, text in zip(CALLS[call], texts, strict=True):
        assert kind.model_validate_json(text)


def test_the_times_and_numbers_are_those_of_the_code() -> None:
    modules = (agreement, ahead, bodies, claims, inbox, liaison, peers, reconciling, signing, upkeep)
    shown = re.findall(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", DOCUMENT, re.MULTILINE)
    assert len(shown) >= 20
    for name, value in shown:
        assert {vars(module)[name] for module in modules if name in vars(module)} == {float(value)}, name


def test_every_reason_for_which_a_link_is_frozen_is_there() -> None:
    shown = set(re.findall(r"^\| frozen.*\| `([a-z ]+)` \|", DOCUMENT, re.MULTILINE))
    assert shown == {links.STARTING, links.PEER_RESTORED, *links.LASTING}


def test_every_test_that_the_failures_name_exists() -> None:
    failures = DOCUMENT.partition("\n## Failures\n")[2].partition("\n## ")[0]
    names = re.findall(r"`(test_[a-z_]+)…`", failures)
    tests = re.findall(r"^def (test_\w+)", (ROOT / "tests/peering/test_failures.py").read_text(), re.MULTILINE)
    assert len(names) >= 12
    for name in names:
        assert any(test.startswith(name) for test in tests), name
    for file in re.findall(r"`((?:tests/)?test_[a-z_]+\.py)`", failures):
        assert (ROOT / file).exists() or (ROOT / "tests/peering" / file).exists(), file
    for test in tests:
        assert any(test.startswith(name) for name in names), f"the table lacks {test}"


# How two sites are linked (README)

_SITE: Final = """\
kme_id = "kme-1"
store = "store.sqlite"
[token]
label = "token"
pin_file = "pin"
[server]
certificate = "cert.pem"
key = "key.pem"
sae_ca = "ca.pem"
"""


def test_the_configuration_of_a_linked_site_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^ +```toml\n(.*?)^ +```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path / "hsmkme.toml"
    file.write_text(_SITE + textwrap.dedent(shown))
    (link,) = configuration.load(file).links
    assert (link.link_id, link.peer) == ("paris", "kme-2")
