"""Do any m custodians restore a master key, fewer nothing, and is every wrong share named?"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
import pytest
import segno
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pkcs11 import Attribute as A
from pkcs11 import KeyType, Mechanism, MechanismFlag, ObjectClass

from hsmkme.ceremony import envelopes
from hsmkme.ceremony.backups import Asked, Backup, make_backup, read_backup, restore_backup, write_backup
from hsmkme.ceremony.field import inverse, multiply, value_at, weighed, weights_at_zero
from hsmkme.ceremony.shares import SCANNED, Gathering, Share, ShareSet, decoded, read_share, split
from hsmkme.ceremony.sheets import Receiver, sheet, write_private
from hsmkme.cli import main
from hsmkme.errors import OperatorFault, ShareRefused
from hsmkme.hsm import Token, TokenAddress, templates
from hsmkme.hsm.backup import BackupOfficer, WrappedMaster, back_up
from hsmkme.hsm.objects import find_object
from hsmkme.model import KeyMaterial
from hsmkme.words import bytes_of, spoken, words_of
from tests.processes import hsmkme
from tests.test_token_objects import ACTION_PROHIBITED, writable
from tests.tokens import PIN, SO_PIN

ROOT = Path(__file__).parent.parent
SIZES = [(m, n) for n in range(2, 6) for m in range(2, n + 1)]


def secret() -> KeyMaterial:
    return KeyMaterial(os.urandom(32))


def same(one: KeyMaterial, other: KeyMaterial) -> bool:
    return one.reveal() == other.reveal()


def gathered(public: ShareSet, shares: tuple[Share, ...] | list[Share]) -> KeyMaterial:
    gathering = Gathering(public)
    for share in shares:
        gathering.add(share)
    return gathering.secret()


def altered(share: Share, **other: Any) -> Share:
    whole = {"set_id": share.set_id, "threshold": share.threshold, "index": share.index, "value": share.value}
    return Share(**{**whole, **other})


# The field ------------------------------------------------------------------------------------------------


def carryless(one: int, other: int) -> int:
    """The product once more: of polynomials over two elements, then the remainder."""
    product = 0
    for place in range(8):
        product ^= (one << place) if other >> place & 1 else 0
    for place in range(14, 7, -1):
        product ^= (0x11B << place - 8) if product >> place & 1 else 0
    return product


def test_products_and_inverses_are_those_of_the_field_of_aes() -> None:
    assert multiply(0x57, 0x83) == 0xC1  # FIPS 197 §4.2
    pairs = list(itertools.product(range(256), repeat=2))
    assert [multiply(*pair) for pair in pairs] == [carryless(*pair) for pair in pairs]
    assert all(multiply(element, inverse(element)) == 1 for element in range(1, 256))
    assert inverse(0) == 0


def test_no_branch_and_no_index_of_the_field_depends_on_an_element() -> None:
    """The multiplication and the inverse, on which all else stands, have neither; comprehensions choose places only."""
    tree = ast.parse((ROOT / "hsmkme" / "ceremony" / "field.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in ("multiply", "inverse", "value_at", "weighed"):
        kinds = {type(node) for node in ast.walk(functions[name])}
        assert not kinds & {ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.Compare}, name
        indexed = [n for n in ast.walk(functions[name]) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Load)]
        assert all(isinstance(one.value, ast.Name) and one.value.id == "Sequence" for one in indexed), name


@pytest.mark.parametrize("places", list(itertools.combinations(range(1, 6), 2)))
def test_for_one_value_every_secret_is_left_over_equally_often(places: tuple[int, int]) -> None:
    """2 of n, all 65,536 polynomials: who sees one value sees each secret once, so learns nothing of it."""
    seen, other = places
    pairs = Counter((value_at(seen, line), line[0]) for line in itertools.product(range(256), repeat=2))
    assert len(pairs) == 65536
    assert set(pairs.values()) == {1}
    weights = weights_at_zero([seen, other])
    assert all(
        weighed([value_at(seen, line), value_at(other, line)], weights) == line[0]
        for line in itertools.product(range(0, 256, 17), range(256))
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.randoms(use_true_random=False))
def test_for_fewer_values_than_needed_every_secret_has_a_polynomial_and_only_one(m: int, chance: random.Random) -> None:
    """m−1 values and any candidate fix a polynomial of degree m−1, and the missing value differs for each candidate."""
    places = chance.sample(range(1, 17), m)
    known = [chance.randrange(256) for _ in places[1:]]
    weights = weights_at_zero(places)
    missing = {}
    for candidate in range(256):
        # The value at places[0] that makes the polynomial through all of them have this secret.
        needed = multiply(candidate ^ weighed(known, weights[1:]), inverse(weights[0]))
        assert weighed([needed, *known], weights) == candidate
        missing[needed] = candidate
    assert len(missing) == 256


def test_values_of_one_share_are_spread_evenly_whatever_the_secret() -> None:
    """Chi-squared over 256 classes; a generator with a fixed seed, so that it never fails by chance."""
    chance = random.Random(1)
    for value in (bytes(32), bytes([255] * 32), bytes(range(32))):
        seen: Counter[int] = Counter()
        for _ in range(200):
            _, shares = split(KeyMaterial(value), 3, 3, chance.randbytes)
            seen.update(shares[0].value.reveal())
        mean = 200 * 32 / 256
        chi = sum((seen[byte] - mean) ** 2 / mean for byte in range(256))
        assert 180 < chi < 340, "255 degrees of freedom: 99.9 % lie below 331"


# Any m of n -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_every_m_of_n_shares_restore_in_any_order_and_fewer_do_not(m: int, n: int) -> None:
    value = secret()
    public, shares = split(value, m, n)
    assert len(shares) == n
    for some in itertools.permutations(shares, m):
        assert same(gathered(public, some), value)
    for few in itertools.combinations(shares, m - 1):
        with pytest.raises(ShareRefused, match="1 more shares are needed"):
            gathered(public, few)
        pretended = [share.value.reveal() for share in few]
        weights = weights_at_zero([share.index for share in few])
        assert bytes(weighed(one, weights) for one in zip(*pretended, strict=True)) != value.reveal()
    assert same(gathered(public, shares), value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_m_of_up_to_sixteen_shares_restore(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 16))
    m = data.draw(st.integers(2, n))
    value = KeyMaterial(data.draw(st.binary(min_size=32, max_size=32)))
    public, shares = split(value, m, n)
    some = data.draw(st.permutations(shares))[: data.draw(st.integers(m, n))]
    texts = [data.draw(st.sampled_from([share.scanned(), " ".join(share.words())])) for share in some]
    assert same(gathered(public, [read_share(text) for text in texts]), value)


@pytest.mark.parametrize(("m", "n"), [(0, 2), (1, 2), (3, 2), (2, 17), (17, 17), (1, 1), (-1, 3)])
def test_other_numbers_of_shares_are_refused(m: int, n: int) -> None:
    with pytest.raises(ShareRefused, match=f"{m} of {n} shares cannot be"):
        split(secret(), m, n)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_only_a_key_of_32_bytes_is_split(length: int) -> None:
    with pytest.raises(ShareRefused, match="only a key of 32 bytes"):
        split(KeyMaterial(bytes(length)), 2, 3)


def test_coefficients_may_be_zero_and_a_wrong_result_is_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    value = secret()
    public, shares = split(value, 3, 4, bytes)  # all coefficients are zero: every value is the secret
    assert same(gathered(public, shares[1:]), value)
    monkeypatch.setattr("hsmkme.ceremony.shares.weights_at_zero", lambda places: [1] * len(places))
    with pytest.raises(ShareRefused, match="this machine calculates wrongly"):
        split(value, 2, 2)


# A share that is wrong is named ---------------------------------------------------------------------------


@pytest.fixture
def set_of_3() -> tuple[ShareSet, tuple[Share, ...]]:
    """2 of 3."""
    return split(secret(), 2, 3)


def test_a_share_that_comes_twice_is_named_and_the_others_stay(set_of_3: tuple[ShareSet, tuple[Share, ...]]) -> None:
    public, shares = set_of_3
    gathering = Gathering(public)
    gathering.add(shares[2])
    with pytest.raises(ShareRefused, match="share 3 was entered before"):
        gathering.add(read_share(shares[2].scanned()))
    assert (gathering.missing, gathering.indexes) == (1, [3])
    gathering.add(shares[0])
    assert (gathering.missing, gathering.indexes) == (0, [1, 3])


def test_a_share_of_another_set_is_named(set_of_3: tuple[ShareSet, tuple[Share, ...]]) -> None:
    public, _ = set_of_3
    other, shares = split(secret(), 2, 3)
    with pytest.raises(ShareRefused, match=f"share 2 is of set {other.set_id.hex()}, .* has set {public.set_id.hex()}"):
        Gathering(public).add(shares[1])


def test_a_share_that_was_altered_with_a_right_checksum_is_named(set_of_3: tuple[ShareSet, tuple[Share, ...]]) -> None:
    public, shares = set_of_3
    one = shares[1]
    flipped = KeyMaterial(bytes([one.value.reveal()[0] ^ 1]) + one.value.reveal()[1:])
    wrong = [altered(one, value=flipped), altered(one, index=1), altered(one, index=4), altered(one, threshold=3)]
    for share in wrong:
        again = decoded(share.encoded())  # the checksum is right
        with pytest.raises(ShareRefused, match=f"share {share.index} was altered"):
            Gathering(public).add(again)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_share_that_was_typed_wrongly_is_refused(data: st.DataObject) -> None:
    words = split(secret(), 2, 2)[1][0].words()
    place = data.draw(st.integers(0, 41))
    what = data.draw(st.sampled_from(["another", "left out", "twice", "exchanged", "misspelt"]))
    typed = list(words)
    if what == "another":
        typed[place] = words_of(bytes([0, 0]) if words[place] != words_of(bytes([0, 0]))[place % 2] else b"\x01\x01")[
            place % 2
        ]
    elif what == "left out":
        del typed[place]
    elif what == "twice":
        typed.insert(place, typed[place])
    elif what == "exchanged":
        place = min(place, 40)
        typed[place : place + 2] = typed[place : place + 2][::-1]
    else:
        typed[place] += "x"
    with pytest.raises(ShareRefused) as refusal:
        read_share(" ".join(typed))
    said = str(refusal.value)
    assert said.endswith(("enter the share again", "enter it again, to its end", "enter it again, word by word"))
    assert not any(re.search(rf"\b{word}\b", said) for word in words), "a word of the share is in the message"
    if what in ("exchanged", "misspelt"):
        assert f"word {place + 1} " in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a share has 42 words, these are 0"),
        ("aardvark adroitness", "these are 2"),
        (SCANNED + "00", "these are 1"),
        (SCANNED + "0", "the code was not read whole"),
        (SCANNED + "zz" * 42, "the code was not read whole"),
        ("hello", "word 1 is not in the list"),
        ("adroitness", "word 1 should have two syllables"),
    ],
)
def test_what_is_no_share_is_refused(text: str, why: str) -> None:
    with pytest.raises(ShareRefused, match=why):
        read_share(text)


def test_a_share_of_another_version_is_refused() -> None:
    body = b"\x02" + split(secret(), 2, 2)[1][0].encoded()[1:38]
    checksum = hashlib.sha256(b"hsmkme/share-checksum/1" + body).digest()[:4]
    with pytest.raises(ShareRefused, match="another version of hsmkme"):
        decoded(body + checksum)


def test_what_is_published_and_what_is_shown_of_a_share_tells_nothing_of_it() -> None:
    public, shares = split(secret(), 2, 3)
    assert public.commitments == tuple(share.commitment for share in shares)
    assert shares[0].commitment == hashlib.sha256(b"hsmkme/share-commitment/1" + shares[0].encoded()[:38]).digest()
    for share in shares:
        assert share.value.reveal().hex() not in repr(share) + repr(public)
        assert hashlib.sha256(share.value.reveal()).digest() not in public.commitments  # nor one without its own name


# Words ----------------------------------------------------------------------------------------------------


def test_the_words_are_the_pgp_words() -> None:
    fingerprint = bytes.fromhex("E58294F2E9A227486E8B061B31CC528FD7FA3F19")
    assert spoken(fingerprint) == (
        "topmost Istanbul Pluto vagabond treadmill Pacific brackish dictator goldfish Medusa afflict bravado chatter"
        " revolver Dupont midsummer stopwatch whimsical cowbell bottomless"
    )


def test_all_words_differ_and_are_read_back_however_they_are_written() -> None:
    every = bytes(value for value in range(256) for _ in range(2))
    words = words_of(every)
    assert len({word.lower() for word in words}) == 512
    assert bytes_of(" ".join(words)) == every
    assert bytes_of("1. TOPMOST, istanbul;\n2. pluto\tvagabond") == bytes.fromhex("E58294F2")


# Paper ----------------------------------------------------------------------------------------------------


def test_a_sheet_has_the_words_the_code_and_whom_it_is_for() -> None:
    _, shares = split(secret(), 2, 3)
    page = sheet(shares[1], Receiver("Zoë <b>", "master/1 of kme-1 & co", 3))
    assert re.findall(r"</small>(\w+)</td>", page) == shares[1].words()
    assert "Share 2 of 3" in page
    assert "Any 2 of 3" in page
    assert "Zoë &lt;b&gt;" in page
    assert "kme-1 &amp; co" in page
    assert shares[1].commitment.hex() in page
    assert page.count("<svg") == 1
    assert not re.search(r"(src|href)=|@import|url\(", page), "a sheet loads nothing"
    assert not any(share.words()[20] + "</td>" in page.split("</table>")[1] for share in shares)


def test_the_code_on_a_sheet_is_the_share_and_can_lose_a_quarter_of_its_squares() -> None:
    _, shares = split(secret(), 2, 2)
    code = segno.make(shares[0].scanned(), error="q", micro=False)
    assert code.svg_inline(omitsize=True) in sheet(shares[0], Receiver("a", "master/1", 2))
    assert (code.mode, code.error in "QH", code.is_micro) == ("alphanumeric", True, False)
    assert same(read_share(shares[0].scanned().lower()).value, shares[0].value)


def test_a_sheet_is_a_new_file_for_its_owner_alone(tmp_path: Path) -> None:
    _, shares = split(secret(), 2, 2)
    one, other = (sheet(share, Receiver("a", "master/1", 2)) for share in shares)
    write_private(tmp_path / "sheet.html", one)
    assert (tmp_path / "sheet.html").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OperatorFault, match="nothing is overwritten"):
        write_private(tmp_path / "sheet.html", other)
    with pytest.raises(OperatorFault, match="cannot be written"):
        write_private(tmp_path / "missing" / "sheet.html", other)
    assert (tmp_path / "sheet.html").read_text() == one


# Envelopes ------------------------------------------------------------------------------------------------


def test_an_envelope_opens_for_its_custodian_alone() -> None:
    _, shares = split(secret(), 2, 2)
    (private, public), (stranger, _) = envelopes.new_key(), envelopes.new_key()
    envelope = envelopes.seal(shares[0], public)
    opened = envelopes.open_envelope(envelope, private)
    assert opened.commitment == shares[0].commitment
    assert same(opened.value, shares[0].value)
    assert envelopes.seal(shares[0], public) != envelope
    assert shares[0].encoded().hex() not in envelope
    with pytest.raises(ShareRefused, match="another custodian's, or it was altered"):
        envelopes.open_envelope(envelope, stranger)


def test_an_envelope_with_something_changed_does_not_open() -> None:
    _, shares = split(secret(), 2, 2)
    private, public = envelopes.new_key()
    said = json.loads(envelopes.seal(shares[0], public))
    other = json.loads(envelopes.seal(shares[1], public))
    assert set(said) == {"form", "set", "index", "commitment", "sealed"}
    wrong = [{**said, name: other[name]} for name in ("index", "commitment", "sealed")]
    wrong += [{**said, "set": "00000000"}, {**said, "form": "hsmkme-envelope/2"}, {**said, "more": 1}]
    wrong += [{name: value for name, value in said.items() if name != "sealed"}, {**said, "sealed": "AAAA"}]
    wrong += [{**said, "sealed": "!"}, {**said, "sealed": 7}]
    for one in wrong:
        with pytest.raises(ShareRefused, match="does not open with this key"):
            envelopes.open_envelope(json.dumps(one), private)
    for text in ("", "[]", "7", "null", "{}"):
        with pytest.raises(ShareRefused, match="does not open with this key"):
            envelopes.open_envelope(text, private)


def test_an_envelope_that_names_another_share_than_it_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the public key can seal anything; what is sealed must be what is named."""
    _, shares = split(secret(), 2, 2)
    private, public = envelopes.new_key()
    encoded = shares[1].encoded()
    monkeypatch.setattr(Share, "encoded", lambda _: encoded)
    with pytest.raises(ShareRefused, match="not the one that is named on the envelope"):
        envelopes.open_envelope(envelopes.seal(shares[0], public), private)


