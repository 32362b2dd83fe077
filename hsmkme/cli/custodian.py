"""custodian: what the holder of a share of a backup key does at home, without the token and without a configuration."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hsmkme.ceremony.backups import Backup, read_backup
from hsmkme.ceremony.envelopes import new_key, open_envelope
from hsmkme.ceremony.shares import Gathering, Share, read_share
from hsmkme.ceremony.sheets import Receiver, sheet, write_private
from hsmkme.errors import OperatorFault, ShareRefused
from hsmkme.secrecy import private_text

_FILE = click.Path(dir_okay=False, path_type=Path)
_BACKUP_OPTION = click.option("--backup", "backup_file", type=_FILE, required=True, help="The backup file; no secret.")


@click.group()
def custodian() -> None:
    """Custodians of shares (ops/shares.md)."""


@custodian.command("key")
@click.argument("path", metavar="FILE", type=_FILE)
def custodian_key(path: Path) -> None:
    """Make a key to which shares can be sealed: FILE is yours alone, FILE.pub goes to the security officers."""
    private, public = new_key()
    public_file = path.with_name(f"{path.name}.pub")
    for file, content, mode in ((path, private, 0o400), (public_file, public, 0o444)):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except OSError as error:
            raise OperatorFault(f"{file} cannot be written, name another file: {error.strerror}") from error
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
    click.echo(f"{path} is secret; {public_file} is for the security officers")


@custodian.command("open")
@click.argument("envelope", type=_FILE)
@click.option("--key", "key_file", type=_FILE, required=True, help="Your private key, a file of mode 0400.")
@click.option("--name", required=True, help="Your name, for the sheet.")
@click.option("--sheet", "sheet_file", type=_FILE, required=True, help="A new file, to be printed and destroyed.")
@_BACKUP_OPTION
def custodian_open(envelope: Path, key_file: Path, name: str, sheet_file: Path, backup_file: Path) -> None:
    """Open ENVELOPE and write the sheet of paper with your share in it."""
    backup = read_backup(backup_file)
    try:
        text = envelope.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ShareRefused(f"{envelope} cannot be read: ask the security officers for it again") from error
    share = open_envelope(text, private_text(key_file, "the private key").encode())
    _require_of(share, backup)
    receiver = Receiver(name, f"master/{backup.master.epoch}", len(backup.shares.commitments))
    write_private(sheet_file, sheet(share, receiver))
    click.echo(f"{sheet_file}: print it, then destroy it and {envelope}")


@custodian.command("check")
@_BACKUP_OPTION
def custodian_check(backup_file: Path) -> None:
    """Show that your sheet can still be read: type its words, which are not shown; nothing is kept."""
    backup = read_backup(backup_file)
    share = read_share(click.prompt("The words of your share", hide_input=True, err=True))
    _require_of(share, backup)
    click.echo(f"share {share.index} of set {share.set_id.hex()} is whole; any {share.threshold} restore the key")


def _require_of(share: Share, backup: Backup) -> None:
    """Refuse a share of something else, or one that was altered."""
    Gathering(backup.shares).add(share)
