"""Is a destructive command refused to who has not the officers' approval of exactly that, and is all of it recorded?"""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hsmkme.audit import timestamp
from hsmkme.custody import Custody
from hsmkme.errors import OperatorFault
from hsmkme.hsm import Token, TokenAddress
from hsmkme.model import BlockName, KeyMaterial, RawBlock
from hsmkme.officers import NAMESPACE, SignedRequest
from hsmkme.sshsig import private_key, sign, verified
from hsmkme.states import BlockState
from hsmkme.store import Store
from tests.processes import Done
from tests.rotating import labels
from tests.sites import Site, make_site
from tests.tokens import PIN

NAMES = ("alice", "bob", "carol", "dave")
ACTS = ("epoch.shred", "epoch.revoke", "restore", "policy.lower")
GOOD = ("bob", "carol")


@dataclass(frozen=True)
class Act:
    """A destructive command that is about to be given, and a look at everything that it would change."""

    site: Site
    operation: str
    target: str
    command: tuple[object, ...]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, *files: Path) -> Done:
        if self.operation == "policy.lower":
            return self.site.hsmkme(*self.command, *files)
        return self.site.hsmkme(*self.command, *itertools.chain.from_iterable(("--approval", file) for file in files))

    def state(self) -> object:
        """Everything but the log."""
        tables = ("epoch", "block", "lineage", "approval", "approval_policy", "far_end")
        with closing(sqlite3.connect(self.site.path)) as connection:
            rows = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]  # noqa: S608
        return rows, labels(self.site.token, "master/")

    def asked(self, target: str = "") -> Path:
        """Alice asks, by the command."""
        file = self._file()
        asks = ("request", self.operation, target or self.target, "--key", self.site.directory / "alice", "--out", file)
        done = self.site.hsmkme("approve", *asks)
        assert done.status == 0, done.err
        return file

    def approved(self, *names: str, file: Path | None = None) -> Path:
        """A file in which these signed too, whatever the rules say."""
        text = (file or self.asked()).read_text()
        line = (text.partition("\n")[0] + "\n").encode()
        keys = (private_key((self.site.directory / name).read_bytes(), None) for name in names)
        signed = self._file()
        signed.write_text(text + "".join(sign(line, key, NAMESPACE) for key in keys))
        return signed

    def of_yesterday(self) -> Path:
        """Rightly signed by all, and a minute too old."""
        request = replace(SignedRequest.read(self.asked()).request, expires=timestamp(time.time() - 60))
        file = self._file()
        file.write_text(request.text)
        return self.approved("alice", *GOOD, file=file)

    def altered(self) -> Path:
        """Approved for something else, and changed to this."""
        file = self.approved(*GOOD, file=self.asked("another"))
        file.write_text(file.read_text().replace('"target":"another"', f'"target":"{self.target}"'))
        return file

    def _file(self) -> Path:
        return self.site.directory / f"approval-{next(self.numbers)}"


WRONG: list[tuple[str, Callable[[Act], list[Path]], str]] = [
    ("nobody asked", lambda _: [], "officers must approve this first"),
    ("nobody approved", lambda act: [act.asked()], "2 more of the officers must sign"),
    ("one approved", lambda act: [act.approved("dave")], "1 more of the officers must sign"),
    ("expired", lambda act: [act.of_yesterday()], "the approval expired"),
    ("altered", lambda act: [act.altered()], "the approval was altered"),
    ("self-approved", lambda act: [act.approved("bob", "alice")], "alice asks for this and cannot approve it too"),
    ("duplicate", lambda act: [act.approved("bob", "bob")], "bob approved this already"),
    ("for something else", lambda act: [act.approved(*GOOD, file=act.asked("9"))], "the approval is for"),
]


@pytest.fixture
def acts(make_token: Callable[[], TokenAddress], softhsm: Path) -> Iterator[Callable[[str, Path], Act]]:
    """Makes a site that is about to do an act, on a token of its own; a block is in its store."""
    address = make_token()
    token = Token(address, lambda: PIN)

    def make(operation: str, home: Path) -> Act:
        home.mkdir()
        site = make_site(home, token, address.label, softhsm)
        site.enrol(2, *NAMES)
        assert site.hsmkme("approve", "adopt").status == 0
        store, custody = site.open(time.time)
        deposit(custody, "one")
        return MAKERS[operation](site, store, custody)

    yield make
    token.close()


