"""Does a sealed key open to its own bytes, and nothing else ever?"""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, KeyType, ObjectClass

from hsmkme.errors import OperatorFault, RecordFault, TokenUnavailable
from hsmkme.hsm import Token, TokenAddress, sealing
from hsmkme.hsm.block_keys import BlockKey
from hsmkme.hsm.cryptoki import CryptokiError, Function
from hsmkme.hsm.segments import Segments
from hsmkme.model import BlockName, KeyMaterial, OpenKey, Part, RawBlock, SealedBlock
from tests.blocks import altered, flipped, key_of, open_bytes, part_of
from tests.conftest import PIN
from tests.shim import Shim
from tests.tokens import evidence_of

HEADER_BYTES = 7  # version, wrapping, sealing, epoch
AES_KW_BYTES = 40
TAG_BYTES = 16


@pytest.fixture
def session_objects(address: TokenAddress, token: Token) -> Iterator[Callable[[], int]]:
    """Counts the session objects of this process, seen from a session that is not the service's."""
    session = pkcs11.lib(str(address.module)).get_token(token_label=address.label).open()
    yield lambda: len(list(session.get_objects({pkcs11.Attribute.TOKEN: False})))
    session.close()


def assert_record_fault(token: Token, part: Part, sound: SealedBlock) -> None:
    """The part does not open, the fault names its block, and the token goes on working."""
    with pytest.raises(RecordFault) as fault:
        token.open([key_of(part, size=8)])
    assert (fault.value.link_id, fault.value.block_id) == (part.block.name.link_id, part.block.name.block_id)
    token.open([key_of(part_of(sound))])


# Own bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "bits"), [(1, 256), (128, 256), (3, 64), (5, 128), (2, 1024), (1, 65_536)])
def test_every_key_of_a_block_opens_to_the_bytes_that_were_sealed(
    token: Token, raw_block: Callable[..., RawBlock], keys: int, bits: int
) -> None:
    block = raw_block(keys, bits)
    sealed = token.seal(block, 1)
    opened = token.open([key_of(part_of(sealed, index, 1)) for index in range(keys)])
    assert b"".join(key.material.reveal() for key in opened) == block.material.reveal()