@pytest.mark.parametrize("key", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_of_a_custodian_is_refused(key: bytes) -> None:
    _, shares = split(secret(), 2, 2)
    with pytest.raises(ShareRefused, match="no custodian's public key"):
        envelopes.seal(shares[0], key)
    _, public = envelopes.new_key()
    with pytest.raises(ShareRefused, match="no custodian's private key"):
        envelopes.open_envelope(envelopes.seal(shares[0], public), key)


# The token ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(make_token: Callable[[], TokenAddress]) -> tuple[TokenAddress, TokenAddress]:
    """Where the backup is made of `master/2` and `master/3`, and where it is restored."""
    made = make_token(), make_token()
    pkcs11.lib(str(made[0].module)).reinitialize()  # the module saw its slots before the tokens were made
    officer = BackupOfficer(made[0], lambda: PIN)
    officer.make_backed_master(2)
    officer.close()
    return made


@contextmanager
def master_of(address: TokenAddress, epoch: int) -> Iterator[tuple[Any, Any]]:
    """A session of somebody with the user PIN, and the master key in it."""
    with writable(address) as session:
        yield session, find_object(session, f"master/{epoch}", ObjectClass.SECRET_KEY)


def backed_up(address: TokenAddress, epoch: int = 2) -> tuple[WrappedMaster, KeyMaterial]:
    return back_up(address, lambda: SO_PIN, lambda: PIN, epoch)


def test_a_master_key_with_a_backup_can_be_wrapped_under_no_key_that_the_user_pin_makes(
    tokens: tuple[TokenAddress, TokenAddress],
) -> None:
    with master_of(tokens[0], 2) as (session, master):
        own = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP)
        for wrapping in (own, master, find_object(session, "master/1", ObjectClass.SECRET_KEY)):
            for mechanism in (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD):
                with pytest.raises((pkcs11.KeyNotWrappable, pkcs11.MechanismInvalid)):
                    wrapping.wrap_key(master, mechanism=mechanism)
        trusted = {A.CLASS: ObjectClass.SECRET_KEY, A.KEY_TYPE: KeyType.AES, A.WRAP: True, A.VALUE: bytes(32)}
        with pytest.raises(pkcs11.AttributeReadOnly):
            session.create_object({**trusted, A.TOKEN: False, A.TRUSTED: True})
        with pytest.raises(pkcs11.AttributeReadOnly):
            own[A.TRUSTED] = True
        with pytest.raises(pkcs11.AttributeSensitive):
            master[A.VALUE]


