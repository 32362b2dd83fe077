"""Everything that is wrong with a KME, found at once: each check is made whatever the others find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.config import Config
from hsmkme.errors import ConfigRefused, HsmkmeError
from hsmkme.hsm import Token
from hsmkme.model import Link
from hsmkme.server.tls import check_files
from hsmkme.store import Store


def findings(path: Path) -> list[str]:
    """One line for each thing wrong; none when the KME can be started."""
    config, wrong = configuration.examine(path)
    if config is None:
        return wrong
    found = (*wrong, *check_files(config.server), *_spools(config), *_token_and_store(config))
    return list(dict.fromkeys(found))


def _spools(config: Config) -> Iterator[str]:
    for spool in config.spool:
        if spool.directory.exists() and not spool.directory.is_dir():
            yield f"spool.directory: {spool.directory} is not a directory"


def _token_and_store(config: Config) -> Iterator[str]:
    store: list[Store] = []
    token: list[Token] = []
    yield from _attempt("store", lambda: store.append(bootstrap.open_store(config)))
    if store:
        for link in config.links:
            yield from _attempt("store", partial(_link, store[0], link))
    yield from _attempt("token", bootstrap.pin_source(config.token.pin_file))
    yield from _attempt("token", lambda: token.append(bootstrap.open_token(config)))
    if token:
        yield from _attempt("token", lambda: token[0].audit_public_key() and None)
        if store:
            yield from _attempt("token", lambda: bootstrap.custody_of(token[0], store[0]) and None)
        token[0].close()


def _link(store: Store, link: Link) -> None:
    known = {str(row["link"]): str(row["peer"]) for row in store.registry.pools()}
    if known.get(link.link_id, link.peer) != link.peer:
        raise ConfigRefused([f"link {link.link_id} goes to {known[link.link_id]}, not to {link.peer}"])


def _attempt(subject: str, act: Callable[[], object]) -> Iterator[str]:
    try:
        act()
    except HsmkmeError as error:
        yield f"{subject}: {error}"
