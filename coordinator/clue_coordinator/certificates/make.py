"""Put a certificate together: what the ledger holds of a request, and where in the log it is.

Three transactions, so that a large fleet does not hold the writer: read the request; log what is said of it and sign a
checkpoint; read the proofs up to that checkpoint.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from clue_coordinator import roots as installation_roots
from clue_coordinator import tlog
from clue_coordinator.errors import ConflictError, LogDamagedError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, LogLeaf, PastReceipt, Patch, Request
from clue_coordinator.requests import require_request
from clue_coordinator.tlog.keys import LogKeys
from clue_coordinator.tlog.record import enrolled, is_started, receipt_reference
from clue_protocol.certificate import Certificate, DeviceEvidence, DeviceState, EnrolledDevice, Item, Place, Statement
from clue_protocol.certificate.statement import root_digests
from clue_protocol.envelope import REQUEST_TYPE
from clue_protocol.tlog import Leaf, parse_checkpoint
from clue_protocol.tlog.checkpoint import join_signatures
from clue_protocol.trust.envelopes import single_signatures

Roots = Callable[[Session], Sequence[bytes]]


@dataclass(frozen=True)
class _Found:
    """What the first transaction has read: envelopes, and the leaves that they must have."""

    statement: Statement
    roots: tuple[bytes, ...]
    request: bytes
    patches: tuple[tuple[str, bytes], ...]
    enrolments: tuple[EnrolledDevice, ...]
    receipts: tuple[tuple[bytes, ...], ...]


def all_roots(session: Session) -> Sequence[bytes]:
    """Every root of the installation from version 1 on."""
    return installation_roots.since(session, 0)


def make(ledger: Ledger, keys: LogKeys, request_id: str, *, partial: bool = False, roots: Roots = all_roots) -> bytes:
    """The certificate of a request, ``certificate.json``.

    Args:
        ledger: of the coordinator.
        keys: the log's; a checkpoint is signed if the last one does not have everything.
        request_id: or a unique beginning of it.
        partial: also while devices may still answer.
        roots: where the root envelopes come from.

    Raises:
        UsageError: there is no such request.
        ConflictError: the request is open, or was never started.
        LogDamagedError: a document is not in the log.
    """
    with ledger.read() as session:
        request = require_request(session, request_id)
        if not partial and request.finished_at is None:
            raise ConflictError(
                f"request {request.id} is open and devices may still answer: --partial makes one of what is there"
            )
        if not is_started(session, request.id):
            raise ConflictError(f"request {request.id} has not started, so there is nothing to certify")
        found = _read(session, request, tuple(roots(session)))
    said = found.statement.to_bytes()
    with ledger.write() as session:
        # The same outcome is the same document: asking again adds nothing.
        if tlog.index_of(session, said, "statement") is None:
            tlog.append(session, "statement", said, found.statement.request_id)
        tlog.make_checkpoint(session, keys.origin, keys.signer, ledger.clock())
    with ledger.read() as session:
        return _prove(session, found, keys).to_bytes()


def _read(session: Session, request: Request, roots: tuple[bytes, ...]) -> _Found:
    query = (
        select(Execution, Device)
        .join(Device, Device.id == Execution.device_pk)
        .where(Execution.request_id == request.id)
        .order_by(Device.device_id)
    )
    past = (
        select(PastReceipt.execution_id, PastReceipt.envelope)
        .join(Execution, Execution.id == PastReceipt.execution_id)
        .where(Execution.request_id == request.id)
        .order_by(PastReceipt.id)
    )
    receipts: dict[str, list[bytes]] = defaultdict(list)
    for execution_id, envelope in session.execute(past):
        receipts[execution_id].append(envelope)
    said, enrolments = [], []
    fleet = request.fleet.name
    rows = sorted(session.execute(query), key=lambda row: row[1].device_id)
    for execution, device in rows:
        said.append(DeviceState(device.device_id, execution.state, execution.reason, execution.detail))
        enrolments.append(enrolled(device, fleet))
        last = execution.receipt_envelope
        if last and last not in receipts[execution.id]:
            receipts[execution.id].append(last)
    statement = Statement(
        request_id=request.id,
        fleet=fleet,
        state=request.state,
        requested_by=request.created_by,
        created_at=int(request.created_at),
        finished_at=int(request.finished_at or 0),
        devices=tuple(said),
        roots=root_digests(roots),
    )
    patches = (
        select(Patch.id, Patch.envelope).where(Patch.request_id == request.id).order_by(Patch.created_at, Patch.id)
    )
    in_order = tuple(tuple(receipts[execution.id]) for execution, _ in rows)
    return _Found(statement, roots, request.envelope, tuple(session.execute(patches)), tuple(enrolments), in_order)


def _prove(session: Session, found: _Found, keys: LogKeys) -> Certificate:
    last = tlog.last_checkpoint(session)
    assert last is not None  # noqa: S101
    note, witnesses = _with_witnesses(tlog.full_note(session, last), keys)
    places = _Places(session, last.size, found.statement, [patch_id for patch_id, _ in found.patches])
    request_id = found.statement.request_id

    def item(kind: str, envelope: bytes, reference: str) -> Item:
        return Item(envelope, places.of(kind, envelope, reference))

    devices = []
    for enrolment, receipts in zip(found.enrolments, found.receipts, strict=True):
        reference = receipt_reference(request_id, enrolment.device)
        devices.append(
            DeviceEvidence(
                enrolment,
                places.of("enrolment", enrolment.to_bytes(), enrolment.device),
                tuple(item("receipt", envelope, reference) for envelope in receipts),
            )
        )
    approvals = single_signatures(found.request, REQUEST_TYPE)
    return Certificate(
        roots=found.roots,
        checkpoint=note,
        witnesses=witnesses,
        statement=found.statement,
        statement_place=places.of("statement", found.statement.to_bytes(), request_id),
        request=item("request", found.request, request_id),
        # Where the coordinator signs alone, the request itself is the only approval.
        approvals=tuple(
            (key, place)
            for key, document in sorted(approvals.items())
            if (place := places.find("approval", document, request_id)) is not None
        ),
        patches=tuple(item("request", envelope, patch_id) for patch_id, envelope in found.patches),
        devices=tuple(devices),
    )


class _Places:
    """Where the documents of one request are in the tree of one size."""

    def __init__(self, session: Session, size: int, statement: Statement, patches: Sequence[str]) -> None:
        self._tree = tlog.Tree(session, size)
        self._indices: dict[tuple[str, str, str], int] = {}
        ours = LogLeaf.reference.in_([statement.request_id, *patches])
        theirs = LogLeaf.reference.startswith(f"{statement.request_id}/", autoescape=True)
        enrolments = LogLeaf.kind == "enrolment"
        query = select(LogLeaf.kind, LogLeaf.digest, LogLeaf.reference, LogLeaf.id).where(
            LogLeaf.id < size, ours | theirs | enrolments
        )
        for kind, digest, reference, index in session.execute(query.order_by(LogLeaf.id.desc())):
            self._indices[kind, digest, reference] = index

    def find(self, kind: str, document: bytes, reference: str) -> Place | None:
        leaf = Leaf.of(kind, document, reference)
        index = self._indices.get((kind, leaf.digest, reference))
        return None if index is None else Place(index, self._tree.prove_inclusion(index).hashes)

    def of(self, kind: str, document: bytes, reference: str) -> Place:
        place = self.find(kind, document, reference)
        if place is None:
            raise LogDamagedError(f"the {kind} {reference} is not in the log: see 'clue-coordinator log verify'")
        return place


def _with_witnesses(note: str, keys: LogKeys) -> tuple[str, tuple[str, ...]]:
    """The note with the cosignatures of the witnesses that are named, and their verifier keys in that order."""
    checkpoint, signatures = parse_checkpoint(note)
    lines, witnesses = [], []
    for line in signatures:
        if any(key.vkey.match(line) for key in keys.keys):
            lines.append(line)
        for key in keys.witnesses:
            if key.vkey.match(line):
                lines.append(line)
                witnesses.append(key.to_text())
    return join_signatures(checkpoint, lines), tuple(witnesses)
