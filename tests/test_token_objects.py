"""Are the token's objects what a ceremony makes, and can the service change or take none of them?"""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute as A
from pkcs11 import KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

import hsmkme
from hsmkme.errors import OperatorFault
from hsmkme.hsm import Token, TokenAddress, templates
from hsmkme.hsm.initialising import initialise_token
from hsmkme.hsm.objects import find_object
from hsmkme.hsm.officer import Officer
from hsmkme.model import RawBlock
from tests.blocks import key_of, open_bytes, part_of
from tests.tokens import PIN, SO_PIN, made_token

SHIPPED = Path(hsmkme.__file__).parent
ACTION_PROHIBITED = "Unmapped error code 0x1b"  # the binding has no name for CKR_ACTION_PROHIBITED

# What each object is, written down here once more and read below by SoftHSM's own tool, not by our code.
NO_CAPABILITY = dict.fromkeys(
    (f"CKA_{name}" for name in ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE")), "FALSE"
)
LOCKED_IN = {
    "CKA_TOKEN": "TRUE",
    "CKA_PRIVATE": "TRUE",
    "CKA_SENSITIVE": "TRUE",
    "CKA_EXTRACTABLE": "FALSE",
    "CKA_MODIFIABLE": "FALSE",
    "CKA_COPYABLE": "FALSE",
    "CKA_LOCAL": "TRUE",
    "CKA_ALWAYS_SENSITIVE": "TRUE",
    "CKA_NEVER_EXTRACTABLE": "TRUE",
}
MASTER = {
    "CKA_CLASS": "CKO_SECRET_KEY",
    "CKA_KEY_TYPE": "CKK_AES",
    "CKA_VALUE_LEN": "CK_ULONG 32(0x20)",
    **NO_CAPABILITY,
    "CKA_WRAP": "TRUE",
    "CKA_UNWRAP": "TRUE",
    **LOCKED_IN,
    "CKA_ALLOWED_MECHANISMS": ["CKM_AES_KEY_WRAP"],
    "CKA_UNWRAP_TEMPLATE": {
        "CKA_CLASS": "CKO_SECRET_KEY",
        "CKA_KEY_TYPE": "CKK_AES",
        "CKA_TOKEN": "FALSE",
        "CKA_PRIVATE": "TRUE",
        "CKA_SENSITIVE": "TRUE",
        "CKA_WRAP": "FALSE",
        "CKA_UNWRAP": "FALSE",
    },
}
DIGEST = {
    "CKA_CLASS": "CKO_SECRET_KEY",
    "CKA_KEY_TYPE": "CKK_GENERIC_SECRET",
    "CKA_VALUE_LEN": "CK_ULONG 32(0x20)",
    **NO_CAPABILITY,
    "CKA_SIGN": "TRUE",
    **LOCKED_IN,
    "CKA_ALLOWED_MECHANISMS": ["CKM_SHA256_HMAC"],
}
LINK = {
    **DIGEST,
    # Its value came from outside: the token does not vouch for its past.
    **dict.fromkeys(("CKA_LOCAL", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE"), "FALSE"),
}
AUDIT_PRIVATE = {
    "CKA_CLASS": "CKO_PRIVATE_KEY",
    "CKA_KEY_TYPE": "CKK_EC",
    "CKA_SIGN": "TRUE",
    **{f"CKA_{name}": "FALSE" for name in ("DECRYPT", "UNWRAP", "SIGN_RECOVER", "DERIVE")},
    **LOCKED_IN,
    "CKA_ALLOWED_MECHANISMS": ["CKM_ECDSA"],
}
AUDIT_PUBLIC = {
    "CKA_CLASS": "CKO_PUBLIC_KEY",
    "CKA_KEY_TYPE": "CKK_EC",
    "CKA_VERIFY": "TRUE",
    **{f"CKA_{name}": "FALSE" for name in ("ENCRYPT", "WRAP", "VERIFY_RECOVER", "DERIVE", "TRUSTED")},
    "CKA_TOKEN": "TRUE",
    "CKA_PRIVATE": "FALSE",
    "CKA_MODIFIABLE": "FALSE",
    "CKA_COPYABLE": "FALSE",
}


def dumped(path: Path) -> dict[str, Any]:
    """The attributes of a SoftHSM object file as `softhsm2-dump-file` shows them; bytes are left out."""
    shown = subprocess.run(["softhsm2-dump-file", path], check=False, capture_output=True, text=True)  # exits with 1
    return _attributes([line[24:].rstrip() for line in shown.stdout.splitlines()[2:]])


def _attributes(lines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    starts = [number for number, line in enumerate(lines) if line.startswith("CKA_")]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        name, kind, *value = lines[start:end]
        if kind == "mechanism set attribute":
            found[name] = value[1:]  # after their number
        elif kind == "attribute map attribute":
            # The tool prints what is nested one column further in, and some of it twice.
            found[name] = _attributes([line.removeprefix(" ") for line, _ in itertools.groupby(value[1:])])
        elif kind != "byte string attribute":
            found[name] = value[0]
    return found


@pytest.fixture(scope="module")
def own_address(make_token: Callable[[], TokenAddress]) -> TokenAddress:
    """A token of this file's own, on which tests make objects that no ceremony makes."""
    made = make_token()
    pkcs11.lib(str(made.module)).reinitialize()  # the module saw its slots before the token was made
    return made


@contextmanager
def writable(address: TokenAddress) -> Iterator[Any]:
    """A read-write login on that token, as somebody with the PIN and any PKCS#11 program has it."""
    token = pkcs11.lib(str(address.module)).get_token(token_label=address.label)
    session = token.open(rw=True, user_pin=PIN, attribute_mapper=templates.mapper())
    try:
        yield session
    finally:
        session.close()


@pytest.fixture
def own_token(own_address: TokenAddress) -> Iterator[Token]:
    """That token as the service opens it."""
    opened = Token(own_address, lambda: PIN)
    yield opened
    opened.close()


# What a ceremony makes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ceremony_objects(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every object of a token just made, in a token directory of its own, read by SoftHSM's own tool."""
    home = tmp_path_factory.mktemp("ceremony")
    (home / "tokens").mkdir()
    conf = home / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\n")
    made_token("read-back", conf)
    return [dumped(path) for path in home.glob("tokens/*/*-*.object")]


@pytest.mark.parametrize(
    "expected", [MASTER, DIGEST, AUDIT_PRIVATE, AUDIT_PUBLIC], ids=["master", "digest", "audit", "audit-public"]
)
def test_the_ceremony_makes_the_object_that_is_written_down(
    ceremony_objects: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    (made,) = (
        made
        for made in ceremony_objects
        if (made["CKA_CLASS"], made.get("CKA_KEY_TYPE")) == (expected["CKA_CLASS"], expected["CKA_KEY_TYPE"])
    )
    assert {name: made.get(name) for name in expected} == expected


def test_the_ceremony_makes_nothing_else_but_the_anchor_and_its_note(ceremony_objects: list[dict[str, Any]]) -> None:
    data = [made for made in ceremony_objects if made["CKA_CLASS"] == "CKO_DATA"]
    assert len(data) == 2
    assert len(ceremony_objects) == 4 + len(data)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.MASTER, MASTER),
        (templates.DIGEST, DIGEST),
        (templates.LINK, LINK),
        (templates.AUDIT_PRIVATE, AUDIT_PRIVATE),
        (templates.AUDIT_PUBLIC, AUDIT_PUBLIC),
    ],
    ids=["master", "digest", "link", "audit", "audit-public"],
)
def test_what_is_written_down_is_what_the_templates_say(template: templates.Template, expected: dict[str, Any]) -> None:
    flags = {f"CKA_{kind.name}": str(value).upper() for kind, value in template.items() if isinstance(value, bool)}
    assert flags.items() <= expected.items()
    only_the_token_says = {"CKA_LOCAL", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE", "CKA_TRUSTED"}
    written = {name for name, value in expected.items() if value in ("TRUE", "FALSE")}
    assert written - flags.keys() <= only_the_token_says


def test_the_service_finds_what_the_ceremony_made_fit(own_token: Token, raw_block: Callable[..., RawBlock]) -> None:
    block = raw_block(2)
    assert open_bytes(own_token, key_of(part_of(own_token.seal(block, 1)))) == block.material.reveal()
    own_token.sign(bytes(32))
    assert own_token.audit_public_key().startswith(b"-----BEGIN PUBLIC KEY-----")


# What nobody can do with it ---------------------------------------------------------------------------


@pytest.fixture(params=["service", "read-write"])
def session(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The service's own session, and then one that may write: what follows holds in both."""
    if request.param == "service":
        token: Token = request.getfixturevalue("own_token")
        with token._sessions.lane() as lane:
            yield lane.session
    else:
        with writable(request.getfixturevalue("own_address")) as session:
            yield session


@pytest.fixture
def master(session: Any) -> Any:
    return find_object(session, "master/1", ObjectClass.SECRET_KEY)


@pytest.fixture(params=["master/1", "digest", "audit"])
def secret(request: pytest.FixtureRequest, session: Any) -> Any:
    """Each of the objects that must stay secret."""
    kind = ObjectClass.PRIVATE_KEY if request.param == "audit" else ObjectClass.SECRET_KEY
    return find_object(session, request.param, kind)


def attackers_key(session: Any) -> Any:
    """A session key whose value its maker may read."""
    known = {A.SENSITIVE: False, A.EXTRACTABLE: True}
    return session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP, template=known)


def test_its_value_cannot_be_read(secret: Any) -> None:
    with pytest.raises(pkcs11.AttributeSensitive):
        secret[A.VALUE]


def test_it_cannot_leave_under_another_key(session: Any, secret: Any, master: Any) -> None:
    for wrapping in (attackers_key(session), master):
        with pytest.raises(pkcs11.KeyUnextractable):
            wrapping.wrap_key(secret, mechanism=Mechanism.AES_KEY_WRAP)


@pytest.mark.parametrize("changed", [{}, {A.EXTRACTABLE: True}, {A.SENSITIVE: False}, {A.MODIFIABLE: True}])
def test_it_cannot_be_copied(secret: Any, changed: dict[A, object]) -> None:
    with pytest.raises(pkcs11.PKCS11Error, match=ACTION_PROHIBITED):
        secret.copy({A.TOKEN: False, **changed})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *((capability, True) for capability in (A.DECRYPT, A.ENCRYPT, A.SIGN, A.VERIFY, A.DERIVE, A.WRAP, A.UNWRAP)),
        (A.EXTRACTABLE, True),
        (A.SENSITIVE, False),
        (A.MODIFIABLE, True),
        (A.COPYABLE, True),
        (A.TRUSTED, True),
        (A.LABEL, "elsewhere"),
        (A.ALLOWED_MECHANISMS, (Mechanism.AES_ECB,)),
        (A.UNWRAP_TEMPLATE, {A.SENSITIVE: False}),
    ],
    ids=lambda value: value.name if isinstance(value, A) else "",
)
def test_nothing_about_it_can_be_changed(secret: Any, attribute: A, value: object) -> None:
    with pytest.raises(pkcs11.PKCS11Error) as refusal:
        secret[attribute] = value
    assert isinstance(refusal.value, pkcs11.SessionReadOnly) or str(refusal.value) == ACTION_PROHIBITED


def test_the_master_key_has_no_way_to_decrypt_sign_or_derive(master: Any) -> None:
    assert [verb for verb in ("encrypt", "decrypt", "sign", "verify", "derive_key") if hasattr(master, verb)] == []


@pytest.mark.parametrize(
    ("mechanism", "parameter"),
    [
        (Mechanism.AES_KEY_WRAP_PAD, None),
        (Mechanism.AES_ECB, None),
        (Mechanism.AES_CBC, bytes(16)),
        (Mechanism.AES_CBC_PAD, bytes(16)),
        (Mechanism.AES_GCM, pkcs11.GCMParams(bytes(12))),
    ],
    ids=lambda value: value.name if isinstance(value, Mechanism) else "",
)
def test_the_master_key_wraps_and_unwraps_by_no_other_mechanism(
    session: Any, master: Any, mechanism: Mechanism, parameter: Any
) -> None:
    with pytest.raises(pkcs11.MechanismInvalid):
        master.wrap_key(attackers_key(session), mechanism=mechanism, mechanism_param=parameter)
    with pytest.raises(pkcs11.MechanismInvalid):
        unwrap(master, bytes(40), mechanism=mechanism, mechanism_param=parameter)


@pytest.mark.parametrize(
    "wish",
    [{A.SENSITIVE: False}, {A.TOKEN: True}, {A.WRAP: True}, {A.UNWRAP: True}, {A.PRIVATE: False}],
    ids=lambda wish: next(iter(wish)).name,
)
def test_the_master_key_unwraps_nothing_into_a_form_that_its_unwrap_template_excludes(
    session: Any, master: Any, wish: dict[A, bool]
) -> None:
    blob = master.wrap_key(attackers_key(session), mechanism=Mechanism.AES_KEY_WRAP)
    with pytest.raises((pkcs11.TemplateInconsistent, pkcs11.SessionReadOnly)):
        unwrap(master, blob, template={**UNWRAPPABLE, **wish})
    assert unwrap(master, blob)[A.SENSITIVE]


def test_the_master_key_unwraps_nothing_but_aes_keys(session: Any, master: Any) -> None:
    blob = master.wrap_key(attackers_key(session), mechanism=Mechanism.AES_KEY_WRAP)
    with pytest.raises(pkcs11.TemplateInconsistent):
        unwrap(master, blob, key_type=KeyType.GENERIC_SECRET)


UNWRAPPABLE = {A.TOKEN: False, A.PRIVATE: True, A.SENSITIVE: True}


def unwrap(master: Any, blob: bytes, key_type: KeyType = KeyType.AES, **options: Any) -> Any:
    options = {"mechanism": Mechanism.AES_KEY_WRAP, "template": UNWRAPPABLE, **options}
    return master.unwrap_key(ObjectClass.SECRET_KEY, key_type, blob, capabilities=MechanismFlag.DECRYPT, **options)


def test_the_digest_and_audit_keys_sign_by_no_other_mechanism(session: Any) -> None:
    digest = find_object(session, "digest", ObjectClass.SECRET_KEY)
    audit = find_object(session, "audit", ObjectClass.PRIVATE_KEY)
    for key, mechanism in ((digest, Mechanism.SHA512_HMAC), (audit, Mechanism.ECDSA_SHA256)):
        with pytest.raises(pkcs11.MechanismInvalid):
            key.sign(bytes(32), mechanism=mechanism)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("master/1", ObjectClass.SECRET_KEY),
        ("digest", ObjectClass.SECRET_KEY),
        ("audit", ObjectClass.PRIVATE_KEY),
        ("audit", ObjectClass.PUBLIC_KEY),
    ],
)
def test_the_service_cannot_destroy_a_token_object(own_token: Token, label: str, kind: ObjectClass) -> None:
    with own_token._sessions.lane() as lane, pytest.raises(pkcs11.SessionReadOnly):
        find_object(lane.session, label, kind).destroy()


