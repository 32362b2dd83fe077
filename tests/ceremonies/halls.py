"""Where tests hold ceremonies: a SoftHSM directory of its own, a plan in it, answers, a transcript."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkcs11 import Attribute

from hsmkme.ceremony.transcript import Line, read
from hsmkme.hsm import TokenAddress, load_profile
from hsmkme.hsm.session import Sessions
from tests.processes import Done, apart, hsmkme
from tests.tokens import PIN, PINS

LABEL = "test-hall"
NOTE = "ceremony/"
PROFILE = load_profile("softhsm-2.6")
Answers = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Hall:
    """A directory in which ceremonies are held, on the token ``test-hall`` if it has one."""

    home: Path

    @property
    def conf(self) -> Path:
        return self.home / "softhsm2.conf"

    @property
    def config(self) -> Path:
        return self.home / "hsmkme.toml"

    @property
    def address(self) -> TokenAddress:
        return TokenAddress(PROFILE, Path(PROFILE.module), LABEL, softhsm_conf=self.conf)

    def prepare(self) -> Hall:
        """The settings of SoftHSM, and an empty directory for its tokens unless there is one."""
        (self.home / "tokens").mkdir(exist_ok=True)
        self.conf.write_text(
            f"directories.tokendir = {self.home}/tokens\nobjectstore.backend = file\n"
            "log.level = ERROR\nlibrary.reset_on_fork = true\n"
        )
        return self

    def copy(self, home: Path) -> Hall:
        """Another hall with the same tokens."""
        home.mkdir(exist_ok=True)
        shutil.copytree(self.home / "tokens", home / "tokens")
        return Hall(home).prepare()

    def plan(self, kind: str, about: str = "", *changes: tuple[str, str]) -> Path:
        """A plan as `ceremony new` writes it, with each old text of ``changes`` replaced by the new one."""
        path = self.home / f"{kind}.toml"
        path.unlink(missing_ok=True)
        token = ["--label", LABEL, "--softhsm-conf", self.conf, "--config", self.config]
        options = ["--about", about, "--other-end", "far-end"] if about else []
        done = hsmkme("ceremony", "new", kind, path, *token, *options)
        assert done.status == 0, done.err
        text = path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)
        return path

    def answers(self, given: Answers, *, phrases: bool = True) -> Path:
        """A file of answers: those of ``given`` before the PINs that everybody knows here."""
        path = self.home / "answers.toml"
        path.unlink(missing_ok=True)
        lines = [f"{json.dumps(key)} = {json.dumps(answer)}" for key, answer in {**PINS, **given}.items()]
        path.write_text("\n".join([f"phrases = {str(phrases).lower()}", "[answers]", *lines]))
        path.chmod(0o400)
        return path

    def run(self, plan: Path, given: Answers | None = None, *flags: str) -> Done:
        """`ceremony run`, answered from a file."""
        return hsmkme("ceremony", "run", plan, "--answers", self.answers(given or {}), *flags)

    def labels(self, pin: str = PIN) -> list[str]:
        """Every object on the token, without the notes of ceremonies."""
        return [label for label in dict.fromkeys(self.all_labels(pin)) if not label.startswith(NOTE)]

    def notes(self) -> list[str]:
        """The notes that ceremonies left."""
        return [label for label in self.all_labels() if label.startswith(NOTE)]

    def all_labels(self, pin: str = PIN) -> list[str]:
        """The label of every object on the token."""
        path = self.home / "labels.json"
        apart(_write_labels, self.address, pin, path)
        found: list[str] = json.loads(path.read_text())
        return found

    def objects(self) -> dict[str, bytes]:
        """The files of all objects of all tokens: what was made, changed or destroyed is seen here."""
        return {path.name: path.read_bytes() for path in self.home.glob("tokens/*/*-*.object")}

    def tokens(self) -> int:
        return len(list((self.home / "tokens").iterdir()))


CUSTODIANS = ("custodian-1", "custodian-2", "custodian-3")
Backed = tuple[Hall, Path, dict[str, str]]
"""A hall whose master key has a backup, the plan by which that was made, and the words of each custodian's share."""


def shares_of(said: str) -> dict[str, str]:
    """The words that each custodian saw."""
    found = {}
    for custodian in CUSTODIANS:
        shown = said.partition(f"> {custodian} alone sees the screen\n")[2].partition(f"\n{custodian}, type")[0]
        found[custodian] = " ".join(shown.split())
        assert len(found[custodian].split()) == 42
    return found


def backup_of(hall: Hall) -> Path:
    """The backup file that a ceremony left in a hall."""
    (path,) = hall.home.glob("*.backup.json")
    return path


def _write_labels(address: TokenAddress, pin: str, path: Path) -> None:
    sessions = Sessions(address, lambda: pin)
    with sessions.lane() as lane:
        found = lane.session.get_objects({Attribute.TOKEN: True})
        path.write_text(json.dumps(sorted(one[Attribute.LABEL] for one in found)))
    sessions.close()


def transcript_of(plan: Path) -> Path:
    """The transcript that a plan names."""
    return plan.parent / str(tomllib.loads(plan.read_text())["transcript"])


def lines_of(plan: Path) -> list[Line]:
    """What the transcript of a plan says."""
    return read(transcript_of(plan)).lines


def told(plan: Path, what: str) -> list[dict[str, Any]]:
    """The facts of all lines of one kind."""
    return [line["facts"] for line in lines_of(plan) if line["what"] == what]


def shape(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """What happened in a transcript, in which order, with facts of which names."""
    return [(line["what"], tuple(sorted(line["facts"]))) for line in read(path).lines]
