"""The command line.

Exit status: 0 done, 1 refused or found wrong, 2 wrong usage, 3 a ceremony was interrupted, 75 try again later.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Final

import click

from hsmkme import __version__
from hsmkme.cli.shared import CONFIG_OPTION, Settings
from hsmkme.errors import (
    AuditBroken,
    CeremonyAborted,
    ConfigRefused,
    HsmkmeError,
    PeerUnavailable,
    PoolFull,
    StoreUnavailable,
    TokenUnavailable,
)

INTERRUPTED: Final = 3
TRY_AGAIN: Final = 75
_PASSING = (PeerUnavailable, PoolFull, StoreUnavailable, TokenUnavailable)


_MODULES: Final = {
    "check": "check",
    "migrate": "operate",
    "restore": "operate",
    "serve": "serving",
    "serve-peers": "serving",
    "upkeep": "operate",
    "deposit": "deposit",
    "simulate": "deposit",
    "clock": "clock",
    "sae": "registry",
    "pair": "registry",
    "link": "links",
    "peer": "peers",
    "key": "views",
    "relation": "views",
    "audit": "audit",
    "approve": "approve",
    "custodian": "custodian",
    "ceremony": "ceremony",
    "epoch": "epoch",
    "revoke": "revoke",
    "prove-destroyed": "receipts",
    "demo": "demo",
    "bench": "bench",
    "hsm": "hsm",
}
"""The module of each command: imported when the command is called, for no command needs all of them."""


class _Group(click.Group):
    """Finds a command when it is called. Prints what was refused in one line, without a traceback."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        module = importlib.import_module(f"hsmkme.cli.{_MODULES[name]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ConfigRefused as refusal:
            for finding in refusal.findings:
                click.echo(finding, err=True)
            sys.exit(1)
        except AuditBroken as error:
            click.echo(f"BROKEN  row {error.row}: {error}", err=True)
            sys.exit(1)
        except CeremonyAborted as aborted:
            click.echo(f"hsmkme: {aborted}", err=True)
            sys.exit(INTERRUPTED)
        except HsmkmeError as error:
            click.echo(f"hsmkme: {error}", err=True)
            sys.exit(TRY_AGAIN if isinstance(error, _PASSING) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@CONFIG_OPTION
@click.option("-v", "--verbose", is_flag=True, help="Show what the program logs.")
@click.pass_context
def main(context: click.Context, config: str | None, verbose: bool) -> None:
    """A Key Management Entity for quantum key distribution whose keys live inside a PKCS#11 token."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    context.obj = Settings(config)
