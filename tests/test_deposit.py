"""Is what a device deposits taken whole, once, and given back as it was?"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import uuid4

import pytest

from hsmkme import bootstrap
from hsmkme.custody import Custody
from hsmkme.demo.world import World
from hsmkme.drivers.keyfile import BATCH_BLOCKS, KeyFile
from hsmkme.drivers.simulator import Simulator
from hsmkme.drivers.spool import Spool
from hsmkme.errors import BlockConflict, BlockReplayed, PoolFull, WrongSize
from hsmkme.hsm import Token, TokenAddress
from hsmkme.hsm.tokens import sole
from hsmkme.intake import Intake, Tally
from hsmkme.model import Demand, Relation
from hsmkme.store import Store
from tests.conftest import PIN, FakeClock
from tests.processes import apart, processes
from tests.sites import Site, make_site
from tests.test_drivers import hex_lines, names, put
from tests.world import Demo, run_cli

WAIT_SECONDS = 120


@pytest.fixture
def site(tmp_path: Path, token: Token, address: TokenAddress, softhsm: Path) -> Site:
    directory = tmp_path / "site"
    directory.mkdir()
    return make_site(directory, token, address.label, softhsm)


@pytest.fixture
def opened(site: Site, clock: FakeClock) -> Iterator[tuple[Store, Custody]]:
    store, custody = site.open(clock)
    yield store, custody
    store.close()


@pytest.fixture
def store(opened: tuple[Store, Custody]) -> Store:
    return opened[0]


@pytest.fixture
def custody(opened: tuple[Store, Custody]) -> Custody:
    return opened[1]


@pytest.fixture
def intake(site: Site, custody: Custody) -> Intake:
    return site.intake(custody)


def keyfile(content: bytes, block_id: str = "id", link: str = "local", bits: int = 256, block_keys: int = 4) -> KeyFile:
    return KeyFile(io.BytesIO(content), link, block_id, bits, block_keys)


def key_bytes(count: int, bits: int = 256) -> bytes:
    """Random keys that do not look like text by chance."""
    return b"\xff" + os.urandom(count * bits // 8 - 1)


def delivered(custody: Custody, number: int, size: int = 256) -> list[bytes]:
    demand = Demand(Relation.of("alice", ["bob"]), "kme-1", size, tuple(uuid4() for _ in range(number)))
    return [key.material.reveal() for key in custody.release(demand, "test")]


def ready(store: Store, peer: str = "kme-1", size: int = 256) -> int:
    return sum(vein.keys for vein in store.blocks.veins(peer, size))


def events(store: Store) -> list[str]:
    return [json.loads(row.text)["event"] for row in store.log.latest(1000)]


# In the process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [64, 128, 192, 256, 1024, 4096])
def test_what_was_deposited_is_what_is_delivered(bits: int, intake: Intake, custody: Custody) -> None:
    keys = key_bytes(10, bits)
    tally = intake.run(keyfile(keys, bits=bits))
    assert (tally.keys, tally.taken, tally.already) == (10, 3, 0)
    assert (b"".join(delivered(custody, 10, bits)) == keys) is True  # `is True`: a failure prints no key


def test_keys_of_another_size_are_joined_from_what_was_deposited(intake: Intake, custody: Custody) -> None:
    keys = key_bytes(6)
    intake.run(keyfile(keys))
    whole = delivered(custody, 3, 352)
    assert (whole == [keys[n : n + 44] for n in (0, 64, 128)]) is True


def test_a_file_that_is_not_whole_keys_leaves_nothing(intake: Intake, store: Store) -> None:
    before = store.log.head()
    with pytest.raises(WrongSize):
        intake.run(keyfile(key_bytes(10) + b"x"))
    assert store.log.head() == before
    assert ready(store) == 0


def test_the_same_file_again_changes_nothing(intake: Intake, store: Store) -> None:
    keys = key_bytes(10)
    intake.run(keyfile(keys))
    before = store.log.head()
    tally = intake.run(keyfile(keys))
    assert (tally.keys, tally.taken, tally.already) == (0, 0, 3)
    tally = intake.run(keyfile(hex_lines(keys)))  # and in another form
    assert tally.already == 3
    assert (store.log.head(), ready(store)) == (before, 10)


def test_the_same_file_under_another_name_is_refused_with_an_alarm(intake: Intake, store: Store) -> None:
    keys = key_bytes(10)
    intake.run(keyfile(keys))
    for link in ("local", "far"):
        with pytest.raises(BlockReplayed):
            intake.run(keyfile(keys, "other", link))
    assert events(store)[-2:] == ["alarm.block-replayed"] * 2
    assert ready(store) == 10


def test_another_file_under_the_same_name_freezes_what_is_there(intake: Intake, store: Store) -> None:
    intake.run(keyfile(key_bytes(4)))
    with pytest.raises(BlockConflict):
        intake.run(keyfile(key_bytes(4)))
    assert events(store)[-1] == "alarm.block-conflict"
    assert ready(store) == 0


def test_a_deposit_that_the_full_pool_stopped_goes_on_where_it_was(
    site: Site, custody: Custody, store: Store
) -> None:
    keys, seen = key_bytes(20), Tally()
    small = site.intake(custody, limit=10)
    with pytest.raises(PoolFull):
        small.run(keyfile(keys))
    assert ready(store) == 8
    got = delivered(custody, 8)
    seen = site.intake(custody, limit=20).run(keyfile(keys))
    assert (seen.already, seen.taken, seen.keys) == (2, 3, 12)
    assert (b"".join(got + delivered(custody, 12)) == keys) is True


def deposit_and_tell(site: Site, address: TokenAddress, content: bytes, told: Connection) -> None:
    """Deposits a file in a process of its own; tells of every batch that was dealt with."""
    token = Token(address, lambda: PIN)
    _, custody = Site(site.directory, token).open(FakeClock())
    site.intake(custody).run(keyfile(content, block_keys=2), lambda tally: told.send(tally.taken))
    told.send("end")


def test_a_deposit_that_was_killed_goes_on_where_it_was(
    site: Site, address: TokenAddress, custody: Custody, intake: Intake, store: Store
) -> None:
    keys, batch = key_bytes(1600), 2 * BATCH_BLOCKS
    for batches in (1, 5, 12):
        receive, send = processes.Pipe(duplex=False)
        unopened = Site(site.directory, None)  # type: ignore[arg-type]  # a token does not pass to another process
        child = processes.Process(target=deposit_and_tell, args=(unopened, address, keys, send))
        child.start()
        for _ in range(batches):
            assert receive.poll(WAIT_SECONDS)
            assert receive.recv() != "end"
        child.kill()
        child.join(WAIT_SECONDS)
        assert batches * batch <= ready(store) < 1600
        assert ready(store) % batch == 0
    tally = intake.run(keyfile(keys, block_keys=2))
    assert tally.taken + tally.already == 800
    assert (b"".join(delivered(custody, 1600)) == keys) is True
    assert "alarm.block-conflict" not in events(store)


def test_blocks_of_a_local_link_are_ready_and_others_wait_for_the_peer(intake: Intake, store: Store) -> None:
    intake.run(keyfile(key_bytes(4), link="local"))
    intake.run(keyfile(key_bytes(4), link="far"))
    assert (ready(store, "kme-1"), ready(store, "kme-2")) == (4, 0)


def test_the_log_says_who_deposited_what_and_holds_no_key(intake: Intake, store: Store, site: Site) -> None:
    keys = key_bytes(8)
    intake.run(keyfile(keys))
    row = json.loads(store.log.latest(1)[0].text)
    wanted = {"event": "block.deposit", "actor": "operator", "link": "local", "block": "id/1", "keys": 4, "bits": 256}
    assert wanted.items() <= row.items()
    store.checkpoint()
    stored = site.path.read_bytes()
    assert not any(keys[n : n + 16] in stored or keys[n : n + 16].hex().encode() in stored for n in range(0, 256, 16))


def test_two_simulators_of_one_seed_deposit_once(intake: Intake, store: Store) -> None:
    device = Simulator("local", b"seed", 256, 4, 10)
    assert intake.run(device).keys == 10
    assert intake.run(device).already == 3
    more = intake.run(Simulator("local", b"seed", 256, 4, 16))
    assert (more.already, more.taken) == (2, 2)
    other = intake.run(Simulator("local", b"other seed", 256, 4, 10))
    assert (other.already, other.taken) == (0, 3)
    assert not any(event.startswith("alarm") for event in events(store))


def test_a_spool_waits_for_room_and_goes_on(site: Site, custody: Custody, store: Store) -> None:
    spool = Spool(site.directory / "spool", "local", 256, 4)
    spool.prepare()
    keys = key_bytes(12)
    put(spool, "batch.bin", keys)
    small = site.intake(custody, limit=8)
    assert spool.sweep(small.take) == 0
    assert names(spool.directory) == ["batch.bin"]
    assert ready(store) == 8
    got = delivered(custody, 8)
    assert spool.sweep(small.take) == 1
    assert (names(spool.directory), names(spool.directory / "done")) == ([], ["batch.bin"])
    assert (b"".join(got + delivered(custody, 4)) == keys) is True


def test_a_spooled_file_of_known_bytes_is_refused_and_kept(site: Site, intake: Intake, store: Store) -> None:
    spool = Spool(site.directory / "spool", "local", 256, 4)
    spool.prepare()
    keys = key_bytes(4)
    for name in ("one.bin", "two.bin"):
        put(spool, name, keys)
        spool.sweep(intake.take)
    assert (spool.directory / "refused" / "two.bin").read_bytes() == keys
    assert "are known as block one" in (spool.directory / "refused" / "two.bin.reason").read_text()
    assert events(store)[-1] == "alarm.block-replayed"


def test_the_upkeep_sweeps_the_configured_spool(site: Site, clock: FakeClock, store: Store, custody: Custody) -> None:
    """With the product's own wiring."""
    site.change_config("[[link]]", '[[spool]]\nlink = "local"\ndirectory = "spool"\n[[link]]')
    duties = bootstrap.upkeep_with_spools(bootstrap.Parts(site.settings, sole(site.token), store, custody))
    spool = Spool(site.directory / "spool", "local", 256, 128)
    put(spool, "batch.bin", key_bytes(5))
    put(spool, "bad.bin", b"\xff")
    duties.tick()
    assert ready(store) == 5
    assert (names(spool.directory / "done"), names(spool.directory / "refused")) == (
        ["batch.bin"],
        ["bad.bin", "bad.bin.reason"],
    )


