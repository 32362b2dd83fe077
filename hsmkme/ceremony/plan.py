"""The plan: one strict TOML file that is the whole ceremony. Everything wrong with its text is found at once."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from hsmkme.ceremony.kinds import AnyStep
from hsmkme.ceremony.step import Role, Step, Table
from hsmkme.errors import ConfigRefused
from hsmkme.fitting import Location, line_of
from hsmkme.hsm.profiles import TokenAddress, load_profile
from hsmkme.values import FilePath, Name

TEST_MARK: Final = "test-"
"""How the label of a token begins whose keys are worth nothing."""

TO_CHANGE: Final = "CHANGE"
"""How what the author of a plan must still write begins."""

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\n\r]+$")]


def _ed25519(text: str) -> str:
    """An OpenSSH line with an Ed25519 public key."""
    try:
        if isinstance(load_ssh_public_key(text.encode()), Ed25519PublicKey):
            return text
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise ValueError("not an Ed25519 key; write the line of a file made by ssh-keygen -t ed25519, ssh-ed25519 AAAA…")


class TokenTable(Table):
    """``[token]``: which token, and the library that speaks to it."""

    profile: str = "softhsm-2.6"
    label: Annotated[str, Field(min_length=1, max_length=32)]
    serial: str | None = None
    module: FilePath | None = None
    module_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    softhsm_conf: FilePath | None = None

    @property
    def address(self) -> TokenAddress:
        """Where it is."""
        profile = load_profile(self.profile)
        module = self.module or Path(profile.module)
        return TokenAddress(profile, module, self.label, self.serial, self.softhsm_conf, self.module_sha256)

    @property
    def is_test(self) -> bool:
        """Whether its label says that its keys are worth nothing."""
        return self.label.startswith(TEST_MARK)


class Person(Table):
    """``[[person]]``: somebody who takes part. ``key`` is the public key with which they sign the transcript."""

    id: Name
    role: Literal["security-officer", "operator", "custodian", "witness"]
    key: Annotated[str, AfterValidator(_ed25519)] | None = None
    envelope_key: FilePath | None = None
    """Of a custodian who is not there: the public key, made by `hsmkme custodian key`, to which a share is sealed."""


class Plan(Table):
    """The whole file."""

    ceremony: Name
    purpose: Line
    policy: Line
    begins: AwareDatetime
    ends: AwareDatetime
    transcript: FilePath
    config: FilePath | None = None
    token: TokenTable
    person: Annotated[list[Person], Field(min_length=2)]
    step: Annotated[list[AnyStep], Field(min_length=1)]

    @property
    def holders(self) -> dict[Role, str]:
        """The security officer and the operator, as far as there are."""
        return {person.role: person.id for person in self.person if person.role in ("security-officer", "operator")}

    @property
    def present(self) -> list[Person]:
        """Who is in the room."""
        return [person for person in self.person if person.envelope_key is None]

    @property
    def absent(self) -> dict[str, Path]:
        """Who is not, and the key that an envelope for them is sealed to."""
        return {person.id: person.envelope_key for person in self.person if person.envelope_key is not None}

    @property
    def active_before(self) -> int | None:
        """The epoch that is active before the first step that changes epochs; None if no step does."""
        return next((step.active_before() for step in self.step if step.active_before() is not None), None)

    @property
    def logs_in(self) -> bool:
        """Whether somebody has to log in as operator."""
        return "operator" in self.holders and any(step.logs_in for step in self.step)

    @property
    def initialises(self) -> bool:
        """Whether its first step makes the token."""
        return self.step[0].do == "initialise"


@dataclass(frozen=True, slots=True)
class Written:
    """A plan and the text that it was read from."""

    plan: Plan
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(path: Path) -> Written:
    """The plan in the file at ``path``; raises `ConfigRefused` with everything that is wrong, each with its line."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigRefused([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigRefused([f"{path}: {error}"]) from error
    try:
        plan = Plan.model_validate(tree, context=path.resolve().parent)
        wrong = list(_misfits(plan))
    except ValidationError as error:
        wrong = [(_location(one["loc"]), _MESSAGES.get(one["type"], one["msg"])) for one in error.errors()]
    if wrong:
        places = sorted((line_of(text, location), ".".join(map(str, location)), why) for location, why in wrong)
        raise ConfigRefused([f"{path}:{line}: {name}: {why}" for line, name, why in places])
    return Written(plan, text)


_MESSAGES: Final = {"extra_forbidden": "unknown key", "missing": "is missing"}


def _location(parts: tuple[int | str, ...]) -> Location:
    """Where in the file; pydantic puts the kind of a step between its number and its key."""
    return [*parts[:2], *parts[3:]] if parts[0] == "step" and len(parts) > 2 else list(parts)


def _misfits(plan: Plan) -> Iterator[tuple[Location, str]]:
    """What fits by itself but not together."""
    if plan.policy.startswith(TO_CHANGE) and not plan.token.is_test:
        yield ["policy"], "name the clause of your policy"
    if plan.ends <= plan.begins:
        yield ["ends"], "is not after begins"
    roles = {person.id: person.role for person in plan.person}
    for number, person in enumerate(plan.person):
        earlier = plan.person[:number]
        if person.id in (other.id for other in earlier):
            yield ["person", number, "id"], "another person has this id"
        if person.role in ("security-officer", "operator") and person.role in (other.role for other in earlier):
            yield ["person", number, "role"], f"there is another {person.role}"
    for number, step in enumerate(plan.step):
        for why in _wrong_people(step, roles):
            yield ["step", number, "by"], why
        if step.do == "initialise" and number:
            yield ["step", number, "do"], "a token is initialised first"
        if step.do == "decommission" and number != len(plan.step) - 1:
            yield ["step", number, "do"], "nothing can follow it"
    if not plan.initialises and plan.token.serial is None:
        yield ["token", "serial"], "is missing: a token that exists is named by its serial number"
    if any(step.logs_in for step in plan.step) and "operator" not in plan.holders:
        yield ["person"], "nobody is operator, and the steps need a login"
    if plan.config is None and plan.active_before is not None:
        yield ["config"], "is missing: the steps change the store that it names"
    yield from _order(plan)


def _wrong_people(step: Step, roles: dict[str, Role]) -> Iterator[str]:
    strangers = [person for person in step.by if person not in roles]
    if strangers:
        yield f"nobody is called {', '.join(strangers)}"
        return
    if max(Counter(step.by).values()) > 1:
        yield "the same person twice"
    if tuple(roles[person] for person in step.by) != step.due:
        yield f"{step.do} is done by {', '.join(step.due)}, in this order"


def _order(plan: Plan) -> Iterator[tuple[Location, str]]:
    """Objects made twice by the plan itself."""
    made: set[str] = set()
    for number, step in enumerate(plan.step):
        for label in step.makes():
            if label in made:
                yield ["step", number, "object"], f"{label} is made before"
        made |= set(step.makes())