def test_the_service_cannot_make_a_token_object(own_token: Token) -> None:
    with own_token._sessions.lane() as lane, pytest.raises(pkcs11.SessionReadOnly):
        lane.session.generate_key(KeyType.AES, 256, label="master/2", store=True)


def test_the_block_keys_of_the_service_have_one_role_and_do_not_leave_the_token(
    own_token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    open_bytes(own_token, key_of(part_of(own_token.seal(raw_block(1), 1))))
    with own_token._sessions.lane() as lane:
        (block_key,) = lane.session.get_objects({A.TOKEN: False, A.CLASS: ObjectClass.SECRET_KEY})
        assert block_key.handle == next(iter(lane.opened.values())).key.handle
        assert not hasattr(block_key, "encrypt")
        with pytest.raises(pkcs11.AttributeSensitive):
            block_key[A.VALUE]
        for wrapping in (attackers_key(lane.session), find_object(lane.session, "master/1", ObjectClass.SECRET_KEY)):
            with pytest.raises(pkcs11.KeyUnextractable):
                wrapping.wrap_key(block_key, mechanism=Mechanism.AES_KEY_WRAP)


def test_a_block_key_that_the_token_made_otherwise_is_refused_and_destroyed(own_token: Token) -> None:
    with own_token._sessions.lane() as lane:
        other = attackers_key(lane.session)
        with pytest.raises(OperatorFault, match="COPYABLE, ENCRYPT, MODIFIABLE, SENSITIVE, WRAP differ"):
            lane.keys._check(other.handle, lane.keys._sealing)
        with pytest.raises(pkcs11.ObjectHandleInvalid):
            other.destroy()


# What the service does not accept ---------------------------------------------------------------------


@contextmanager
def after(address: TokenAddress, act: Callable[[Any], list[Any]]) -> Iterator[Token]:
    """The token as the service meets it after ``act`` in a read-write session; what that made is destroyed."""
    with writable(address) as session:
        labels = {made[A.LABEL] for made in act(session)}
    token = Token(address, lambda: PIN)
    try:
        yield token
    finally:
        token.close()
        with writable(address) as session:
            for found in [found for label in labels for found in session.get_objects({A.LABEL: label})]:
                found.destroy()


def make_master(session: Any, label: str, **changed: object) -> Any:
    """A master key as the ceremony makes it, but for ``changed``; None leaves an attribute to the token."""
    wished = {**templates.MASTER, **{A[name]: value for name, value in changed.items()}}
    template = {kind: value for kind, value in wished.items() if value is not None}
    both = MechanismFlag.WRAP | MechanismFlag.UNWRAP
    return session.generate_key(KeyType.AES, 256, label=label, store=True, capabilities=both, template=template)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *((capability, True) for capability in ("DECRYPT", "ENCRYPT", "SIGN", "VERIFY", "DERIVE")),
        ("WRAP", False),
        ("SENSITIVE", False),
        ("EXTRACTABLE", True),
        ("MODIFIABLE", True),
        ("COPYABLE", True),
        ("PRIVATE", False),
        ("ALLOWED_MECHANISMS", None),
        ("ALLOWED_MECHANISMS", (Mechanism.AES_KEY_WRAP, Mechanism.AES_ECB)),
        ("UNWRAP_TEMPLATE", None),
        ("UNWRAP_TEMPLATE", {A.SENSITIVE: True}),
        ("UNWRAP_TEMPLATE", {**templates.UNWRAPPED_FORM, A.SENSITIVE: False}),
    ],
)
def test_a_master_key_of_foreign_make_is_refused_and_the_attribute_named(
    own_address: TokenAddress, raw_block: Callable[..., RawBlock], attribute: str, value: object
) -> None:
    with after(own_address, lambda session: [make_master(session, "master/66", **{attribute: value})]) as token:
        for verb in (token.check_value, token.prove, lambda epoch: token.seal(raw_block(1), epoch)):
            with pytest.raises(OperatorFault, match=rf"'master/66'.* {attribute} differ"):
                verb(66)
        token.prove(1)


