"""Links: open or frozen and why, and what is known of the KME at the other end."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from hsmkme.errors import StoreError
from hsmkme.messages.bodies import Grant, GrantedBlock, Hello, Standing, parsed
from hsmkme.model import Entry
from hsmkme.store.database import Database, Transaction, head_of, spoken
from hsmkme.store.outbox import OPEN, post
from hsmkme.store.writers import turn

STARTING: Final = "starting"
"""The service began and has not heard from the peer yet whether this store is an old copy."""

RESTORED: Final = "restored"
"""This store is an old copy: it must be reconciled."""

PEER_RESTORED: Final = "peer restored"
"""The peer's store is an old copy: it must reconcile."""

GIVEN_UP: Final = "given up"
"""This store is an old copy, as the peer's is: its keys were given up, and the peer must give up its own."""

OPERATOR: Final = "operator"

LASTING: Final = (OPERATOR, RESTORED, GIVEN_UP)
"""Reasons that no start, and nothing a peer says of itself, ends."""

_STANDING: Final = """
SELECT link.link_id, peer, why, link.incarnation, sent, coalesce(far_end.incarnation, ''), coalesce(seen, 0),
    coalesce(log_rows, 0), coalesce(far_end.ready, '{}'), coalesce(heard, 0), start_sent, start_rows
FROM link LEFT JOIN far_end USING (link_id) WHERE link.link_id = ?
"""


@dataclass(frozen=True, slots=True)
class LinkState:
    """Where both ends of a link stand. ``seen``: the peer's highest number; ``far_ready``: keys it may assign, by
    size; ``heard``: when it was last in touch, seconds since the epoch, 0 for never. ``began``: number of the last
    message and rows of the log when the service began; None once the peer has judged them."""

    link_id: str
    peer: str
    why: str
    incarnation: str
    sent: int
    far_incarnation: str
    seen: int
    far_log_rows: int
    far_ready: dict[str, int]
    heard: int
    ready: dict[str, int]
    log_rows: int
    began: tuple[int, int] | None

    @property
    def is_open(self) -> bool:
        """Whether keys may be claimed."""
        return self.why == OPEN


