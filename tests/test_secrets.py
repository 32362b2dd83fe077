"""Can a key or a PIN be found anywhere but in the token and in the answers to SAEs?

The test chooses the keys: each carries a mark, other marks for keys with another fate, so that one search
finds any of them, whole or half, raw or in the forms that programs print bytes in.
"""

from __future__ import annotations

import base64
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.load import check_same
from tests.world import Demo, start_demo, until

CHUNK = 1 << 22


@dataclass(frozen=True)
class Fate:
    """Keys that share a fate, and the marks that they carry: 16 bytes in front, 8 in the second half."""

    name: str
    front: bytes = field(default_factory=lambda: _mark(16), repr=False)
    behind: bytes = field(default_factory=lambda: _mark(8), repr=False)

    def keys(self, number: int) -> list[bytes]:
        """Different keys of 256 bits."""
        return [self.front + self.behind + os.urandom(8) for _ in range(number)]

    def needles(self) -> dict[str, bytes]:
        """What to look for, by what it is."""
        halves = {"front": self.front, "behind": self.behind}
        return {
            f"{half} half of a {self.name} key, {form}": needle
            for half, mark in halves.items()
            for form, needle in forms_of(mark).items()
        }


def _mark(length: int) -> bytes:
    """Random bytes that every program prints as escapes."""
    return bytes(byte | 0x80 for byte in os.urandom(length))


