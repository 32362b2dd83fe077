"""Who is taken for restored when two KMEs greet each other at the same time? Two stores, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmkme.audit import AuditChain
from hsmkme.messages.bodies import Hello, Standing, parsed
from hsmkme.messages.signing import VERSION
from hsmkme.model import Entry, Link
from hsmkme.store import Receipt, Store, migrate
from hsmkme.store.links import RESTORED, STARTING, new_incarnation
from tests.conftest import FakeClock

LINK = "near.far"
ENTRY = Entry("link.hello", "peer")


@dataclass
class End:
    """One end of the link."""

    store: Store

    def begin(self) -> None:
        self.store.links.begin([LINK], Entry("link.freeze", "start"))

    def live(self, rows: int) -> None:
        """Its log grows."""
        for _ in range(rows):
            self.store.log.append(Entry("key.collect", "sae"))

    def greeting(self) -> tuple[Receipt, Hello]:
        """A hello that is under way."""
        hello = self.store.links.hello(LINK, [VERSION])
        draft = self.store.outbox.greeting(LINK, hello)
        return Receipt(LINK, draft.txid, draft.seq, draft.incarnation, draft.body), hello

    def answer(self, greeting: tuple[Receipt, Hello]) -> Standing:
        return parsed(Standing, self.store.inbox.hello(*greeting, ENTRY))

    def greet(self, other: End) -> str:
        """Greet the other end and open the link if it says that this store is good; gives what it says."""
        standing = other.answer(self.greeting())
        self.store.links.heard(LINK, standing)
        if standing.verdict == "good":
            self.store.links.open(LINK, STARTING, Entry("link.open", "liaison"))
        return str(standing.verdict)


@pytest.fixture
def make_end(tmp_path: Path, clock: FakeClock) -> Callable[[str, str], End]:
    def make(name: str, peer: str) -> End:
        path = tmp_path / f"{name}.sqlite"
        migrate(path)
        store = Store(path, AuditChain(), clock)
        store.registry.admit_links([Link(LINK, peer)], Entry("link.admit", "config"))
        return End(store)

    return make


@pytest.fixture
def ends(make_end: Callable[[str, str], End]) -> tuple[End, End]:
    """Two ends that know each other; the link is open."""
    near, far = make_end("near", "far"), make_end("far", "near")
    for end in (near, far):
        end.begin()
    assert (near.greet(far), far.greet(near), near.greet(far)) == ("good", "good", "good")
    return near, far


def test_a_hello_that_an_answer_to_the_other_end_overtakes_is_not_that_of_an_old_copy(ends: tuple[End, End]) -> None:
    near, far = ends
    near.begin()
    under_way = near.greeting()
    near.live(3)
    far.greet(near)
    assert far.answer(under_way).verdict == "good"


def test_two_that_start_at_the_same_time_for_the_first_time_are_not_old_copies(
    make_end: Callable[[str, str], End],
) -> None:
    near, far = make_end("near", "far"), make_end("far", "near")
    for end in (near, far):
        end.begin()
    under_way = near.greeting()
    near.live(3)
    far.greet(near)
    assert far.answer(under_way).verdict == "good"


def test_a_copy_from_before_the_last_greeting_is_found(ends: tuple[End, End]) -> None:
    near, far = ends
    rows = near.store.links.state(LINK).log_rows
    near.live(3)
    assert near.greet(far) == "good"
    near.begin()
    receipt, hello = near.greeting()
    copy = hello.model_copy(update={"log_rows": rows + 1})
    assert far.answer((receipt, copy)).verdict == "behind"
    assert far.store.links.state(LINK).why == "peer restored"


def test_a_store_that_knows_it_is_an_old_copy_is_not_measured_by_what_it_says_meanwhile(
    ends: tuple[End, End],
) -> None:
    near, far = ends
    before = far.store.links.state(LINK).far_log_rows
    near.store.links.freeze(LINK, RESTORED, Entry("alarm.store-restored", "liaison"))
    near.live(5)
    far.greet(near)
    assert far.store.links.state(LINK).far_log_rows == before


def test_each_incarnation_is_greater_than_the_one_before_it_however_soon_it_begins() -> None:
    before = new_incarnation(1_800_000_000)
    for _ in range(50):
        after = new_incarnation(1_800_000_000, before)
        assert after > before
        assert len(after) == 32
        before = after
