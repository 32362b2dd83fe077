"""Does a backup exist only as shares, and does a ceremony bring the master key back from any that are enough?"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from hsmkme.hsm import Token, TokenAddress
from tests.ceremonies.halls import CUSTODIANS, Backed, Hall, backup_of, lines_of, shares_of, told, transcript_of
from tests.ceremonies.test_kinds import ALL, proved
from tests.processes import apart, hsmkme
from tests.tokens import PIN


def test_a_backup_is_proved_by_its_transcript_which_has_no_share(backed: Backed) -> None:
    hall, plan, shares = backed
    assert proved(plan)["signed_by"] == ["token"]
    evidence = told(plan, "done")[-1]["evidence"]
    assert (evidence["threshold"], evidence["custodians"], len(evidence["commitments"])) == (2, [*CUSTODIANS], 3)
    made = told(plan, "done")[2]["evidence"]
    assert (made["LOCAL"], made["EXTRACTABLE"], made["check_value"]) == (True, True, evidence["check_value"])
    text = transcript_of(plan).read_text() + backup_of(hall).read_text()
    assert not any(words[:60] in text for words in shares.values())
    assert hall.labels() == ALL


@pytest.mark.parametrize("who", [*itertools.permutations(CUSTODIANS, 2)], ids="-".join)
def test_any_two_of_three_bring_the_key_back_in_any_order(
    backed: Backed, empty: Hall, who: tuple[str, str]
) -> None:
    hall, plan, shares = backed
    by = ('"custodian-1", "custodian-2"]', f'"{who[0]}", "{who[1]}"]')
    people = tuple((f'id = "custodian-{n}"', f'id = "person-{n}"') for n in (1, 2))
    named = tuple((f'id = "person-{n}"', f'id = "{custodian}"') for n, custodian in enumerate(who, start=1))
    restore = empty.plan("restore", str(backup_of(hall)), by, *people, *named)
    answers = {f"{custodian}.your-share": shares[custodian] for custodian in who}
    done = empty.run(restore, answers)
    assert done.status == 0, done.err
    assert empty.labels() == ALL
    evidence = told(restore, "done")[2]["evidence"]
    assert evidence["check_value"] == told(plan, "done")[2]["evidence"]["check_value"]
    assert evidence["shares"] == sorted(int(custodian[-1]) for custodian in who)
    assert (evidence["LOCAL"], evidence["MODIFIABLE"]) == (False, False)
    assert proved(restore)["signed_by"] == ["token"]
    apart(require_check_value, empty.address, evidence["check_value"])
    assert not any(words[:60] in transcript_of(restore).read_text() for words in shares.values())


def require_check_value(address: TokenAddress, value: str) -> None:
    token = Token(address, lambda: PIN)
    assert token.check_value(1) == value
    token.prove(1)
    token.close()


def test_a_wrong_or_repeated_share_is_named_and_another_is_asked_for(
    backed: Backed, empty: Hall
) -> None:
    hall, _, shares = backed
    first = shares["custodian-1"].split()
    exchanged = " ".join([*first[:2], first[3], first[2], *first[4:]])
    restore = empty.plan("restore", str(backup_of(hall)))
    answers: dict[str, str | list[str]] = {
        "custodian-1.your-share": [exchanged, shares["custodian-1"]],
        "custodian-2.your-share": [shares["custodian-1"], shares["custodian-2"]],
    }
    done = empty.run(restore, answers)
    assert done.status == 0, done.err
    why = [facts["why"] for facts in told(restore, "wrong-input")]
    assert "word 3 should have two syllables" in why[0]
    assert "share 1 was entered before" in why[1]


def test_fewer_shares_than_are_needed_bring_nothing_back(
    backed: Backed, empty: Hall
) -> None:
    hall, _, shares = backed
    restore = empty.plan("restore", str(backup_of(hall)))
    done = empty.run(restore, {f"custodian-{n}.your-share": shares["custodian-1"] for n in (1, 2)})
    assert (done.status, "custodian-2 gave no right answer to: your share" in done.err) == (3, True)
    assert empty.labels() == ["audit"]
    assert lines_of(restore)[-1]["what"] == "abort"


def test_a_custodian_types_back_what_is_on_paper(hall: Hall, backed: Backed) -> None:
    own, _, shares = backed
    other = own.copy(hall.home / "other")
    plan = other.plan("backup")
    done = other.run(plan, {"custodian-1.your-share-from-paper": shares["custodian-1"]})
    assert (done.status, "gave no right answer to: your share from paper" in done.err) == (3, True)
    assert list(other.home.glob("*.backup.json")) == []
    again = other.run(plan)
    assert again.status == 0, again.err
    assert shares_of(again.out) != shares
    assert proved(plan)["signed_by"] == ["token"]


def test_a_backup_is_not_made_of_a_key_that_was_made_without(hall: Hall) -> None:
    plan = hall.plan("backup")
    done = hall.run(plan)
    assert (done.status, "was made without a backup and can never have one" in done.err) == (1, True)
    assert list(hall.home.glob("*.backup.json")) == []


def test_sheets_are_printed_and_removed(backed: Backed, tmp_path: Path) -> None:
    hall = backed[0].copy(tmp_path / "hall")
    (hall.home / "sheets").mkdir()
    plan = hall.plan("backup", "", ("# sheets = ", "sheets = "))
    done = hall.run(plan)
    assert done.status == 0, done.err
    assert re.findall(r"The sheet is .*/sheets/.*-custodian-(\d).html", done.out) == ["1", "2", "3"]
    assert list((hall.home / "sheets").iterdir()) == []


def test_who_is_not_there_gets_an_envelope_that_only_they_open(
    backed: Backed, empty: Hall, tmp_path: Path
) -> None:
    hall = backed[0].copy(tmp_path / "hall")
    assert hsmkme("custodian", "key", hall.home / "far.key").status == 0
    plan = hall.plan("backup", "", ('# envelope_key = "custodian-3.key.pub"', 'envelope_key = "far.key.pub"'))
    done = hall.run(plan)
    assert done.status == 0, done.err
    assert "custodian-3 is here" not in done.out
    (envelope,) = hall.home.glob("*-custodian-3.envelope")
    sheet = hall.home / "far.html"
    options = ["--key", hall.home / "far.key", "--name", "Far", "--backup", backup_of(hall), "--sheet", sheet]
    opened = hsmkme("custodian", "open", envelope, *options)
    assert opened.status == 0, opened.err
    assert "Share 3 of 3" in sheet.read_text()


def test_no_sheet_and_no_envelope_is_overwritten_or_left_by_a_dry_run(backed: Backed, tmp_path: Path) -> None:
    hall = backed[0].copy(tmp_path / "hall")
    assert hsmkme("custodian", "key", hall.home / "far.key").status == 0
    absent = ('# envelope_key = "custodian-3.key.pub"', 'envelope_key = "far.key.pub"')
    plan = hall.plan("backup", "", absent, ("# sheets = ", "sheets = "))
    assert "sheets is no directory, or not writable" in hall.run(plan).err
    sheets = hall.home / "sheets"
    sheets.mkdir()
    assert hall.run(plan, {}, "--dry-run").status == 0
    assert list(sheets.iterdir()) == list(hall.home.glob("*.envelope")) == []
    stem = Path(backup_of_plan(plan)).stem
    for name in (f"{stem}-custodian-1.html", f"{stem}-custodian-3.envelope"):
        (sheets / name).write_text("precious")
        done = hall.run(plan)
        assert (done.status, f"{name} exists: nothing is overwritten" in done.err) == (1, True), done
        assert (sheets / name).read_text() == "precious"
        (sheets / name).unlink()


def backup_of_plan(plan: Path) -> str:
    return re.findall('^file = "(.*)"', plan.read_text(), re.MULTILINE)[0]


def test_a_backup_file_is_never_overwritten(backed: Backed, tmp_path: Path) -> None:
    hall = backed[0].copy(tmp_path / "hall")
    plan = hall.plan("backup")
    name = backup_of_plan(plan)
    (hall.home / name).write_text("precious")
    found = json.loads(hsmkme("ceremony", "check", plan, "--answers", hall.answers({}), "--json").out)
    assert found["wrong"] == [f"{hall.home / name} exists: nothing is overwritten, name another file"]
    assert (hall.run(plan).status, (hall.home / name).read_text()) == (1, "precious")
