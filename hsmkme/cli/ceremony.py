"""ceremony: what officers do with the token, by a plan that was reviewed before, with a transcript that proves it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import click

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.ceremony import checks, document, drafts, holding, plan, rehearsing, verifying
from hsmkme.ceremony.people import Desk
from hsmkme.ceremony.plan import Written
from hsmkme.ceremony.prompts import AnswersDesk, read_answers
from hsmkme.cli.desk import Terminal
from hsmkme.cli.shared import JSON_OPTION, config_path, load_config, with_config
from hsmkme.errors import OperatorFault
from hsmkme.hsm import TokenAddress, load_profile
from hsmkme.keeping import StoreKeeper
from hsmkme.words import spoken

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
PLAN: Final = click.argument("plan_file", metavar="PLAN.toml", type=_FILE)
ANSWERS: Final = click.option("--answers", type=_FILE, help="A file that answers every prompt, on a test token.")


@click.group()
def ceremony() -> None:
    """Key ceremonies: one plan file, one transcript."""


@ceremony.command("new")
@click.argument("kind", type=click.Choice(drafts.kinds()))
@PLAN
@click.option("--about", default="", help="The link, device, epoch or backup file that it is about.")
@click.option("--other-end", default="", help="The KME at the other end of the link.")
@click.option("--label", help="The token's label, if it is not the first that is configured.")
@click.option("--softhsm-conf", type=_FILE,
              help="What SoftHSM reads as SOFTHSM2_CONF, with --label: for a token that no configuration has.")
@with_config
def new(kind: str, plan_file: Path, label: str | None, softhsm_conf: Path | None, config: str | None,
        **subject: str) -> None:
    """Write a plan of this KIND to PLAN.toml, for people to complete and review. Nothing is overwritten."""
    if label is None or softhsm_conf is None:
        address = bootstrap.token_address(load_config(config).token_named(label))
    else:
        profile = load_profile("softhsm-2.6")
        address = TokenAddress(profile, Path(profile.module), label, softhsm_conf=softhsm_conf)
    about = drafts.Subject(subject["about"], subject["other_end"], config_path(config))
    _write_new(plan_file, drafts.draft(kind, address, about, time.time).encode())
    click.echo(f"{plan_file}: complete it, then `hsmkme ceremony check {plan_file}`")


@ceremony.command("check")
@PLAN
@ANSWERS
@JSON_OPTION
def check(plan_file: Path, answers: Path | None, as_json: bool) -> None:
    """Say everything that is wrong before the first act. The operator logs in, to look only."""
    written = plan.load(plan_file)
    desk = _desk(written, answers, quiet=as_json)
    found = holding.examined(written, plan_file, checks.this_machine(time.time))
    wrong = found.wrong or holding.of_objects(written.plan, desk)
    if as_json:
        click.echo(json.dumps({"good": not wrong, "wrong": wrong, "remarks": found.remarks}))
    else:
        _tell(wrong, found.remarks)
        if not wrong:
            click.echo(f"good    {len(written.plan.step)} steps; plan SHA-256 {written.digest}")
    sys.exit(1 if wrong else 0)


@ceremony.command("run")
@PLAN
@ANSWERS
@click.option("--dry-run", is_flag=True, help="Say what would happen; the token is only read.")
def run(plan_file: Path, answers: Path | None, dry_run: bool) -> None:
    """Hold the ceremony, or go on with it where it was interrupted. Exit status 3: it was interrupted."""
    machine = checks.this_machine(time.time)
    bootstrap.forbid_core_dumps()
    written = plan.load(plan_file)
    desk = _desk(written, answers)
    found = holding.examined(written, plan_file, machine)
    if dry_run:
        wrong = found.wrong or holding.run_dry(written, desk)
        _tell(wrong, found.remarks)
        sys.exit(1 if wrong else 0)
    found.raise_wrong()
    digest = holding.hold(written, desk, time.time, _keeper(written), found.remarks)
    _tell_digest(written.plan.transcript, digest)


@ceremony.command("rehearse")
@PLAN
@ANSWERS
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path),
              help="A new or empty directory for the token and the transcript. Default: a temporary one.")
def rehearse(plan_file: Path, answers: Path | None, directory: Path | None) -> None:
    """Hold the same ceremony on a new SoftHSM token: the same prompts, the same form of transcript."""
    bootstrap.forbid_core_dumps()
    written = plan.load(plan_file)
    home = Path(tempfile.mkdtemp(prefix="hsmkme-rehearsal-")) if directory is None else directory.resolve()
    home.mkdir(parents=True, exist_ok=True)
    desk = AnswersDesk(read_answers(answers), click.echo) if answers else Terminal()
    keeper = StoreKeeper(home / "store.sqlite", time.time)
    _tell_digest(home / "transcript.jsonl", rehearsing.rehearse(written, home, desk, time.time, keeper))


@ceremony.command("verify")
@PLAN
@click.option("--transcript", type=_FILE, help="Another transcript than the plan names: that of a rehearsal.")
@click.option("--audit-key", type=_FILE, help="The public key that the token must have signed with (PEM).")
@JSON_OPTION
def verify(plan_file: Path, transcript: Path | None, audit_key: Path | None, as_json: bool) -> None:
    """Check the transcript of PLAN offline. Exit status 1 names the first bad line."""
    written = plan.load(plan_file)
    try:
        report = _report(written, _lines(transcript or written.plan.transcript), audit_key)
    except verifying.BrokenError as error:
        broken = {"good": False, "line": error.line, "why": str(error)}
        click.echo(json.dumps(broken) if as_json else f"BROKEN  {error}")
        sys.exit(1)
    if as_json:
        click.echo(json.dumps({"good": True, **vars(report)}))
    else:
        click.echo(f"good    {report.ceremony} on {report.token}, ended {report.ended}")
        click.echo(f"signed  {', '.join(report.signed_by) or 'by nobody'}")
        click.echo(f"digest  {report.digest}")


@ceremony.command("print")
@PLAN
@click.option("--transcript", type=_FILE, help="Another transcript than the plan names: that of a rehearsal.")
@click.option("--html", "html_file", type=_FILE, help="A new file for the document as HTML.")
@click.option("--pdf", "pdf_file", type=_FILE, help="A new file for the document as PDF.")
def print_(plan_file: Path, transcript: Path | None, html_file: Path | None, pdf_file: Path | None) -> None:
    """Make the document of a ceremony, with lines to sign by hand. Its transcript must prove itself."""
    if html_file is None and pdf_file is None:
        raise click.UsageError("name a file: --html or --pdf")
    written = plan.load(plan_file)
    lines = _lines(transcript or written.plan.transcript)
    try:
        report = _report(written, lines, None)
    except verifying.BrokenError as error:
        raise OperatorFault(f"the transcript does not prove itself: {error}") from error
    content = document.document([line for _, line in verifying.chained(lines)], report)
    if html_file is not None:
        _write_new(html_file, document.html(content).encode())
        click.echo(f"{html_file}: print it, sign it, file it")
    if pdf_file is not None:
        _write_new(pdf_file, _pdf(content))
        click.echo(f"{pdf_file}: print it, sign it, file it")


def _pdf(content: document.Document) -> bytes:
    """The libraries for PDF are an extra: no service needs them."""
    try:
        from hsmkme.ceremony.pdf import pdf
    except ImportError as error:
        raise OperatorFault("PDF needs other libraries: pip install 'hsmkme[print]'; or use --html") from error
    return pdf(content)


def _report(written: Written, lines: list[str], audit_key: Path | None) -> verifying.Report:
    report = verifying.verify(lines, audit_key.read_bytes() if audit_key else None)
    if report.plan_sha256 != written.digest:
        raise verifying.BrokenError(1, "it is of another plan than this")
    return report


def _keeper(written: Written) -> StoreKeeper:
    """Of the store that the plan's configuration names."""
    path = written.plan.config
    return StoreKeeper(None if path is None else configuration.load(path).store, time.time)


def _desk(written: Written, answers: Path | None, *, quiet: bool = False) -> Desk:
    """Where people sit. A file answers for them only where nothing is worth anything."""
    if answers is None:
        return Terminal()
    if not written.plan.token.is_test:
        raise OperatorFault(
            f"--answers is for rehearsals: the label of the token does not begin with {plan.TEST_MARK!r}"
        )
    return AnswersDesk(read_answers(answers), _silent if quiet else click.echo)


def _silent(_text: str) -> None:
    """Say nothing: the output is for a program."""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise OperatorFault(f"the transcript {path} cannot be read: {error.strerror}") from error


def _tell(wrong: list[str], remarks: list[str]) -> None:
    for remark in remarks:
        click.echo(f"remark  {remark}")
    for finding in wrong:
        click.echo(f"wrong   {finding}", err=True)


def _tell_digest(transcript: Path, digest: bytes) -> None:
    click.echo(f"transcript {transcript} digest {digest.hex()}\n{spoken(digest)}")


def _write_new(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