@pytest.mark.parametrize("change", [{A.WRAP_WITH_TRUSTED: False}, {A.DECRYPT: True}, {A.MODIFIABLE: True}])
def test_nothing_of_a_master_key_with_a_backup_can_be_changed(
    tokens: tuple[TokenAddress, TokenAddress], change: dict[A, bool]
) -> None:
    with master_of(tokens[0], 2) as (_, master):
        with pytest.raises(pkcs11.PKCS11Error, match=ACTION_PROHIBITED):
            master.copy({A.TOKEN: False, **change})
        (attribute,) = change
        with pytest.raises(pkcs11.PKCS11Error, match=ACTION_PROHIBITED):
            master[attribute] = change[attribute]


def test_the_service_works_with_a_master_key_that_has_a_backup(tokens: tuple[TokenAddress, TokenAddress]) -> None:
    token = Token(tokens[0], lambda: PIN)
    token.prove(2)
    token.close()


def test_the_service_refuses_one_that_could_leave_the_token_otherwise(
    tokens: tuple[TokenAddress, TokenAddress],
) -> None:
    loose = {**templates.MASTER, A.EXTRACTABLE: True}
    with writable(tokens[0]) as session:
        session.generate_key(
            KeyType.AES,
            256,
            label="master/9",
            store=True,
            capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
            template=loose,
        )
    token = Token(tokens[0], lambda: PIN)
    with pytest.raises(OperatorFault, match="EXTRACTABLE differ"):
        token.prove(9)
    token.close()


