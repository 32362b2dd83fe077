"""Dual control: a destructive act is done when officers approved it, as many as the policy needs besides who asks.

Every approval is for one act on one store, for a time, and used once. What is refused names its rule (``ops/rules.md``)
and is a row of the audit log; what is approved is one too, with every signature, which anybody can verify later. The
policy in force is the store's: who edits the configuration lowers nothing before the officers agreed to it. Where no
officers are enrolled an act needs none, and its row says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hsmkme.audit import timestamp
from hsmkme.errors import ApprovalRefused
from hsmkme.model import Clock, Entry
from hsmkme.officers import NAMESPACE, NONCE_BYTES, Officers, Operation, Request, SignedRequest, require_target
from hsmkme.sshsig import sign, verified
from hsmkme.store import Approval, Store

MOST_SECONDS: Final = 7 * 86400
"""How far ahead an approval may expire: one that never does would be a second key to the store."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a file of approval stands: who signed it, and why it would be refused now, if it would."""

    request: Request
    signers: tuple[str, ...]
    needed: int
    refusal: ApprovalRefused | None


class Approvals:
    """Judges approvals for the KME ``kme_id`` and its ``store``; ``configured`` is the policy of the configuration."""

    def __init__(self, configured: Officers, store: Store, kme_id: str, clock: Clock) -> None:
        self._configured = configured
        self._store = store
        self._kme_id = kme_id
        self._clock = clock

    # What destructive commands call -------------------------------------------------------------------

    def require(self, operation: Operation, target: str, files: Sequence[Path], actor: str) -> None:
        """Use up the approval in ``files``, before the act begins; raises `ApprovalRefused`, and nothing was done.

        Writes, in one commit: nonce, audit row. An act that is one transaction calls `checked` instead, and
        ``store.approving.spend`` in it.
        """
        with self._recorded(operation, target, actor):
            self._store.approving.spend(self._approval(operation, target, files, actor))

    def checked(self, operation: Operation, target: str, files: Sequence[Path], actor: str) -> Approval:
        """The approval in ``files``, which is still to be used up by ``spend`` in the transaction of the act."""
        with self._recorded(operation, target, actor):
            return self._approval(operation, target, files, actor)

    # What officers do ---------------------------------------------------------------------------------

    def request(
        self,
        act: tuple[Operation, str],
        key: Ed25519PrivateKey,
        seconds: int,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> str:
        """A new file of approval: the request for ``act``, operation and target, with its requester's signature."""
        if not 0 < seconds <= MOST_SECONDS:
            raise ApprovalRefused(f"an approval is good for 1 to {MOST_SECONDS} seconds", rule="APPROVAL-TIME-1")
        operation, target = act
        request = Request(
            operation=operation.value,
            target=require_target(target),
            requester=self.in_force(operation).name_of(key.public_key().public_bytes_raw()),
            kme=self._kme_id,
            store=self._this_store(),
            nonce=randomness(NONCE_BYTES).hex(),
            expires=timestamp(self._clock() + seconds),
        )
        return request.text + sign(request.text.encode(), key, NAMESPACE)

    def sign(self, file: SignedRequest, key: Ed25519PrivateKey) -> str:
        """The signature that an officer adds to ``file``; raises `ApprovalRefused` where it would not count."""
        request = file.request
        officers = self.in_force(request.operation)
        name = officers.name_of(key.public_key().public_bytes_raw())
        self._require_fit(request, request.operation, request.target)
        if name in self._signers([file], officers):
            self._refuse_second(name, request)
        return sign(request.text.encode(), key, NAMESPACE)

    def standing(self, files: Sequence[Path]) -> Standing:
        """How the approval in ``files`` stands; raises `ApprovalRefused` only if they are none."""
        signed = [SignedRequest.read(path) for path in files]
        request, signers, needed = signed[0].request, tuple[str, ...](), 0
        try:
            officers = self.in_force(request.operation)
            needed = officers.needed
            signers = tuple(self._signers(signed, officers))
            self._approval(request.operation, request.target, files, "")
        except ApprovalRefused as refusal:
            return Standing(request, signers, needed, refusal)
        return Standing(request, signers, needed, None)

    # The policy ---------------------------------------------------------------------------------------

    def adopt(self, files: Sequence[Path], actor: str) -> Officers:
        """Put the policy of the configuration in force; raises `ApprovalRefused` if officers must approve that first.

        They must unless it is the first, or as strict as the one in force. Writes, in one commit: nonce of the
        approval, policy, audit rows.
        """
        new, text = self._configured, self._store.approving.policy()
        was = Officers.of(text)
        if new != was:
            approval = self.checked(Operation.LOWER, new.digest, files, actor) if new.lowered_from(was) else None
            entry = Entry("approval.policy", actor, {"policy": new.text, "digest": new.digest})
            self._store.approving.adopt(text, new.text, entry, approval)
        return new

    def in_force(self, operation: str = "") -> Officers:
        """The policy in force; it may differ from the configuration only for the act that brings them together."""
        was = Officers.of(self._store.approving.policy())
        if self._configured != was and operation != Operation.LOWER:
            raise ApprovalRefused(
                "the policy of the configuration is not in force: run `hsmkme approve adopt`", rule="APPROVAL-OFFICER-1"
            )
        return was

    def require_kept(self) -> None:
        """Refuse to work by a configuration that is weaker than the policy in force."""
        lowered = self._configured.lowered_from(Officers.of(self._store.approving.policy()))
        if lowered:
            raise ApprovalRefused(
                f"the configuration lowers the policy in force ({', '.join(lowered)}): undo that, or have officers"
                " approve it, as `hsmkme approve adopt` says",
                rule="APPROVAL-OFFICER-1",
            )

    # How an approval is judged ------------------------------------------------------------------------

    def _approval(self, operation: str, target: str, files: Sequence[Path], actor: str) -> Approval:
        officers = self.in_force(operation)
        if not officers.needed:
            return Approval(None, Entry("approval.none", actor, {"operation": operation, "target": target}))
        if not files:
            raise ApprovalRefused(
                f"officers must approve this first: `hsmkme approve request {operation} {target}`,"
                " then give the signed file with --approval",
                rule="APPROVAL-COUNT-1",
            )
        signed = [SignedRequest.read(path) for path in files]
        request = signed[0].request
        if any(other.request != request for other in signed):
            raise ApprovalRefused("the files are approvals of different requests", rule="APPROVAL-FORM-1")
        self._require_fit(request, operation, target)
        signatures = self._signers(signed, officers)
        lacking = officers.needed - (len(signatures) - 1)
        if lacking > 0:
            raise ApprovalRefused(
                f"{lacking} more of the officers must sign: `hsmkme approve sign {files[0]}`", rule="APPROVAL-COUNT-1"
            )
        facts = {"operation": operation, "target": target, "request": request.text, "signatures": signatures}
        return Approval(bytes.fromhex(request.nonce), Entry("approval.use", actor, facts))

    def _require_fit(self, request: Request, operation: str, target: str) -> None:
        """Refuse a request for another act, on another store, out of its time, or used."""
        said = (request.operation, request.target, request.kme, request.store)
        if said != (operation, target, self._kme_id, self._this_store()):
            raise ApprovalRefused(
                f"the approval is for {request.operation} {request.target} on {request.kme}, or for another state of"
                " its store: ask for a new one",
                rule="APPROVAL-ACT-1",
            )
        if not self._store.timekeeping.state().is_believed:
            raise ApprovalRefused("the clock is not believed: see `hsmkme clock show`", rule="APPROVAL-TIME-1")
        left = request.until - self._clock()
        if not 0 < left <= MOST_SECONDS:
            said_so = "expired" if left <= 0 else "is good for too long"
            raise ApprovalRefused(f"the approval {said_so}: {request.expires}", rule="APPROVAL-TIME-1")
        if self._store.approving.used(bytes.fromhex(request.nonce)):
            raise ApprovalRefused("this approval was used before: ask for a new one", rule="APPROVAL-NONCE-1")

    def _signers(self, files: Sequence[SignedRequest], officers: Officers) -> dict[str, str]:
        """The signatures by officer. The requester's stands in each file once, every other once in all of them."""
        found: dict[str, str] = {}
        for file in files:
            request = file.request
            names = [self._signer(request, signature, officers) for signature in file.signatures]
            if request.requester not in names:
                raise ApprovalRefused(f"{request.requester} asks and did not sign", rule="APPROVAL-SIGN-3")
            others = [name for name in names if name != request.requester]
            if len(others) + 1 != len(names):
                self._refuse_second(request.requester, request)
            for name, signature in zip(names, file.signatures, strict=True):
                if name in found and name != request.requester:
                    self._refuse_second(name, request)
                found[name] = signature
        return found

    def _signer(self, request: Request, signature: str, officers: Officers) -> str:
        try:
            public = verified(request.text.encode(), signature, NAMESPACE).public
        except ValueError as error:
            raise ApprovalRefused(
                f"the approval was altered, there is {error}: ask for a new one", rule="APPROVAL-SIGN-1"
            ) from error
        return officers.name_of(public)

    def _refuse_second(self, name: str, request: Request) -> None:
        if name == request.requester:
            raise ApprovalRefused(f"{name} asks for this and cannot approve it too", rule="APPROVAL-SIGN-3")
        raise ApprovalRefused(f"{name} approved this already: another officer must", rule="APPROVAL-SIGN-2")

    def _this_store(self) -> str:
        """Which store this is, and which of its lives: an old copy of it is another one."""
        lineage = self._store.lineage.now()
        return f"{lineage.store_id.hex()}.{lineage.generation}"

    @contextmanager
    def _recorded(self, operation: Operation, target: str, actor: str) -> Iterator[None]:
        """Let every refusal be a row of the audit log."""
        try:
            yield
        except ApprovalRefused as refusal:
            facts = {"operation": operation.value, "target": target, "rule": refusal.rule}
            self._store.log.append(Entry("approval.refuse", actor, facts))
            raise
