"""Does a transcript prove what happened, to somebody who has nothing but it and a public key?"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hsmkme.ceremony import verifying
from hsmkme.ceremony.prompts import INTERRUPT
from hsmkme.ceremony.verifying import BrokenError, verify
from tests.ceremonies.halls import Answers, Hall, told, transcript_of
from tests.processes import hsmkme
from tests.tokens import link_answers

LINK = link_answers("paris", bytes(range(32)))
Line = dict[str, Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a first ceremony that was held, with a wrong answer on the way."""
    hall = Hall(tmp_path_factory.mktemp("first")).prepare()
    plan = hall.plan("first")
    assert hall.run(plan, {"op-1.make-digest": ["no", "make digest"]}).status == 0
    return plan


@pytest.fixture
def lines(first: Path) -> list[str]:
    return transcript_of(first).read_text().splitlines()


def chained_anew(changed: list[Line]) -> list[str]:
    """These lines with hashes that fit: what somebody makes who can write the file and has no key."""
    previous, result = bytes(32), []
    for number, line in enumerate(changed, start=1):
        text = json.dumps({**line, "n": number}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(b"hsmkme/transcript/2" + previous + text.encode()).digest()
        result.append(json.dumps({"line": text, "hash": previous.hex()}))
    return result


def parsed(lines: list[str]) -> list[Line]:
    return [json.loads(json.loads(line)["line"]) for line in lines]


# Lines -----------------------------------------------------------------------------------------------------------


def test_a_whole_transcript_is_good(lines: list[str], first: Path) -> None:
    report = verify(lines)
    assert report.plan_sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert report.signed_by == ["token"]
    assert report.began < report.ended


def test_lines_chained_anew_as_they_were_are_the_same(lines: list[str]) -> None:
    assert chained_anew(parsed(lines)) == lines


def test_every_line_that_is_altered_is_named(lines: list[str]) -> None:
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        altered = json.dumps({**record, "line": record["line"].replace('"what":"', '"what":"X')})
        with pytest.raises(BrokenError, match="it was altered") as broken:
            verify([*lines[: number - 1], altered, *lines[number:]])
        assert broken.value.line == number


def test_every_line_that_is_left_out_or_twice_or_moved_is_noticed(lines: list[str]) -> None:
    for number in range(len(lines)):
        for wrong in (
            [*lines[:number], *lines[number + 1 :]],
            [*lines[: number + 1], *lines[number:]],
            [*lines[:number], *reversed(lines[number : number + 2]), *lines[number + 2 :]],
        ):
            if wrong != lines and wrong != lines[:-1]:  # the last line is a witness who confirmed the digest
                with pytest.raises(BrokenError):
                    verify(wrong)


def test_a_transcript_that_was_cut_says_where(lines: list[str]) -> None:
    ends = [number for number, line in enumerate(parsed(lines), start=1) if line["what"] == "end"]
    for length in range(ends[0]):
        with pytest.raises(BrokenError, match="the ceremony did not end") as broken:
            verify(lines[:length])
        assert broken.value.line == length + 1
    with pytest.raises(BrokenError, match="not signed by token"):
        verify(lines[: ends[0]])


def change(what: str, **facts: object) -> Callable[[list[Line]], list[Line]]:
    """Other facts in the last line of one kind."""

    def changed(lines: list[Line]) -> list[Line]:
        last = max(number for number, line in enumerate(lines) if line["what"] == what)
        return [
            {**line, "facts": {**line["facts"], **facts}} if number == last else line
            for number, line in enumerate(lines)
        ]

    return changed


def with_evidence(**evidence: object) -> Callable[[list[Line]], list[Line]]:
    """Another report of the master key."""

    def changed(lines: list[Line]) -> list[Line]:
        result = json.loads(json.dumps(lines))
        for line in result:
            if line["what"] == "done" and line["facts"]["evidence"].get("label") == "master/1":
                line["facts"]["evidence"].update(evidence)
        return list(result)

    return changed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_evidence(LOCAL=False), "LOCAL is False where True is due"),
        (with_evidence(NEVER_EXTRACTABLE=False), "NEVER_EXTRACTABLE is False where True is due"),
        (with_evidence(EXTRACTABLE=True), "EXTRACTABLE is True where False is due"),
        (with_evidence(ALLOWED_MECHANISMS=["AES_ECB"]), "ALLOWED_MECHANISMS is "),
        (with_evidence(label="master/2"), "label is 'master/2' where 'master/1' is due"),
        (with_evidence(check_value="0000000000"), "the signature is not that of token"),
        (change("begin", plan="x"), "the plan does not have the digest that is written beside it"),
        (change("begin", plan="x = ", plan_sha256=hashlib.sha256(b"x = ").hexdigest()), "the plan cannot be read"),
        (change("begin", purpose="another"), "the signature is not that of token"),
        (change("step", number=1), "step 1 follows step 4"),
        (change("step", do="decommission"), "the plan has another step 5"),
        (change("done", number=9), "a step is done that was not begun"),
        (change("done", evidence=3), "not of the form"),
        (change("signature", signature="AAAA"), "the signature is not that of token"),
        (change("signature", signature="?"), "the signature is not that of token"),
        (change("signature", by="nobody"), "the signature is not that of nobody"),
        (change("signature", by="so-1"), "the signature is not that of so-1"),
        (change("end", audit_key="x"), "the signature is not that of token"),
        (change("end", audit_key=None), "the signature is not that of token"),
        (lambda lines: lines[:-1], None),
        (lambda lines: [*lines[:-1], *lines[-2:]], "token signed before"),
        (lambda lines: [*lines[:-1], {**lines[-2], "what": "step"}], "only signatures follow the end"),
        (lambda lines: [lines[0], {**lines[1], "what": "surprise"}, *lines[2:]], "nothing that is called 'surprise'"),
        (lambda lines: lines[1:], "a transcript begins with its plan"),
        (lambda lines: [{**lines[0], "at": "2999-01-01T00:00:00.000Z"}, *lines[1:]], "earlier than the line before"),
    ],
)
def test_what_a_forger_without_a_key_chains_anew_is_refused(
    lines: list[str], change: Callable[[list[Line]], list[Line]], why: str | None
) -> None:
    forged = chained_anew(change(parsed(lines)))
    if why is None:
        verify(forged)
        return
    with pytest.raises(BrokenError, match=why):
        verify(forged)