# By command ---------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        (tmp_path / "keys").write_bytes(content)
        return tmp_path / "keys"

    return write


def test_a_command_deposits_a_file_and_says_what_it_did(
    site: Site, file: Callable[[bytes], Path], custody: Custody
) -> None:
    keys = key_bytes(300)
    done = site.hsmkme("deposit", file(keys), "--link", "local", "--block-id", "B 1")
    assert (done.status, done.out) == (0, "300 keys in 3 blocks deposited on link local\n")
    done = site.hsmkme("deposit", file(keys), "--link", "local", "--block-id", "B 1", "--json")
    assert json.loads(done.out) == {"link": "local", "keys": 0, "blocks_taken": 0, "blocks_already_known": 3}
    assert (b"".join(delivered(custody, 300)) == keys) is True


def test_the_same_content_gets_the_same_block_id(site: Site, file: Callable[[bytes], Path], store: Store) -> None:
    keys = file(key_bytes(300))
    for expected in ("300 keys in 3 blocks", "0 keys in 0 blocks deposited on link local, 3 blocks were known"):
        assert expected in site.hsmkme("deposit", keys, "--link", "local").out
    assert ready(store) == 300


def test_sizes_and_forms_can_be_named(site: Site, file: Callable[[bytes], Path], store: Store) -> None:
    one = site.hsmkme("deposit", file(key_bytes(4, 1024)), "--link", "local", "--key-bits", "1024", "--json")
    assert json.loads(one.out)["keys"] == 4
    text = b"0123456789abcdef" * 4
    for form, keys in (("hex", 1), ("binary", 2), ("base64", 3)):
        content = {"hex": text, "binary": text[::-1], "base64": text + text}[form]
        done = site.hsmkme("deposit", file(content), "--link", "local", "--format", form, "--json")
        assert json.loads(done.out)["keys"] == keys, done.err
    far = site.hsmkme("deposit", file(key_bytes(4, 128)), "--link", "far", "--block-id", "f", "--json")
    assert json.loads(far.out)["keys"] == 4  # of 128 bits, the link's default
    assert ready(store, size=1024) >= 4


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (b"\xff" * 33, [], "last 1 bytes are not a whole key of 256 bits"),
        (b"\xff" * 64, ["--key-bits", "100"], "a multiple of 64 bits, because the token's key wrapping pads"),
        (b"\xff" * 64, ["--key-bits", "-64"], "keys of -64 bits cannot be stored"),
        (b"", [], "the key file is empty"),
        (b"key one, key two, key three\n", [], "name its --format"),
        (b"zz" * 32, ["--format", "hex"], "line 1 is not hex"),
        (b"\xff" * 64, ["--block-id", "a\nb"], "printable characters"),
    ],
)
def test_a_command_that_is_refused_says_why_and_stores_nothing(
    content: bytes, arguments: list[str], reason: str, site: Site, file: Callable[[bytes], Path], store: Store
) -> None:
    before = store.log.head()
    done = site.hsmkme("deposit", file(content), "--link", "local", *arguments)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("hsmkme: ")
    assert reason in done.err
    assert store.log.head() == before


