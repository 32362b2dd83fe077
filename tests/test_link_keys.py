"""Is the key of a link the same at both ends, what its ceremony promises, and of no use to anybody else?"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute as A
from pkcs11 import KeyType, Mechanism, ObjectClass

from hsmkme.ceremony.drafts import Subject
from hsmkme.ceremony.transcript import read
from hsmkme.errors import OperatorFault
from hsmkme.hsm import TokenAddress, templates
from hsmkme.hsm.components import component, joined
from hsmkme.hsm.objects import find_object, link_label
from hsmkme.hsm.officer import Officer
from hsmkme.model import KeyMaterial
from tests.test_token_objects import ACTION_PROHIBITED, LINK, attackers_key, dumped, writable
from tests.tokens import OTHER_COMPONENT, PIN, held, link_answers

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def ends(make_token: Callable[[], TokenAddress]) -> tuple[TokenAddress, TokenAddress]:
    """The tokens at two ends of links."""
    made = make_token(), make_token()
    pkcs11.lib(str(made[0].module)).reinitialize()  # the module saw its slots before the tokens were made
    return made


@pytest.fixture
def link_id() -> str:
    """A link that no test before had."""
    return f"kme-1.kme-{next(_NUMBERS) + 1}"


def components(*values: bytes) -> list[KeyMaterial]:
    return [KeyMaterial(value) for value in values]


def brought(end: TokenAddress, link_id: str, parts: list[KeyMaterial]) -> str:
    """What a ceremony does to the token at one end; gives the check value."""
    value = joined(parts)
    officer = Officer(end, lambda: PIN)
    try:
        return str(officer.make_link_key(link_id, value)["check_value"])
    finally:
        officer.close()


def found(session: Any, link_id: str) -> Any:
    return find_object(session, link_label(link_id), ObjectClass.SECRET_KEY)


# What the ceremony makes ----------------------------------------------------------------------------------


def test_both_ends_get_the_same_key_whatever_the_order_of_the_components(
    ends: tuple[TokenAddress, TokenAddress], link_id: str
) -> None:
    one, other, third = os.urandom(32), os.urandom(32), os.urandom(32)
    lower = brought(ends[0], link_id, components(one, other, third))
    higher = brought(ends[1], link_id, components(third, one, other))
    assert lower == higher
    key = bytes(a ^ b ^ c for a, b, c in zip(one, other, third, strict=True))
    for end in ends:
        with writable(end) as session:
            signed = bytes(found(session, link_id).sign(b"a message", mechanism=Mechanism.SHA256_HMAC))
            assert hmac.compare_digest(signed, hmac.digest(key, b"a message", "sha256"))


def test_the_check_value_is_the_written_one_and_another_for_another_key_or_link(
    ends: tuple[TokenAddress, TokenAddress], link_id: str
) -> None:
    key = os.urandom(32)
    value = brought(ends[0], link_id, components(key))
    assert value == hmac.digest(key, b"hsmkme/link-check/1" + link_id.encode(), "sha256")[:5].hex()
    assert value != brought(ends[0], f"{link_id}.b", components(key))
    assert value != brought(ends[1], link_id, components(os.urandom(32)))


def test_the_object_is_the_one_that_is_written_down(
    ends: tuple[TokenAddress, TokenAddress], link_id: str, softhsm: Path
) -> None:
    before = set(softhsm.parent.glob("tokens/*/*-*.object"))
    brought(ends[0], link_id, components(os.urandom(32)))
    (made,) = map(dumped, set(softhsm.parent.glob("tokens/*/*-*.object")) - before)
    assert {name: made.get(name) for name in LINK} == LINK


def test_the_transcript_says_what_was_made_and_nothing_of_the_key(
    ends: tuple[TokenAddress, TokenAddress], link_id: str, tmp_path: Path
) -> None:
    key = os.urandom(32)
    answers = link_answers(link_id, key)
    transcript = held("link-key", ends[0], tmp_path / "plan.toml", answers, Subject(link_id, "kme-2"))
    (done,) = read(transcript).told("done")
    made = done["facts"]["evidence"]
    assert made["label"] == f"link/{link_id}"
    assert made["check_value"] == answers[f"custodian-1.check-value-of-link/{link_id}"]
    assert (made["other_end"], made["components"]) == ("kme-2", 2)
    assert made["EXTRACTABLE"] is made["MODIFIABLE"] is made["COPYABLE"] is False
    assert made["ALLOWED_MECHANISMS"] == ["SHA256_HMAC"]
    text = transcript.read_text().lower()
    component = bytes.fromhex(answers[f"custodian-1.component-of-link/{link_id}"])
    for secret in (key, component, OTHER_COMPONENT):
        assert secret.hex()[:8] not in text
        assert hashlib.sha256(secret).hexdigest() not in text


# What it refuses ------------------------------------------------------------------------------------------


def test_a_link_has_one_key(ends: tuple[TokenAddress, TokenAddress], link_id: str) -> None:
    value = brought(ends[0], link_id, components(os.urandom(32)))
    with pytest.raises(OperatorFault, match=f"already has an object labelled 'link/{link_id}'"):
        brought(ends[0], link_id, components(os.urandom(32)))
    with writable(ends[0]) as session:
        text = b"hsmkme/link-check/1" + link_id.encode()
        assert bytes(found(session, link_id).sign(text, mechanism=Mechanism.SHA256_HMAC))[:5].hex() == value


def test_an_object_of_that_label_made_by_hand_is_not_added_to(
    ends: tuple[TokenAddress, TokenAddress], link_id: str
) -> None:
    with writable(ends[0]) as session:
        session.generate_key(KeyType.GENERIC_SECRET, 256, label=link_label(link_id), store=True)
    with pytest.raises(OperatorFault, match="already has an object labelled"):
        brought(ends[0], link_id, components(os.urandom(32)))


_SAME = bytes(range(32))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], "one or more components of 32 bytes"),
        ([bytes(31)], "one or more components of 32 bytes"),
        ([_SAME, bytes(33)], "one or more components of 32 bytes"),
        ([_SAME, _SAME], "two components are the same"),
        ([_SAME, bytes([7] * 32), _SAME], "two components are the same"),
        ([bytes(32)], "cancel each other out"),
        ([_SAME, bytes([7] * 32), bytes(byte ^ 7 for byte in _SAME)], "cancel each other out"),
    ],
    ids=["none", "short", "long", "twice", "twice of three", "zero", "three that cancel"],
)
def test_components_that_make_no_key_are_refused_before_anything_is_written(
    ends: tuple[TokenAddress, TokenAddress], link_id: str, values: list[bytes], why: str
) -> None:
    with pytest.raises(OperatorFault, match=why):
        joined(components(*values))
    with pytest.raises(OperatorFault, match=why):
        brought(ends[0], link_id, components(*values))
    with writable(ends[0]) as session:
        assert list(session.get_objects({A.LABEL: link_label(link_id)})) == []


def test_a_key_of_another_length_is_refused(ends: tuple[TokenAddress, TokenAddress], link_id: str) -> None:
    officer = Officer(ends[0], lambda: PIN)
    with pytest.raises(OperatorFault, match="has 32 bytes"):
        officer.make_link_key(link_id, KeyMaterial(bytes(16)))
    officer.close()


def test_a_key_that_the_token_made_otherwise_is_destroyed(
    ends: tuple[TokenAddress, TokenAddress], link_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is real; what is asked of it is one attribute more than it says of such an object."""
    monkeypatch.setitem(templates.BROUGHT_HERE, A.LOCAL, True)
    officer = Officer(ends[0], lambda: PIN)
    with pytest.raises(OperatorFault, match="LOCAL differ"):
        officer.make_link_key(link_id, KeyMaterial(os.urandom(32)))
    officer.close()
    with writable(ends[0]) as session:
        assert list(session.get_objects({A.LABEL: link_label(link_id)})) == []


