"""What of the ledger is a leaf of the log: each is appended in the transaction of its event."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from clue_coordinator.models import Device, Execution, Fleet, LogLeaf, PastReceipt, Patch, Request
from clue_coordinator.tlog.store import append
from clue_protocol.certificate.enrolled import EnrolledDevice
from clue_protocol.keys import key_from_json


@dataclass(frozen=True)
class Document:
    """A document as the ledger holds it, and the leaf it has or should have.

    Attributes:
        kind, reference: of the leaf.
        body: byte for byte.
        at: when it came, seconds since 1970.
    """

    kind: str
    reference: str
    body: bytes
    at: float


def log_request(session: Session, request: Request) -> int:
    """Append a request as it goes out to devices; returns the leaf's index."""
    return append(session, "request", request.envelope, request.id)


def log_patch(session: Session, patch: Patch) -> int:
    """Append the signed request of a patch, which has an id of its own."""
    return append(session, "request", patch.envelope, patch.id)


def log_approval(session: Session, request_id: str, document: bytes) -> int:
    """Append one person's approval: the request's envelope with that one signature."""
    return append(session, "approval", document, request_id)


def log_receipt(session: Session, request_id: str, device_id: str, envelope: bytes) -> int:
    """Append a receipt that was accepted."""
    return append(session, "receipt", envelope, receipt_reference(request_id, device_id))


def log_enrolment(session: Session, device: Device) -> int:
    """Append which receipt key a device has."""
    return append(session, "enrolment", enrolled(device, device.fleet.name).to_bytes(), device.device_id)


def is_started(session: Session, request_id: str) -> bool:
    """True if a request has gone out to devices, or may have: it is in the log, or should be."""
    leaf = select(LogLeaf.id).where(LogLeaf.kind == "request", LogLeaf.reference == request_id)
    begun = select(Execution.id).where(Execution.request_id == request_id, Execution.started_at.is_not(None))
    return any(session.scalar(query.limit(1)) is not None for query in (leaf, begun))


def receipt_reference(request_id: str, device_id: str) -> str:
    """Where a receipt is: the request, whatever patch it answers, and the device."""
    return f"{request_id}/{device_id}"


def enrolled(device: Device, fleet: str) -> EnrolledDevice:
    """The document that binds a device to its receipt key."""
    return EnrolledDevice(device.device_id, fleet, key_from_json(device.receipt_key), int(device.enrolled_at))


def begin(session: Session) -> int:
    """Append what an older ledger holds already, by time; returns how many. Nothing if that was done."""
    if session.scalar(select(LogLeaf.id).where(LogLeaf.kind == "enrolment").limit(1)) is not None:
        return 0
    found = sorted(documents(session), key=lambda document: document.at)
    for document in found:
        append(session, document.kind, document.body, document.reference)
    return len(found)


def documents(session: Session) -> Iterator[Document]:
    """Every document in the ledger that belongs into the log, kind by kind."""
    for device, fleet in session.execute(select(Device, Fleet.name).join(Device.fleet).order_by(Device.id)):
        yield Document("enrolment", device.device_id, enrolled(device, fleet).to_bytes(), device.enrolled_at)
    requests = select(Request.id, Request.envelope, Request.created_at).order_by(Request.created_at, Request.sequence)
    for identifier, envelope, at in session.execute(requests):
        yield Document("request", identifier, envelope, at)
    patches = select(Patch.id, Patch.envelope, Patch.created_at).order_by(Patch.created_at, Patch.id)
    for identifier, envelope, at in session.execute(patches):
        yield Document("request", identifier, envelope, at)
    yield from _receipts(session)


def _receipts(session: Session) -> Iterator[Document]:
    past = (
        select(Execution.request_id, Device.device_id, PastReceipt.envelope, PastReceipt.received_at)
        .join(Execution, Execution.id == PastReceipt.execution_id)
        .join(Device, Device.id == Execution.device_pk)
        .order_by(PastReceipt.id)
    )
    seen = set()
    for request_id, device_id, envelope, at in session.execute(past.execution_options(yield_per=1000)):
        seen.add((request_id, device_id, envelope))
        yield Document("receipt", receipt_reference(request_id, device_id), envelope, at)
    last = (
        select(Execution.request_id, Device.device_id, Execution.receipt_envelope, Execution.finished_at)
        .join(Device, Device.id == Execution.device_pk)
        .where(Execution.receipt_envelope.is_not(None))
        .order_by(Execution.finished_at, Execution.id)
    )
    for request_id, device_id, final, finished in session.execute(last.execution_options(yield_per=1000)):
        # The last word of a device whose patch did not come is a receipt of before.
        if final and (request_id, device_id, final) not in seen:
            yield Document("receipt", receipt_reference(request_id, device_id), final, finished or 0.0)