@pytest.mark.parametrize("line", ["", "{", "[]", '{"line": "{}", "hash": ""}', '{"line": 5}', "\udcff", "[" * 100_000])
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(BrokenError, match="line 1: not a line of a transcript"):
        verify([line])


# The command, and the file that an auditor copies ----------------------------------------------------------------


def test_the_command_names_the_first_bad_line(first: Path, lines: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:4], lines[4].replace("op-1", "op-2"), *lines[5:]]) + "\n")
    done = hsmkme("ceremony", "verify", first, "--transcript", bad)
    assert (done.status, done.out.startswith("BROKEN  line 5: ")) == (1, True)
    found = json.loads(hsmkme("ceremony", "verify", first, "--transcript", bad, "--json").out)
    assert (found["good"], found["line"]) == (False, 5)


def test_the_command_wants_the_plan_that_was_carried_out(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(first.read_text() + "# reviewed\n")
    done = hsmkme("ceremony", "verify", other, "--transcript", transcript_of(first))
    assert (done.status, "it is of another plan" in done.out) == (1, True)


def test_the_token_is_known_by_its_public_key(first: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.pem", tmp_path / "wrong.pem"
    (end,) = told(first, "end")
    right.write_text(end["audit_key"])
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    wrong.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert hsmkme("ceremony", "verify", first, "--audit-key", right).status == 0
    done = hsmkme("ceremony", "verify", first, "--audit-key", wrong)
    assert (done.status, "the token's audit key is another than the one given" in done.out) == (1, True)


def test_an_auditor_needs_one_file_and_the_transcript(first: Path, tmp_path: Path) -> None:
    copied = tmp_path / "verifying.py"
    copied.write_text(Path(verifying.__file__).read_text())

    def run(*arguments: object) -> tuple[int, bytes]:
        command = [sys.executable, "-I", str(copied), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout

    status, said = run(transcript_of(first))
    assert (status, said.startswith(b"good ")) == (0, True)
    (tmp_path / "bad").write_text("{}\n")
    assert run(tmp_path / "bad") == (1, b"BROKEN  line 1: not a line of a transcript\n")
    assert run(tmp_path / "none")[0] == run()[0] == 2


# People who sign ----------------------------------------------------------------------------------------------------


def key_file(path: Path, form: PrivateFormat, passphrase: bytes | None = None) -> str:
    """A new key in a file of mode 0400; gives the public key as a plan has it."""
    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, form, encryption))
    path.chmod(0o400)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    ("form", "passphrase"),
    [(PrivateFormat.PKCS8, None), (PrivateFormat.OpenSSH, None), (PrivateFormat.PKCS8, b"open it")],
    ids=["PEM", "OpenSSH", "PEM with a passphrase"],
)
def test_people_who_have_a_key_sign(hall: Hall, form: PrivateFormat, passphrase: bytes | None) -> None:
    file = hall.home / "witness.key"
    plan = signed_plan(hall, key_file(file, form, passphrase))
    secrets = {"witness-1.the-passphrase-of-your-key": ["wrong", "open it"]}
    done = hall.run(plan, {**LINK, **secrets, "witness-1.the-file-with-your-private-key": str(file)})
    assert done.status == 0, done.err
    lines = transcript_of(plan).read_text().splitlines()
    assert verify(lines).signed_by == ["token", "witness-1"]
    assert len(told(plan, "wrong-input")) == (passphrase is not None)
    forged = chained_anew(change("signature", signature=base64.b64encode(bytes(64)).decode())(parsed(lines)))
    with pytest.raises(BrokenError, match="the signature is not that of witness-1"):
        verify(forged)


