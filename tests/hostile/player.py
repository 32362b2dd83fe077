"""One hostile client: it plays moves, holds every answer against the rules, and remembers which keys it got."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.hostile.moves import Hand, Move, Then, move, mutated, request
from tests.hostile.wire import Answer, Malformed, Wire

MOVES_ON_A_CONNECTION: Final = 60
_ENC_KEYS = re.compile(rb"/api/v1/keys/([^/ ]+)/enc_keys")
_COMPLAINTS_MOST: Final = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of a certificate and its key, or none. ``sae`` is empty unless the KME serves it."""

    name: str
    sae: str
    files: tuple[str, str] | None
    is_let_in: bool = True


@dataclass
class Tally:
    """What a client saw. Holds key_IDs and lengths, never key bytes."""

    requests: int = 0
    connections: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By kind of move and status."""
    deliveries: list[list[tuple[str, int]]] = field(default_factory=list)
    """For each answer to enc_keys, its keys: key_ID and length in bytes."""
    collections: list[list[str]] = field(default_factory=list)
    """For each answer to dec_keys, its key_IDs."""
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what another client saw."""
        self.requests += other.requests
        self.connections += other.connections
        self.answers += other.answers
        self.deliveries += other.deliveries
        self.collections += other.collections
        self.complaints += other.complaints

    def complain(self, text: str) -> None:
        """Something happened that must not."""
        if len(self.complaints) < _COMPLAINTS_MOST:
            self.complaints.append(text)


class Contexts:
    """TLS contexts by identity, TLS 1.3 and 1.2."""

    def __init__(self, ca: str, identities: Sequence[Identity]) -> None:
        self.identities = identities
        self._of = {
            (identity.name, version): _context(ca, identity, version)
            for identity in identities
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        }

    def choose(self, dice: Random) -> tuple[Identity, ssl.SSLContext]:
        """Mostly an SAE and TLS 1.3."""
        known = [identity for identity in self.identities if identity.sae]
        identity = dice.choice(known) if dice.random() < 0.8 else dice.choice(self.identities)
        version = ssl.TLSVersion.TLSv1_2 if dice.random() < 0.25 else ssl.TLSVersion.TLSv1_3
        return identity, self._of[identity.name, version]


