"""Does every kind of ceremony do to the token what its plan says, and leave a transcript that proves it?"""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkme.ceremony.drafts import kinds
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.initialising import is_pin, token_state
from hsmkme.hsm.token import SIGNATURE_BYTES
from hsmkme.model import BlockName, KeyMaterial, RawBlock
from tests.ceremonies.halls import Hall, told
from tests.processes import apart, hsmkme
from tests.tokens import PIN, SO_PIN, link_answers

ALL = ["anchor", "audit", "digest", "master/1"]


def proved(plan: Path) -> dict[str, object]:
    """The report of `ceremony verify`."""
    done = hsmkme("ceremony", "verify", plan, "--json")
    assert done.status == 0, done.out
    report: dict[str, object] = json.loads(done.out)
    return report


def use_as_service(address: TokenAddress) -> None:
    """Fails unless the service can work with the token."""
    token = Token(address, lambda: PIN)
    block = RawBlock(BlockName("local", "b"), 256, KeyMaterial(os.urandom(32)))
    assert token.seal(block, 1).key_count == 1
    assert len(token.sign(bytes(32))) == SIGNATURE_BYTES
    token.anchored()
    (note,) = token.notes()
    assert note.made["master/1"] == token.check_value(1)
    token.close()


def test_the_first_ceremony_makes_a_token_that_the_service_works_with(empty: Hall) -> None:
    plan = empty.plan("first")
    done = empty.run(plan)
    assert done.status == 0, done.err
    assert empty.labels() == ALL
    apart(use_as_service, empty.address)
    report = proved(plan)
    assert (report["token"], report["signed_by"]) == ("test-hall", ["token"])
    assert str(report["digest"]) in done.out
    (end,) = told(plan, "end")
    assert [label for label in end["objects"] if not label.startswith("ceremony/")] == ALL
    assert end["token"]["serial"]


def test_the_same_in_three_sittings(empty: Hall) -> None:
    for kind, signers in (("initialise", []), ("audit-key", ["token"]), ("first-master", ["token"])):
        plan = empty.plan(kind)
        done = empty.run(plan)
        assert done.status == 0, done.err
        assert proved(plan)["signed_by"] == signers
    assert empty.labels() == ALL


def test_what_was_made_is_reported_as_read_back(empty: Hall) -> None:
    plan = empty.plan("first")
    empty.run(plan)
    made = {facts["evidence"]["label"]: facts["evidence"] for facts in told(plan, "done")}
    for label, mechanism in (("audit", "ECDSA"), ("master/1", "AES_KEY_WRAP"), ("digest", "SHA256_HMAC")):
        evidence = made[label]
        assert [evidence[name] for name in ("LOCAL", "NEVER_EXTRACTABLE", "ALWAYS_SENSITIVE")] == [True] * 3
        assert [evidence[name] for name in ("EXTRACTABLE", "MODIFIABLE", "COPYABLE")] == [False] * 3
        assert evidence["ALLOWED_MECHANISMS"] == [mechanism]
    assert len(made["master/1"]["check_value"]) == 10


def test_a_link_key_is_brought_and_compared_with_the_other_end(hall: Hall) -> None:
    plan = hall.plan("link-key", "paris")
    done = hall.run(plan, link_answers("paris", bytes(range(32))))
    assert done.status == 0, done.err
    assert hall.labels() == sorted([*ALL, "link/paris"])
    (compared,) = told(plan, "compared")
    assert (compared["with"], compared["of"]) == ("far-end", "link/paris")
    assert proved(plan)["signed_by"] == ["token"]


def transport_answers(device: str, key: bytes) -> dict[str, str]:
    """What people answer when they bring the key of a device, in two components."""
    other = bytes([7] * 32)
    return {
        f"custodian-1.component-of-transport/{device}": bytes(a ^ b for a, b in zip(key, other, strict=True)).hex(),
        f"custodian-2.component-of-transport/{device}": other.hex(),
        f"custodian-1.check-value-of-transport/{device}": aes_key_wrap(key, bytes(32))[:5].hex(),
    }