def test_ctrl_c_after_the_end_is_recorded_and_the_signatures_that_are_missing_are_asked_for_again(hall: Hall) -> None:
    file = hall.home / "witness.key"
    plan = signed_plan(hall, key_file(file, PrivateFormat.PKCS8, b"open it"))
    given: Answers = {**LINK, "witness-1.the-file-with-your-private-key": str(file)}
    secret = "witness-1.the-passphrase-of-your-key"
    for number, key in enumerate(("witness-1.the-file-with-your-private-key", secret), start=1):
        stopped = hall.run(plan, {**given, key: INTERRUPT})
        assert (stopped.status, "interrupted, and recorded so" in stopped.err) == (3, True), stopped.err
        assert len(told(plan, "abort")) == number
        with pytest.raises(BrokenError, match="not signed by witness-1"):
            verify(transcript_of(plan).read_text().splitlines())
    digests = told(plan, "end")
    assert hall.run(plan, {**given, secret: "open it"}).status == 0
    assert (told(plan, "end"), len(told(plan, "done"))) == (digests, 1)
    assert hsmkme("ceremony", "verify", plan).status == 0


def signed_plan(hall: Hall, public: str) -> Path:
    return hall.plan("link-key", "paris", ('# key = "ssh-ed25519 AAAA..."', f'key = "{public}"'))


def test_a_key_of_somebody_else_is_asked_for_again_and_missing_signatures_are_named(hall: Hall) -> None:
    right, wrong = hall.home / "right.key", hall.home / "wrong.key"
    plan = signed_plan(hall, key_file(right, PrivateFormat.PKCS8))
    key_file(wrong, PrivateFormat.PKCS8)
    asked = "witness-1.the-file-with-your-private-key"
    done = hall.run(plan, {**LINK, asked: str(wrong)})
    assert (done.status, "gave no right answer to: the file with your private key" in done.err) == (3, True)
    proved = hsmkme("ceremony", "verify", plan)
    assert (proved.status, "not signed by witness-1" in proved.out) == (1, True)
    assert hall.run(plan, {**LINK, asked: str(right)}).status == 0  # the same command asks for what is missing
    assert hsmkme("ceremony", "verify", plan).status == 0
    assert len(told(plan, "done")) == 1