class Links:
    """The links of this KME."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self, link_id: str) -> LinkState:
        """Where a link stands; raises `StoreError` if there is none of this name."""
        with self._database.read() as connection:
            return _state(connection, link_id, head_of(connection)[0])

    def freeze(self, link_id: str, why: str, entry: Entry) -> bool:
        """Claim nothing from a link from now on; False if it was frozen for this reason before."""
        with self._database.write() as transaction:
            return freeze(transaction, link_id, why, entry)

    def open(self, link_id: str, why: str, entry: Entry) -> bool:
        """Open a link that was frozen for the reason ``why``; False if it was not."""
        with self._database.write() as transaction:
            return reopen(transaction, link_id, why, entry)

    def halt(self, link_id: str, entry: Entry) -> str:
        """Freeze an open link until an operator thaws it; gives the reason for which it was frozen before, if any."""
        with self._database.write() as transaction:
            was = state_in(transaction, link_id).why
            if was == OPEN:
                freeze(transaction, link_id, OPERATOR, entry)
            return was

    def thaw(self, link_id: str, becomes: str, entry: Entry) -> str:
        """End what `halt` did: the link is frozen for the reason ``becomes``, or open; gives the reason before.

        One that was frozen for another reason stays as it is.
        """
        with self._database.write() as transaction:
            was = state_in(transaction, link_id).why
            if was == OPERATOR and becomes == OPEN:
                reopen(transaction, link_id, OPERATOR, entry)
            elif was == OPERATOR:
                freeze(transaction, link_id, becomes, entry)
            return was

    @contextmanager
    def turn(self, link_id: str, *, wait: bool = True) -> Iterator[bool]:
        """Greet or reconcile the peer of a link as the only process of this KME that does so now.

        Gives False when another does and this one does not ``wait``.
        """
        with spoken(), turn(self._database.path, f"{link_id}.turn", wait=wait) as taken:
            yield taken

    def begin(self, peer_links: list[str], entry: Entry) -> None:
        """The service starts: nothing is claimed until each peer has said that this store is no old copy.

        That of a peer may have been one when a copy was made of this one: only its next hello tells. Where this end
        stands now is what the peer is told, however long it is away: what is written meanwhile makes no copy younger.
        """
        with self._database.write() as transaction:
            rows = transaction.head()[0]
            for link_id in peer_links:
                fresh = transaction.execute(
                    "UPDATE link SET start_sent = sent, start_rows = ? WHERE link_id = ? AND start_rows IS NULL",
                    (rows, link_id),
                )
                if fresh.rowcount:
                    transaction.append(Entry("link.begin", entry.actor, {"link": link_id}))
                freeze(transaction, link_id, STARTING, entry, unless=LASTING)

    def heard(self, link_id: str, standing: Standing) -> None:
        """Note that the peer answered, and how far an open one has come.

        While its link is frozen a hello of its own may be under way that says how many rows its log had a moment
        before, and must not look like that of an old copy. Who it is its hello alone tells: this may be an answer of
        before its reconciliation.
        """
        rows = standing.log_rows if standing.why == OPEN else 0
        with self._database.write(logged=False) as transaction:
            transaction.execute(
                "INSERT INTO far_end (link_id, incarnation, log_rows, ready, heard) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (link_id) DO UPDATE SET ready = excluded.ready, heard = excluded.heard, log_rows ="
                " CASE WHEN incarnation = excluded.incarnation THEN max(log_rows, excluded.log_rows) ELSE log_rows END",
                (link_id, standing.incarnation, rows, json.dumps(standing.ready), transaction.now()),
            )
            if standing.verdict == "good" and standing.why != RESTORED:
                _judged(transaction, link_id)

    def closed(self, peer: str) -> list[str]:
        """The links to ``peer`` that are not open."""
        with self._database.read() as connection:
            statement = "SELECT link_id FROM link WHERE peer = ? AND why <> '' ORDER BY link_id"
            return [link_id for (link_id,) in connection.execute(statement, (peer,))]

    def peers(self) -> frozenset[str]:
        """The KMEs to which links lead."""
        with self._database.read() as connection:
            return frozenset(peer for (peer,) in connection.execute("SELECT peer FROM link"))

    def block_size(self, link_id: str, key_bits: int) -> int:
        """How many keys the latest block of a size that the peer has too has; 1 if there is none."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT key_count FROM block WHERE link_id = ? AND key_bits = ? AND tag IS NOT NULL"
                " ORDER BY block_pk DESC LIMIT 1",
                (link_id, key_bits),
            ).fetchone()
        return int(row[0]) if row else 1

    def renew(self, link_id: str, entry: Entry) -> None:
        """Begin a new incarnation after a reconciliation: messages of before are refused everywhere.

        Blocks that were being given away are given anew, or neither end might own them.
        """
        with self._database.write() as transaction:
            grants = _unsent_grants(transaction, link_id)
            transaction.execute("DELETE FROM outbox WHERE link_id = ?", (link_id,))
            transaction.execute(
                "UPDATE link SET incarnation = ?, sent = 0 WHERE link_id = ?",
                (new_incarnation(transaction.now(), state_in(transaction, link_id).incarnation), link_id),
            )
            _judged(transaction, link_id)
            if grants:
                post(transaction, link_id, "blocks/grant", Grant(blocks=grants))
            transaction.append(entry.knowing(link=link_id))

    def hello(self, link_id: str, versions: list[str], *, reconciled: bool = False) -> Hello:
        """What this end says of itself."""
        state = self.state(link_id)
        sent, log_rows = state.began or (state.sent, state.log_rows)
        return Hello(
            versions=versions,
            sent=sent,
            log_rows=log_rows,
            why=state.why,
            ready=state.ready,
            reconciled=reconciled,
        )


def new_incarnation(now: int, before: str = "") -> str:
    """A name for the life of a store from ``now`` on: greater than the one ``before``, and like no other."""
    return f"{max(now, int(before[:16] or '0', 16) + 1):016x}{secrets.token_hex(8)}"


