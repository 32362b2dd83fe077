"""The error tree. One place, so that a reader sees every way in which the product refuses.

::

    HsmkmeError
    ├── ConfigRefused              a configuration that cannot be used; lists everything wrong
    ├── RequestRefused             an SAE's request; HTTP status in ``api/problems.py``
    │   ├── BadRequest                 the request itself is wrong
    │   ├── NotEntitled                the caller may not have this
    │   ├── NotEnoughKeys              right and allowed, but the pool cannot serve it now
    │   └── OverLimit                  right and allowed, but too often or too much
    ├── DepositRefused             a device's block; nothing of it was stored
    │   ├── WrongSize                  not a whole number of keys, or not a multiple of 64 bits
    │   ├── BlockConflict              this block id is known with other bytes
    │   ├── BlockReplayed              these bytes are known under another block id
    │   └── PoolFull                   back-pressure: deposit again later
    ├── ShareRefused               a share of a backup key that is not the one it should be
    ├── ApprovalRefused            a destructive act that officers did not approve as they must
    ├── StoreError
    │   ├── StoreUnavailable           disk full, read-only, locked: may heal by itself
    │   ├── ClockSetBack               503 until the clock is right, or an officer accepts it
    │   ├── StoreTampered              rows make no sense: somebody wrote to the file; to be examined
    │   ├── PoolShort                  fewer keys than a claim wants; nothing was claimed
    │   ├── KeyNotHeld                 a key is not what it was when it was looked up
    │   ├── AnsweredAlready            a request with this Idempotency-Key was answered meanwhile
    │   ├── StoreSchema                needs `hsmkme migrate`, or is newer than this code
    │   └── IllegalTransition          the database refused a state change
    ├── TokenError
    │   ├── TokenUnavailable           the device fails: 503, heals by itself
    │   ├── RecordFault                the device works, this record does not open: quarantine
    │   ├── OperatorFault              PIN, missing or foreign objects: a person must act
    │   │   ├── ObjectMissing              not made yet, or the token lost sight of it
    │   │   └── PinRefused                 the token does not take this PIN
    │   └── TokenMisuse                a call this code should never have made
    ├── PeerError
    │   ├── PeerUnavailable            the other KME does not answer: 503, heals by itself
    │   ├── PeerRefused                a message, or an answer, that is not to be believed
    │   └── LinkFrozen                 nothing is claimed from the link until it is thawed or reconciled
    ├── CeremonyAborted            officers stopped, or what was expected did not come: the transcript says so
    ├── AuditBroken                the log does not prove itself
    └── FiguresRefused             a measured server gave a key twice, or other bytes: its speed is worth nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class HsmkmeError(Exception):
    """Anything hsmkme refuses. ``str()`` of it is fit to be shown to the user."""


class ConfigRefused(HsmkmeError):
    """The configuration cannot be used. ``findings`` has one line for each thing wrong."""

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = tuple(findings)


class RequestRefused(HsmkmeError):
    """An SAE's request is refused. No key was consumed.

    ``rule`` names the policy rule for the log and the documentation; it is not sent out.
    ``details`` is the optional array of ETSI GS QKD 014 §6.5.
    """

    def __init__(
        self, message: str, *, rule: str, details: Sequence[Mapping[str, object]] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule
        self.details = details


class BadRequest(RequestRefused):
    """The request is malformed or names what does not exist (HTTP 400)."""


class NotEntitled(RequestRefused):
    """The caller is unknown, revoked, or has no right to what it asks (HTTP 401)."""


class NotEnoughKeys(RequestRefused):
    """The pool cannot serve the request now (HTTP 503); ``retry_after`` in seconds."""

    def __init__(self, message: str, *, rule: str, retry_after: int) -> None:
        super().__init__(message, rule=rule)
        self.retry_after = retry_after


class OverLimit(RequestRefused):
    """The caller is beyond a limit of fair use (HTTP 503); ``retry_after`` in seconds."""

    def __init__(self, message: str, *, rule: str, retry_after: int) -> None:
        super().__init__(message, rule=rule)
        self.retry_after = retry_after


class DepositRefused(HsmkmeError):
    """A block was not taken; nothing of it was stored."""


class WrongSize(DepositRefused):
    """The bytes are not a whole number of keys of a size that can be stored."""


class BlockConflict(DepositRefused):
    """The block id is known with other bytes: one of the two is wrong, and nobody can say which."""


class BlockReplayed(DepositRefused):
    """The same bytes are known under another block id: a device replays, or its randomness failed."""


class PoolFull(DepositRefused):
    """The link holds ``max_key_count`` keys; deposit again when some were used."""


class ShareRefused(HsmkmeError):
    """A share was read wrongly, altered, is of another set, or was given before. Nothing of its value is said."""


class ApprovalRefused(HsmkmeError):
    """Officers did not approve an act as they must; it was not done. ``rule`` names the rule of ``ops/rules.md``."""

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class StoreError(HsmkmeError):
    """The store refuses."""


class StoreUnavailable(StoreError):
    """The database cannot write or read now."""


class StoreTampered(StoreError):
    """A row makes no sense: somebody wrote to the file. Nothing was changed: examine the store, and ask again.

    ``blocks`` are the numbers of blocks that do, though each value in their rows could be.
    """

    def __init__(self, message: str, blocks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.blocks = blocks


class ClockSetBack(StoreError):
    """The clock is so many ``seconds`` behind a time that was seen before: nothing is delivered by it."""

    retry_after = 30

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the clock was set back by {seconds} s: set it right, or see `hsmkme clock show`")


class PoolShort(StoreError):
    """A claim wants more keys than the ``available``; ``per_second`` is the rate at which more arrive (0: unknown)."""

    def __init__(self, available: int, per_second: float) -> None:
        super().__init__(f"{available} keys are available")
        self.available = available
        self.per_second = per_second


class KeyNotHeld(StoreError):
    """A key changed between being looked up and being collected; nothing was collected."""


class AnsweredAlready(StoreError):
    """Another request with the same Idempotency-Key was answered first; nothing was claimed or collected."""


class StoreSchema(StoreError):
    """The database's schema is not the one this code works with."""


