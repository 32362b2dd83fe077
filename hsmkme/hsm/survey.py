"""What a token does and how: each operation the product needs, done with the token itself, and the speed of each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pkcs11 import GCMParams, Mechanism

from hsmkme.hsm.bench import DATA, ERRORS, KNOWN, NONCE, Bench, Unfit, name_of
from hsmkme.hsm.faults import translated
from hsmkme.hsm.module import load_module
from hsmkme.hsm.probes import PROBES, Probe
from hsmkme.hsm.profiles import Profile, TokenAddress
from hsmkme.hsm.session import PinSource, Sessions, login_turn
from hsmkme.hsm.templates import mapper

TIMED_SECONDS: Final = 0.1
"""How long each operation is repeated to see how fast it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe: ``good`` if the token does it; ``found`` says how, or what it does instead."""

    name: str
    needed: bool
    good: bool
    found: str


@dataclass(frozen=True, slots=True)
class Speed:
    """How long an operation takes, in microseconds."""

    name: str
    microseconds: float


class Survey:
    """A login, as the service has it, on the token at ``address``; raises what logging in meets."""

    def __init__(
        self, address: TokenAddress, pin: PinSource, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._sessions = Sessions(address, pin)
        self._clock = clock
        self.profile = address.profile

    def close(self) -> None:
        """Log out."""
        self._sessions.close()

    def findings(self) -> Iterator[Finding]:
        """What comes of each probe; each has a session of its own, which ends with all that was made in it."""
        for probe in PROBES:
            with self._bench() as bench:
                yield _tried(probe, bench)

    def speeds(self) -> Iterator[Speed]:
        """How fast each operation is that the service makes; for a token whose findings are good."""
        with self._bench() as bench:
            for name, act in _timed(bench).items():
                yield Speed(name, self._time(act))

    def token(self) -> dict[str, object]:
        """Which token it is, as it says of itself, and how many sessions it allows (0: it does not say)."""
        with translated("reading the token"), self._sessions.lane() as lane:
            token = lane.session.token
            library = load_module(self._sessions.address).library_version
            return {**described(token), "library": ".".join(map(str, library)), "locking": self.profile.locking}

    @contextmanager
    def _bench(self) -> Iterator[Bench]:
        with translated("trying the token"), self._sessions.lane() as lane:
            session = lane.session.token.open(attribute_mapper=mapper())
            try:
                yield Bench(session, self._sessions.cryptoki)
            finally:
                session.close()

    def _time(self, act: Callable[[], object]) -> float:
        began, count = self._clock(), 0
        while (spent := self._clock() - began) < TIMED_SECONDS:
            act()
            count += 1
        return round(spent / count * 1e6, 1)


def described(token: Any) -> dict[str, object]:
    """What a token says of itself."""
    return {
        "label": token.label,
        "serial": token.serial.decode(errors="replace"),
        "manufacturer": token.manufacturer_id,
        "model": token.model,
        "firmware": ".".join(map(str, token.firmware_version)),
    }


def visible_tokens(addresses: Sequence[TokenAddress]) -> list[dict[str, object]]:
    """Every token that the modules of ``addresses`` show; ``configured`` says whether it is one of them."""
    by_module = {address.module: address for address in addresses}
    return [row for address in by_module.values() for row in _visible(address, addresses)]


def _visible(module: TokenAddress, addresses: Sequence[TokenAddress]) -> list[dict[str, object]]:
    own = [address for address in addresses if address.module == module.module]
    with login_turn(module), translated("listing the tokens"):
        found = [(slot, slot.get_token()) for slot in load_module(module).get_slots(token_present=True)]
        return [
            {"slot": slot.slot_id, **described(token), "configured": any(_is_meant(token, address) for address in own)}
            for slot, token in found
        ]


def _is_meant(token: Any, address: TokenAddress) -> bool:
    serial = token.serial.decode(errors="replace")
    return bool(token.label == address.label and address.serial in (None, serial))


def saved_profile(name: str, address: TokenAddress, token: dict[str, object], findings: Iterable[Finding]) -> str:
    """A profile (TOML) for the token that was looked at; it goes on as it was used, so nothing in it is untried."""
    profile = address.profile.model_copy(update={"name": name, "module": str(address.module)})
    library = [int(part) for part in str(token["library"]).split(".")]
    lines = [
        f"# {token['manufacturer']} {token['model']}, firmware {token['firmware']}, as `hsmkme hsm check` found it.",
        *(f"{field} = {json.dumps(value)}" for field, value in _used(profile, library).items()),
        "",
        "[found]",
        *(f"{json.dumps(finding.name)} = {json.dumps(finding.found)}" for finding in findings),
    ]
    return "\n".join(lines) + "\n"


def _used(profile: Profile, library: list[int]) -> dict[str, object]:
    return {**profile.model_dump(exclude={"found"}), "library": library}


def _tried(probe: Probe, bench: Bench) -> Finding:
    try:
        return Finding(probe.name, probe.needed, True, probe.try_on(bench))
    except Unfit as unfit:
        return Finding(probe.name, probe.needed, False, str(unfit))
    except AttributeError:  # the binding gives an object no method for what the token does not let it do
        return Finding(probe.name, probe.needed, False, "the token does not let the key do it")
    except ERRORS as error:
        return Finding(probe.name, probe.needed, False, name_of(error))


def _timed(bench: Bench) -> dict[str, Callable[[], object]]:
    master, key = bench.master(), bench.sealing_key()
    wrapped = bytes(master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP))
    opening = bench.unwrapped(master, wrapped)
    gcm = {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(NONCE, DATA)}
    sealed = bytes(key.encrypt(KNOWN, **gcm))
    return {
        "seal a key": lambda: key.encrypt(KNOWN, **gcm),
        "open a key": lambda: opening.decrypt(sealed, **gcm),
        "make a block key": lambda: bench.sealing_key().destroy(),
        "wrap a block key": lambda: master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP),
        "unwrap a block key": lambda: bench.unwrapped(master, wrapped).destroy(),
        "64 random bits": lambda: bench.session.generate_random(64),
    }
