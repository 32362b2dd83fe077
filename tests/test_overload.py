"""More requests than a worker takes on: is each answered, does everybody get keys, and is none lost?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.hostile.honest import context_of
from tests.hostile.moves import PREFIX, request
from tests.hostile.servers import Server, serving
from tests.hostile.wire import Wire
from tests.load import Ledger, new_seed, repeated
from tests.world import Demo, start_demo

SLAVES = {"sae-1": "sae-2", "sae-2": "sae-3", "sae-3": "sae-4", "sae-4": "sae-1"}
CONNECTIONS, ROUNDS, KEYS = 6, 25, 8
"""Of each SAE; requests on each connection; keys of each request."""


@dataclass
class Client:
    """A connection of an SAE, and what it got."""

    sae_id: str
    wire: Wire
    statuses: list[int] = field(default_factory=list)
    key_ids: list[str] = field(default_factory=list)

    def send(self) -> None:
        self.wire.send(request("GET", f"{PREFIX}{SLAVES[self.sae_id]}/enc_keys?number={KEYS}"))

    def receive(self) -> int:
        """The status. That a 503 says when to come back, the wire sees to."""
        (answer,) = self.wire.answers(1)
        self.statuses.append(answer.status)
        self.key_ids += [key_id for key_id, _ in answer.keys]
        return answer.status


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with start_demo(tmp_path_factory.mktemp("overload"), saes=len(SLAVES), keys=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def clients(kme: Demo) -> list[Client]:
    """All ask at once, in another order each time, a worker that takes on two requests; then one after the other."""
    with serving(kme, more="\n[fair_use]\nwaiting = 2\n") as server, ExitStack() as stack:
        clients = [_client(server, sae_id, stack) for sae_id in SLAVES for _ in range(CONNECTIONS)]
        dice = random.Random(new_seed())
        for _ in range(ROUNDS):
            for client in dice.sample(clients, len(clients)):
                client.send()
            for client in clients:
                client.receive()
        for client in clients:
            client.send()
            client.receive()
    return clients


def _client(server: Server, sae_id: str, stack: ExitStack) -> Client:
    wire = Wire(server.port, context_of(server.demo, sae_id))
    stack.callback(wire.close)
    wire.shake_hands()
    return Client(sae_id, wire)


def test_every_request_is_answered_with_keys_or_a_refusal_that_says_when_to_come_back(clients: list[Client]) -> None:
    statuses = [status for client in clients for status in client.statuses]
    print(f"{statuses.count(200)} served, {statuses.count(503)} refused")
    assert len(statuses) == len(clients) * (ROUNDS + 1)
    assert set(statuses) == {200, 503}


def test_no_sae_starves(clients: list[Client]) -> None:
    served = {client.sae_id for client in clients if 200 in client.statuses[:ROUNDS]}
    assert served == set(SLAVES)


def test_who_comes_when_the_overload_is_over_is_served(clients: list[Client]) -> None:
    assert {client.statuses[-1] for client in clients} == {200}


def test_the_log_has_the_keys_that_clients_got_once_each_and_no_others(kme: Demo, clients: list[Client]) -> None:
    ledger = Ledger(kme.log_rows())
    got = [key_id for client in clients for key_id in client.key_ids]
    assert repeated(got) == []
    assert sorted(key_id for key_id, _ in ledger.deliveries) == sorted(got)
    assert ledger.alarms == []
    assert kme.stored("sae-1", "sae-2") == ledger.left
