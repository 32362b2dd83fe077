"""Every answer of a run is kept here: figures of a server that gives a key twice, or other bytes, are worth nothing."""

from __future__ import annotations

import hmac
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from http import HTTPStatus

from hsmkme.bench.plans import Answer
from hsmkme.errors import FiguresRefused


class Ledger:
    """The keys that answers had in them. ``others`` counts answers that were not 200, by scenario and status."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._due: dict[str, str] = {}
        self.others: Counter[tuple[str, int]] = Counter()

    def good(self, scenario: str, answers: Iterable[Answer]) -> list[Answer]:
        """Those that are 200; the others are counted."""
        good = []
        for answer in answers:
            if answer.status == HTTPStatus.OK:
                good.append(answer)
            else:
                self.others[scenario, answer.status] += 1
        return good

    def fetched(self, answers: Iterable[Answer], *, due: bool = False) -> list[str]:
        """Note keys that a master got; ``due``: they will be collected. Raises `FiguresRefused` if one came before."""
        key_ids = []
        for key_id, key in _keys(answers):
            if key_id in self._ids:
                raise FiguresRefused(f"key_ID {key_id} came twice: these servers are not to be measured, but mended")
            self._ids.add(key_id)
            key_ids.append(key_id)
            if due:
                self._due[key_id] = key
        return key_ids

    def collected(self, answers: Iterable[Answer]) -> int:
        """Compare keys that a slave got with what their master got; returns how many. Raises `FiguresRefused`."""
        count = 0
        for key_id, key in _keys(answers):
            due = self._due.pop(key_id, None)
            if due is None or not hmac.compare_digest(due, key):
                raise FiguresRefused(f"key_ID {key_id} was collected twice, or is not what its master got")
            count += 1
        return count

    def __len__(self) -> int:
        return len(self._ids)


def _keys(answers: Iterable[Answer]) -> Iterator[tuple[str, str]]:
    """key_ID and key, as text, of every key in containers (ETSI GS QKD 014 §6.3)."""
    for answer in answers:
        for key in json.loads(answer.body)["keys"]:
            yield key["key_ID"], key["key"]
