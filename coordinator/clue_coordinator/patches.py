"""Patches for devices without images: made of the updates of devices that had some, and signed.

A device that answered NO_FORGET_SAMPLES to a request with ``without_samples: aggregate`` waits.
Once every device that is online and could still hand in an update has answered, the updates on
the waiting devices' model are combined and the patch is queued for them, as a signed request of
its own; those that come to wait later get the same patch.
"""

import logging
from hashlib import sha256

from securesystemslib.signer import Signer
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import approvals, roots, tlog
from clue_coordinator.errors import AggregationError
from clue_coordinator.executions import finish_if_done, move
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, PastReceipt, Patch, Request, Update
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.requests import order_of, request_message
from clue_coordinator.states import ACTIVE, OPEN_REQUEST, ExecutionState
from clue_protocol.envelope import REQUEST_TYPE, peek_message, sign_message
from clue_protocol.v1 import forget_pb2 as pb

log = logging.getLogger(__name__)


class Patcher:
    """Makes the patches of one ledger's requests, signed by ``signer``."""

    def __init__(self, ledger: Ledger, signer: Signer) -> None:
        self._ledger = ledger
        self._signer = signer
        # How many updates there were when they did not do: the same ones are not combined again every second.
        self._in_vain: dict[tuple[str, str], int] = {}

    def advance(self) -> None:
        """Make and queue what is due; harmless to call often."""
        with self._ledger.read() as session:
            due = _due(session)
        for request_id, base in due:
            self._advance(request_id, base)

    def _advance(self, request_id: str, base: str) -> None:
        with self._ledger.read() as session:
            patch_id = session.scalar(select(Patch.id).where(Patch.request_id == request_id, Patch.base_digest == base))
            updates = {} if patch_id else _updates(session, request_id, base)
        if patch_id is None and len(updates) > self._in_vain.get((request_id, base), 0):
            patch_id = self._make(request_id, base, updates)
        if patch_id is not None:
            with self._ledger.write() as session:
                _queue(session, self._ledger, _request(session, request_id), base, patch_id)
            return
        with self._ledger.read() as session:
            hopeless = not _others(session, _request(session, request_id))
        if hopeless:
            with self._ledger.write() as session:
                request = _request(session, request_id)
                for execution in _waiting(session, request_id, base):
                    problem = f"{len(updates)} update(s) of other devices on the same model were not enough for a patch"
                    reject(session, self._ledger, execution, problem)
                finish_if_done(session, self._ledger, request)

    def _make(self, request_id: str, base: str, updates: dict[str, bytes]) -> str | None:
        """Combine, sign and store; None if the updates do not do."""
        from clue.errors import UpdateError
        from clue.federated import update_to_bytes
        from clue_coordinator.aggregate import AggregationSettings, combine

        with self._ledger.read() as session:
            request = _request(session, request_id)
        plan = RolloutPlan.model_validate(request.plan)
        try:
            combined, report = combine(
                updates,
                base=base,
                forget_class=request.forget_class,
                settings=AggregationSettings(min_devices=plan.min_updates),
            )
            body = update_to_bytes(combined)
        except (AggregationError, UpdateError) as error:
            self._in_vain[request_id, base] = len(updates)
            log.warning("request %s: no patch yet for model %s: %s", request_id, base[:12], error)
            return None
        with self._ledger.write() as session:
            request = _request(session, request_id)
            if request.state not in OPEN_REQUEST:
                return None
            root = roots.latest(session).root
            request.fleet.sequence = roots.next_sequence(root, request.fleet)
            message = request_message(
                order_of(request), root.installation, request.fleet.sequence, self._ledger.clock(), request.expires_at
            )
            message.share_update = False
            message.patch.CopyFrom(
                pb.PatchReference(
                    source_request_id=request_id,
                    digest=sha256(body).digest(),
                    base_model_digest=base,
                    updates=len(report.used),
                )
            )
            envelope = sign_message(message, REQUEST_TYPE, [self._signer])
            if not approvals.count(envelope, root, request.fleet.name).enough:
                self._in_vain[request_id, base] = len(updates)
                log.warning("request %s: no patch: by now requests of its fleet need approvals of people", request_id)
                return None
            session.add(
                Patch(
                    id=message.request_id,
                    request_id=request_id,
                    base_digest=base,
                    envelope=envelope,
                    body=body,
                    report=report.as_dict(),
                    created_at=self._ledger.clock(),
                )
            )
            tlog.append(session, "request", envelope, message.request_id)
            detail = (
                f"patch {message.request_id} of {len(report.used)} device(s) for model {base[:12]}, {len(body)} bytes"
            )
            self._ledger.record(session, "patch.made", fleet=request.fleet.name, request_id=request_id, detail=detail)
            return message.request_id


