"""Requests that wait for people's signatures: who has signed, who may, and when there are enough."""

import json
from dataclasses import dataclass

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Key
from sqlalchemy import select, update
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import actor, roots, tlog
from clue_coordinator.errors import ApprovalError, ConflictError, UsageError
from clue_coordinator.executions import withdraw
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Execution, Request
from clue_coordinator.states import OPEN_REQUEST, RequestState
from clue_protocol.envelope import REQUEST_TYPE
from clue_protocol.errors import EnvelopeError
from clue_protocol.trust import Role, Root, merge_signatures
from clue_protocol.trust.envelopes import read_envelope, signers
from clue_protocol.trust.request import EPOCH_SHIFT


@dataclass(frozen=True)
class Approvals:
    """Of one request: the keys that signed and may, and how many must."""

    keys: tuple[Key, ...]
    needed: int

    @property
    def enough(self) -> bool:
        """True if it may start."""
        return len(self.keys) >= self.needed

    @property
    def text(self) -> str:
        """``1 of 2 approvals``."""
        return f"{len(self.keys)} of {self.needed} approval{'s' if self.needed > 1 else ''}"


def request_role(root: Root, fleet: str) -> Role:
    """Who decides over the fleet; ConflictError if the root does not say."""
    trust = root.fleets.get(fleet)
    if trust is None:
        raise ConflictError(
            f"root version {root.version} does not name fleet '{fleet}', so its devices would refuse the request: "
            f"put it in with 'clue-coordinator root draft OUT --fleet {fleet} --approver KEY.pub'"
        )
    return trust.request


def count(envelope: bytes, root: Root, fleet: str) -> Approvals:
    """Who of those who may has signed, by this root."""
    role = request_role(root, fleet)
    return Approvals(signers(read_envelope(envelope, REQUEST_TYPE), role.keys), role.threshold)


def approve(ledger: Ledger, request_id: str, envelope: bytes) -> str:
    """Take the signatures of ``envelope`` over a request that waits; it starts when there are enough. Returns its id.

    A signature that is there already changes nothing.

    Raises:
        ApprovalError: no signature of a key that may approve, or another document was signed.
        ConflictError: the request does not wait.
        UsageError: there is no such request, or the envelope is none.
    """
    from clue_coordinator.requests import require_request

    with ledger.write() as session:
        request = require_request(session, request_id)
        root = roots.latest(session).root
        role = request_role(root, request.fleet.name)
        new = _counting(envelope, root, role, request.fleet.name)
        known = {str(entry["keyid"]) for entry in request.approvals}
        if request.state != RequestState.AWAITING_APPROVAL:
            if {key.keyid for key in new} <= known:
                return request.id
            raise ConflictError(f"request {request.id} is {request.state}: it waits for no approval")
        try:
            merge_signatures(request.envelope, envelope, REQUEST_TYPE)
        except EnvelopeError:
            raise ApprovalError(f"what was signed is not request {request.id} as it is kept here") from None
        for key in new:
            if key.keyid in known:
                continue
            alone = only(envelope, {key.keyid})
            request.envelope = merge_signatures(request.envelope, alone, REQUEST_TYPE)
            _note(session, ledger, request, key, roots.key_names(session))
            tlog.append(session, "approval", alone, request.id)
        _start_if_enough(session, ledger, request, root)
        return request.id


def reject(ledger: Ledger, request_id: str, comment: str = "") -> str:
    """An approver's no: a request that waits is CANCELED. ConflictError if it does not wait. Returns its id."""
    from clue_coordinator.requests import require_request

    with ledger.write() as session:
        request = require_request(session, request_id)
        if request.state != RequestState.AWAITING_APPROVAL:
            raise ConflictError(f"request {request.id} is {request.state}: it waits for no approval")
        reason = f"rejected by {actor.current() or 'an approver'}" + (f": {comment}" if comment else "")
        withdraw(session, ledger, request, RequestState.CANCELED, reason)
        return request.id


def after_root(session: Session, ledger: Ledger, root: Root) -> None:
    """A new root counts for what is open: approvals of keys that lost their role fall away, and numbers of old epochs.

    What has started goes on with the signatures that it has; devices judge those by the new root.
    """
    query = select(Request).where(Request.state.in_(OPEN_REQUEST)).options(selectinload(Request.fleet))
    for request in session.scalars(query).all():
        trust = root.fleets.get(request.fleet.name)
        if trust is None:
            continue
        if request.sequence >> EPOCH_SHIFT < trust.epoch:
            reason = f"root version {root.version} ended the epoch of its number: make it anew with 'request retry'"
            withdraw(session, ledger, request, RequestState.CANCELED, reason)
        elif request.state == RequestState.AWAITING_APPROVAL:
            counting = {key.keyid for key in count(request.envelope, root, request.fleet.name).keys}
            request.approvals = [entry for entry in request.approvals if entry["keyid"] in counting]
            request.approvals_needed = trust.request.threshold
            _start_if_enough(session, ledger, request, root)


def note_own(request: Request, approvals: Approvals, at: float) -> None:
    """A new request: what it needs, and the coordinator's own signature where that is one of them."""
    request.approvals_needed = approvals.needed
    request.approvals = [{"keyid": key.keyid, "name": "coordinator", "at": at} for key in approvals.keys]


def only(envelope: bytes, keyids: set[str]) -> bytes:
    """The envelope with the signatures of these keys alone."""
    found = read_envelope(envelope, REQUEST_TYPE)
    kept = {keyid: signature for keyid, signature in found.signatures.items() if keyid in keyids}
    body = Envelope(found.payload, found.payload_type, kept).to_dict()
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _counting(envelope: bytes, root: Root, role: Role, fleet: str) -> tuple[Key, ...]:
    """The keys that signed and may; ApprovalError says why there are none."""
    try:
        parsed = read_envelope(envelope, REQUEST_TYPE)
    except EnvelopeError as error:
        raise UsageError(f"this is no signed request: {error}") from None
    if found := signers(parsed, role.keys):
        return found
    if found := signers(parsed, (entry.key for entry in root.revoked)):
        raise ApprovalError(f"key {found[0].keyid[:16]} was revoked: it approves nothing any more")
    if found := signers(parsed, root.all_keys()):
        raise ApprovalError(f"key {found[0].keyid[:16]} is in the root, but does not decide over fleet {fleet}")
    names = ", ".join(f"{keyid[:16]}" for keyid in parsed.signatures) or "none"
    raise ApprovalError(f"no signature is of a key that may approve for fleet {fleet} (signed by: {names})")


def _note(session: Session, ledger: Ledger, request: Request, key: Key, names: dict[str, str]) -> None:
    name = names.get(key.keyid) or actor.current()
    request.approvals = [*request.approvals, {"keyid": key.keyid, "name": name, "at": ledger.clock()}]
    detail = f"key {key.keyid[:16]}" + (f" ({name})" if name else "")
    ledger.record(session, "request.approved", fleet=request.fleet.name, request_id=request.id, detail=detail)


def _start_if_enough(session: Session, ledger: Ledger, request: Request, root: Root) -> None:
    if not count(request.envelope, root, request.fleet.name).enough:
        return
    request.state = RequestState.SCHEDULED
    # The waiting must not count as time between two waves.
    request.wave_at = ledger.clock()
    session.execute(
        update(Execution)
        .where(Execution.request_id == request.id, Execution.waiting == "approval")
        .values(waiting="")
        .execution_options(synchronize_session=False)
    )
    tlog.append(session, "request", request.envelope, request.id)
    ledger.record(session, "request.started", fleet=request.fleet.name, request_id=request.id)
