"""Do drivers give a device's keys, all of them, in order, and nothing else?"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkme.drivers.keyfile import BATCH_BLOCKS, Format, KeyFile, check_block_id, check_key_bits, detect, rechunk
from hsmkme.drivers.simulator import Simulator
from hsmkme.drivers.spool import Spool
from hsmkme.errors import BlockConflict, DepositRefused, PoolFull, WrongSize
from hsmkme.model import RawBlock

MEGABYTE = 1 << 20


class Pipe(io.BufferedIOBase):
    """A stream that cannot seek and gives what it has in the pieces in which it came."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        return self._stream.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        return self._stream.readline(size)


def keyfile(
    content: bytes, key_bits: int = 256, block_keys: int = 128, form: Format = "auto", **more: object
) -> KeyFile:
    return KeyFile(io.BytesIO(content), "local", "id", key_bits, block_keys, form, **more)  # type: ignore[arg-type]


def read(file: KeyFile) -> bytes:
    return b"".join(block.material.reveal() for block in file.blocks())


def same(file: KeyFile, expected: bytes) -> bool:
    """Whether the file stands for these bytes; they are not shown when it does not."""
    return read(file) == expected


def hex_lines(keys: bytes, width: int = 64, newline: str = "\n") -> bytes:
    return wrapped(keys.hex(), width, newline)


def base64_lines(keys: bytes, width: int = 76, newline: str = "\n") -> bytes:
    return wrapped(base64.b64encode(keys).decode(), width, newline)


def wrapped(text: str, width: int, newline: str) -> bytes:
    return "".join(text[n : n + width] + newline for n in range(0, len(text), width)).encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "binary": lambda keys: keys,
    "lines of hex": hex_lines,
    "a key of hex on each line": lambda keys: hex_lines(keys, 64),
    "lines of upper-case hex": lambda keys: hex_lines(keys).upper(),
    "lines of hex with CRLF": lambda keys: hex_lines(keys, newline="\r\n"),
    "lines of hex with blank lines between": lambda keys: b"\n" + hex_lines(keys, newline="\n\n") + b" \n\t\n",
    "lines of hex, the last without a newline": lambda keys: hex_lines(keys).rstrip(),
    "one line of hex": lambda keys: keys.hex().encode(),
    "one line of hex after a blank one": lambda keys: b"\r\n" + keys.hex().encode() + b"\r\n",
    "short lines of hex": lambda keys: hex_lines(keys, 16),
    "lines of base64": base64_lines,
    "lines of base64 with CRLF": lambda keys: base64_lines(keys, newline="\r\n"),
    "one line of base64": lambda keys: base64.b64encode(keys),
    "one line of base64 after a blank one": lambda keys: b"\n" + base64.b64encode(keys),
    "a key of base64 on each line": lambda keys: b"".join(
        base64.b64encode(keys[n : n + 32]) + b"\n" for n in range(0, len(keys), 32)
    ),
}


@pytest.mark.parametrize("size", [32, 96, 4096, 2 * MEGABYTE])
@pytest.mark.parametrize("form", FORMS)
def test_a_key_file_is_understood_by_looking_at_it(form: str, size: int) -> None:
    keys = os.urandom(size)
    content = FORMS[form](keys)
    assert same(keyfile(content), keys)
    pipe = KeyFile(Pipe(content), "local", "id", 256, 128)  # type: ignore[arg-type]
    assert same(pipe, keys)


@pytest.mark.parametrize("prefix", [b"", b"\n", b"ab" * 32 + b"\n", b"ab\r\n"])
def test_a_line_longer_than_what_is_read_at_once_is_one_line(prefix: bytes) -> None:
    keys = os.urandom(MEGABYTE + 512 * 1024)
    start = bytes.fromhex(prefix.decode().strip())
    padding = os.urandom(-len(start) % 32).hex().encode() + b"\n" if start else b""
    file = keyfile(prefix + padding + keys.hex().encode() + b"\n")
    assert read(file).endswith(keys)


def test_the_form_can_be_named_and_is_then_not_guessed() -> None:
    text = b"00" * 32
    assert len(read(keyfile(text, form="hex"))) == 32
    assert same(keyfile(text, form="binary"), text)
    assert len(read(keyfile(text + text, 64, form="base64"))) == 96
    with pytest.raises(WrongSize, match="line 1 is not hex"):
        read(keyfile(os.urandom(64), form="hex"))