def test_a_backup_leaves_nothing_in_the_token(tokens: tuple[TokenAddress, TokenAddress], softhsm: Path) -> None:
    before = set(softhsm.parent.glob("tokens/*/*"))
    one, key = backed_up(tokens[0])
    two, other = backed_up(tokens[0])
    assert not same(key, other)
    assert one.wrapped != two.wrapped
    assert (len(one.wrapped), len(key), one.epoch) == (40, 32, 2)
    assert set(softhsm.parent.glob("tokens/*/*")) == before
    with writable(tokens[0]) as session:
        assert list(session.get_objects({A.TRUSTED: True})) == []


def test_a_master_key_without_a_backup_never_gets_one(tokens: tuple[TokenAddress, TokenAddress]) -> None:
    with pytest.raises(OperatorFault, match="master/1 was made without a backup and can never have one"):
        back_up(tokens[0], lambda: SO_PIN, lambda: PIN, 1)


def test_a_backup_needs_both_pins(tokens: tuple[TokenAddress, TokenAddress]) -> None:
    for pins in ((PIN, PIN), (SO_PIN, SO_PIN)):
        with pytest.raises(OperatorFault, match="PinIncorrect"):
            back_up(tokens[0], lambda pins=pins: pins[0], lambda pins=pins: pins[1], 2)