def test_an_unknown_link_is_refused_with_those_that_are_known(site: Site, file: Callable[[bytes], Path]) -> None:
    done = site.hsmkme("deposit", file(key_bytes(1)), "--link", "paris")
    assert (done.status, done.err) == (1, "no link 'paris' is configured; configured: local, far\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["deposit", "KEYS"],
        ["deposit", "KEYS", "--link", "local", "--format", "morse"],
        ["deposit", "KEYS", "--link", "local", "--key-bits", "many"],
        ["deposit", "KEYS", "--link", "far"],  # the other end must know the block by the same id
        ["deposit", "no such file", "--link", "local"],
        ["deposit", ".", "--link", "local"],
        ["deposit", "--link", "local"],
    ],
)
def test_wrong_usage_is_told_apart_from_a_refusal(
    arguments: list[str], site: Site, file: Callable[[bytes], Path]
) -> None:
    keys = file(key_bytes(1))
    done = site.hsmkme(*(keys if argument == "KEYS" else argument for argument in arguments))
    assert (done.status, done.err.startswith("Usage: ")) == (2, True)


def test_a_full_pool_says_try_again(site: Site, file: Callable[[bytes], Path], store: Store) -> None:
    site.change_config("[[link]]", "[keys]\nmax_key_count = 200\n[[link]]")
    done = site.hsmkme("deposit", file(key_bytes(300)), "--link", "local")
    assert (done.status, "link local holds 128 keys of at most 200: no room for 128 more" in done.err) == (75, True)
    assert ready(store) == 128