def test_hex_that_is_valid_base64_too_is_hex() -> None:
    assert len(read(keyfile(b"abcd" * 16))) == 32


@pytest.mark.parametrize(
    "content",
    [
        b'{"keys": [{"key_ID": "x", "key": "AAAA"}]}',
        b"0x" + b"ab" * 32,
        b"ab cd " * 32,
        b"key one\nkey two\n" * 4,
        b"abc\n" + b"ab" * 32,  # a line of three digits
        b"a" * 63 + b"\n" + b"b" * 63 + b"\n" + b"c" * 62,
        b"\xef\xbb\xbf" + b"ab" * 32,
        ("ab" * 32).encode("utf-16"),
        b"-----BEGIN KEY-----\n" + base64.b64encode(bytes(64)),
    ],
)
def test_text_that_is_no_key_file_is_not_taken_for_keys(content: bytes) -> None:
    """As binary, its characters would become keys that anybody can guess."""
    with pytest.raises(DepositRefused, match=r"--format|is not base64"):
        read(keyfile(content, 64))


def test_an_empty_file_is_refused() -> None:
    for content in (b"", b"\n \r\n"):
        with pytest.raises(DepositRefused):
            read(keyfile(content))


@pytest.mark.parametrize("bad", [b"zz", b"abc", "é".encode(), b"ab cd"])
def test_a_line_that_does_not_fit_is_named_and_not_shown(bad: bytes) -> None:
    secret = os.urandom(3000)
    with pytest.raises(WrongSize) as refusal:
        read(keyfile(hex_lines(secret, 60) + bad + b"\n", 8 * 64, form="hex"))
    assert str(refusal.value) == "line 101 is not hex"
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("length", [1, 31, 33, 32 * 300 + 31])
def test_a_file_that_is_not_whole_keys_gives_none(length: int) -> None:
    given_blocks: list[RawBlock] = []
    with pytest.raises(WrongSize, match=f"last {length % 32} bytes are not a whole key of 256 bits"):
        given_blocks.extend(keyfile(b"\xff" * length).blocks())
    assert given_blocks == []


def test_a_pipe_that_is_not_whole_keys_gives_the_blocks_before() -> None:
    blocks = KeyFile(Pipe(b"\xff" * (32 * 5 + 1)), "local", "id", 256, 2).blocks()  # type: ignore[arg-type]
    assert [next(blocks).key_count, next(blocks).key_count] == [2, 2]
    with pytest.raises(WrongSize):
        next(blocks)


@pytest.mark.parametrize("key_bits", [0, -64, 1, 63, 65, 100, 352, 4097])
def test_sizes_that_cannot_be_stored_are_refused_with_the_reason(key_bits: int) -> None:
    with pytest.raises(WrongSize, match="multiple of 64 bits, because the token's key wrapping pads"):
        check_key_bits(key_bits)
    with pytest.raises(WrongSize, match=f"keys of {key_bits} bits"):
        read(keyfile(bytes(4096), key_bits))


