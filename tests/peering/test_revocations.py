"""Is what one end revokes over at the other too, whoever owned it?"""

from __future__ import annotations

import pytest

from hsmkme.errors import HsmkmeError
from hsmkme.model import Entry
from hsmkme.revocation import Outcome, Revocation
from hsmkme.store import Scope
from tests.peering import line as trouble
from tests.peering.pair import LINK, End, Pair


def revoke(end: End, scope: Scope) -> Outcome:
    return Revocation(end.store, "officer", "the fibre was tapped").blocks(scope)


def left(end: End) -> dict[str, int]:
    rows = end.rows("SELECT state, count(*) FROM block WHERE link_id = 'far' GROUP BY state")
    return dict(rows)


def test_a_link_that_is_revoked_gives_nothing_at_either_end(pair: Pair) -> None:
    fetched = pair.enc("a1", "b1", number=2)
    pair.rounds(1)  # keys are agreed ahead of need
    outcome = revoke(pair.a, Scope(link_id=LINK))
    assert outcome.blocks == 4
    assert pair.refused("a1", "b1") is not None
    pair.rounds(2)
    assert [left(end) for end in pair.ends] == [{"retired": 4}] * 2
    assert pair.refused("b1", "a1") is not None
    with pytest.raises(HsmkmeError):
        pair.dec("b1", "a1", list(fetched))
    assert "key.compromised" in pair.a.events("key.comp")
    assert [end.alarms for end in pair.ends] == [[], []]
    pair.fill(1, keys=8)
    pair.rounds(2)
    pair.works()


def test_the_end_that_did_not_claim_notes_what_its_slaves_have(pair: Pair) -> None:
    fetched = pair.exchange("a1", "b1", number=2)
    revoke(pair.a, Scope(link_id=LINK))
    pair.rounds(2)
    for end in pair.ends:
        rows = [row for row in end.log() if row["event"] == "key.compromised"]
        assert sorted(key_id for row in rows for key_id in row["key_IDs"]) == sorted(fetched)


def test_one_that_is_told_twice_does_it_once_and_one_that_is_away_is_told_later(pair: Pair) -> None:
    pair.line.next("blocks/revoke", trouble.drop_answer, trouble.drop_request)
    revoke(pair.b, Scope(link_id=LINK))
    pair.rounds(6)
    assert [left(end) for end in pair.ends] == [{"retired": 4}] * 2
    rows = [row for row in pair.a.log() if row["event"] == "block.revoke"]
    assert len(rows) == 1


def test_links_go_on_and_reconcile_after_a_revocation(pair: Pair) -> None:
    copy = pair.a.backup()
    pair.exchange("a1", "b1")
    revoke(pair.a, Scope(link_id=LINK))
    pair.rounds(2)
    pair.a.restore(copy)
    pair.heal()
    assert pair.refused("a1", "b1") is not None
    pair.fill(1, keys=8)
    pair.rounds(2)
    pair.works()


def test_nothing_stays_of_a_block_that_the_other_end_has_ended(pair: Pair) -> None:
    """Not its segments, which nobody claimed, nor what was claimed: no slave can collect it any more."""
    fetched = pair.enc("a1", "b1", number=2)
    for end in pair.ends:
        names = [name.removeprefix("far/") for name in end.owned()]
        end.store.sharing.revoke(LINK, names, Entry("block.revoke", "test", {"reason": "the peer has ended it"}))
        assert end.rows("SELECT count(*) FROM segments") == [(0,)]
        assert left(end) == {"retired": 4}
        assert {end.keys()[key_id][0] for key_id in fetched} == {"void"}
        assert end.alarms == []