def forms_of(secret: bytes) -> dict[str, bytes]:
    """The forms in which programs write bytes, wherever they begin in a longer text."""
    forms = {
        "raw": secret,
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "repr": repr(secret)[2:-1].encode(),
        "decimals": ", ".join(str(byte) for byte in secret).encode(),
    }
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        whole = text[-(-shift * 8 // 6) : (shift + len(secret)) * 8 // 6]
        forms[f"base64 at {shift}"] = whole
        forms[f"URL-safe base64 at {shift}"] = whole.translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def found_in(data: bytes, needles: dict[str, bytes]) -> list[str]:
    """The names of the needles in ``data``."""
    return [name for name, needle in needles.items() if needle in data]


def found_in_files(directory: Path, needles: dict[str, bytes], leave: tuple[str, ...] = ()) -> list[str]:
    """Where under ``directory`` which needles are."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in leave]
    assert files
    return [f"{path}: {name}" for path in files for name in found_in(path.read_bytes(), needles)]


def found_in_memory(pid: int, needles: dict[str, bytes]) -> list[str]:
    """Which needles are in the readable memory of a process. Raises `PermissionError` where the kernel forbids it."""
    longest = max(len(needle) for needle in needles.values())
    found: set[str] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            tail = b""
            for offset in range(start, end, CHUNK):
                memory.seek(offset)
                piece = memory.read(min(CHUNK, end - offset)) or b""
                found.update(found_in(tail + piece, needles))
                tail = piece[-longest:]
    return sorted(found)


def arguments_and_environments() -> bytes:
    """Of every process, as far as this user may read them."""
    pieces = [subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True).stdout]
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]:
        try:
            pieces.append(path.read_bytes())
        except OSError:  # of another user, not dumpable, or ended
            continue
    return b"\n".join(pieces)


@dataclass
class Scene:
    """A KME with keys of every fate, and what was seen while they came in."""

    demo: Demo
    fates: dict[str, Fate]
    printed: bytes
    seen: bytes
    erased: list[bytes] = field(repr=False)
    """The sealed form of keys that are consumed by now."""
    waiting: list[bytes] = field(repr=False)
    """The sealed form of keys that are not."""

    def needles(self, *names: str) -> dict[str, bytes]:
        """For keys of these fates, or of all."""
        chosen = names or tuple(self.fates)
        return {what: needle for name in chosen for what, needle in self.fates[name].needles().items()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Keys deposited in every way and form; some collected, some fetched, some left alone."""
    fates = {name: Fate(name) for name in ("consumed", "fetched", "kept", "spooled")}
    outside = tmp_path_factory.mktemp("device")
    with start_demo(tmp_path_factory.mktemp("secrets"), saes=3, keys=0, workers=2) as demo:
        first, second = fates["consumed"].keys(16), [*fates["consumed"].keys(4), *fates["fetched"].keys(4)]
        second += fates["kept"].keys(4)
        printed = _deposit_file(demo, outside / "first.bin", b"".join(first))
        printed += _deposit_file(demo, outside / "second.b64", _lines(base64.b64encode(key) for key in second))
        more, seen = _deposit_pipe(demo, _lines(key.hex().encode() for key in fates["kept"].keys(8)))
        _deposit_by_spool(demo, fates["spooled"])
        sealed = _sealed(demo)
        _exchange(demo, [*first, *second[:4]], second[4:8])
        yield Scene(demo, fates, printed + more, seen, sealed[:20], sealed[20:])


def _lines(pieces: Iterator[bytes]) -> bytes:
    return b"".join(piece + b"\n" for piece in pieces)


def _deposit_file(demo: Demo, path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    done = demo.cli("--verbose", "deposit", str(path), "--link", "local")
    path.unlink()
    return done.stdout + done.stderr


def _deposit_pipe(demo: Demo, content: bytes) -> tuple[bytes, bytes]:
    """What the command printed, and what others could see of it while it was at work."""
    command = [sys.executable, "-m", "hsmkme", "--config", str(demo.config), "--verbose", "deposit", "-"]
    command += ["--link", "local"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        until(lambda: b"hsmkme" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        seen = arguments_and_environments()
        printed, _ = process.communicate(content[len(content) // 2 :], timeout=60)
    assert process.returncode == 0, printed
    assert str(demo.config).encode() in seen, "the deposit was not among what was seen"
    return printed, seen


def _deposit_by_spool(demo: Demo, fate: Fate) -> None:
    contents = {
        "one.bin": b"".join(fate.keys(8)),
        "two.hex": _lines(key.hex().encode() for key in fate.keys(8)),
        "three.b64": _lines(base64.b64encode(key) for key in fate.keys(8)),
    }
    for name, content in contents.items():
        part = demo.spool / f"{name}.part"
        part.write_bytes(content)
        part.rename(demo.spool / name)
    until(lambda: all((demo.spool / "done" / name).exists() for name in contents), 30, "the spool is taken")
    until(lambda: all((demo.spool / "done" / name).stat().st_size == 0 for name in contents), 30, "and emptied")


def _sealed(demo: Demo) -> list[bytes]:
    """The sealed form of every key, in the order in which they are claimed."""
    with demo.database() as connection:
        blocks = connection.execute("SELECT sealed FROM segments ORDER BY block_pk").fetchall()
    return [sealed[start : start + 48] for (sealed,) in blocks for start in range(0, len(sealed), 48)]


def _exchange(demo: Demo, consumed: list[bytes], fetched: list[bytes]) -> None:
    """Fetch keys and collect the first of them; the KME must give those that this test deposited."""
    got = demo.enc("sae-1", "sae-2", number=len(consumed))
    check_same(dict(enumerate(got.values())), dict(enumerate(consumed)))
    check_same(demo.dec("sae-2", "sae-1", list(got)), got)
    rest = demo.enc("sae-1", "sae-3", number=len(fetched))
    check_same(dict(enumerate(rest.values())), dict(enumerate(fetched)))


# The search finds what there is to find -----------------------------------------------------------------------


def test_the_search_finds_every_form_in_a_file(tmp_path: Path) -> None:
    fate = Fate("planted")
    for number, needle in enumerate(fate.needles().values()):
        (tmp_path / f"plain-{number}").write_bytes(os.urandom(1000) + needle + os.urandom(1000))
    for name, needle in fate.needles().items():
        assert any(line.endswith(f": {name}") for line in found_in_files(tmp_path, {name: needle}))


def test_the_search_finds_a_key_in_a_longer_text_of_each_form() -> None:
    fate = Fate("planted")
    (key,) = fate.keys(1)
    for before in (b"", b"a", b"bc", b"def"):
        text = before + key + b"xyz"
        for written in (text, text.hex().encode(), base64.b64encode(text), repr(text).encode(), str([*text]).encode()):
            found = found_in(written, fate.needles())
            assert any(name.startswith("front") for name in found)
            assert any(name.startswith("behind") for name in found)


@contextmanager
def _holder(secret: bytes) -> Iterator[int]:
    """A process that has a secret in its memory, and its hex form among its arguments and in its environment."""
    code = "import sys; kept = sys.stdin.buffer.read(16); print('ready', flush=True); sys.stdin.buffer.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, secret.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"SECRET": secret.hex().upper()},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(secret)
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def test_the_search_finds_a_secret_in_the_memory_arguments_and_environment_of_a_process() -> None:
    fate = Fate("planted")
    needles = {name: needle for name, needle in fate.needles().items() if name.startswith("front")}
    with _holder(fate.front) as pid:
        assert "front half of a planted key, raw" in found_in_memory(pid, needles)
        found = found_in(arguments_and_environments(), needles)
    assert {"front half of a planted key, hex", "front half of a planted key, HEX"} <= set(found)


# And there is nothing ------------------------------------------------------------------------------------------


def test_no_key_is_in_any_file_of_the_kme(scene: Scene) -> None:
    """Database, WAL, logs, transcript, spool, token, and an export of the log."""
    scene.demo.log_rows()
    assert list(scene.demo.directory.glob("export-*"))
    assert found_in_files(scene.demo.directory, scene.needles()) == []


def test_no_key_was_printed_or_visible_to_others_while_it_was_deposited(scene: Scene) -> None:
    assert b"deposited" in scene.printed
    assert found_in(scene.printed, scene.needles()) == []
    assert found_in(scene.seen, scene.needles()) == []


def test_no_key_is_among_arguments_or_environments_now(scene: Scene) -> None:
    assert found_in(arguments_and_environments(), scene.needles()) == []


def test_keys_that_nobody_fetched_are_not_in_the_memory_of_a_worker(scene: Scene) -> None:
    _check_memory(scene.demo.workers(), scene.needles("kept", "spooled"))


def test_keys_that_came_by_command_are_not_in_the_memory_of_server_and_upkeep(scene: Scene) -> None:
    """The upkeep itself deposits what comes by spool, and is the only one that had that in its memory."""
    _check_memory([scene.demo.upkeep_pid], scene.needles("consumed", "fetched", "kept"))
    _check_memory([scene.demo.server_pid], scene.needles())


def _check_memory(pids: list[int], needles: dict[str, bytes]) -> None:
    assert pids
    for pid in pids:
        if os.geteuid() == 0:
            assert found_in_memory(pid, needles) == []
        else:
            with pytest.raises(PermissionError):  # the kernel keeps everybody else out
                found_in_memory(pid, needles)


def test_no_process_of_the_kme_leaves_a_core_file(scene: Scene) -> None:
    for pid in [*scene.demo.kme["pids"], *scene.demo.workers()]:
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def test_pins_are_in_their_own_files_alone(scene: Scene) -> None:
    home = scene.demo.config.parent
    pins = {name: (home / name).read_bytes().strip() for name in ("pin", "so-pin")}
    assert min(len(pin) for pin in pins.values()) >= 8
    needles = {f"{name}, {form}": text for name, pin in pins.items() for form, text in forms_of(pin).items()}
    assert found_in_files(scene.demo.directory, needles, leave=("pin", "so-pin")) == []
    assert found_in(scene.seen + scene.printed + arguments_and_environments(), needles) == []


def test_what_was_stored_of_consumed_keys_is_gone_from_the_disk_after_the_scrub(scene: Scene) -> None:
    """An upkeep scrubs as soon as it starts; the service goes on meanwhile."""
    demo = scene.demo
    os.kill(demo.upkeep_pid, signal.SIGKILL)
    with demo.upkeep():
        wal = demo.store.with_name(demo.store.name + "-wal")
        until(lambda: wal.stat().st_size == 0, 30, "the WAL is emptied")
    erased = {f"sealed key {number}": sealed for number, sealed in enumerate(scene.erased)}
    waiting = {f"sealed key {number}": sealed for number, sealed in enumerate(scene.waiting)}
    stored = demo.store.read_bytes()
    assert found_in(stored, waiting) == list(waiting), "the search does not find what is there"
    assert found_in(stored, erased) == []
    assert found_in_files(demo.config.parent, {name: sealed[:32] for name, sealed in erased.items()}) == []


def test_tracebacks_and_alarms_in_the_log_show_no_key(tmp_path: Path) -> None:
    """Keys are claimed, do not open, and cannot be voided: the one case in which a traceback is due."""
    fates = {"broken": Fate("broken"), "fetched": Fate("fetched")}
    with start_demo(tmp_path, saes=2, keys=0, workers=1) as demo:
        for fate in fates.values():
            demo.cli("deposit", "-", "--link", "local", stdin=_lines(key.hex().encode() for key in fate.keys(8)))
        _make_voiding_fail(demo)
        fetched = demo.enc("sae-1", "sae-2", number=3)
        assert all(key.startswith(fates["fetched"].front) for key in fetched.values())
        _fail_in_every_way(demo)
        log = (demo.config.parent / "serve.log").read_bytes()
        assert b"Traceback" in log
        assert b"ALARM" in log
        needles = {what: needle for fate in fates.values() for what, needle in fate.needles().items()}
        assert found_in_files(demo.directory, needles) == []


def _make_voiding_fail(demo: Demo) -> None:
    with demo.database() as connection:
        connection.execute(
            "CREATE TRIGGER nothing_is_voided BEFORE UPDATE OF state ON key WHEN NEW.state = 'void'"
            " BEGIN SELECT RAISE(ABORT, 'nothing is voided'); END"
        )
        (sealed,) = connection.execute("SELECT sealed FROM segments ORDER BY block_pk LIMIT 1").fetchone()
        changed = bytes([sealed[0] ^ 1]) + sealed[1:]
        connection.execute("UPDATE segments SET sealed = ? WHERE block_pk = 1", (changed,))


def _fail_in_every_way(demo: Demo) -> None:
    """Wrong bodies, an unknown key, and a token that is away while workers start."""
    bodies: list[Any] = [{"number": 0}, {"size": 7}, {"key_IDs": "x"}, {"key_IDs": [{"key_ID": "0" * 36}]}]
    for body in bodies:
        demo.post("sae-1", "sae-2/enc_keys", body)
        demo.post("sae-2", "sae-1/dec_keys", body)
    tokens, elsewhere = demo.config.parent / "tokens", demo.config.parent / "pulled"
    tokens.rename(elsewhere)
    for pid in demo.workers():
        os.kill(pid, signal.SIGKILL)
    assert demo.post("sae-1", "sae-2/enc_keys").status_code == 503
    elsewhere.rename(tokens)
    until(lambda: demo.post("sae-1", "sae-2/enc_keys", {"number": 1}).status_code == 200)