class IllegalTransition(StoreError):
    """A state change that is not in ``states.py``; the database refused it."""


class TokenError(HsmkmeError):
    """The token refuses or fails. Carries no cryptographic detail outward. ``token`` names it, if there are several."""

    token: str | None = None


class TokenUnavailable(TokenError):
    """The device fails or is away; ``retry_after`` in seconds."""

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RecordFault(TokenError):
    """The token works and this record does not open: it was altered or belongs elsewhere.

    ``link_id`` and ``block_id`` say which block it is of.
    """

    def __init__(self, link_id: str, block_id: str) -> None:
        super().__init__(f"block {block_id} of link {link_id} does not open in the token")
        self.link_id = link_id
        self.block_id = block_id


class OperatorFault(TokenError):
    """A person must act: wrong PIN, missing, duplicate or foreign objects, a tracing shim."""


class ObjectMissing(OperatorFault):
    """The token shows no object of a label: it was never made, or the token was away when it listed its objects."""


class PinRefused(OperatorFault):
    """The token does not take a PIN: a wrong one, or one of a length or form that it does not have."""


class TokenMisuse(TokenError):
    """The token forbids the call: a defect of this code or of the token's profile."""


class PeerError(HsmkmeError):
    """The KME at the other end of a link, or the link itself."""

    retry_after = 5


class PeerUnavailable(PeerError):
    """The peer does not answer, or not in time; unless it was not ``asked``, nothing is known of the message."""

    def __init__(self, message: str, *, asked: bool = True) -> None:
        super().__init__(message)
        self.asked = asked


class PeerRefused(PeerError):
    """A message or an answer is refused; ``alarm`` says whether somebody should look at it at once."""

    def __init__(self, message: str, *, alarm: bool) -> None:
        super().__init__(message)
        self.alarm = alarm


class LinkFrozen(PeerError):
    """The link is frozen."""


class CeremonyAborted(HsmkmeError):
    """A ceremony ended before its last step. Nothing is half made; the same command goes on with it."""


class FiguresRefused(HsmkmeError):
    """Servers that were measured gave a key twice, or other bytes than before; no figure of theirs is shown."""


class AuditBroken(HsmkmeError):
    """The audit log does not prove itself; ``row`` is the first row that does not fit."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row