def test_a_transport_key_is_the_devices(hall: Hall) -> None:
    key = bytes(range(32))
    done = hall.run(hall.plan("transport-key", "dev"), transport_answers("dev", key))
    assert done.status == 0, done.err
    assert "transport/dev" in hall.labels()
    apart(unwrap_by_transport_key, hall.address, aes_key_wrap(key, bytes(32)))


def unwrap_by_transport_key(address: TokenAddress, wrapped: bytes) -> None:
    """Fails unless the token opens what the device wraps, into a key that stays in it."""
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

    from hsmkme.hsm.objects import find_object
    from hsmkme.hsm.session import Sessions
    from hsmkme.hsm.templates import OPENING_KEY

    sessions = Sessions(address, lambda: PIN)
    with sessions.lane() as lane:
        key = find_object(lane.session, "transport/dev", ObjectClass.SECRET_KEY)
        options = {"capabilities": MechanismFlag.DECRYPT, "template": OPENING_KEY}
        opened = key.unwrap_key(
            ObjectClass.SECRET_KEY, KeyType.AES, wrapped, mechanism=Mechanism.AES_KEY_WRAP, **options
        )
        assert opened[Attribute.SENSITIVE]
    sessions.close()


@pytest.mark.parametrize("whose", ["operator", "security-officer"])
def test_a_pin_is_changed_and_the_old_one_is_worth_nothing(hall: Hall, whose: str) -> None:
    person, old = ("op-1", PIN) if whose == "operator" else ("so-1", SO_PIN)
    changes = (('by = ["op-1"]', f'by = ["{person}"]'), ('whose = "operator"', f'whose = "{whose}"'))
    plan = hall.plan("change-pin", "", *changes)
    done = hall.run(plan, {f"{person}.the-new-PIN": "another-pin", f"{person}.the-old-PIN": old})
    assert done.status == 0, done.err
    apart(require_pins, hall.address, whose, "another-pin", old)
    text = (hall.home / str(told(plan, "begin")[0]["ceremony"])).with_suffix(".jsonl").read_text()
    assert "another-pin" not in text
    assert old not in text


def require_pins(address: TokenAddress, whose: str, right: str, wrong: str) -> None:
    assert is_pin(address, whose, right)  # type: ignore[arg-type]
    assert not is_pin(address, whose, wrong)  # type: ignore[arg-type]


def test_a_decommissioned_token_holds_nothing_and_lets_nobody_in(hall: Hall) -> None:
    plan = hall.plan("decommission")
    done = hall.run(plan)
    assert done.status == 0, done.err
    assert hall.objects() == {}
    apart(require_state, hall.address, "without user PIN")
    (facts,) = told(plan, "done")
    destroyed = {one["label"]: one for one in facts["evidence"]["destroyed"]}
    assert [label for label in destroyed if not label.startswith("ceremony/")] == ALL
    assert len(destroyed["master/1"]["check_value"]) == 10
    assert proved(plan)["signed_by"] == []


def require_state(address: TokenAddress, state: str) -> None:
    assert token_state(address) == state


def test_every_kind_that_ships_is_held_in_these_tests() -> None:
    here = {"first", "initialise", "audit-key", "first-master", "link-key", "transport-key", "change-pin"}
    in_others = {"first-of-several", "another-token", "first-with-backup"}
    in_others |= {"backup", "restore", "rotate", "destroy-epoch"}
    assert {*kinds()} == here | {"decommission"} | in_others


def test_the_value_that_custodians_compare_is_of_the_link_and_the_key() -> None:
    values = {
        link_answers(link, key)[f"custodian-1.check-value-of-link/{link}"]
        for link in ("paris", "rome")
        for key in (bytes(32), bytes(range(32)))
    }
    assert len(values) == 4
    expected = hmac.digest(bytes(32), b"hsmkme/link-check/1paris", "sha256")[:5].hex()
    assert expected in values
