"""The composition root: from a configuration file to working objects, built in the process that uses them."""

from __future__ import annotations

import ctypes
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hsmkme import config as configuration
from hsmkme.agreement import Agreement
from hsmkme.approvals import Approvals
from hsmkme.audit import AuditChain
from hsmkme.config import Config, TokenSection
from hsmkme.custody import Custody
from hsmkme.drivers.spool import Spool
from hsmkme.errors import HsmkmeError, OperatorFault
from hsmkme.fairuse import FairUse
from hsmkme.hsm import Token, TokenAddress, load_profile, read_profile
from hsmkme.hsm.tokens import Tokens
from hsmkme.identifiers import KeyIds
from hsmkme.intake import Intake
from hsmkme.kme import Kme
from hsmkme.liaison import Liaison
from hsmkme.model import Entry, Lineage, Relation
from hsmkme.officers import Officers
from hsmkme.peering import Peering
from hsmkme.peers import Peers
from hsmkme.secrecy import private_text
from hsmkme.store import Steady, Store
from hsmkme.store.counters import Counters
from hsmkme.store.timekeeping import LOOK_SECONDS
from hsmkme.upkeep import Duty, Upkeep

log = logging.getLogger(__name__)

CONFIG_VARIABLE: Final = "HSMKME_CONFIG"
SPOOL_SECONDS: Final = 1.0
_PR_SET_DUMPABLE: Final = 4
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process of one KME works with."""

    config: Config
    tokens: Tokens
    store: Store
    custody: Custody

    def kme(self) -> Kme:
        """The key delivery service."""
        counters = Counters(self.config.store.with_name(self.config.store.name + ".counters"), time.time)
        fair_use = FairUse(self.config.fair_use, counters, self.store.log.append, time.time)
        limits, new_ids = self.config.keys, KeyIds(time.time)
        agreement = self.agreement(self.peers()) if self.config.peering else None
        return Kme(self.config.kme_id, self.custody, self.store, limits, fair_use, time.time, new_ids, agreement)

    def peers(self) -> Peers:
        """Who sends messages to peers."""
        return Peers(self.config, self.custody.link_mac, time.time, time.monotonic)

    def agreement(self, peers: Peers) -> Agreement:
        """Who agrees with peers on keys."""
        return Agreement(self.config.kme_id, self.custody, peers, KeyIds(time.time))

    def peering(self) -> Peering:
        """Who answers peers."""
        return Peering(self.config.kme_id, self.config.links, self.custody, self.store, time.time)

    def liaison(self) -> Liaison:
        """Who looks after the links to peers."""
        peers, kme_id = self.peers(), self.config.kme_id
        elsewhere = partial(served_elsewhere, self.store, kme_id)
        agreement = self.agreement(peers)
        return Liaison(kme_id, self.config.links, self.store, peers, agreement, elsewhere, time.time)

    def intake(self) -> Intake:
        """Where drivers deposit."""
        return Intake(self.custody, self.config.kme_id, self.config.links, self.config.keys.max_key_count)

    def upkeep(self) -> Upkeep:
        """The duties."""
        return Upkeep(self.config, self.custody, self.store, time.time, self._drop_anchors)

    def _drop_anchors(self, lineage: Lineage) -> None:
        self.tokens.each(lambda token: token.anchor().drop(lineage))
        self.store.lineage.note_anchored()


def open_store(config: Config) -> Store:
    """The store of ``config``; it must have been migrated."""
    if not config.store.exists():
        raise OperatorFault(f"there is no store at {config.store}: run `hsmkme migrate`")
    return Store(config.store, AuditChain(), time.time)


def open_tokens(config: Config) -> Tokens:
    """The tokens of ``config``, of which none is opened yet."""
    openings = {section.label: partial(open_token, section) for section in config.token}
    return Tokens(openings, {link.id: link.tokens for link in config.link})


def open_token(section: TokenSection) -> Token:
    """A token that is configured, logged in."""
    return Token(token_address(section), pin_source(section.pin_file), block_keys=section.block_keys)


def approvals(config: Config, store: Store) -> Approvals:
    """Who judges whether officers approved a destructive act."""
    return Approvals(Officers.configured(config), store, config.kme_id, time.time)


def begin(config: Config, *, void: bool) -> None:
    """A process of the KME starts, perhaps on an old copy of the store: links to peers wait for what those say.

    ``void``: keys that were agreed with peers and not delivered end too, as a younger copy may have delivered them.
    """
    store = open_store(config)
    store.timekeeping.look(steady(), "start")
    approvals(config, store).require_kept()
    begin_on(store, config, void=void)
    store.close()


def begin_on(store: Store, config: Config, *, void: bool) -> None:
    """`begin`, on a store that is open."""
    store.registry.admit_links(config.links, Entry("link.admit", "config"))
    far = [link.link_id for link in config.links if link.peer != config.kme_id]
    store.links.begin(far, Entry("link.freeze", "start"))
    reason = Entry("key.void", "start", {"reason": "the service starts"})
    while far and void and store.keys.void_undelivered(reason):
        pass


def served_elsewhere(store: Store, kme_id: str, relation: Relation) -> frozenset[str]:
    """The slaves of ``relation`` that ``kme_id``, which is this KME, does not serve."""
    saes = store.registry.known().saes
    return frozenset(slave for slave in relation.slaves if slave not in saes or saes[slave].kme_id != kme_id)


def custody_of(tokens: Tokens, store: Store) -> Custody:
    """Custody of both, after comparing the master keys."""
    return Custody(tokens, store, time.time)


def open_parts(path: Path) -> Parts:
    """Everything, for the configuration at ``path``. Core dumps are off from here on."""
    forbid_core_dumps()
    config = configuration.load(path)
    log.info("configuration %s SHA-256 %s", path, configuration.digest(path))
    store = open_store(config)
    approvals(config, store).require_kept()
    store.registry.admit_links(config.links, Entry("link.admit", "config"))
    tokens = open_tokens(config)
    try:
        return Parts(config, tokens, store, custody_of(tokens, store))
    except HsmkmeError:
        tokens.close()  # who tries again logs in again, which the token refuses to who is logged in
        raise


def upkeep_with_spools(parts: Parts) -> Upkeep:
    """The duties, with a look at the clock before them and a sweep of every configured spool among them."""
    upkeep, intake = parts.upkeep(), parts.intake()
    upkeep.duties.insert(0, Duty("clock", LOOK_SECONDS, lambda: parts.store.timekeeping.look(steady(), "upkeep")))
    for section in parts.config.spool:
        bits, keys = parts.config.link_named(section.link).key_bits, parts.config.keys.block_keys
        spool = Spool(section.directory, section.link, bits, keys, section.format)
        spool.prepare()
        sweep = partial(spool.sweep, intake.take)
        upkeep.duties.append(Duty(f"spool {section.directory}", SPOOL_SECONDS, sweep))
    return upkeep


def steady() -> Steady:
    """The machine's clock that nobody sets; it goes on while the machine sleeps."""
    return Steady(_BOOT.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME))


def token_address(section: TokenSection) -> TokenAddress:
    """Where the configured token is."""
    profile = read_profile(section.profile_file) if section.profile_file else load_profile(section.profile)
    return TokenAddress(
        profile,
        section.module or Path(profile.module),
        section.label,
        section.serial,
        section.softhsm_conf,
        section.module_sha256,
    )


def pin_source(path: Path) -> Callable[[], str]:
    """Reads the PIN from the file at ``path`` when it is asked for; refuses a file that others may read."""

    return lambda: private_text(path, "the PIN file").strip()


def forbid_core_dumps() -> None:
    """No core file of a process that holds keys, and no attaching by other processes of the user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
