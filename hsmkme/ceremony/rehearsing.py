"""A rehearsal: the same ceremony, with the same prompts, on a new SoftHSM token that is worth nothing.

What the plan takes for granted is made first: the keys that its token has, the store of its KME, and a backup whose
shares its custodians bring. What people cannot know of these is shown to them where they are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hsmkme.ceremony.backups import Asked, make_backup, write_backup
from hsmkme.ceremony.hands import TokenHands
from hsmkme.ceremony.holding import Keeper, hold
from hsmkme.ceremony.kinds.backing import Restore
from hsmkme.ceremony.people import Desk, Prompt
from hsmkme.ceremony.plan import Plan, Written
from hsmkme.errors import OperatorFault
from hsmkme.hsm import initialising
from hsmkme.hsm.module import digest_of
from hsmkme.hsm.profiles import TokenAddress, load_profile
from hsmkme.model import Clock

PROFILE: Final = "softhsm-2.6"
LABEL: Final = "test-rehearsal"
SO_PIN: Final = "rehearsal-so"
USER_PIN: Final = "rehearsal-user"
_KEYS: Final = ("audit", "master/1", "digest", "anchor")

_CONF: Final = """\
directories.tokendir = {directory}/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
library.reset_on_fork = true
"""


@dataclass(frozen=True, slots=True)
class ToldDesk:
    """Another ``desk`` at which people are told what to answer where a rehearsal alone knows: ``told``, by prompt."""

    desk: Desk
    told: Mapping[str, str]

    def say(self, text: str) -> None:
        """See `Desk`."""
        self.desk.say(text)

    def ask(self, prompt: Prompt) -> str:
        """See `Desk`."""
        right = self.told.get(prompt.key)
        if right is None:
            return self.desk.ask(prompt)
        self.desk.say(f"In this rehearsal that is: {right}")
        return self.desk.ask(replace(prompt, right=right, shown=True))

    def clear(self) -> None:
        """See `Desk`."""
        self.desk.clear()


def rehearse(written: Written, directory: Path, desk: Desk, clock: Clock, keeper: Keeper) -> bytes:
    """Hold the ceremony with everything it makes in ``directory``; returns the digest of its transcript there."""
    if any(directory.iterdir()):
        raise OperatorFault(f"{directory} is not empty: a rehearsal begins with nothing")
    (directory / "tokens").mkdir(mode=0o700)
    conf = directory / "softhsm2.conf"
    conf.write_text(_CONF.format(directory=directory))
    plan = _on_new_token(written.plan, directory, conf)
    if not plan.initialises:
        _equip(plan)
        if plan.active_before is not None:
            keeper.prepare(plan.token.address, USER_PIN, plan.active_before)
        desk.say(f"In this rehearsal the SO PIN is {SO_PIN} and the user PIN {USER_PIN}.")
    told = {key: words for step in plan.step if isinstance(step, Restore) for key, words in _backed(step, plan).items()}
    return hold(Written(plan, written.text), ToldDesk(desk, told), clock, keeper, ["a rehearsal"])


def _on_new_token(plan: Plan, directory: Path, conf: Path) -> Plan:
    """The same plan for another token."""
    library = Path(load_profile(PROFILE).module)
    changes = {"profile": PROFILE, "module": library, "module_sha256": digest_of(library)}
    token = {**changes, "label": LABEL, "serial": None, "softhsm_conf": conf}
    steps = [step.rehearsed_in(directory) for step in plan.step]
    other = {"token": plan.token.model_copy(update=token), "transcript": directory / "transcript.jsonl"}
    return plan.model_copy(update={**other, "step": steps})


def _equip(plan: Plan) -> None:
    """A token with what a KME has, but for what the plan makes."""
    made = {label for step in plan.step for label in step.makes()}
    _make(plan.token.address, [label for label in _KEYS if label not in made])


def _backed(step: Restore, plan: Plan) -> dict[str, str]:
    """A backup of another token, where the step looks for it; gives the share that each custodian brings."""
    address, custodians = replace(plan.token.address, label=f"{LABEL}-lost"), step.by[1:]
    _make(address, [step.object])
    asked = Asked(int(step.object.partition("/")[2]), len(custodians), len(custodians))
    backup, shares = make_backup(address, lambda: SO_PIN, lambda: USER_PIN, asked)
    write_backup(step.file, backup)
    pairs = zip(custodians, shares, strict=True)
    return {f"{custodian}.your-share": " ".join(share.words()) for custodian, share in pairs}


def _make(address: TokenAddress, labels: list[str]) -> None:
    """A new token with these objects."""
    initialising.initialise_token(address, SO_PIN, USER_PIN)
    hands = TokenHands(address, lambda use: use(lambda: USER_PIN), again=False)
    for label in labels:
        hands.make(label, backed=True)
    hands.close()