def test_a_backup_is_refused_while_somebody_else_has_a_trusted_key(
    tokens: tuple[TokenAddress, TokenAddress],
) -> None:
    token = pkcs11.lib(str(tokens[0].module))
    token.reinitialize()
    session = token.get_token(token_label=tokens[0].label).open(rw=True, so_pin=SO_PIN)
    planted = {A.CLASS: ObjectClass.SECRET_KEY, A.KEY_TYPE: KeyType.AES, A.WRAP: True, A.VALUE: bytes(32)}
    session.create_object({**planted, A.TOKEN: True, A.PRIVATE: False, A.TRUSTED: True, A.LABEL: "planted"})
    session.close()
    with pytest.raises(OperatorFault, match="another key that is marked as trusted"):
        back_up(tokens[0], lambda: SO_PIN, lambda: PIN, 2)
    token.reinitialize()
    with writable(tokens[0]) as session:
        next(iter(session.get_objects({A.LABEL: "planted"}))).destroy()


def test_a_master_key_comes_back_on_a_new_token_and_opens_what_was_sealed_under_it(
    tokens: tuple[TokenAddress, TokenAddress], tmp_path: Path
) -> None:
    (master, key), (old, new) = backed_up(tokens[0]), tokens
    officer = BackupOfficer(new, lambda: PIN)
    evidence = officer.restore_master(master, key)
    with pytest.raises(OperatorFault, match="already has an object labelled 'master/2'"):
        officer.restore_master(master, key)
    officer.close()
    token = Token(new, lambda: PIN)
    token.prove(2)
    assert token.check_value(2) == master.check_value == evidence["check_value"]
    token.close()
    assert {name: evidence[name] for name in ("LOCAL", "MODIFIABLE", "COPYABLE")} == dict.fromkeys(
        ("LOCAL", "MODIFIABLE", "COPYABLE"), False
    )
    with master_of(old, 2) as (session, here):
        block_key = session.generate_key(
            KeyType.AES, 256, capabilities=MechanismFlag.ENCRYPT, template=templates.SEALING_KEY
        )
        wrapped = here.wrap_key(block_key, mechanism=Mechanism.AES_KEY_WRAP)
        text = block_key.encrypt(bytes(16), mechanism=Mechanism.AES_ECB)
    with master_of(new, 2) as (_, there):
        again = there.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            wrapped,
            mechanism=Mechanism.AES_KEY_WRAP,
            capabilities=MechanismFlag.DECRYPT,
            template=templates.OPENING_KEY,
        )
        assert again.decrypt(text, mechanism=Mechanism.AES_ECB) == bytes(16)
        there.destroy()


