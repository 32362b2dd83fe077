"""clock: whether the time of day is believed, and what an officer does when it is not."""

from __future__ import annotations

import json
import sys
from typing import Final

import click

from hsmkme import bootstrap
from hsmkme.cli.shared import JSON_OPTION, load_config, moment, operator, show_facts, with_config
from hsmkme.model import Entry
from hsmkme.store import ClockState

_STATES: Final = {
    "right": ("nothing", "believed"),
    "back": (
        "set the clock right: keys are delivered again at once. If it is right now: `hsmkme clock accept`",
        "behind a time that was seen before: no key is delivered, nothing ends of age",
    ),
    "doubted": (
        "set the clock right. If it is right now: `hsmkme clock accept`; what is older than it may be ends then",
        "not what the machine's steady clock says it should be: keys are delivered, nothing ends of age, no lock opens",
    ),
}
"""What a state is in words, after what to do next."""


@click.group()
def clock() -> None:
    """The time of day."""


@clock.command("show")
@with_config
@JSON_OPTION
def clock_show(config: str | None, as_json: bool) -> None:
    """The time, the latest that was seen, and whether the clock is believed. Exit status 1: it is not."""
    state = bootstrap.open_store(load_config(config)).timekeeping.state()
    name = _name(state)
    what_next, says = _STATES[name]
    times = {"now": moment(state.now), "latest_seen": moment(state.latest)}
    facts = {"state": name, "says": says, **times, "next": what_next}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        show_facts(facts)
    sys.exit(0 if name == "right" else 1)


@clock.command("accept")
@click.option("--yes", is_flag=True, help="The time shown is right.")
@with_config
def clock_accept(yes: bool, config: str | None) -> None:
    """Believe the clock from now on, though it was set. What is older than it may be ends soon after."""
    timekeeping = bootstrap.open_store(load_config(config)).timekeeping
    state = timekeeping.state()
    if not yes:
        raise click.UsageError(f"the clock shows {moment(state.now)}, UTC. If that is right, say --yes")
    timekeeping.accept(bootstrap.steady(), Entry("clock.accept", operator()))
    click.echo(f"the time is {moment(state.now)}; the latest seen before was {moment(state.latest)}")


def _name(state: ClockState) -> str:
    if state.is_back:
        return "back"
    return "doubted" if state.doubted else "right"