def test_a_master_key_made_by_hand_exactly_as_by_the_ceremony_is_accepted(own_address: TokenAddress) -> None:
    with after(own_address, lambda session: [make_master(session, "master/66")]) as token:
        token.prove(66)


def test_a_master_key_that_is_not_aes_is_refused(own_address: TokenAddress) -> None:
    def make(session: Any) -> list[Any]:
        return [session.generate_key(KeyType.GENERIC_SECRET, 256, label="master/66", store=True)]

    with after(own_address, make) as token, pytest.raises(OperatorFault, match="'master/66'"):
        token.check_value(66)


def test_two_objects_with_one_label_are_refused(own_address: TokenAddress, raw_block: Callable[..., RawBlock]) -> None:
    def make(session: Any) -> list[Any]:
        return [make_master(session, "master/66") for _ in range(2)]

    with after(own_address, make) as token, pytest.raises(OperatorFault, match="2 objects labelled 'master/66'"):
        token.seal(raw_block(1), 66)


def test_an_object_that_is_missing_is_named(own_token: Token) -> None:
    with pytest.raises(OperatorFault, match="no SECRET_KEY labelled 'master/404': run the ceremony"):
        own_token.check_value(404)


def test_a_session_object_does_not_pass_for_the_master_key(own_token: Token) -> None:
    with own_token._sessions.lane() as lane:
        made = {**templates.MASTER, A.TOKEN: False}
        lane.session.generate_key(KeyType.AES, 256, label="master/66", store=False, template=made)
    with pytest.raises(OperatorFault, match="no SECRET_KEY labelled 'master/66'"):
        own_token.check_value(66)