def reject(session: Session, ledger: Ledger, execution: Execution, problem: str) -> None:
    """End the waiting of a device: its refusal is the last word, since no patch came."""
    past = session.scalar(
        select(PastReceipt)
        .where(PastReceipt.execution_id == execution.id)
        .order_by(PastReceipt.attempt.desc(), PastReceipt.id.desc())
        .limit(1)
    )
    execution.receipt_envelope = past.envelope if past is not None else None
    execution.reason = "NO_FORGET_SAMPLES"
    execution.detail = f"{execution.detail.removeprefix('NO_FORGET_SAMPLES: ')}; {problem}"
    move(session, ledger, execution, ExecutionState.REJECTED)


def _request(session: Session, request_id: str) -> Request:
    return session.get_one(Request, request_id, options=[selectinload(Request.fleet)])


def _due(session: Session) -> list[tuple[str, str]]:
    """Requests and base models for which somebody waits and nobody who is online may still contribute."""
    waiting = session.execute(
        select(Execution.request_id, Execution.base_digest)
        .join(Execution.request)
        .where(Execution.waiting == "patch", Execution.state == ExecutionState.QUEUED, Request.state.in_(OPEN_REQUEST))
        .distinct()
    )
    return [
        (request_id, base)
        for request_id, base in waiting
        if session.scalar(_contributors(request_id).where(Device.online)) is None
    ]


def _contributors(request_id: str) -> Select[str]:
    """Executions that may still bring an update."""
    return (
        select(Execution.id)
        .join(Execution.device)
        .where(
            Execution.request_id == request_id,
            Execution.state.in_(ACTIVE),
            Execution.waiting == "",
            Execution.patch_id.is_(None),
        )
        .limit(1)
    )


def _others(session: Session, request: Request) -> bool:
    """True if an update may still come: of a device that is offline now, or that joins."""
    return bool(request.target.get("continuous")) or session.scalar(_contributors(request.id)) is not None


def _updates(session: Session, request_id: str, base: str) -> dict[str, bytes]:
    rows = session.execute(
        select(Device.device_id, Update.body)
        .join(Execution, Execution.id == Update.execution_id)
        .join(Device, Device.id == Execution.device_pk)
        .where(Execution.request_id == request_id, Update.base_digest == base)
        .order_by(Device.device_id)
    )
    return {str(name): bytes(body) for name, body in rows}


def _waiting(session: Session, request_id: str, base: str) -> list[Execution]:
    query = select(Execution).where(
        Execution.request_id == request_id,
        Execution.waiting == "patch",
        Execution.state == ExecutionState.QUEUED,
        Execution.base_digest == base,
    )
    return list(session.scalars(query.options(selectinload(Execution.device))))


def _queue(session: Session, ledger: Ledger, request: Request, base: str, patch_id: str) -> None:
    envelope = session.scalar(select(Patch.envelope).where(Patch.id == patch_id))
    sequence = peek_message(bytes(envelope or b""), REQUEST_TYPE, pb.ForgetRequest).sequence
    for execution in _waiting(session, request.id, base):
        execution.waiting, execution.patch_id, execution.attempt, execution.faults = "", patch_id, 1, 0
        execution.sequence = sequence
        execution.updated_at = ledger.clock()
        ledger.record(
            session,
            "execution.patched",
            fleet=request.fleet.name,
            device_id=execution.device.device_id,
            request_id=request.id,
            detail=f"gets patch {patch_id}",
        )