def test_keys_open_in_the_order_in_which_they_were_asked_for(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    sealed = token.seal(raw_block(4), 1)
    asked = [key_of(part_of(sealed, index, 1)) for index in (2, 0, 3, 1)]
    assert [key.key_id for key in token.open(asked)] == [key.key_id for key in asked]


@pytest.mark.parametrize("size", [8, 64, 256, 264, 384, 512, 1000, 1024])
def test_a_key_is_its_parts_joined_across_blocks_and_cut_to_its_size(
    token: Token, raw_block: Callable[..., RawBlock], size: int
) -> None:
    one, other = raw_block(3), raw_block(2)
    parts = part_of(token.seal(one, 1), 1, 2), part_of(token.seal(other, 1), 0, 2)
    joined = one.material.reveal()[32:] + other.material.reveal()
    assert open_bytes(token, key_of(*parts, size=size)) == joined[: size // 8]


def test_parts_shorter_than_the_key_are_a_record_fault(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    with pytest.raises(RecordFault):
        token.open([key_of(part_of(token.seal(raw_block(2), 1)), size=520)])


def test_one_key_that_does_not_open_keeps_all_of_them_back(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    part = part_of(token.seal(raw_block(2), 1), 0, 1)
    with pytest.raises(RecordFault):
        token.open([key_of(part), key_of(replace(part, first=1))])


def test_equal_bytes_are_sealed_to_different_blobs(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    block = raw_block()
    once, again = token.seal(block, 1), token.seal(block, 1)
    assert once.seal.wrapped != again.seal.wrapped
    assert once.segments != again.segments


def test_the_blob_has_the_form_that_is_written_down(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    sealed = token.seal(raw_block(3, 128), 1)
    assert sealed.seal.wrapped[:HEADER_BYTES] == bytes.fromhex("01 01 01 00000001")
    assert len(sealed.seal.wrapped) == HEADER_BYTES + AES_KW_BYTES
    assert len(sealed.segments) == 3 * (16 + TAG_BYTES)
    assert (sealed.key_count, sealed.seal.epoch, sealed.seal.key_bits) == (3, 1, 128)
    assert len(sealed.digest) == 32


def test_a_segment_is_what_anybody_with_the_block_key_makes_of_what_is_written_down(token: Token) -> None:
    known, plain = os.urandom(32), os.urandom(3 * 32)
    with token._sessions.lane() as lane:
        key = lane.session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.TOKEN: False,
                Attribute.ENCRYPT: True,
                Attribute.VALUE: known,
            }
        )
        calls = [token._sessions.cryptoki.function(name) for name in (Function.C_EncryptInit, Function.C_Encrypt)]
        block_key = BlockKey(lane.session.handle, key.handle, False, *calls)
        sealed = Segments(block_key, BlockName("link-é", "block-1"), 256).run(257, plain)
        key.destroy()
    bound = b"\x00\x10hsmkme/segment/1\x00\x07link-\xc3\xa9\x00\x07block-1\x00\x00\x01\x00"
    for place, number in enumerate((257, 258, 259)):
        nonce, segment = number.to_bytes(12, "big"), sealed[place * 48 : (place + 1) * 48]
        opened = AESGCM(known).decrypt(nonce, segment, bound + number.to_bytes(4, "big"))
        assert opened == plain[place * 32 : (place + 1) * 32]


def test_names_that_run_together_are_bound_apart() -> None:
    assert sealing.binding("ab", "c", 256) != sealing.binding("a", "bc", 256)


def test_a_blob_of_the_wrong_length_from_the_token_is_not_stored(raw_block: Callable[..., RawBlock]) -> None:
    block = raw_block(2)
    with pytest.raises(TokenUnavailable):
        sealing.sealed_block(block, 1, bytes(39), bytes(96), bytes(32))
    with pytest.raises(TokenUnavailable):
        sealing.sealed_block(block, 1, bytes(40), bytes(95), bytes(32))


def test_a_segment_of_another_length_from_the_token_is_not_taken(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    part = part_of(token.seal(raw_block(1), 1))
    token.open([key_of(part)])
    with token._sessions.lane() as lane:
        key = lane.opened[part.block].key

        def shortened(*arguments: int) -> int:
            key.run(*arguments)
            length = ctypes.c_ulong.from_address(arguments[-1])
            length.value -= 1
            return 0

        with pytest.raises(CryptokiError):
            Segments(replace(key, run=shortened), part.block.name, 256).run(0, part.sealed)


# How many calls ---------------------------------------------------------------------------------------


def test_a_segment_costs_two_calls_and_a_block_key_few(
    shim: Shim, address: TokenAddress, raw_block: Callable[..., RawBlock]
) -> None:
    token = Token(shim.address(address), lambda: PIN)
    token.seal(raw_block(1), 1)  # finds the objects
    begun = shim.calls()
    sealed = token.seal(raw_block(10), 1)
    for_the_block = ["C_GenerateKey", "C_GetAttributeValue", "C_WrapKey", "C_DestroyObject"]
    digest = {"C_SignInit": 1, "C_Sign": 2}  # the binding asks for the length first
    each = {"C_EncryptInit": 10, "C_Encrypt": 10}
    assert shim.calls() - begun == {**dict.fromkeys(for_the_block, 1), **digest, **each}

    begun = shim.calls()
    token.open([key_of(part_of(sealed, 0, 1))])
    once = {"C_UnwrapKey": 1, "C_GetAttributeValue": 1}
    assert shim.calls() - begun == {**once, "C_DecryptInit": 1, "C_Decrypt": 1}
    begun = shim.calls()
    token.open([key_of(part_of(sealed, place, 1)) for place in range(1, 10)])
    assert shim.calls() - begun == {"C_DecryptInit": 9, "C_Decrypt": 9}
    token.close()


# Nothing else -----------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_of_a_segment_is_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    sealed = token.seal(raw_block(1), 1)
    part = part_of(sealed)
    for position in range(len(part.sealed)):
        assert_record_fault(token, replace(part, sealed=flipped(part.sealed, position)), sealed)


def test_a_flipped_bit_in_any_byte_of_a_wrapped_key_is_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    sealed = token.seal(raw_block(1), 1)
    part = part_of(sealed)
    for position in range(len(part.block.wrapped)):
        wrong = altered(part, wrapped=flipped(part.block.wrapped, position, 0x80))
        assert_record_fault(token, wrong, sealed)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 47, 48, 49, 63, 64, 95, 97, 144])
def test_segments_of_another_length_are_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock], length: int
) -> None:
    sealed = token.seal(raw_block(3), 1)
    part = part_of(sealed, 0, 2)
    assert_record_fault(token, replace(part, sealed=(part.sealed + bytes(48))[:length]), sealed)


def test_more_or_fewer_segments_than_a_part_says_are_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    sealed = token.seal(raw_block(3), 1)
    for count in (1, 3):
        assert_record_fault(token, replace(part_of(sealed, 0, 2), count=count), sealed)


@pytest.mark.parametrize("length", [0, 6, 7, 46, 48, 55])
def test_a_wrapped_key_of_another_length_is_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock], length: int
) -> None:
    sealed = token.seal(raw_block(1), 1)
    part = part_of(sealed)
    assert_record_fault(token, altered(part, wrapped=(part.block.wrapped + bytes(8))[:length]), sealed)


