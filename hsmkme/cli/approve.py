"""approve: officers ask for a destructive act, others approve it, each with their own key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hsmkme import bootstrap
from hsmkme.approvals import Approvals, Standing
from hsmkme.cli.shared import JSON_OPTION, console, load_config, operator, with_config
from hsmkme.errors import OperatorFault
from hsmkme.officers import Operation, SignedRequest
from hsmkme.secrecy import signing_key

_FILE = click.Path(dir_okay=False, path_type=Path)
_KEY_OPTION = click.option("--key", "key_file", type=_FILE, required=True,
                           help="Your Ed25519 private key, PEM or OpenSSH, in a file of mode 0400 or 0600.")


@click.group()
def approve() -> None:
    """Approvals of destructive acts by several officers (ops/approvals.md)."""


@approve.command("request")
@click.argument("operation", type=click.Choice([operation.value for operation in Operation]))
@click.argument("target")
@_KEY_OPTION
@click.option("--out", type=_FILE, required=True, help="A new file, which the other officers sign.")
@click.option("--hours", type=click.IntRange(1, 168), default=24, show_default=True, help="How long it is good for.")
@with_config
def approve_request(operation: str, target: str, key_file: Path, out: Path, hours: int, config: str | None) -> None:
    """Ask for OPERATION on TARGET, as the officer whose key this is."""
    text = _approvals(config).request((Operation(operation), target), _key(key_file), hours * 3600)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OperatorFault(f"{out} cannot be written, name another file: {error.strerror}") from error
    click.echo(f"{out}: others approve it by `hsmkme approve sign {out}`")


@approve.command("sign")
@click.argument("file", type=_FILE)
@_KEY_OPTION
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
@with_config
def approve_sign(file: Path, key_file: Path, yes: bool, config: str | None) -> None:
    """Approve what FILE asks for: shows it, then adds your signature to it."""
    approvals = _approvals(config)
    signed = SignedRequest.read(file)
    _tell(approvals.standing([file]))
    if not yes:
        click.confirm("Do you approve this?", abort=True)
    signature = approvals.sign(signed, _key(key_file))
    with file.open("a", encoding="utf-8") as opened:
        opened.write(signature)
    click.echo(f"{file}: signed")


@approve.command("show")
@click.argument("files", type=_FILE, nargs=-1, required=True)
@with_config
@JSON_OPTION
def approve_show(files: tuple[Path, ...], config: str | None, as_json: bool) -> None:
    """What FILES, copies of one request, approve and who signed. Exit status 0: good now; 1: not, and why."""
    standing = _approvals(config).standing(files)
    if as_json:
        click.echo(json.dumps(_facts(standing)))
    else:
        _tell(standing)
    sys.exit(0 if standing.refusal is None else 1)


@approve.command("adopt")
@click.argument("files", type=_FILE, nargs=-1)
@with_config
def approve_adopt(files: tuple[Path, ...], config: str | None) -> None:
    """Put [approvals] of the configuration in force. To lower it, FILES approve `policy.lower`."""
    policy = _approvals(config).adopt(files, operator())
    who = f"{policy.needed} besides who asks, of {', '.join(policy.keys)}" if policy.needed else "nobody has to approve"
    click.echo(f"in force: {who}")


def _approvals(config: str | None) -> Approvals:
    settings = load_config(config)
    return bootstrap.approvals(settings, bootstrap.open_store(settings))


def _key(path: Path) -> Ed25519PrivateKey:
    return signing_key(path, lambda use: use(click.prompt(f"Passphrase of {path}", hide_input=True, err=True)))


def _facts(standing: Standing) -> dict[str, object]:
    request, refusal = standing.request, standing.refusal
    said = {name: getattr(request, name) for name in ("operation", "target", "requester", "kme", "expires", "nonce")}
    approved = [name for name in standing.signers if name != request.requester]
    why = None if refusal is None else {"rule": refusal.rule, "says": str(refusal)}
    return {**said, "approved_by": approved, "needed": standing.needed, "good": refusal is None, "refused": why}


def _tell(standing: Standing) -> None:
    facts = _facts(standing)
    approved = ", ".join(name for name in standing.signers if name != standing.request.requester) or "nobody"
    facts["approved_by"] = f"{approved}; {standing.needed} are needed"
    del facts["good"]
    facts["refused"] = "no: the approval is good" if standing.refusal is None else str(standing.refusal)
    for name, value in facts.items():
        if name != "needed":
            console.print(f"[bold]{name.replace('_', ' '):>12}[/bold]  ", end="")
            console.print(str(value), soft_wrap=True, markup=False)