@pytest.mark.parametrize("key_bits", range(64, 4097, 64))
def test_every_multiple_of_64_bits_up_to_4096_can_be_stored(key_bits: int) -> None:
    keys = os.urandom(key_bits // 8 * 5)
    blocks = list(keyfile(b"\xff" + keys[1:], key_bits, 2).blocks())
    assert [block.key_count for block in blocks] == [2, 2, 1]
    assert {block.key_bits for block in blocks} == {key_bits}


def test_blocks_of_a_file_are_named_alike_every_time() -> None:
    content = os.urandom(32 * 5)
    for _ in range(2):
        names = [(block.name.link_id, block.name.block_id) for block in keyfile(content, block_keys=2).blocks()]
        assert names == [("local", "id"), ("local", "id/1"), ("local", "id/2")]


def test_a_file_without_an_id_is_named_after_its_first_block() -> None:
    seen: list[int] = []

    def identify(block: RawBlock) -> str:
        seen.append(block.key_count)
        return "found"

    file = KeyFile(io.BytesIO(os.urandom(32 * 5)), "local", None, 256, 2, identify=identify)
    assert [block.name.block_id for block in file.blocks()] == ["found", "found/1", "found/2"]
    assert seen == [2]


@pytest.mark.parametrize("block_id", ["", "x" * 256, "a\nb", "a\0b", "a\u2028b", "half \udce9"])
def test_a_block_id_that_is_no_name_is_refused(block_id: str) -> None:
    with pytest.raises(DepositRefused, match="1 to 255 printable characters"):
        check_block_id(block_id)


@pytest.mark.parametrize("block_id", ["x" * 255, "a/b c", "schlüssel-🔑"])
def test_any_printable_block_id_will_do(block_id: str) -> None:
    check_block_id(block_id)


def test_progress_counts_the_bytes_of_the_file_once() -> None:
    for content in (os.urandom(100_000 * 32 // 32), hex_lines(os.urandom(9600))):
        seen: list[int] = []
        read(keyfile(content[: len(content) // 64 * 64], 64, form="binary", on_bytes=seen.append))
        assert sum(seen) == len(content) // 64 * 64


# By hypothesis ------------------------------------------------------------------------------------------

whole_keys = st.integers(1, 60).flatmap(lambda count: st.binary(min_size=8 * count, max_size=8 * count))


@given(pieces=st.lists(st.binary(max_size=40)), size=st.integers(1, 50))
def test_rechunking_keeps_every_byte_in_order(pieces: list[bytes], size: int) -> None:
    chunks = list(rechunk(iter(pieces), size))
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks[-1:])


@given(keys=whole_keys, width=st.integers(1, 70).map(lambda n: 2 * n), newline=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_was_written_in_hex_is_read_again(keys: bytes, width: int, newline: str) -> None:
    content = hex_lines(keys, width, newline)
    assert detect(content[:4096]) == "hex"
    assert same(keyfile(content, 64), keys)


@given(keys=whole_keys, width=st.integers(1, 40).map(lambda n: 4 * n), newline=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_was_written_in_base64_is_read_again(keys: bytes, width: int, newline: str) -> None:
    content = base64_lines(keys, width, newline)
    assert same(keyfile(content, 64, form="base64"), keys)
    if not all(symbol in b"0123456789abcdefABCDEF\r\n" for symbol in content):
        assert detect(content[:4096]) == "base64"
        assert same(keyfile(content, 64), keys)


@given(keys=whole_keys, place=st.integers(0), high=st.integers(128, 255))
def test_what_was_written_in_binary_is_read_again(keys: bytes, place: int, high: int) -> None:
    content = bytearray(keys)
    content[place % len(keys)] = high  # without it, binary may by chance look like text
    assert detect(bytes(content)) == "binary"
    assert same(keyfile(bytes(content), 64), bytes(content))


@given(keys=whole_keys, block_keys=st.integers(1, 9))
def test_cutting_into_blocks_keeps_every_key_in_order(keys: bytes, block_keys: int) -> None:
    blocks = list(keyfile(keys, 64, block_keys, "binary").blocks())
    assert b"".join(block.material.reveal() for block in blocks) == keys
    assert all(block.key_count == block_keys for block in blocks[:-1])
    assert len({block.name for block in blocks}) == len(blocks)


# Simulator ----------------------------------------------------------------------------------------------


def simulator(**changes: object) -> Simulator:
    settings = {"link_id": "local", "seed": b"seed", "key_bits": 256, "block_keys": 4, "count": 10, **changes}
    return Simulator(**settings)  # type: ignore[arg-type]


def content_of(device: Simulator) -> list[tuple[str, bytes]]:
    return [(block.name.block_id, block.material.reveal()) for block in device.blocks()]


def test_the_same_seed_gives_the_same_blocks() -> None:
    assert content_of(simulator()) == content_of(simulator())
    assert [block.key_count for block in simulator().blocks()] == [4, 4, 2]


@pytest.mark.parametrize(
    "change", [{"seed": b"other"}, {"link_id": "far"}, {"key_bits": 512}, {"block_keys": 5}, {"start": 3}]
)
def test_anything_else_gives_other_blocks_of_other_names(change: dict[str, object]) -> None:
    one, other = content_of(simulator()), content_of(simulator(**change))
    assert not {name for name, _ in one} & {name for name, _ in other}
    keys = [content[n : n + 32] for _, content in one + other for n in range(0, len(content), 32)]
    assert len(set(keys)) == len(keys)


def test_more_keys_of_the_same_seed_are_the_same_blocks_and_more() -> None:
    """The short last block is another block than the whole one of that number, with keys of its own."""
    few, many = dict(content_of(simulator(count=10))), dict(content_of(simulator(count=16)))
    common = few.keys() & many.keys()
    assert len(common) == 2
    assert all(few[name] == many[name] for name in common)
    (short,) = (content for name, content in few.items() if name not in common)
    assert not any(short[:32] in content for content in many.values())


def test_a_later_start_goes_on_where_the_first_run_stopped() -> None:
    assert content_of(simulator(count=16))[2:] == content_of(simulator(count=8, start=2))


def test_a_rate_is_kept_by_pausing() -> None:
    pauses: list[float] = []
    list(simulator(rate=2.0, sleep=pauses.append).blocks())
    assert pauses == [2.0, 2.0, 1.0]


def test_a_file_and_a_fast_simulator_give_blocks_together_others_each_at_once() -> None:
    content, most = b"\xff" * 32 * (2 * BATCH_BLOCKS + 1), BATCH_BLOCKS
    pipe = KeyFile(Pipe(content), "local", "id", 256, 1)  # type: ignore[arg-type]
    for source, sizes in (
        (keyfile(content, block_keys=1), [most, most, 1]),
        (pipe, [1] * (2 * most + 1)),
        (simulator(count=4 * most + 4), [most, 1]),
        (simulator(count=12, rate=1e9, sleep=lambda _: None), [1, 1, 1]),
    ):
        assert [len(batch) for batch in source.batches()] == sizes


# Spool --------------------------------------------------------------------------------------------------


class Taker:
    """Takes blocks as `Intake.take` does, or refuses them."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.refusal: Exception | None = None

    def __call__(self, blocks: Sequence[RawBlock], actor: str) -> None:
        assert actor == "spool:local"
        if self.refusal:
            raise self.refusal
        self.taken += [(block.name.block_id, block.material.reveal()) for block in blocks]


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool", "local", 256, 128)
    made.prepare()
    return made


def put(spool: Spool, name: str, content: bytes) -> None:
    """As a device does: written under another name, then renamed."""
    part = spool.directory / f"{name}.part"
    part.write_bytes(content)
    part.rename(spool.directory / name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_file_is_taken_once_and_emptied(spool: Spool, taker: Taker) -> None:
    keys = os.urandom(64)
    put(spool, "batch.bin", keys)
    assert spool.sweep(taker) == 1
    assert taker.taken == [("batch", keys)]
    assert names(spool.directory) == []
    assert (spool.directory / "done" / "batch.bin").read_bytes() == b""
    assert spool.sweep(taker) == 0
    assert len(taker.taken) == 1


def test_files_are_taken_in_the_order_of_their_names(spool: Spool, taker: Taker) -> None:
    for name in ("b", "a", "c"):
        put(spool, name, os.urandom(32))
    assert spool.sweep(taker) == 3
    assert [name for name, _ in taker.taken] == ["a", "b", "c"]


def test_what_is_still_written_or_no_file_is_left_alone(spool: Spool, taker: Taker, tmp_path: Path) -> None:
    for name in ("x.part", ".hidden", ".hidden.bin"):
        (spool.directory / name).write_bytes(os.urandom(32))
    (spool.directory / "folder").mkdir()
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(os.urandom(32))
    (spool.directory / "link.bin").symlink_to(elsewhere)
    (spool.directory / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(spool.directory / "pipe")
    assert spool.sweep(taker) == 0
    assert taker.taken == []
    assert len(elsewhere.read_bytes()) == 32
    assert names(spool.directory / "done") == names(spool.directory / "refused") == []


def test_a_refused_file_is_kept_with_the_reason(spool: Spool, taker: Taker) -> None:
    put(spool, "bad.bin", b"\xff" * 33)
    put(spool, "good.bin", os.urandom(32))
    assert spool.sweep(taker) == 1
    refused = spool.directory / "refused"
    assert names(refused) == ["bad.bin", "bad.bin.reason"]
    assert (refused / "bad.bin").read_bytes() == b"\xff" * 33
    assert "last 1 bytes are not a whole key of 256 bits" in (refused / "bad.bin.reason").read_text()
    assert [name for name, _ in taker.taken] == ["good"]


def test_a_block_that_the_store_refuses_is_kept_with_the_reason(spool: Spool, taker: Taker) -> None:
    taker.refusal = BlockConflict("known with other bytes")
    put(spool, "batch.bin", os.urandom(32))
    assert spool.sweep(taker) == 0
    assert (spool.directory / "refused" / "batch.bin.reason").read_text() == "known with other bytes\n"


def test_files_wait_while_the_pool_is_full(
    spool: Spool, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {name: os.urandom(32) for name in ("a.bin", "b.bin")}
    for name, content in contents.items():
        put(spool, name, content)
    taker.refusal = PoolFull("link local holds 10 keys of at most 10")
    with caplog.at_level(logging.WARNING):
        assert spool.sweep(taker) == 0
    assert "waits: link local holds 10 keys of at most 10" in caplog.text
    assert names(spool.directory) == ["a.bin", "b.bin"]
    taker.refusal = None
    assert spool.sweep(taker) == 2
    assert [content for _, content in taker.taken] == list(contents.values())


def test_a_name_used_again_keeps_both_files(spool: Spool, taker: Taker) -> None:
    for _ in range(3):
        put(spool, "batch.bin", os.urandom(32))
        spool.sweep(taker)
        put(spool, "bad.bin", b"\xff")
        spool.sweep(taker)
    assert names(spool.directory / "done") == ["batch.bin", "batch.bin.1", "batch.bin.2"]
    assert [name for name in names(spool.directory / "refused") if not name.endswith(".reason")] == [
        *("bad.bin", "bad.bin.1", "bad.bin.2")
    ]
    assert len(names(spool.directory / "refused")) == 6


def test_a_name_that_is_not_utf_8_is_refused_and_stops_nothing(
    spool: Spool, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    strange = os.fsencode(spool.directory) + b"/a-\xe9.bin"
    with open(strange, "wb") as file:
        file.write(os.urandom(32))
    put(spool, "good.bin", os.urandom(32))
    assert spool.sweep(taker) == 1
    assert [name for name, _ in taker.taken] == ["good"]
    assert os.path.exists(os.fsencode(spool.directory) + b"/refused/a-\xe9.bin")
    assert os.path.exists(os.fsencode(spool.directory) + b"/refused/a-\xe9.bin.reason")
    assert r"a-\udce9.bin' refused" in caplog.text, "what a device calls its file does not stop the log"


def test_a_file_that_goes_away_or_cannot_be_read_stops_nothing(
    spool: Spool, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.bin", "b.bin", "c.bin", "d.bin"):
        put(spool, name, os.urandom(32))

    def take(blocks: Sequence[RawBlock], actor: str) -> None:
        if blocks[0].name.block_id == "a":
            (spool.directory / "b.bin").unlink()
        if blocks[0].name.block_id == "c":
            raise OSError("Input/output error")
        taker(blocks, actor)

    with caplog.at_level(logging.ERROR):
        assert spool.sweep(take) == 2
    assert "'c.bin' cannot be read, it will be tried again" in caplog.text
    assert [name for name, _ in taker.taken] == ["a", "d"]
    assert names(spool.directory) == ["c.bin"]


def test_a_crash_before_emptying_leaves_no_plain_copy_after_the_next_start(spool: Spool) -> None:
    left = spool.directory / "done" / "batch.bin"
    left.write_bytes(os.urandom(3 * MEGABYTE))
    spool.prepare()
    assert left.read_bytes() == b""


def test_two_files_whose_blocks_could_be_named_alike_are_not(spool: Spool, taker: Taker) -> None:
    put(spool, "batch.bin", os.urandom(32 * 129))
    put(spool, "batch.1.bin", os.urandom(32))
    assert spool.sweep(taker) == 2
    block_ids = [name for name, _ in taker.taken]
    assert sorted(block_ids) == ["batch", "batch.1", "batch/1"]


def test_a_large_file_is_overwritten_in_place(spool: Spool, taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is cut to nothing, what is on disk is zeros."""
    keys = os.urandom(32 * 1024 * 33)
    put(spool, "batch.bin", keys)
    synced: list[bytes] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((spool.directory / "done" / "batch.bin").read_bytes())

    monkeypatch.setattr(os, "fsync", look)
    spool.sweep(taker)
    assert synced == [bytes(len(keys))]