def test_a_key_that_the_token_unwraps_can_be_given_other_roles_or_be_copied(
    tokens: tuple[TokenAddress, TokenAddress],
) -> None:
    """Which is why `restore_master` creates it instead; ops/adr/0013."""
    wanted = templates.BACKED_MASTER
    loose = {kind: value for kind, value in wanted.items() if kind is not A.MODIFIABLE}
    copyable = {**loose, A.TOKEN: False, A.COPYABLE: True}
    with writable(tokens[1]) as session:
        roles = MechanismFlag.WRAP | MechanismFlag.UNWRAP
        wrapping = session.generate_key(KeyType.AES, 256, capabilities=roles)
        key = session.generate_key(KeyType.AES, 256, template={A.EXTRACTABLE: True})
        wrapped = wrapping.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)

        def unwrapped(template: templates.Template) -> Any:
            kinds = ObjectClass.SECRET_KEY, KeyType.AES, wrapped
            return wrapping.unwrap_key(
                *kinds, mechanism=Mechanism.AES_KEY_WRAP, capabilities=roles, store=template[A.TOKEN], template=template
            )

        with pytest.raises(pkcs11.AttributeReadOnly):
            unwrapped(wanted)
        modifiable = unwrapped(loose)
        modifiable[A.DECRYPT] = True
        modifiable.destroy()
        original = unwrapped(copyable)
        with pytest.raises(pkcs11.AttributeReadOnly):
            original.copy({A.TOKEN: True, A.MODIFIABLE: False, A.COPYABLE: False})
        unmodifiable = original.copy({A.TOKEN: True, A.MODIFIABLE: False})
        outliving = unmodifiable.copy({})
        unmodifiable.destroy()
        assert (outliving[A.TOKEN], outliving[A.UNWRAP]) == (True, True)
        outliving.destroy()