def test_a_command_simulates_a_device(site: Site, file: Callable[[bytes], Path], store: Store) -> None:
    seed = file(b"a seed")
    arguments = ("simulate", "--link", "local", "--keys", "200", "--seed-file", seed, "--json")
    assert json.loads(site.hsmkme(*arguments).out)["blocks_taken"] == 2
    assert json.loads(site.hsmkme(*arguments).out)["blocks_already_known"] == 2
    assert ready(store) == 200


# On a KME that runs, and on one that does not -----------------------------------------------------------


def test_keys_deposited_from_a_pipe_are_served_at_once(demo: Demo) -> None:
    before = demo.stored("sae-1", "sae-2")
    size = 4032  # so that only the new block can serve it without waste
    keys = key_bytes(3, size)
    done = demo.cli("deposit", "-", "--link", "local", "--key-bits", str(size), "--json", stdin=keys)
    assert json.loads(done.stdout)["keys"] == 3
    assert demo.stored("sae-1", "sae-2") == before + 3
    fetched = demo.enc("sae-1", "sae-2", number=3, size=size)
    assert (b"".join(fetched.values()) == keys) is True
    collected = demo.dec("sae-2", "sae-1", list(fetched))
    assert (collected == fetched) is True


def test_a_file_renamed_into_the_spool_of_a_running_kme_is_taken(demo: Demo) -> None:
    spool = Spool(demo.config.parent / "spool", "local", 256, 128)
    before = demo.stored("sae-1", "sae-2")
    put(spool, f"batch-{uuid4()}.hex", hex_lines(key_bytes(7)))
    deadline = threading.Event()
    for _ in range(200):
        if demo.stored("sae-1", "sae-2") == before + 7:
            break
        deadline.wait(0.1)  # nothing tells when another process has swept its spool
    assert demo.stored("sae-1", "sae-2") == before + 7


def prepare_world(directory: Path) -> None:
    """A KME that never ran, in a process of its own: it has another token directory."""
    World(directory, 0, saes=2, keys=0, workers=1, say=lambda _: None).prepare()


def test_a_kme_that_does_not_run_takes_deposits_and_serves_them_when_it_does(
    tmp_path: Path, fresh_demo: Callable[..., Demo]
) -> None:
    apart(prepare_world, tmp_path / "demo")
    keys = key_bytes(5)
    run_cli(
        *("--config", str(tmp_path / "demo" / "kme-1" / "hsmkme.toml")), "deposit", "-", "--link", "local", stdin=keys
    )
    demo = fresh_demo(saes=2, keys=0)
    assert demo.stored("sae-1", "sae-2") == 5
    assert (b"".join(demo.enc("sae-1", "sae-2", number=5).values()) == keys) is True


def test_the_same_bytes_cut_into_other_keys_are_a_replay(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    path.write_bytes(os.urandom(64))
    demo.cli("deposit", str(path), "--link", "local", "--block-id", "cut-one-way")
    again = demo.cli("deposit", str(path), "--link", "local", "--block-id", "cut-1", "--key-bits", "128", check=False)
    assert again.returncode == 1
    assert b"The device repeats itself" in again.stderr
