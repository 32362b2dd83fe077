"""Whose request is it, and may this SAE ask that of these SAEs?"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from hsmkme.demo.authority import Authority
from tests.etsi014.certificates import issue
from tests.etsi014.client import JSON, KEYS, Client, Identity, ask, key_ids
from tests.etsi014.conftest import register, serving
from tests.world import until

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
UNDECODABLE = "the SAE ID in the path cannot be decoded"
BLANK = "the SAE ID in the path is blank or has control characters"
SAME = "the slave SAE and the master SAE shall be different SAEs"
REQUIRED = "a client certificate is required"
NOT_AUTHORISED = "the SAE is not authorised"

REQUESTS: list[Callable[[str], tuple[Any, ...]]] = [
    lambda sae: ("GET", f"{sae}/status"),
    lambda sae: ("GET", f"{sae}/enc_keys"),
    lambda sae: ("GET", f"{sae}/enc_keys?number=2&size=64"),
    lambda sae: ("POST", f"{sae}/enc_keys"),
    lambda sae: ("POST", f"{sae}/enc_keys", {"number": 2}),
    lambda sae: ("GET", f"{sae}/dec_keys?key_ID={UNKNOWN_ID}"),
    lambda sae: ("POST", f"{sae}/dec_keys", key_ids(UNKNOWN_ID)),
]
MALFORMED: list[tuple[Any, ...]] = [
    ("GET", "%FF/status"),
    ("GET", "%20/enc_keys"),
    ("GET", "sae-2/enc_keys?number=0"),
    ("GET", "sae-2/dec_keys"),
    ("POST", "sae-2/enc_keys", b"{", JSON),
    ("POST", "sae-2/dec_keys", b"{}", {}),
]

EACH = pytest.mark.parametrize("request_to", REQUESTS, ids=lambda of: " ".join(map(str, of("x")))[:30])


def uri(sae_id: str, prefix: str = "urn:qkd:sae:") -> x509.GeneralName:
    return x509.UniformResourceIdentifier(prefix + sae_id)


@EACH
def test_point_09_master_and_slave_are_two_saes(kme: Client, request_to: Callable[[str], tuple[Any, ...]]) -> None:
    kme.refused(400, "SAE-PAIR-2", SAME, "sae-1", *request_to("sae-1"))
    kme.refused(400, "SAE-PAIR-2", SAME, "sae-1", *request_to("%73%61e-1"))


@EACH
@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ("", BLANK),
        ("%20", BLANK),
        ("%09%0A", BLANK),
        ("%C2%A0", BLANK),
        ("%E2%80%83", BLANK),
        ("%00", BLANK),
        ("sae-2%00", BLANK),
        ("sae%0A2", BLANK),
        ("sae-2%7F", BLANK),
        ("sae-2%C2%85", BLANK),
        ("%", UNDECODABLE),
        ("%zz", UNDECODABLE),
        ("sae-2%2", UNDECODABLE),
        ("%FF", UNDECODABLE),
        ("%C3%28", UNDECODABLE),
        ("%E2%82", UNDECODABLE),
        ("%C0%AF", UNDECODABLE),
        ("%ED%A0%80", UNDECODABLE),
        ("%F4%90%80%80", UNDECODABLE),
    ],
)
def test_point_09_a_blank_or_undecodable_sae_id_is_refused(
    kme: Client, request_to: Callable[[str], tuple[Any, ...]], segment: str, message: str
) -> None:
    kme.refused(400, "REQ-PATH-1", message, "sae-1", *request_to(segment))


@pytest.mark.parametrize("sae_id", ["north/east 7", "/", "a?b=c&d#e", "100%25", "Straße-北", "..", "sae-2/status"])
def test_point_09_an_escaped_sae_id_is_taken_whole(kme: Client, sae_id: str) -> None:
    register(kme.demo, sae_id, masters=("sae-1",))
    path = quote(sae_id, safe="")
    assert kme.get("sae-1", f"{path}/status").json["slave_SAE_ID"] == sae_id
    assert kme.get("sae-1", f"{path}/enc_keys").key_ids
    assert kme.send("sae-1", "POST", f"{path}/enc_keys", {"additional_slave_SAE_IDs": ["sae-2"]}).key_ids


@EACH
def test_point_11_without_a_certificate(kme: Client, request_to: Callable[[str], tuple[Any, ...]]) -> None:
    kme.refused(401, "SAE-CERT-1", REQUIRED, None, *request_to("sae-2"))
    kme.refused(401, "SAE-CERT-1", REQUIRED, None, *request_to("%FF"))


@pytest.fixture(scope="module")
def stranger(kme: Client) -> Path:
    """The certificate of an SAE that is not registered."""
    return issue(kme.demo, [uri("stranger")])


@pytest.fixture(scope="module")
def revoked(kme: Client, enrol: Callable[..., Path]) -> Path:
    """The certificate of an SAE that had every relation, and was revoked."""
    home = enrol("revoked", slaves=("sae-2",), masters=("sae-1",))
    kme.demo.cli("sae", "revoke", "revoked")
    return home


@pytest.fixture(scope="module")
def loner(enrol: Callable[..., Path]) -> Path:
    """The certificate of an SAE without relations."""
    return enrol("loner")


@EACH
def test_point_11_an_unknown_sae(kme: Client, stranger: Path, request_to: Callable[[str], tuple[Any, ...]]) -> None:
    kme.refused(401, "SAE-ID-1", NOT_AUTHORISED, stranger, *request_to("sae-2"))
    kme.refused(401, "SAE-ID-1", NOT_AUTHORISED, stranger, *request_to("stranger"))


@EACH
def test_point_11_a_revoked_sae(kme: Client, revoked: Path, request_to: Callable[[str], tuple[Any, ...]]) -> None:
    kme.refused(401, "SAE-ID-2", NOT_AUTHORISED, revoked, *request_to("sae-2"))


@pytest.mark.parametrize("request_of", MALFORMED, ids=str)
def test_point_11_a_stranger_does_not_learn_what_is_wrong_with_its_request(
    kme: Client, stranger: Path, revoked: Path, request_of: tuple[Any, ...]
) -> None:
    kme.refused(401, "SAE-ID-1", NOT_AUTHORISED, stranger, *request_of)
    kme.refused(401, "SAE-ID-2", NOT_AUTHORISED, revoked, *request_of)


@EACH
def test_point_11_saes_without_a_relation(
    kme: Client, loner: Path, revoked: Path, request_to: Callable[[str], tuple[Any, ...]]
) -> None:
    asked = request_to("")
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, loner, *request_to("sae-2"))
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-2", *request_to("loner"))
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-2", *request_to("nobody"))
    if not asked[1].startswith("/dec_keys"):
        kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-1", *request_to("revoked"))


def test_point_11_additional_slaves_without_a_relation(kme: Client, loner: Path, revoked: Path) -> None:
    for additional in ("loner", "revoked"):
        body = {"additional_slave_SAE_IDs": ["sae-3", additional]}
        kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-1", "POST", "sae-2/enc_keys", body)


def test_point_11_a_relation_that_was_ended_delivers_nothing_more(kme: Client, enrol: Callable[..., Path]) -> None:
    slave = enrol("parting", masters=("sae-1",))
    first, second = kme.send("sae-1", "POST", "parting/enc_keys", {"number": 2}).key_ids
    assert kme.get(slave, f"sae-1/dec_keys?key_ID={first}").key_ids == [first]
    kme.demo.cli("pair", "deny", "sae-1", "parting")
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, slave, "GET", f"sae-1/dec_keys?key_ID={second}")
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-1", "GET", "parting/enc_keys")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT"])
def test_point_11_every_http_method_needs_a_certificate(kme: Client, method: str) -> None:
    kme.refused(401, "SAE-CERT-1", REQUIRED, None, method, "sae-2/enc_keys")


def test_point_11_a_certificate_of_another_authority_does_not_get_in(kme: Client, tmp_path: Path) -> None:
    Authority(tmp_path)
    before = kme.state()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        kme.get(issue(kme.demo, [uri("sae-1")], authority=tmp_path), "sae-2/enc_keys")
    assert kme.state() == before


def test_point_26_status_is_for_the_master_of_a_relation(kme: Client, enrol: Callable[..., Path]) -> None:
    slave = enrol("only-slave", masters=("sae-1",))
    assert kme.get("sae-1", "only-slave/status").json["master_SAE_ID"] == "sae-1"
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, slave, "GET", "sae-1/status")
    kme.refused(401, "SAE-PAIR-1", NOT_AUTHORISED, "sae-2", "GET", "only-slave/status")


def good(kme: Client, who: Identity) -> None:
    """``who`` is taken for sae-1."""
    assert kme.get(who, "sae-2/status").json["master_SAE_ID"] == "sae-1"


def bad(kme: Client, who: Identity, rule: str = "SAE-CERT-2") -> None:
    """``who`` is nobody."""
    kme.refused(401, rule, NOT_AUTHORISED, who, "GET", "sae-2/enc_keys")


def test_point_27_the_id_is_a_san_uri(kme: Client) -> None:
    demo = kme.demo
    good(kme, issue(demo, [uri("sae-1")]))
    good(kme, issue(demo, [uri("sae-1"), uri("sae-2", "urn:other:"), x509.DNSName("sae-2")], common_names=["sae-3"]))
    bad(kme, issue(demo, [uri("sae-1"), uri("sae-2")]))
    bad(kme, issue(demo, [uri("sae-1"), uri("sae-1")]))
    bad(kme, issue(demo, [uri("sae-1"), uri("")]))
    bad(kme, issue(demo, [uri("")]), "SAE-ID-1")
    bad(kme, issue(demo, [uri("SAE-1")]), "SAE-ID-1")
    bad(kme, issue(demo, [uri("sae-1", "urn:QKD:sae:")]))
    bad(kme, issue(demo, [x509.DNSName("sae-1")], common_names=["sae-1"]))
    bad(kme, issue(demo, common_names=["sae-1"]))
    bad(kme, issue(demo, serial_number="sae-1"))


def test_point_27_the_prefix_of_the_uri_is_configured(kme: Client) -> None:
    with serving(kme.demo, '[sae]\nuri_prefix = "urn:example:app:"') as other:
        good(other, issue(kme.demo, [uri("sae-1", "urn:example:app:"), uri("sae-2")]))
        bad(other, "sae-1")


def test_point_27_the_id_is_a_san_dns_name(kme: Client) -> None:
    demo = kme.demo
    with serving(demo, '[sae]\nidentity = "dns"') as other:
        good(other, issue(demo, [x509.DNSName("sae-1"), uri("sae-2")], common_names=["sae-3"]))
        bad(other, issue(demo, [x509.DNSName("sae-1"), x509.DNSName("sae-2")]))
        bad(other, "sae-1")


def test_point_27_the_id_is_the_cn(kme: Client) -> None:
    demo = kme.demo
    with serving(demo, '[sae]\nidentity = "cn"') as other:
        good(other, "sae-1")
        good(other, issue(demo, [uri("sae-2"), x509.DNSName("sae-3")], common_names=["sae-1"]))
        bad(other, issue(demo, common_names=["sae-1", "sae-2"]))
        bad(other, issue(demo, common_names=["sae-1", "sae-1"]))
        bad(other, issue(demo, [uri("sae-1"), x509.DNSName("sae-1")]))
        bad(other, issue(demo, serial_number="sae-1"))


@pytest.mark.parametrize(
    "names",
    [
        b"\x30\x06\x86\x04urn\xff",
        b"\x30\x15\x86\x0durn:qkd:sae:1\x82\x04\xff\xfe\xfd\xfc",
        b"\x30\x04\xa3\x02\x30\x00",
    ],
    ids=["a URI that is not ASCII", "a DNS name that is not ASCII", "an X.400 address"],
)
def test_point_27_a_certificate_that_cannot_be_read_is_nobodys(kme: Client, names: bytes) -> None:
    """OpenSSL lets it pass: what it says of names is not looked at there."""
    extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names)
    bad(kme, issue(kme.demo, extension=extension))


def test_point_27_revocation_works_on_open_connections_of_every_worker(kme: Client, enrol: Callable[..., Path]) -> None:
    home = enrol("leaving", slaves=("sae-2",))
    with ExitStack() as stack:
        connections = [stack.enter_context(kme.connection(home)) for _ in range(8)]
        for connection in connections:
            assert ask(connection, "GET", f"{KEYS}sae-2/enc_keys").status == 200
        kme.demo.cli("sae", "revoke", "leaving")
        before = kme.state()
        for connection in connections:
            answer = until(lambda of=connection: refusal(of), 5, "revocation has effect")  # type: ignore[misc]
            assert answer == {"message": NOT_AUTHORISED}
        assert kme.state() == before


def refusal(connection: Any) -> Any:
    """The body of a 401 on this connection; None if the request was answered."""
    answer = ask(connection, "GET", f"{KEYS}sae-2/status")
    return answer.json if answer.status == 401 else None


@pytest.mark.parametrize("sae_id", ["F" * 291, "firewall/vsys 7/" * 18 + "abc", "a" * 65], ids=len)
def test_point_28_long_sae_ids_work_everywhere(kme: Client, enrol: Callable[..., Path], sae_id: str) -> None:
    home, path = enrol(sae_id, slaves=("sae-1", "sae-2"), masters=("sae-1",)), quote(sae_id, safe="")
    assert kme.get("sae-1", f"{path}/status").json["slave_SAE_ID"] == sae_id
    as_slave = kme.send("sae-1", "POST", f"{path}/enc_keys", {"number": 2}).keys
    assert kme.send(home, "POST", "sae-1/dec_keys", key_ids(*as_slave)).keys == as_slave
    assert kme.get(home, "sae-1/status").json["master_SAE_ID"] == sae_id
    as_master = kme.get(home, "sae-1/enc_keys").keys
    assert kme.get("sae-1", f"{path}/dec_keys?key_ID={next(iter(as_master))}").keys == as_master
    as_additional = kme.send("sae-1", "POST", "sae-2/enc_keys", {"additional_slave_SAE_IDs": [sae_id]}).keys
    assert kme.send(home, "POST", "sae-1/dec_keys", key_ids(*as_additional)).keys == as_additional
