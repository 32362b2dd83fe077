"""Is a destructive act done only when other officers approved exactly that, once, in time?"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hsmkme.approvals import MOST_SECONDS, Approvals
from hsmkme.audit import AuditChain
from hsmkme.config import ApprovalsSection, OfficerSection
from hsmkme.errors import ApprovalRefused, ConfigRefused
from hsmkme.model import Entry, Lineage
from hsmkme.officers import NAMESPACE, Officers, Operation, Request, SignedRequest
from hsmkme.sshsig import private_key, public_key, sign, verified
from hsmkme.store import Approval, Steady, Store
from tests.conftest import FakeClock
from tests.processes import Done
from tests.sites import Site, make_site

NAMES = ("alice", "bob", "carol", "dave")
SHRED = Operation.SHRED


@dataclass(frozen=True)
class Board:
    """Four officers, of whom two must approve what a third asks for, and the KME that asks them."""

    keys: Mapping[str, Ed25519PrivateKey]
    store: Store
    clock: FakeClock
    directory: Path
    numbers: itertools.count[int]

    def policy(self, needed: int = 2, names: tuple[str, ...] = NAMES) -> Officers:
        return Officers(needed, {name: self.keys[name].public_key().public_bytes_raw() for name in names})

    def approvals(self, configured: Officers | None = None, kme_id: str = "kme-1") -> Approvals:
        return Approvals(self.policy() if configured is None else configured, self.store, kme_id, self.clock)

    def file(self, text: str) -> Path:
        path = self.directory / f"approval-{next(self.numbers)}"
        path.write_text(text)
        return path

    def asked(self, requester: str = "alice", target: str = "3", seconds: int = 3600) -> Path:
        return self.file(self.approvals().request((SHRED, target), self.keys[requester], seconds))

    def signed(self, path: Path, *names: str) -> Path:
        """A copy of the file with more signatures, made whatever the rules say."""
        text = path.read_text()
        line = text.partition("\n")[0] + "\n"
        return self.file(text + "".join(sign(line.encode(), self.keys[name], NAMESPACE) for name in names))

    def approved(self, *names: str) -> Path:
        return self.signed(self.asked(), *(names or ("bob", "carol")))

    def require(self, *files: Path, target: str = "3", operation: Operation = SHRED) -> None:
        self.approvals().require(operation, target, files, "operator:test")

    def refused(self, rule: str, why: str, *files: Path, target: str = "3", operation: Operation = SHRED) -> None:
        """The act is refused by this rule, which is in the log, and the approval was not used up."""
        with pytest.raises(ApprovalRefused, match=why) as refusal:
            self.require(*files, target=target, operation=operation)
        assert refusal.value.rule == rule
        event = json.loads(self.store.log.latest(1)[0].text)
        assert (event["event"], event["rule"]) == ("approval.refuse", rule)
        assert (event["operation"], event["target"]) == (operation.value, target)


@pytest.fixture
def board(store: Store, clock: FakeClock, tmp_path: Path) -> Board:
    keys = {name: Ed25519PrivateKey.generate() for name in (*NAMES, "eve")}
    made = Board(keys, store, clock, tmp_path, itertools.count())
    made.approvals().adopt([], "operator:test")
    return made


# What is approved -----------------------------------------------------------------------------------------


def test_an_act_that_enough_others_approved_is_allowed_once_and_recorded_with_every_signature(board: Board) -> None:
    file = board.approved("bob", "carol")
    board.require(file)
    event = json.loads(board.store.log.latest(1)[0].text)
    assert (event["event"], event["actor"]) == ("approval.use", "operator:test")
    assert (event["operation"], event["target"]) == ("epoch.shred", "3")
    assert list(event["signatures"]) == sorted(event["signatures"]) == ["alice", "bob", "carol"]
    for name, signature in event["signatures"].items():  # whoever has the log and the public keys can check it again
        public = verified(event["request"].encode(), signature, NAMESPACE).public
        assert public == board.policy().keys[name]
    assert json.loads(event["request"])["target"] == "3"
    board.refused("APPROVAL-NONCE-1", "used before", file)


def test_officers_may_sign_copies_of_one_request_in_parallel(board: Board) -> None:
    asked = board.asked()
    board.require(board.signed(asked, "bob"), board.signed(asked, "dave"))


def test_more_officers_than_needed_may_sign(board: Board) -> None:
    board.require(board.approved("bob", "carol", "dave"))


def test_an_approval_is_used_up_in_the_transaction_of_the_act_or_not_at_all(board: Board) -> None:
    approval = board.approvals().checked(SHRED, "3", [board.approved()], "operator:test")
    rows = board.store.log.head()[0]
    board.store.approving.spend(approval)
    assert board.store.log.head()[0] == rows + 1
    with pytest.raises(ApprovalRefused, match="used before"):
        board.store.approving.spend(approval)
    assert board.store.log.head()[0] == rows + 1


def test_of_two_who_use_an_approval_at_once_one_is_refused(board: Board) -> None:
    approval = board.approvals().checked(SHRED, "3", [board.approved()], "operator:test")

    def spend(_: int) -> bool:
        try:
            board.store.approving.spend(approval)
        except ApprovalRefused:
            return False
        finally:
            board.store.close()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(spend, range(8))) == [False] * 7 + [True]


# What is refused ------------------------------------------------------------------------------------------


def test_no_approval_at_all_says_how_to_get_one(board: Board) -> None:
    board.refused("APPROVAL-COUNT-1", "`hsmkme approve request epoch.shred 3`")


@pytest.mark.parametrize("names", [(), ("bob",), ("dave",)])
def test_too_few_approvals_are_refused(board: Board, names: tuple[str, ...]) -> None:
    file = board.signed(board.asked(), *names)
    board.refused("APPROVAL-COUNT-1", f"{2 - len(names)} more of the officers must sign", file)


def test_who_asks_cannot_approve(board: Board) -> None:
    board.refused("APPROVAL-SIGN-3", "alice asks for this and cannot approve it", board.approved("bob", "alice"))
    asked = board.asked()
    with pytest.raises(ApprovalRefused, match="alice asks for this and cannot approve it too") as refusal:
        board.approvals().sign(SignedRequest.read(asked), board.keys["alice"])
    assert refusal.value.rule == "APPROVAL-SIGN-3"


def test_who_asks_must_have_signed_so_that_nobody_asks_in_anothers_name(board: Board) -> None:
    """Bob writes a request that says alice asks, so that his own approval would count."""
    honest = Request.of(board.asked().read_text().partition("\n")[0] + "\n")
    forged = board.file(honest.text)
    board.refused("APPROVAL-SIGN-3", "alice asks and did not sign", board.signed(forged, "bob", "carol"))


def test_an_officer_counts_once(board: Board) -> None:
    board.refused("APPROVAL-SIGN-2", "bob approved this already", board.approved("bob", "bob"))
    asked = board.asked()
    files = board.signed(asked, "bob"), board.signed(asked, "bob")
    board.refused("APPROVAL-SIGN-2", "bob approved this already", *files)
    with pytest.raises(ApprovalRefused, match="bob approved this already: another officer must"):
        board.approvals().sign(SignedRequest.read(files[0]), board.keys["bob"])


def test_who_is_no_officer_approves_nothing(board: Board) -> None:
    board.refused("APPROVAL-SIGN-1", "is of no officer in force", board.approved("bob", "eve"))
    with pytest.raises(ApprovalRefused, match="is of no officer in force"):
        board.asked("eve")


def test_an_approval_ends(board: Board) -> None:
    file = board.approved()
    board.clock.now += 3599
    board.approvals().checked(SHRED, "3", [file], "operator:test")
    board.clock.now += 1
    board.refused("APPROVAL-TIME-1", "the approval expired", file)
    with pytest.raises(ApprovalRefused, match="the approval expired"):
        board.approvals().sign(SignedRequest.read(file), board.keys["dave"])


def test_no_approval_counts_by_a_clock_that_is_not_believed(board: Board) -> None:
    """One that expired would be good again."""
    file = board.approved()
    board.store.timekeeping.look(Steady("boot", board.clock.now), "upkeep")
    board.clock.now -= 3600
    board.refused("APPROVAL-TIME-1", "the clock is not believed: see `hsmkme clock show`", file)
    board.clock.now += 3600
    board.approvals().checked(SHRED, "3", [file], "operator:test")


@pytest.mark.parametrize("seconds", [0, -1, MOST_SECONDS + 1])
def test_an_approval_cannot_be_asked_for_a_longer_time_than_a_week(board: Board, seconds: int) -> None:
    with pytest.raises(ApprovalRefused, match="good for 1 to 604800 seconds"):
        board.asked(seconds=seconds)


def test_an_approval_that_was_written_to_live_longer_is_refused(board: Board) -> None:
    line = board.asked().read_text().partition("\n")[0] + "\n"
    forever = board.file(Request(**{**request_fields(line), "expires": "2999-01-01T00:00:00.000Z"}).text)
    board.refused("APPROVAL-TIME-1", "is good for too long", board.signed(forever, "alice", "bob", "carol"))


def request_fields(line: str) -> dict[str, str]:
    return {name: value for name, value in json.loads(line).items() if name != "version"}


@pytest.mark.parametrize(
    ("operation", "target"), [(SHRED, "4"), (Operation.REVOKE, "3"), (Operation.RESTORE, "3"), (Operation.LOWER, "3")]
)
def test_an_approval_is_for_one_act(board: Board, operation: Operation, target: str) -> None:
    board.refused("APPROVAL-ACT-1", "is for epoch.shred 3", board.approved(), target=target, operation=operation)


def test_an_approval_is_for_one_kme(board: Board) -> None:
    file = board.approved()
    with pytest.raises(ApprovalRefused, match="on kme-1") as refusal:
        board.approvals(kme_id="kme-2").require(SHRED, "3", [file], "operator:test")
    assert refusal.value.rule == "APPROVAL-ACT-1"


def test_an_approval_dies_with_the_state_of_the_store_that_an_old_copy_replaces(board: Board) -> None:
    """An old copy of the store does not know that the approval was used; it is another store from then on."""
    file = board.approved()
    now = board.store.lineage.now()
    board.store.lineage.give_up(Lineage(now.store_id, now.generation, now.log_rows + 9), Entry("store.restore", "test"))
    board.refused("APPROVAL-ACT-1", "another state of its store", file)


@pytest.mark.parametrize("field", ["operation", "target", "requester", "kme", "store", "nonce", "expires"])
def test_a_request_with_anything_altered_is_refused(board: Board, field: str) -> None:
    line, _, signatures = board.approved().read_text().partition("\n")
    other = {
        "operation": "restore",
        "target": "4",
        "requester": "dave",
        "kme": "kme-2",
        "store": "00.0",
        "nonce": "00" * 16,
        "expires": "2027-01-15T09:30:00.000Z",
    }[field]
    altered = Request(**{**request_fields(line), field: other})
    assert altered.text != line + "\n"
    file = board.file(altered.text + signatures)
    with pytest.raises(ApprovalRefused) as refusal:
        board.approvals(kme_id=altered.kme).require(Operation(altered.operation), altered.target, [file], "test")
    assert refusal.value.rule == ("APPROVAL-ACT-1" if field == "store" else "APPROVAL-SIGN-1")


def test_signatures_are_of_this_request_and_for_this_purpose(board: Board) -> None:
    line = board.asked().read_text().partition("\n")[0] + "\n"
    one, other = board.asked().read_text(), board.asked().read_text()
    swapped = board.file(one.partition("\n")[0] + "\n" + other.partition("\n")[2])
    board.refused("APPROVAL-SIGN-1", "altered, there is a signature of something else", swapped)
    for namespace in ("file", "git", NAMESPACE + "x"):
        foreign = board.file(line + sign(line.encode(), board.keys["alice"], namespace))
        board.refused("APPROVAL-SIGN-1", "a signature that was made for something else", foreign)


def test_approvals_of_different_requests_do_not_add_up(board: Board) -> None:
    files = board.signed(board.asked(), "bob"), board.signed(board.asked(), "carol")
    board.refused("APPROVAL-FORM-1", "approvals of different requests", *files)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "{}\n",
        lambda _: "[]\n",
        lambda _: "null\n",
        lambda line: line + "x",
        lambda line: line.replace('"version":1', '"version":2'),
        lambda line: line.replace(",", ", "),
        lambda line: line.replace('{"', '{"a":1,"', 1),
        lambda line: line.replace('"target":"3"', '"target":"\\u001b[2K4"'),
        lambda line: line.replace('"target":"3"', '"target":"3 or 4"'),
        lambda line: line.replace('"target":"3"', '"target":3'),
        lambda line: line.replace('"target":"3"', '"target":"4","target":"3"'),
        lambda line: line.replace('.000Z"', '.000"'),
        lambda line: line.replace('"nonce":"', '"nonce":"00'),
        lambda line: line[:-2],
    ],
)
def test_a_file_that_is_not_written_as_it_must_be_is_refused(board: Board, change: Callable[[str], str]) -> None:
    line, _, signatures = board.approved().read_text().partition("\n")
    file = board.file(change(line + "\n") + signatures)
    board.refused("APPROVAL-FORM-1", "is not a request|something other than signatures", file)


def test_a_file_that_cannot_be_read_is_named(board: Board, tmp_path: Path) -> None:
    board.refused("APPROVAL-FORM-1", "missing cannot be read: No such file", tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    board.refused("APPROVAL-FORM-1", "binary", tmp_path / "binary")


def test_a_target_that_could_hide_something_cannot_be_asked_for(board: Board) -> None:
    for target in ("", "3 4", "3\n", "\x1b[2K", "é", "x" * 129):
        with pytest.raises(ApprovalRefused, match="visible ASCII characters"):
            board.asked(target=target)


# The store ------------------------------------------------------------------------------------------------


def test_the_database_itself_forgets_no_approval_and_no_policy(board: Board, tmp_path: Path) -> None:
    board.require(board.approved())
    for statement in (
        "DELETE FROM approval",
        "UPDATE approval SET nonce = randomblob(16)",
        "DELETE FROM approval_policy",
        "REPLACE INTO approval SELECT nonce FROM approval",
        "INSERT OR REPLACE INTO approval_policy VALUES (1, '')",
    ):
        connection = sqlite3.connect(tmp_path / "store.sqlite")
        connection.execute("PRAGMA recursive_triggers = ON")
        with pytest.raises(sqlite3.IntegrityError, match="illegal transition"):
            connection.execute(statement)
        connection.close()


def test_nothing_of_an_approval_is_written_if_the_record_cannot_be(board: Board) -> None:
    store = Store(board.directory / "store.sqlite", AuditChain(), board.clock)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.approving.spend(Approval(bytes(16), Entry("approval.use", "test", {"unfit": float("inf")})))
    assert not store.approving.used(bytes(16))
    store.close()


# The policy -----------------------------------------------------------------------------------------------


def test_where_nobody_is_enrolled_nobody_has_to_approve_and_the_log_says_so(store: Store, clock: FakeClock) -> None:
    approvals = Approvals(Officers(), store, "kme-1", clock)
    approvals.require(SHRED, "3", [], "test")
    event = json.loads(store.log.latest(1)[0].text)
    assert (event["event"], event["operation"], event["target"]) == ("approval.none", "epoch.shred", "3")
    assert approvals.adopt([], "test") == Officers()
    with pytest.raises(ApprovalRefused, match="no officers are enrolled: name them in") as refusal:
        approvals.request((SHRED, "3"), Ed25519PrivateKey.generate(), 60)
    assert refusal.value.rule == "APPROVAL-OFFICER-1"


def test_a_policy_that_was_edited_is_not_in_force(board: Board) -> None:
    file = board.approved()
    for edited in (board.policy(1), board.policy(3), board.policy(2, (*NAMES, "eve"))):
        with pytest.raises(ApprovalRefused, match="not in force: run `hsmkme approve adopt`") as refusal:
            board.approvals(edited).require(SHRED, "3", [file], "test")
        assert refusal.value.rule == "APPROVAL-OFFICER-1"


def test_a_stricter_policy_needs_no_approval(board: Board) -> None:
    for stricter in (board.policy(3), Officers(3, board.policy(3).keys, {"keys.min_key_size": 128})):
        board.approvals(stricter).adopt([], "test")
        assert board.store.approving.policy() == stricter.text
        event = json.loads(board.store.log.latest(1)[0].text)
        assert (event["event"], event["digest"]) == ("approval.policy", stricter.digest)


@pytest.mark.parametrize(
    ("setting", "now", "lower", "stricter"),
    [
        ("keys.min_key_size", 128, 64, 256),
        ("audit.seal_rows", 1000, 1001, 1),
        ("audit.seal_seconds", 10, 11, 9),
        ("epochs.rotate_seconds", 86400, 86401, 3600),
        ("epochs.rotate_seconds", 86400, 0, 1),
        ("epochs.rotate_blocks", 1000, 0, 999),
    ],
)
def test_a_setting_that_officers_watch_over_is_lowered_with_their_approval_only(
    board: Board, setting: str, now: int, lower: int, stricter: int
) -> None:
    def having(value: int) -> Officers:
        return Officers(2, board.policy().keys, {setting: value})

    assert having(stricter).lowered_from(having(now)) == having(now).lowered_from(having(now)) == []
    assert having(lower).lowered_from(having(now)) == [setting]
    board.approvals(having(now)).adopt([], "test")
    board.approvals(having(stricter)).require_kept()
    with pytest.raises(ApprovalRefused, match=f"lowers the policy in force \\({setting}\\)"):
        board.approvals(having(lower)).require_kept()
    with pytest.raises(ApprovalRefused, match="`hsmkme approve request policy"):
        board.approvals(having(lower)).adopt([], "test")


def test_a_policy_without_officers_is_lower_than_any_with_them(board: Board) -> None:
    with pytest.raises(ApprovalRefused, match="lowers the policy in force"):
        board.approvals(Officers()).require_kept()
    asked = board.file(board.approvals(Officers()).request((Operation.LOWER, Officers().digest), board.keys["bob"], 60))
    with pytest.raises(ApprovalRefused, match="2 more of the officers"):
        board.approvals(Officers()).adopt([asked], "test")
    board.approvals(Officers()).adopt([board.signed(asked, "alice", "carol")], "test")
    board.approvals(Officers()).require(SHRED, "3", [], "test")
    board.approvals().adopt([], "test")  # and back


@pytest.mark.parametrize("lower", ["fewer", "another officer", "another key"])
def test_a_lower_policy_is_in_force_when_officers_of_the_one_before_approved_it(board: Board, lower: str) -> None:
    other = {**board.policy().keys, "bob": board.keys["eve"].public_key().public_bytes_raw()}
    policy = {
        "fewer": board.policy(1),
        "another officer": board.policy(2, (*NAMES, "eve")),
        "another key": Officers(2, other),
    }[lower]
    approvals = board.approvals(policy)
    with pytest.raises(ApprovalRefused, match=f"`hsmkme approve request policy.lower {policy.digest}`"):
        approvals.adopt([], "test")
    asked = board.file(approvals.request((Operation.LOWER, policy.digest), board.keys["alice"], 60))
    with pytest.raises(ApprovalRefused, match="1 more"):
        approvals.adopt([board.signed(asked, "bob")], "test")
    with pytest.raises(ApprovalRefused, match="no officer in force"):
        approvals.adopt([board.signed(asked, "bob", "eve")], "test")
    file = board.signed(asked, "bob", "carol")
    approvals.adopt([file], "test")
    assert board.store.approving.policy() == policy.text
    used, adopted = (json.loads(row.text)["event"] for row in board.store.log.latest(2))
    assert (used, adopted) == ("approval.use", "approval.policy")
    approvals.adopt([], "test")  # it is in force: nothing to do
    assert json.loads(board.store.log.latest(1)[0].text)["event"] == "approval.policy"


def test_a_policy_that_changed_meanwhile_is_not_replaced(board: Board) -> None:
    was = board.store.approving.policy()
    board.approvals(board.policy(3)).adopt([], "test")
    with pytest.raises(ApprovalRefused, match="changed meanwhile"):
        board.store.approving.adopt(was, board.policy(1).text, Entry("approval.policy", "test"), None)


def test_everything_wrong_with_the_officers_of_a_configuration_is_said_at_once(
    board: Board, site: Site, tmp_path: Path
) -> None:
    good = tmp_path / "alice.pub"
    good.write_bytes(board.keys["alice"].public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (tmp_path / "bad.pub").write_text("ssh-rsa AAAA")
    section = ApprovalsSection(
        needed=4,
        officers=[
            OfficerSection(name="alice", key=good),
            OfficerSection(name="bob", key=good),
            OfficerSection(name="carol", key=tmp_path / "bad.pub"),
            OfficerSection(name="dave", key=tmp_path / "missing.pub"),
        ],
    )
    settings = site.settings
    with pytest.raises(ConfigRefused) as refusal:
        Officers.configured(settings.model_copy(update={"approvals": section}))
    said = "\n".join(refusal.value.findings)
    carol, dave = ("bad.pub of officer carol", "no Ed25519 public key"), ("missing.pub of officer dave", "No such file")
    for part in (*carol, *dave, "one key", "only 4"):
        assert part in said
    few = ApprovalsSection(needed=2, officers=section.officers[:1])
    with pytest.raises(ConfigRefused, match="needs 2 officers besides the one who asks, and only 1 are enrolled"):
        Officers.configured(settings.model_copy(update={"approvals": few}))


# Signatures of OpenSSH ------------------------------------------------------------------------------------


def openssh(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *map(str, arguments)], input=given, capture_output=True, check=False)


@pytest.fixture
def ssh_key(tmp_path: Path) -> Path:
    done = openssh("-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f", tmp_path / "id_alice")
    assert done.returncode == 0, done.stderr
    return tmp_path / "id_alice"


def test_what_ssh_keygen_signs_counts(ssh_key: Path) -> None:
    public = public_key(ssh_key.with_suffix(".pub").read_bytes())
    for more in ((), ("-O", "hashalg=sha256")):
        signature = openssh("-Y", "sign", "-f", ssh_key, "-n", NAMESPACE, *more, given=b"a text\n").stdout.decode()
        assert verified(b"a text\n", signature, NAMESPACE).public == public
        with pytest.raises(ValueError, match="something else"):
            verified(b"a text", signature, NAMESPACE)
        with pytest.raises(ValueError, match="for something else"):
            verified(b"a text\n", signature, "file")


def test_what_is_signed_here_is_good_for_ssh_keygen(ssh_key: Path, tmp_path: Path) -> None:
    key = private_key(ssh_key.read_bytes(), None)
    (tmp_path / "signature").write_text(sign(b"a text\n", key, NAMESPACE))
    (tmp_path / "allowed").write_text("alice " + ssh_key.with_suffix(".pub").read_text())
    check = ("-Y", "verify", "-f", tmp_path / "allowed", "-I", "alice", "-n", NAMESPACE, "-s", tmp_path / "signature")
    assert openssh(*check, given=b"a text\n").returncode == 0
    assert openssh(*check, given=b"a text").returncode != 0


def test_keys_are_read_in_every_form_that_officers_have(ssh_key: Path, tmp_path: Path) -> None:
    key = private_key(ssh_key.read_bytes(), None)
    raw = key.public_key().public_bytes_raw()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    assert private_key(pem, None).public_key().public_bytes_raw() == raw
    assert private_key(locked, b"passphrase").public_key().public_bytes_raw() == raw
    with pytest.raises(TypeError):
        private_key(locked, None)
    with pytest.raises(ValueError, match=r"password|decrypt"):
        private_key(locked, b"another")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert public_key(public) == public_key(ssh_key.with_suffix(".pub").read_bytes()) == raw
    other = generate_private_key(SECP256R1())
    with pytest.raises(ValueError, match="another kind than Ed25519"):
        private_key(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), None)
    with pytest.raises(ValueError, match="another kind than Ed25519"):
        public_key(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_signature_that_is_cut_changed_or_lengthened_anywhere_is_refused() -> None:
    key = Ed25519PrivateKey.generate()
    good = sign(b"text", key, NAMESPACE)
    body = "".join(good.splitlines()[1:-1])
    blob = base64.b64decode(body)

    def refused(changed: bytes) -> bool:
        block = f"-----BEGIN SSH SIGNATURE-----\n{base64.b64encode(changed).decode()}\n-----END SSH SIGNATURE-----\n"
        try:
            verified(b"text", block, NAMESPACE)
        except ValueError:
            return True
        return False

    assert not refused(blob)
    assert all(refused(blob[:length]) for length in range(len(blob)))
    assert all(refused(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]) for place in range(len(blob)))
    assert refused(blob + b"\0")
    assert refused(blob + struct.pack(">I", 0))
    for text in ("", good + good, good[1:], good.replace("SSH", "PGP"), "x" + good):
        with pytest.raises(ValueError, match="not a block"):
            verified(b"text", text, NAMESPACE)


# The commands ---------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, token: object, address: object) -> Site:
    home = tmp_path / "site"
    home.mkdir()
    made = make_site(home, token, address.label, address.softhsm_conf)  # type: ignore[attr-defined, arg-type]
    made.enrol(2, *NAMES)
    return made


def approve(site: Site, *arguments: object) -> Done:
    return site.hsmkme("approve", *arguments)


def test_officers_approve_by_commands_and_with_ssh_keygen_alone(site: Site) -> None:
    file = site.directory / "shred.approval"
    ask = ("request", "epoch.shred", "1", "--out", file, "--key")
    early = approve(site, *ask, site.directory / "alice")
    assert (early.status, "not in force: run `hsmkme approve adopt`" in early.err) == (1, True)
    adopted = approve(site, "adopt")
    assert (adopted.status, adopted.out) == (0, "in force: 2 besides who asks, of alice, bob, carol, dave\n")
    assert approve(site, *ask, site.directory / "alice").status == 0
    assert approve(site, *ask, site.directory / "alice").status == 1  # a file is not overwritten
    before = approve(site, "show", file, "--json")
    facts = json.loads(before.out)
    assert (before.status, facts["good"], facts["approved_by"]) == (1, False, [])
    assert facts["refused"]["rule"] == "APPROVAL-COUNT-1"
    signed = approve(site, "sign", file, "--key", site.directory / "bob", "--yes")
    assert signed.status == 0, signed.err
    assert "epoch.shred" in signed.out
    # Carol has no hsmkme where her key is: `head -n 1 FILE | ssh-keygen -Y sign ... >> FILE`
    line = file.read_bytes().partition(b"\n")[0] + b"\n"
    added = openssh("-Y", "sign", "-f", site.directory / "carol", "-n", NAMESPACE, given=line).stdout
    with file.open("ab") as opened:
        opened.write(added)
    after = approve(site, "show", file)
    assert after.status == 0, after.out
    assert "bob, carol; 2 are needed" in after.out
    again = approve(site, "sign", file, "--key", site.directory / "alice", "--yes")
    assert (again.status, "alice asks for this and cannot approve it too" in again.err) == (1, True)


def test_a_key_file_that_others_may_read_or_that_is_no_key_is_refused(site: Site) -> None:
    assert approve(site, "adopt").status == 0
    (site.directory / "alice").chmod(0o644)
    ask = ("request", "epoch.shred", "1", "--out", site.directory / "file", "--key")
    assert "can be read by others" in approve(site, *ask, site.directory / "alice").err
    shutil.copy(site.directory / "alice.pub", site.directory / "wrong")
    (site.directory / "wrong").chmod(0o600)
    done = approve(site, *ask, site.directory / "wrong")
    assert (done.status, "holds no private key of OpenSSH or PEM" in done.err) == (1, True)
    assert not (site.directory / "file").exists()


def test_check_says_what_is_wrong_with_the_officers(site: Site) -> None:
    def said() -> list[str]:
        done = site.hsmkme("check")
        return [line for line in (done.out + done.err).splitlines() if "approvals" in line]

    assert any("not in force: run `hsmkme approve adopt`" in line for line in said())
    assert approve(site, "adopt").status == 0
    assert said() == []
    (site.directory / "dave.pub").unlink()
    assert any("dave.pub of officer dave cannot be used: No such file" in line for line in said())


def test_lowering_the_policy_by_an_edit_needs_the_officers(site: Site) -> None:
    assert approve(site, "adopt").status == 0
    site.change_config("needed = 2", "needed = 1")
    refused = approve(site, "adopt")
    assert refused.status == 1
    digest = refused.err.partition("policy.lower ")[2].partition("`")[0]
    file = site.directory / "lower.approval"
    key = site.directory / "alice"
    assert approve(site, "request", "policy.lower", digest, "--key", key, "--out", file).status == 0
    for name in ("bob", "carol"):
        assert approve(site, "sign", file, "--key", site.directory / name, "--yes").status == 0
    assert approve(site, "adopt", file).status == 0
    assert os.stat(file).st_size < 4096