@pytest.mark.parametrize("wrong", ["key", "wrapped", "length", "check value"])
def test_what_does_not_fit_is_not_restored_and_leaves_nothing(
    tokens: tuple[TokenAddress, TokenAddress], wrong: str
) -> None:
    master, key = backed_up(tokens[0])
    changed = {
        "key": (master, secret()),
        "wrapped": (WrappedMaster(2, master.check_value, master.wrapped[:-1] + bytes([master.wrapped[-1] ^ 1])), key),
        "length": (WrappedMaster(2, master.check_value, master.wrapped[:-8]), key),
        "check value": (WrappedMaster(2, "0000000000", master.wrapped), key),
    }[wrong]
    officer = BackupOfficer(tokens[1], lambda: PIN)
    why = "check value .*, the backup says 0000000000" if wrong == "check value" else "do not open this backup"
    with pytest.raises(OperatorFault, match=why):
        officer.restore_master(*changed)
    officer.close()
    with writable(tokens[1]) as session:
        assert list(session.get_objects({A.LABEL: "master/2"})) == []


def test_the_whole_way_from_a_backup_to_a_restored_key_by_the_words_of_two_of_three(
    tokens: tuple[TokenAddress, TokenAddress], tmp_path: Path
) -> None:
    old, new = tokens
    backup, shares = make_backup(old, lambda: SO_PIN, lambda: PIN, Asked(2, 2, 3))
    write_backup(tmp_path / "backup.json", backup)
    again = read_backup(tmp_path / "backup.json")
    assert again == backup
    gathering = Gathering(again.shares)
    for share in (shares[2], shares[0]):
        gathering.add(read_share(" ".join(share.words())))
    restored = restore_backup(new, lambda: PIN, again, gathering)
    token = Token(new, lambda: PIN)
    assert token.check_value(2) == restored["check_value"] == backup.master.check_value
    token.close()
    assert restored["shares"] == [1, 3]
    published = json.dumps([backup.evidence(), restored]) + (tmp_path / "backup.json").read_text()
    assert all(share.commitment.hex() in json.dumps(backup.evidence()) for share in shares)
    secrets = [share.value.reveal() for share in shares] + [gathering.secret().reveal()]
    assert not any(one.hex() in published or " ".join(words_of(one)) in published for one in secrets)