@pytest.mark.parametrize("text", ["ab" * 31, "ab" * 33, "xy" * 32, "", "ab" * 32 + "\n" + "cd" * 32])
def test_a_component_that_is_not_fit_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(OperatorFault, match=r"^a component has 64 hex digits$"):
        component(text)


@pytest.mark.parametrize("text", ["ab" * 32, "AB" * 32 + "\n", " ".join(["abab"] * 16)])
def test_a_component_is_64_hex_digits(text: str) -> None:
    assert component(text).reveal() == bytes([0xAB] * 32)


# What nobody can do with it ---------------------------------------------------------------------------------


@pytest.fixture
def key(ends: tuple[TokenAddress, TokenAddress], link_id: str) -> Iterator[tuple[Any, Any]]:
    """A session that may write, and the key of a link in it."""
    brought(ends[0], link_id, components(os.urandom(32)))
    with writable(ends[0]) as session:
        yield session, found(session, link_id)


def test_it_signs_and_leaves_the_token_in_no_form(key: tuple[Any, Any]) -> None:
    session, link = key
    with pytest.raises(pkcs11.AttributeSensitive):
        link[A.VALUE]
    for wrapping in (attackers_key(session), find_object(session, "master/1", ObjectClass.SECRET_KEY)):
        with pytest.raises(pkcs11.KeyUnextractable):
            wrapping.wrap_key(link, mechanism=Mechanism.AES_KEY_WRAP)
    with pytest.raises(pkcs11.PKCS11Error, match=ACTION_PROHIBITED):
        link.copy({A.TOKEN: False})
    with pytest.raises(pkcs11.MechanismInvalid):
        link.sign(b"x", mechanism=Mechanism.SHA512_HMAC)
    assert not any(hasattr(link, verb) for verb in ("encrypt", "decrypt", "verify", "wrap_key", "derive_key"))


@pytest.mark.parametrize("attribute", [A.EXTRACTABLE, A.VERIFY, A.DERIVE, A.WRAP, A.MODIFIABLE, A.COPYABLE])
def test_nothing_about_it_can_be_changed(key: tuple[Any, Any], attribute: A) -> None:
    with pytest.raises(pkcs11.PKCS11Error, match=ACTION_PROHIBITED):
        key[1][attribute] = True
