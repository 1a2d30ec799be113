"""Is the certificate true? Everything is followed back to the root, and the first thing that is wrong is named."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clue_protocol.certificate.errors import CertificateError
from clue_protocol.certificate.form import Certificate, DeviceEvidence, Item, Place
from clue_protocol.certificate.statement import DeviceState, Statement, root_digests
from clue_protocol.certificate.trusted import log_keys, trusted_chain
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, envelope_digest, open_message, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.tlog import (
    LogSignatureError,
    NoteKey,
    VerifiedCheckpoint,
    WitnessThresholdError,
    parse_checkpoint,
    verify_checkpoint,
    verify_inclusion,
)
from clue_protocol.tlog.leaf import Leaf
from clue_protocol.trust import TrustedRoot, check_approvals
from clue_protocol.trust.envelopes import single_signatures
from clue_protocol.trust.times import from_timestamp
from clue_protocol.v1 import forget_pb2 as pb

_OUTCOMES = {
    pb.OUTCOME_SUCCEEDED: "SUCCEEDED",
    pb.OUTCOME_FAILED: "FAILED",
    pb.OUTCOME_REJECTED: "REJECTED",
}


@dataclass(frozen=True)
class VerifiedDevice:
    """A device that was meant: what the coordinator says of it, and its own receipts, oldest first."""

    said: DeviceState
    receipts: tuple[pb.Receipt, ...]

    @property
    def last(self) -> pb.Receipt | None:
        """The receipt that counts; None if the device has sent none."""
        return self.receipts[-1] if self.receipts else None


@dataclass(frozen=True)
class VerifiedCertificate:
    """What a certificate shows.

    Attributes:
        request: what was asked.
        statement: what the coordinator says became of it.
        devices: every device that was meant.
        root: the root by which the request was allowed.
        approvers: key ids that allowed it.
        approvals_logged: how many of their approvals are in the log one by one.
        checkpoint: of the log; ``witnessed`` says which of the verifier's own witnesses have seen it, and when.
        witnesses: names of all witnesses that have signed it, also of those that the verifier does not know.
    """

    request: pb.ForgetRequest
    statement: Statement
    devices: tuple[VerifiedDevice, ...]
    root: TrustedRoot
    approvers: tuple[str, ...]
    approvals_logged: int
    checkpoint: VerifiedCheckpoint
    witnesses: tuple[str, ...]

    @property
    def erased(self) -> int:
        """On how many devices the class was forgotten."""
        return sum(device.said.state == "SUCCEEDED" for device in self.devices)


def verify_certificate(
    data: bytes,
    roots: Sequence[bytes],
    *,
    log: Sequence[NoteKey] = (),
    witnesses: Sequence[NoteKey] = (),
    threshold: int = 0,
) -> VerifiedCertificate:
    """Verify a certificate file offline.

    Args:
        data: the file.
        roots: root envelopes that the verifier trusts; one is enough unless it is much newer than the certificate.
        log: the log's verifier keys, for an installation whose root names none.
        witnesses: verifier keys of witnesses that the verifier knows.
        threshold: how many of them must have signed the checkpoint.

    Raises:
        CertificateFormError: not a certificate in its one form.
        CertificateError: names the first thing that is wrong.
    """
    certificate = Certificate.from_bytes(data)
    statement = certificate.statement
    with _at("the root"):
        chain = trusted_chain(certificate.roots, roots)
        if statement.roots != root_digests(certificate.roots):
            raise CertificateError("the roots are not those that the statement names, byte for byte")
    with _at("the checkpoint"):
        keys = log_keys(chain)
        if not keys and not log:
            raise CertificateError("the root names no key of the log: give the log's verifier key yourself")
        checkpoint, names = _check_checkpoint(certificate, keys or tuple(log), witnesses, threshold)
    check = _Checker(checkpoint, statement)
    with _at("the statement"):
        check.leaf("statement", statement.to_bytes(), statement.request_id, certificate.statement_place)
    with _at("the request"):
        request, root, approvers = check.request(certificate.request, chain)
        if request.request_id != statement.request_id:
            raise CertificateError("it is not the request that the statement is about")
    with _at("an approval"):
        check.approvals(certificate)
    sent = {request.request_id: certificate.request.envelope}
    for number, item in enumerate(certificate.patches, 1):
        with _at(f"patch {number}"):
            patch, _, _ = check.request(item, chain)
            if patch.patch.source_request_id != request.request_id or patch.forget_class != request.forget_class:
                raise CertificateError("it was made for another request")
            sent[patch.request_id] = item.envelope
    if len(certificate.devices) != len(statement.devices):
        raise CertificateError(
            f"the statement names {len(statement.devices)} devices, the certificate holds {len(certificate.devices)}"
        )
    devices = []
    for said, evidence in zip(statement.devices, certificate.devices, strict=True):
        with _at(f"device {said.device}"):
            devices.append(check.device(said, evidence, request, sent))
    return VerifiedCertificate(
        request, statement, tuple(devices), root, approvers, len(certificate.approvals), checkpoint, names
    )


class _Checker:
    """Verifies against one checkpoint, which was verified itself."""

    def __init__(self, checkpoint: VerifiedCheckpoint, statement: Statement) -> None:
        self._checkpoint = checkpoint
        self._statement = statement

    def leaf(self, kind: str, document: bytes, reference: str, place: Place) -> None:
        leaf = Leaf.of(kind, document, reference)
        if place.index >= self._checkpoint.size:
            raise CertificateError(f"leaf {place.index} is not in a log of {self._checkpoint.size}")
        verify_inclusion(leaf, place.proof(self._checkpoint.size), self._checkpoint)

    def request(
        self, item: Item, chain: Sequence[TrustedRoot]
    ) -> tuple[pb.ForgetRequest, TrustedRoot, tuple[str, ...]]:
        request = peek_message(item.envelope, REQUEST_TYPE, pb.ForgetRequest)
        self.leaf("request", item.envelope, request.request_id, item.place)
        root, approvers = _allowed_by(item.envelope, request, self._statement.fleet, chain)
        if request.fleet != self._statement.fleet:
            raise CertificateError(f"it is for fleet {request.fleet!r}")
        if request.installation not in ("", root.root.installation):
            raise CertificateError("it is of another installation")
        return request, root, approvers

    def approvals(self, certificate: Certificate) -> None:
        single = single_signatures(certificate.request.envelope, REQUEST_TYPE)
        named = [key for key, _ in certificate.approvals]
        if len(set(named)) != len(named) or not set(named) <= set(single):
            raise CertificateError("it is of a key that has not signed the request")
        for key, place in certificate.approvals:
            self.leaf("approval", single[key], self._statement.request_id, place)

    def device(
        self, said: DeviceState, evidence: DeviceEvidence, request: pb.ForgetRequest, sent: dict[str, bytes]
    ) -> VerifiedDevice:
        enrolment = evidence.enrolment
        if (enrolment.device, enrolment.fleet) != (said.device, self._statement.fleet):
            raise CertificateError(f"its enrolment is of {enrolment.device} in fleet {enrolment.fleet}")
        with _at("enrolment"):
            self.leaf("enrolment", enrolment.to_bytes(), said.device, evidence.place)
        receipts = []
        for number, item in enumerate(evidence.receipts, 1):
            with _at(f"receipt {number}"):
                self.leaf("receipt", item.envelope, f"{request.request_id}/{said.device}", item.place)
                receipt = open_message(item.envelope, RECEIPT_TYPE, pb.Receipt, [enrolment.receipt_key])
                _check_receipt(receipt, said, request, sent)
                receipts.append(receipt)
        device = VerifiedDevice(said, tuple(receipts))
        outcomes = [_OUTCOMES[receipt.outcome] for receipt in receipts]
        if said.state == "SUCCEEDED" and outcomes[-1:] != ["SUCCEEDED"]:
            raise CertificateError("it is said to have succeeded, and its last receipt does not say so")
        if said.state != "SUCCEEDED" and "SUCCEEDED" in outcomes:
            raise CertificateError(f"its receipt says that it succeeded, the statement says {said.state}")
        return device


def _check_receipt(receipt: pb.Receipt, said: DeviceState, request: pb.ForgetRequest, sent: dict[str, bytes]) -> None:
    if receipt.device_id != said.device:
        raise CertificateError(f"it is of device {receipt.device_id!r}")
    if receipt.outcome not in _OUTCOMES:
        raise CertificateError(f"its outcome is {receipt.outcome}")
    if receipt.request_id not in sent:
        raise CertificateError(f"it is for request {receipt.request_id!r}")
    # A device may refuse other bytes than those that were sent: it then tells which.
    if receipt.outcome == pb.OUTCOME_REJECTED:
        return
    if receipt.request_digest != envelope_digest(sent[receipt.request_id]):
        raise CertificateError("it answers other bytes than the request")
    if receipt.fleet != request.fleet or receipt.forget_class not in ("", request.forget_class):
        raise CertificateError(f"it is about class {receipt.forget_class!r} in fleet {receipt.fleet!r}")


def _allowed_by(
    envelope: bytes, request: pb.ForgetRequest, fleet: str, chain: Sequence[TrustedRoot]
) -> tuple[TrustedRoot, tuple[str, ...]]:
    """The root, of those in force when the request was made or later, by which it was allowed, and who allowed it."""
    try:
        issued = from_timestamp(request.issued_at)
    except ValueError:
        raise CertificateError("it does not say when it was made") from None
    successors: list[TrustedRoot | None] = [*chain[1:], None]
    found: ProtocolError | None = None
    for root, after in zip(chain, successors, strict=True):
        if after is not None and after.root.issued_ns <= issued:
            continue
        try:
            return root, tuple(key.keyid for key in check_approvals(envelope, root.root, fleet))
        except ProtocolError as error:
            found = error
    assert found is not None  # noqa: S101
    raise found


def _check_checkpoint(
    certificate: Certificate, log: Sequence[NoteKey], witnesses: Sequence[NoteKey], threshold: int
) -> tuple[VerifiedCheckpoint, tuple[str, ...]]:
    """Verify it by the log's key and every cosignature by its own key: no line may be left that nobody checks."""
    note = certificate.checkpoint
    _, signatures = parse_checkpoint(note)
    signed = [key for key in log if any(key.vkey.match(line) for line in signatures)]
    if not signed:
        raise LogSignatureError("it is not signed by a key of the log")
    own = [NoteKey.from_text(text) for text in certificate.witnesses]
    if [key.to_text() for key in own] != list(certificate.witnesses):
        raise CertificateError("a witness's verifier key is not in its one form")
    checkpoint = verify_checkpoint(note, signed[0], own, len(own))
    expected = [signed[0], *own]
    if len(signatures) != len(expected) or not all(
        key.vkey.match(line) for key, line in zip(expected, signatures, strict=True)
    ):
        raise CertificateError("it carries signatures of keys that the certificate does not name")
    known = [key for key in witnesses if key in own]
    if len(known) < threshold:
        raise WitnessThresholdError(f"{len(known)} of your witnesses have signed it, {threshold} must")
    seen = {key.name: checkpoint.witnessed[key.name] for key in known}
    names = tuple(key.name for key in own)
    return VerifiedCheckpoint(checkpoint.origin, checkpoint.size, checkpoint.root, seen), names


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors say where they were found."""
    try:
        yield
    except ProtocolError as error:
        raise CertificateError(f"{where}: {error}") from None
