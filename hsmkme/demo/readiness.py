"""When is a demo ready: every KME answers, every link is open, and both ends of it hold the same blocks."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hsmkme.demo.kme import DemoKme
from hsmkme.demo.world import World
from hsmkme.errors import OperatorFault, StoreError

ANSWER_SECONDS: Final = 60
"""How long one KME may take to answer; several share the machine."""
LINK_SECONDS: Final = 180
_POLL_SECONDS: Final = 0.1
_TELL_SECONDS: Final = 2.0


def wait_until_ready(world: World, all_run: Callable[[], bool]) -> None:
    """Return when ``world`` is ready; raises `OperatorFault` that says what is not, when a process ended or in time."""
    _wait(world, all_run, _silent, ANSWER_SECONDS * world.kmes)
    if world.kmes > 1:
        world.say("every KME answers; the ends of each link compare what they hold")
        _wait(world, all_run, unready_links, LINK_SECONDS)
        world.say("every link is open, and both of its ends hold the same blocks")


def _wait(world: World, all_run: Callable[[], bool], missing: Callable[[World], list[str]], seconds: float) -> None:
    started = told_at = time.monotonic()
    told: list[str] = []
    while lacking := missing(world):
        now = time.monotonic()
        if not all_run() or now - started > seconds:
            raise OperatorFault(_complaint(world, lacking))
        if lacking != told and now - told_at > _TELL_SECONDS:
            world.say(f"waiting: {'; '.join(lacking)}")
            told, told_at = lacking, now
        time.sleep(_POLL_SECONDS)


def _silent(world: World) -> list[str]:
    """Which listeners do not answer."""
    silent = [f"{kme.kme_id} does not answer at {kme.url}" for kme in world.members if not _answers(kme, world.ca)]
    return silent + [
        f"{kme.kme_id} does not listen at {kme.peer_url}"
        for kme in world.members
        if kme.peers and not _listens(kme.peer_port)
    ]


def unready_links(world: World) -> list[str]:
    """Which links are not open, and which have blocks that the other end did not confirm."""
    return [finding for kme in world.members for finding in _unready_links_of(kme)]


def _unready_links_of(kme: DemoKme) -> list[str]:
    store = kme.open_store()
    try:
        states = {str(pool["link"]): str(pool["state"]) for pool in store.registry.pools()}
        waiting = store.views.unconfirmed()
    except StoreError as error:  # a process of the KME writes to it for long
        return [f"{kme.kme_id}: {error}"]
    finally:
        store.close()
    closed = [
        f"{kme.kme_id}: link {link_id} is {states.get(link_id, 'not known yet')}"
        for link_id in kme.link_ids
        if states.get(link_id) != "open"
    ]
    return closed + [f"{kme.kme_id}: {n} blocks of link {link_id} are unconfirmed" for link_id, n in waiting.items()]


def _complaint(world: World, lacking: list[str]) -> str:
    """What is missing, and how the logs of the KMEs concerned end."""
    concerned = [kme for kme in world.members if any(finding.startswith(kme.kme_id) for finding in lacking)]
    logs = [path for kme in concerned for path in sorted(kme.home.glob("*.log"))]
    ends = [f"{path}:\n{_tail(path)}" for path in logs]
    return "\n".join([f"the demo is not ready: {'; '.join(lacking)}", *ends])


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-8:])


def _answers(kme: DemoKme, ca: Path) -> bool:
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("localhost", kme.sae_port, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