def test_a_segment_does_not_open_at_another_place_of_its_block(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    sealed = token.seal(raw_block(3), 1)
    for first in (1, 2, 3, 255, 2**31):
        assert_record_fault(token, replace(part_of(sealed, 0, 1), first=first), sealed)


def test_two_segments_exchanged_do_not_open(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    sealed = token.seal(raw_block(2), 1)
    exchanged = sealed.segments[48:] + sealed.segments[:48]
    assert_record_fault(token, replace(part_of(sealed), sealed=exchanged), sealed)


def test_a_segment_does_not_open_in_another_block(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    block = raw_block(1)
    sealed, other = token.seal(block, 1), token.seal(block, 1)
    assert_record_fault(token, replace(part_of(sealed), sealed=other.segments), sealed)
    assert_record_fault(token, replace(part_of(sealed), block=other.seal), sealed)


@pytest.mark.parametrize(
    "name", [BlockName("far", "a-block"), BlockName("local", "b-block"), BlockName("locala", "-block")]
)
def test_a_block_does_not_open_under_another_name(
    token: Token, raw_block: Callable[..., RawBlock], name: BlockName
) -> None:
    sealed = token.seal(raw_block(1, link="local", block_id="a-block"), 1)
    assert_record_fault(token, altered(part_of(sealed), name=name), sealed)


def test_a_block_does_not_open_under_another_key_size(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    sealed = token.seal(raw_block(1, 256), 1)
    for bits in (64, 128, 192, 384):
        assert_record_fault(token, altered(part_of(sealed), key_bits=bits), sealed)


@pytest.mark.parametrize("header", ["02 01 01 00000001", "01 02 01 00000001", "01 01 02 00000001", "01 01 01 00000002"])
def test_a_header_that_this_code_does_not_write_is_a_record_fault(
    token: Token, raw_block: Callable[..., RawBlock], header: str
) -> None:
    sealed = token.seal(raw_block(1), 1)
    part = part_of(sealed)
    assert_record_fault(token, altered(part, wrapped=bytes.fromhex(header) + part.block.wrapped[HEADER_BYTES:]), sealed)


def test_an_epoch_that_the_header_does_not_name_is_a_record_fault_even_while_the_block_is_open(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    sealed = token.seal(raw_block(1), 1)
    open_bytes(token, key_of(part_of(sealed)))
    assert_record_fault(token, altered(part_of(sealed), epoch=2), sealed)


def test_a_block_of_another_token_is_a_record_fault(
    make_token: Callable[[], TokenAddress], token: Token, address: TokenAddress, raw_block: Callable[..., RawBlock]
) -> None:
    foreign_address = make_token()
    pkcs11.lib(str(address.module)).reinitialize()  # the module saw its slots before the token was made
    foreign = Token(foreign_address, lambda: PIN)
    part = part_of(foreign.seal(raw_block(1), 1))
    foreign.close()
    assert_record_fault(token, part, token.seal(raw_block(1), 1))


def test_an_epoch_without_a_master_key_is_for_an_operator(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    with pytest.raises(OperatorFault, match="no SECRET_KEY labelled 'master/2'"):
        token.seal(raw_block(1), 2)


# What stays in the token ------------------------------------------------------------------------------


def test_unwrapped_block_keys_are_bounded_and_the_rest_destroyed(
    address: TokenAddress, session_objects: Callable[[], int], raw_block: Callable[..., RawBlock], token: Token
) -> None:
    token.close()  # one login for each process: the bounded token takes its turn
    bounded = Token(address, lambda: PIN, block_keys=3)
    blocks = [raw_block(1) for _ in range(8)]
    seals = [bounded.seal(block, 1) for block in blocks]
    assert session_objects() == 0
    for count, (block, sealed) in enumerate(zip(blocks, seals, strict=True), start=1):
        assert open_bytes(bounded, key_of(part_of(sealed))) == block.material.reveal()
        assert session_objects() == min(count, 3)
    for block, sealed in zip(blocks, seals, strict=True):
        assert open_bytes(bounded, key_of(part_of(sealed))) == block.material.reveal()
    assert session_objects() == 3
    bounded.close()


def test_the_block_key_used_last_is_evicted_last(
    address: TokenAddress, session_objects: Callable[[], int], raw_block: Callable[..., RawBlock], token: Token
) -> None:
    token.close()
    bounded = Token(address, lambda: PIN, block_keys=2)
    kept, *others = (bounded.seal(raw_block(1), 1) for _ in range(3))
    for sealed in (kept, others[0], kept, others[1]):
        open_bytes(bounded, key_of(part_of(sealed)))
    with bounded._sessions.lane() as lane:
        assert list(lane.opened) == [kept.seal, others[1].seal]
    bounded.close()


def test_nothing_stays_of_a_seal_a_proof_a_check_value_or_a_login_that_ended(
    token: Token, session_objects: Callable[[], int], raw_block: Callable[..., RawBlock]
) -> None:
    token.seal(raw_block(4), 1)
    token.prove(1)
    token.check_value(1)
    token.digest(raw_block(4))
    assert session_objects() == 0
    open_bytes(token, key_of(part_of(token.seal(raw_block(1), 1))))
    assert session_objects() == 1
    token.close()
    assert session_objects() == 0


def test_records_that_do_not_open_leave_no_block_keys(
    address: TokenAddress, session_objects: Callable[[], int], raw_block: Callable[..., RawBlock], token: Token
) -> None:
    token.close()
    bounded = Token(address, lambda: PIN, block_keys=2)
    for _ in range(6):
        part = part_of(bounded.seal(raw_block(1), 1))
        with pytest.raises(RecordFault):
            bounded.open([key_of(replace(part, sealed=flipped(part.sealed, 0)))])
    assert session_objects() == 0
    bounded.close()


# Tags of whole blocks, check values -------------------------------------------------------------------


def test_the_digest_is_of_the_bytes_not_of_the_name_or_of_how_they_are_cut(
    token: Token, raw_block: Callable[..., RawBlock]
) -> None:
    block = raw_block(4, 256)
    digest = token.seal(block, 1).digest
    assert token.digest(block) == digest
    assert token.digest(replace(block, name=BlockName("far", "elsewhere"))) == digest
    assert token.digest(replace(block, key_bits=128)) == digest
    assert token.digest(replace(block, material=KeyMaterial(flipped(block.material.reveal(), 127)))) != digest
    assert token.digest(replace(block, material=KeyMaterial(block.material.reveal()[:96]))) != digest


def test_the_check_value_is_the_one_that_the_ceremony_read_in_another_process(
    token: Token, address: TokenAddress, softhsm: Path
) -> None:
    assert token.check_value(1) == ceremony_check_value(softhsm, address)
    assert token.check_value(1) == token.check_value(1)
    assert len(bytes.fromhex(token.check_value(1))) == 5


def test_digest_and_check_value_differ_between_tokens(
    make_token: Callable[[], TokenAddress], token: Token, address: TokenAddress, raw_block: Callable[..., RawBlock]
) -> None:
    block = raw_block(2)
    here = token.digest(block), token.check_value(1)
    other_address = make_token()
    pkcs11.lib(str(address.module)).reinitialize()
    other = Token(other_address, lambda: PIN)
    assert other.digest(block) != here[0]
    assert other.check_value(1) != here[1]
    other.close()
    assert (token.digest(block), token.check_value(1)) == here


def ceremony_check_value(softhsm: Path, address: TokenAddress) -> str:
    (transcript,) = softhsm.parent.glob(f"first-{address.label}-*.jsonl")
    (master,) = (made for made in evidence_of(transcript) if made.get("label") == "master/1")
    return str(master["check_value"])


# Plaintext in hand ------------------------------------------------------------------------------------


@pytest.fixture
def opened(token: Token, raw_block: Callable[..., RawBlock]) -> OpenKey:
    (key,) = token.open([key_of(part_of(token.seal(raw_block(1), 1)))])
    return key


def test_key_material_is_not_shown(opened: OpenKey) -> None:
    secret = opened.material.reveal()
    shown = f"{opened!r} {opened} {opened.material} {opened.material!r} {opened.material:}"
    assert "<KeyMaterial 256 bits>" in shown
    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown
    assert not hasattr(opened.material, "__dict__")


def test_key_material_is_not_pickled_copied_compared_or_hashed(opened: OpenKey) -> None:
    for refused in (pickle.dumps, copy.copy, copy.deepcopy, hash, lambda material: material == material):
        with pytest.raises(TypeError):
            refused(opened.material)
    for refused in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            refused(opened)


def test_sealed_values_do_not_show_their_blobs(token: Token, raw_block: Callable[..., RawBlock]) -> None:
    block = raw_block(1)
    sealed = token.seal(block, 1)
    shown = f"{block!r} {sealed!r} {part_of(sealed)!r} {key_of(part_of(sealed))!r}"
    for hidden in (block.material.reveal(), sealed.segments, sealed.digest):
        assert repr(hidden)[2:-1] not in shown