def deposit(custody: Custody, name: str) -> None:
    block = RawBlock(BlockName("local", name), 256, KeyMaterial(os.urandom(64)))
    custody.deposit([block], BlockState.READY, 1000, "device")


def to_shred(site: Site, store: Store, _custody: Custody) -> Act:
    store.close()
    return Act(site, "epoch.shred", "1", ("epoch", "shred", 1, "--now"))


def to_revoke(site: Site, store: Store, _custody: Custody) -> Act:
    store.close()
    return Act(site, "epoch.revoke", "1", ("revoke", "--epoch", 1, "--reason", "test"))


def to_restore(site: Site, store: Store, custody: Custody) -> Act:
    """An old copy of the store is put back; the token remembers the one that it replaces."""
    copy = site.directory / "copy"
    with closing(sqlite3.connect(site.path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    for number in range(40):
        deposit(custody, f"more-{number}")
    site.token.anchor().drop(store.lineage.now())
    store.close()
    for suffix in ("-wal", "-shm"):
        site.path.with_name(site.path.name + suffix).unlink(missing_ok=True)
    site.path.write_bytes(copy.read_bytes())
    said = site.hsmkme("restore").err
    return Act(site, "restore", re.findall(r"approve request restore (\S+)`", said)[0], ("restore",))


def to_lower(site: Site, store: Store, _custody: Custody) -> Act:
    store.close()
    site.change_config("[token]", "[epochs]\nrotate_seconds = 0\n[token]")
    said = site.hsmkme("approve", "adopt").err
    return Act(site, "policy.lower", re.findall(r"request policy.lower (\S+)`", said)[0], ("approve", "adopt"))


MAKERS = {"epoch.shred": to_shred, "epoch.revoke": to_revoke, "restore": to_restore, "policy.lower": to_lower}


@pytest.fixture(params=ACTS)
def act(request: pytest.FixtureRequest, acts: Callable[[str, Path], Act], tmp_path: Path) -> Act:
    return acts(request.param, tmp_path / "site")


def logged(site: Site, event: str) -> list[dict[str, str]]:
    store = site.open_store(time.time)
    rows = [json.loads(row.text) for row in store.log.latest(100, event)]
    store.close()
    return rows


def test_it_is_refused_without_exactly_that_approval_and_changes_nothing(act: Act) -> None:
    for name, files, why in WRONG:
        given, before = files(act), act.state()
        done = act.run(*given)
        assert (done.status, why in done.err) == (1, True), (name, done)
        assert act.state() == before, name
        assert logged(act.site, "approval.")[-1]["event"] == "approval.refuse", name
    require_done(act)


def require_done(act: Act) -> None:
    """Approved it is done, once, and recorded with every signature."""
    file, before = act.approved(*GOOD), act.state()
    done = act.run(file)
    assert done.status == 0, done.err
    assert act.state() != before
    (used,) = logged(act.site, "approval.use")
    assert (used["operation"], used["target"]) == (act.operation, act.target)
    assert sorted(used["signatures"]) == ["alice", "bob", "carol"]
    for signature in dict(used["signatures"]).values():
        verified(used["request"].encode(), signature, NAMESPACE)
    proved = act.site.hsmkme("audit", "verify")
    assert proved.status == 0, proved.err
    after = act.state()
    again = act.run(file)
    assert act.state() == after, "an approval is good for one act"
    assert again.status == (0 if act.operation in ("restore", "policy.lower") else 1), again
    assert len(logged(act.site, "approval.use")) == 1


def test_officers_sign_copies_in_parallel_and_the_command_takes_all_of_them(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("epoch.revoke", tmp_path / "site")
    asked = act.asked()
    assert act.run(act.approved("bob", file=asked), act.approved("carol", file=asked)).status == 0


def test_an_epoch_that_is_shredded_now_takes_what_is_under_it_with_it_and_nothing_else(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("epoch.shred", tmp_path / "site")
    done = act.run(act.approved(*GOOD))
    assert "master key destroyed, and proved to be; 1 blocks given up" in done.out
    store, custody = act.site.open(time.time)
    assert {epoch.number: str(epoch.state) for epoch in store.epochs.all()} == {1: "destroyed", 2: "active"}
    deposit(custody, "two")
    store.close()
    assert act.site.hsmkme("epoch", "rotate").status == act.site.hsmkme("epoch", "rewrap", 2).status == 0
    shredded = act.site.hsmkme("epoch", "shred", 2)  # nothing is under it: upkeep would do the same
    assert (shredded.status, "0 blocks given up" in shredded.out) == (0, True), shredded
    assert len(logged(act.site, "approval.use")) == 1


def test_a_revocation_that_was_cut_short_goes_on_with_the_approval_that_it_had(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("epoch.revoke", tmp_path / "site")
    store, _ = act.site.open(time.time)
    with closing(sqlite3.connect(act.site.path)) as connection:
        connection.execute("CREATE TRIGGER cut BEFORE UPDATE ON block BEGIN SELECT RAISE(ABORT, 'cut short'); END")
    assert act.run(act.approved(*GOOD)).status != 0
    with closing(sqlite3.connect(act.site.path)) as connection:
        connection.execute("DROP TRIGGER cut")
    assert str(store.epochs.one(1).state) == "compromised"
    assert act.run().status == 0
    assert str(store.epochs.one(1).state) == "destroyed"
    store.close()


def test_an_old_copy_of_the_store_is_not_gone_on_with_by_any_process_before_officers_approved_it(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("restore", tmp_path / "site")
    with pytest.raises(OperatorFault, match=f"have officers approve `restore {act.target}`"):
        act.site.open(time.time)
    refused = act.site.hsmkme("epoch", "rotate")
    assert (refused.status, "this store is an old copy" in refused.err) == (1, True)
    assert act.run(act.approved(*GOOD)).status == 0
    store, _ = act.site.open(time.time)
    assert len(store.log.latest(10, "alarm.store-restored")) == 1
    store.close()
    assert act.site.hsmkme("epoch", "rotate").status == 0


def test_a_service_does_not_start_by_a_configuration_that_lowers_the_policy(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("policy.lower", tmp_path / "site")
    for command in (("upkeep",), ("serve",), ("epoch", "rotate")):
        refused = act.site.hsmkme(*command)
        assert (refused.status, "lowers the policy in force (epochs.rotate_seconds)" in refused.err) == (1, True)
    found = act.site.hsmkme("check")
    assert "approvals: the policy of the configuration is not in force" in found.out + found.err
    assert act.run(act.approved(*GOOD)).status == 0
    assert act.site.hsmkme("epoch", "rotate").status == 0


def test_officers_who_are_left_out_of_the_configuration_are_still_asked(
    acts: Callable[[str, Path], Act], tmp_path: Path
) -> None:
    act = acts("epoch.revoke", tmp_path / "site")
    act.site.config.write_text(re.sub(r"\[approvals\]\n.*\n.*\n", "", act.site.config.read_text()))
    refused = act.run()
    assert (refused.status, "lowers the policy in force (approvals.needed)" in refused.err) == (1, True)
    assert act.site.hsmkme("approve", "adopt").status == 1


def test_without_officers_the_acts_are_done_and_the_log_says_that_nobody_approved(
    make_token: Callable[[], TokenAddress], softhsm: Path, tmp_path: Path
) -> None:
    address = make_token()
    token = Token(address, lambda: PIN)
    site = make_site(tmp_path, token, address.label, softhsm)
    assert site.hsmkme("epoch", "shred", 1, "--now").status == 0
    assert site.hsmkme("revoke", "--epoch", 2, "--reason", "test").status == 0
    assert site.hsmkme("restore").out.endswith("is no old copy: nothing to do\n")
    assert [(row["operation"], row["target"]) for row in logged(site, "approval.none")] == [
        ("epoch.shred", "1"),
        ("epoch.revoke", "2"),
    ]
    token.close()