def _state(connection: Any, link_id: str, log_rows: int) -> LinkState:
    row = connection.execute(_STANDING, (link_id,)).fetchone()
    if row is None:
        raise StoreError(f"no link {link_id} is known")
    ready = connection.execute("SELECT key_bits, ready FROM pool WHERE link_id = ? AND ready > 0", (link_id,))
    keys_ready = {str(bits): count for bits, count in ready}
    name, peer, why, life, sent, far_life, seen, far_rows, far_ready, heard, start_sent, start_rows = row
    began = None if start_rows is None else (start_sent, start_rows)
    far = (far_life, seen, far_rows, json.loads(far_ready), heard)
    return LinkState(name, peer, why, life, sent, *far, keys_ready, log_rows, began)


def state_in(transaction: Transaction, link_id: str) -> LinkState:
    """Where a link stands, inside a transaction."""
    return _state(transaction.connection, link_id, transaction.head()[0])


def freeze(transaction: Transaction, link_id: str, why: str, entry: Entry, unless: tuple[str, ...] = ()) -> bool:
    """Freeze a link, unless it is frozen so, or for a graver reason, already."""
    (was,) = transaction.execute("SELECT why FROM link WHERE link_id = ?", (link_id,)).fetchone()
    if was in (why, *unless):
        return False
    transaction.execute("UPDATE link SET state = 'frozen', why = ? WHERE link_id = ?", (why, link_id))
    transaction.append(entry.knowing(link=link_id, why=why))
    return True


def reopen(transaction: Transaction, link_id: str, why: str, entry: Entry) -> bool:
    """Open a link that is frozen for the reason ``why``."""
    done = transaction.execute(
        "UPDATE link SET state = 'open', why = '' WHERE link_id = ? AND why = ? AND state = 'frozen'", (link_id, why)
    )
    if done.rowcount:
        transaction.append(entry.knowing(link=link_id, was=why))
    return bool(done.rowcount)


def _judged(transaction: Transaction, link_id: str) -> None:
    transaction.execute("UPDATE link SET start_sent = NULL, start_rows = NULL WHERE link_id = ?", (link_id,))


def _unsent_grants(transaction: Transaction, link_id: str) -> list[GrantedBlock]:
    """Blocks of grants that the peer did not acknowledge, as far as nothing newer is known of their owners."""
    bodies = transaction.execute("SELECT body FROM outbox WHERE link_id = ? AND call = 'blocks/grant'", (link_id,))
    told = [block for (body,) in bodies.fetchall() for block in parsed(Grant, body).blocks]
    statement = (
        "SELECT 1 FROM block WHERE link_id = ? AND block_id = ? AND own_epoch = ? AND mine = 0 AND state = 'ready'"
    )
    return [b for b in told if transaction.execute(statement, (link_id, b.block_id, b.own_epoch)).fetchone()]


def note_far_end(
    transaction: Transaction, link_id: str, incarnation: str, log_rows: int, ready: dict[str, int]
) -> None:
    """Remember what the peer says of itself; another incarnation begins to count its messages anew."""
    transaction.execute(
        "INSERT INTO far_end (link_id, incarnation, log_rows, ready, heard) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (link_id) DO UPDATE SET"
        " seen = CASE WHEN incarnation = excluded.incarnation THEN seen ELSE 0 END,"
        " log_rows = CASE WHEN incarnation = excluded.incarnation THEN max(log_rows, excluded.log_rows)"
        " ELSE excluded.log_rows END, incarnation = excluded.incarnation,"
        " ready = excluded.ready, heard = excluded.heard",
        (link_id, incarnation, log_rows, json.dumps(ready), transaction.now()),
    )


def is_behind(here: LinkState, incarnation: str, hello: Hello) -> bool:
    """Whether a peer whose link is frozen says less of itself than is known here, or is not the one that was known.

    One that does not start may have been reconciled with this end when this end's store was a younger one.
    """
    if hello.reconciled:
        return incarnation < here.far_incarnation
    if not here.far_incarnation or hello.why == OPEN:
        return False
    if incarnation != here.far_incarnation:
        return incarnation < here.far_incarnation or hello.why in (STARTING, RESTORED)
    return hello.sent < here.seen or hello.log_rows < here.far_log_rows