def test_too_few_shares_restore_nothing(tokens: tuple[TokenAddress, TokenAddress]) -> None:
    public, shares = split(secret(), 3, 3)
    gathering = Gathering(public)
    gathering.add(shares[0])
    with pytest.raises(ShareRefused, match="2 more shares are needed"):
        restore_backup(tokens[1], lambda: PIN, Backup(WrappedMaster(9, "", b""), public), gathering)
    with writable(tokens[1]) as session:
        assert list(session.get_objects({A.LABEL: "master/9"})) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": "hsmkme-backup/2", "mechanism": "AES_KEY_WRAP"}', "\xff"])
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "backup.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(OperatorFault, match="is no backup of this version"):
        read_backup(tmp_path / "backup.json")
    with pytest.raises(OperatorFault, match="cannot be read"):
        read_backup(tmp_path / "missing.json")


def test_a_backup_is_never_overwritten(tmp_path: Path) -> None:
    backup = Backup(WrappedMaster(2, "00", bytes(40)), split(secret(), 2, 2)[0])
    write_backup(tmp_path / "backup.json", backup)
    with pytest.raises(OperatorFault, match="never overwritten"):
        write_backup(tmp_path / "backup.json", backup)


def test_a_login_of_this_process_is_ended_by_a_backup_and_finds_its_way_back(
    tokens: tuple[TokenAddress, TokenAddress],
) -> None:
    token = Token(tokens[0], lambda: PIN)
    master, _ = back_up(tokens[0], lambda: SO_PIN, lambda: PIN, 2)
    token.prove(2)  # finds its handles lost, and logs in again
    assert token.check_value(2) == master.check_value
    token.close()


# What custodians do at home -------------------------------------------------------------------------------


@pytest.fixture
def at_home(tmp_path: Path) -> tuple[Path, tuple[Share, ...]]:
    """A directory with a backup file, and the shares that it names."""
    public, shares = split(secret(), 2, 3)
    write_backup(tmp_path / "backup.json", Backup(WrappedMaster(2, "00", bytes(40)), public))
    return tmp_path, shares


def test_a_custodian_makes_a_key_and_gets_a_sheet_out_of_an_envelope(at_home: tuple[Path, tuple[Share, ...]]) -> None:
    home, shares = at_home
    assert hsmkme("custodian", "key", home / "key").status == 0
    assert [(home / name).stat().st_mode & 0o777 for name in ("key", "key.pub")] == [0o400, 0o444]
    assert hsmkme("custodian", "key", home / "key").status == 1  # a key is not overwritten
    (home / "envelope").write_text(envelopes.seal(shares[1], (home / "key.pub").read_bytes()))
    options = ("--key", home / "key", "--name", "Zoë", "--backup", home / "backup.json", "--sheet")
    done = hsmkme("custodian", "open", home / "envelope", *options, home / "sheet.html")
    assert done.status == 0, done.err
    page = (home / "sheet.html").read_text()
    assert re.findall(r"</small>(\w+)</td>", page) == shares[1].words()
    assert "Share 2 of 3" in page
    assert not any(word in done.out + done.err for word in shares[1].words())
    other, _ = split(secret(), 2, 3)
    (home / "backup.json").unlink()
    write_backup(home / "backup.json", Backup(WrappedMaster(2, "00", bytes(40)), other))
    foreign = hsmkme("custodian", "open", home / "envelope", *options, home / "sheet2.html")
    assert (foreign.status, "share 2 is of set" in foreign.err) == (1, True)
    assert not (home / "sheet2.html").exists()


def test_a_custodian_checks_that_the_sheet_can_be_read(at_home: tuple[Path, tuple[Share, ...]]) -> None:
    home, shares = at_home
    words = " ".join(shares[0].words())
    good = CliRunner().invoke(main, ["custodian", "check", "--backup", str(home / "backup.json")], input=words + "\n")
    assert good.exit_code == 0, good.output
    assert f"share 1 of set {shares[0].set_id.hex()} is whole; any 2 restore the key" in good.output
    assert words not in good.output
    bad = CliRunner().invoke(main, ["custodian", "check", "--backup", str(home / "backup.json")], input="aardvark\n")
    assert bad.exit_code == 1