def _context(ca: str, identity: Identity, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    if identity.files is not None:
        context.load_cert_chain(*identity.files)
    return context


class Player:
    """Plays until it has sent a number of requests; a request is also what is none, or half of one."""

    def __init__(self, port: int, contexts: Contexts, dice: Random) -> None:
        self._port = port
        self._contexts = contexts
        self._dice = dice
        self._hand = Hand(dice, [identity.sae for identity in contexts.identities if identity.sae])
        self._delivered: set[str] = set()
        self.tally = Tally()

    def play(self, requests: int) -> None:
        """The whole game."""
        while self.tally.requests < requests:
            identity, context = self._contexts.choose(self._dice)
            self.tally.connections += 1
            if self._dice.random() < 0.2:
                self._knock(context)
            elif identity.is_let_in:
                self._visit(identity, context, requests)
            else:
                self._be_refused(identity, context)

    # Without a whole handshake ----------------------------------------------------------------------

    def _knock(self, context: ssl.SSLContext) -> None:
        """Something else than a handshake, or an end in the middle of one. No answer may come."""
        self.tally.requests += 1
        dice, wire = self._dice, Wire(self._port, context)
        hello = wire.hello()
        noise: Sequence[bytes] = [
            *(b"", dice.randbytes(1), dice.randbytes(300), hello[: dice.randrange(len(hello))], hello),
            *(mutated(dice, hello), hello + dice.randbytes(100), b"\x16\x03\x01\xff\xff" + dice.randbytes(1000)),
            *(request("GET", "/health"), b"\x80\x2e\x01\x00\x02", b"\x15\x03\x03\x00\x02\x02\x00", hello * 3),
        ]
        self._leave(wire, dice.choice(noise), Then.RESET if dice.random() < 0.5 else Then.READ_ALL, "knock")

    def _leave(self, wire: Wire, noise: bytes, then: Then, kind: str) -> None:
        try:
            wire.socket.sendall(noise)
            if then is Then.READ_ALL:
                wire.socket.shutdown(socket.SHUT_WR)
                while data := wire.socket.recv(65536):
                    if b"HTTP/1." in data:
                        self.tally.complain(f"{kind}: an answer in plain text to {noise[:200]!r}")
        except TimeoutError:
            self.tally.complain(f"{kind}: the server did not end the connection after {noise[:200]!r}")
        except OSError:  # it ended the connection as soon as it saw what came
            pass
        wire.close(reset=then is Then.RESET)

    def _be_refused(self, identity: Identity, context: ssl.SSLContext) -> None:
        self.tally.requests += 1
        wire = Wire(self._port, context)
        try:
            wire.shake_hands()
            wire.send(request("GET", "/health"))
            wire.answers(1)
            self.tally.complain(f"{identity.name} was let in")
        except OSError:
            pass
        finally:
            wire.close()

    # With one ---------------------------------------------------------------------------------------

    def _visit(self, identity: Identity, context: ssl.SSLContext, requests: int) -> None:
        """Moves on one connection until one of them ends it."""
        wire, played = Wire(self._port, context), None
        self._hand.caller = identity.sae
        try:
            wire.shake_hands()
            for _ in range(MOVES_ON_A_CONNECTION):
                if self.tally.requests >= requests or self._dice.random() < 0.01:
                    self.tally.requests += 1
                    then = self._dice.choice([Then.RESET, Then.READ_ALL])
                    self._leave(wire, self._broken_record(wire), then, "record")
                    break
                played = move(self._hand)
                self.tally.requests += 1
                if self._play(wire, played, identity):
                    break
        except (OSError, ValueError, KeyError, Malformed) as error:
            self.tally.complain(f"{identity.name}: {type(error).__name__} {str(error)[:300]} after {played}")
        finally:
            wire.close()

    def _broken_record(self, wire: Wire) -> bytes:
        """Half a record, a record that was changed, one of another kind, or nothing."""
        record = wire.sealed(request("GET", "/health"))
        half, other = record[: self._dice.randrange(len(record))], b"\x17\x03\x03\x40\x00" + self._dice.randbytes(300)
        return self._dice.choice([half, mutated(self._dice, record), other, b"\x15\x03\x03\x00\x02\x02\x00", b""])

    def _play(self, wire: Wire, played: Move, identity: Identity) -> bool:
        """Whether the connection is over."""
        for piece in played.pieces:
            wire.send(piece)
            if played.slow:
                time.sleep(0.05)
        if played.then in (Then.LEAVE, Then.RESET):
            self.tally.answers[played.kind, 0] += 1
            wire.close(reset=played.then is Then.RESET)
            return True
        if played.then is Then.READ_ONE:
            answers = wire.answers(1)
        else:
            answers = wire.last_answers(polite=self._dice.random() < 0.5)
        for answer in answers:
            self._note(played, answer, identity)
        if any(answer.closes for answer in answers[:-1]):
            self.tally.complain(f"answers after the end of the connection, to {played}")
        return played.then is Then.READ_ALL or answers[-1].closes

    def _note(self, played: Move, answer: Answer, identity: Identity) -> None:
        self.tally.answers[played.kind, answer.status] += 1
        keys = answer.keys
        if not keys:
            return
        if not identity.sae or played.kind in ("method", "head", "bytes", "oversized"):
            self.tally.complain(f"keys for {identity.name} by {played}")
        ids = [key_id for key_id, _ in keys]
        if self._delivered.isdisjoint(ids):
            self.tally.deliveries.append(keys)
            self._delivered.update(ids)
            asked = _ENC_KEYS.search(b"".join(played.pieces))
            if asked is not None:
                self._hand.collectable += [(key_id, identity.sae, asked[1].decode("latin-1")) for key_id in ids]
        else:
            self.tally.collections.append(ids)