@pytest.fixture(scope="module")
def spare_address(make_token: Callable[[], TokenAddress]) -> TokenAddress:
    """A token whose digest and audit keys tests replace."""
    made = make_token()
    pkcs11.lib(str(made.module)).reinitialize()
    return made


def replace_keys(session: Any, digest: dict[A, Any], private: dict[A, Any], public: dict[A, Any]) -> None:
    """New digest and audit keys as the ceremony makes them but for these attributes."""
    for label in ("digest", "audit"):
        for old in list(session.get_objects({A.LABEL: label})):
            old.destroy()
    template = {**templates.DIGEST, **digest}
    session.generate_key(KeyType.GENERIC_SECRET, 256, label="digest", store=True, template=template)
    curve = {A.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    session.create_domain_parameters(KeyType.EC, curve, local=True).generate_keypair(
        label="audit",
        store=True,
        private_template={**templates.AUDIT_PRIVATE, **private},
        public_template={**templates.AUDIT_PUBLIC, **public},
    )


@pytest.mark.parametrize(
    ("digest", "private", "public"),
    [
        ({A.EXTRACTABLE: True}, {A.EXTRACTABLE: True}, {A.MODIFIABLE: True}),
        ({A.VERIFY: True}, {A.DERIVE: True}, {A.VERIFY: False}),
        ({A.MODIFIABLE: True}, {A.MODIFIABLE: True}, {A.COPYABLE: True}),
        (
            {A.ALLOWED_MECHANISMS: (Mechanism.SHA512_HMAC,)},
            {A.ALLOWED_MECHANISMS: (Mechanism.ECDSA, Mechanism.ECDSA_SHA1)},
            {A.PRIVATE: True},
        ),
    ],
)
def test_digest_and_audit_keys_of_foreign_make_are_refused_and_the_attribute_named(
    spare_address: TokenAddress,
    raw_block: Callable[..., RawBlock],
    digest: dict[A, Any],
    private: dict[A, Any],
    public: dict[A, Any],
) -> None:
    with writable(spare_address) as session:
        replace_keys(session, digest, private, public)
    token = Token(spare_address, lambda: PIN)
    for changed, use in (
        (digest, lambda: token.digest(raw_block(1))),
        (digest, lambda: token.seal(raw_block(1), 1)),
        (private, lambda: token.sign(bytes(32))),
        (public, token.audit_public_key),
    ):
        with pytest.raises(OperatorFault, match=f" {next(iter(changed)).name} differ"):
            use()
    token.close()


# Who may make and destroy -----------------------------------------------------------------------------


def test_a_ceremony_makes_no_key_twice(own_address: TokenAddress) -> None:
    officer = Officer(own_address, lambda: PIN)
    try:
        made = (officer.make_digest_key, officer.make_audit_key, officer.make_anchor)
        for make in (lambda: officer.make_master(1), *made):
            with pytest.raises(OperatorFault, match="already has an object labelled"):
                make()
    finally:
        officer.close()
    with writable(own_address) as session:
        assert len(list(session.get_objects({A.TOKEN: True}))) == 6


def test_a_second_master_key_is_made_beside_the_first(own_address: TokenAddress) -> None:
    officer = Officer(own_address, lambda: PIN)
    evidence = officer.make_master(7)
    officer.close()
    with after(own_address, lambda session: [find_object(session, "master/7", ObjectClass.SECRET_KEY)]) as token:
        assert token.check_value(7) == evidence["check_value"] != token.check_value(1)


def test_an_initialised_token_is_not_initialised_again(own_address: TokenAddress) -> None:
    with pytest.raises(OperatorFault, match="exists already; initialising would erase it"):
        initialise_token(own_address, SO_PIN, PIN)
    token = Token(own_address, lambda: PIN)
    token.prove(1)
    token.close()


def imported(path: Path) -> Iterator[str]:
    """Every module, and every name in a module, that a file of the package imports."""
    package = (SHIPPED.name, *path.relative_to(SHIPPED).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


MAKERS = {
    "hsmkme.rotation",
    *(f"hsmkme.hsm.{name}" for name in ("officer", "initialising", "backup", "masters")),
}
"""What makes and destroys."""


def test_only_ceremonies_and_the_command_line_import_what_makes_token_objects() -> None:
    importers = {
        path.relative_to(SHIPPED).parts[0]
        for path in SHIPPED.rglob("*.py")
        if MAKERS & set(imported(path))
    }
    assert {"ceremony", "cli"} <= importers  # else this test looks in the wrong place
    assert importers <= {"ceremony", "cli", "hsm", "rotation.py", "revocation.py", "keeping.py"}


def test_the_service_runs_without_what_makes_token_objects() -> None:
    program = (
        "import sys, hsmkme.api, hsmkme.applications, hsmkme.kme, hsmkme.custody, hsmkme.hsm, hsmkme.cli.serving\n"
        f"sys.exit(bool({MAKERS | {'hsmkme.ceremony'}} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
