"""The log's methods of the operator API, mixed into the service."""

from collections.abc import Iterator
from functools import cached_property

import grpc
from sqlalchemy import select
from sqlalchemy.orm import Session

from clue_coordinator import certificates, tlog
from clue_coordinator.answers import answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import LogCheckpoint, LogLeaf
from clue_coordinator.tlog.compare import compare_documents
from clue_coordinator.tlog.keys import LogKeys, load_log_keys
from clue_coordinator.tlog.schedule import checkpoint_now
from clue_coordinator.views import stamp
from clue_protocol.tlog import Growth, LogError, parse_checkpoint
from clue_protocol.v1 import operator_pb2 as pb

_MOST_LEAVES = 1000
_MOST_PROOFS = 100
_PIECE = 1 << 20


class LogMethods:
    """See operator.proto."""

    _ledger: Ledger
    _config: CoordinatorConfig

    @cached_property
    def _log_keys(self) -> LogKeys:
        return load_log_keys(self._config)

    def GetLog(self, request: pb.GetLogRequest, context: grpc.ServicerContext) -> pb.LogView:  # noqa: D102
        with answering(context), self._ledger.read() as session:
            query = select(LogLeaf).order_by(LogLeaf.id.desc()).limit(min(request.max_leaves, _MOST_LEAVES))
            if request.reference:
                query = query.where(LogLeaf.reference.startswith(request.reference, autoescape=True))
            last = tlog.last_checkpoint(session)
            return pb.LogView(
                keys=[key.to_text() for key in self._log_keys.keys],
                witnesses=[key.to_text() for key in self._log_keys.witnesses],
                size=tlog.size_of(session),
                checkpoint=_checkpoint(last, tlog.full_note(session, last)) if last is not None else None,
                leaves=[_leaf(leaf) for leaf in session.scalars(query)] if request.max_leaves else [],
            )
        raise AssertionError

    def MakeCheckpoint(self, request: pb.MakeCheckpointRequest, context: grpc.ServicerContext) -> pb.Checkpoint:  # noqa: D102
        with answering(context):
            row = checkpoint_now(self._ledger, self._log_keys)
            with self._ledger.read() as session:
                return _checkpoint(row, tlog.full_note(session, row))
        raise AssertionError

    def ProveLeaves(self, request: pb.ProveLeavesRequest, context: grpc.ServicerContext) -> pb.ProveLeavesResponse:  # noqa: D102
        with answering(context):
            with self._ledger.read() as session:
                indices = _indices(session, request)
                last = tlog.last_checkpoint(session)
            if last is None or last.size <= indices[-1]:
                checkpoint_now(self._ledger, self._log_keys)
            with self._ledger.read() as session:
                found = [tlog.prove(session, index, self._log_keys.keys).to_json() for index in indices]
            return pb.ProveLeavesResponse(evidence_json=found)
        raise AssertionError

    def ProveConsistency(  # noqa: D102
        self, request: pb.ProveConsistencyRequest, context: grpc.ServicerContext
    ) -> pb.ProveConsistencyResponse:
        with answering(context):
            try:
                old, _ = parse_checkpoint(request.old_note)
            except LogError as error:
                raise UsageError(str(error)) from None
            row = checkpoint_now(self._ledger, self._log_keys)
            with self._ledger.read() as session:
                if old.size > row.size:
                    raise UsageError(f"that checkpoint has {old.size} leaves, this log has {row.size}")
                proof = tlog.Tree(session, row.size).prove_consistency(old.size)
                growth = Growth(request.old_note, tlog.full_note(session, row), proof)
            return pb.ProveConsistencyResponse(consistency_json=growth.to_json())
        raise AssertionError

    def VerifyLog(self, request: pb.VerifyLogRequest, context: grpc.ServicerContext) -> pb.VerifyLogResponse:  # noqa: D102
        with answering(context), self._ledger.read() as session:
            report = tlog.verify_log(session, self._log_keys.keys)
            documents = compare_documents(session)
            return pb.VerifyLogResponse(
                leaves=report.leaves, checkpoints=report.checkpoints, documents=documents, root=report.root
            )
        raise AssertionError

    def AddCosignature(self, request: pb.AddCosignatureRequest, context: grpc.ServicerContext) -> pb.Checkpoint:  # noqa: D102
        with answering(context):
            try:
                checkpoint, signatures = parse_checkpoint(request.note)
                log = next(key for key in self._log_keys.keys if any(key.vkey.match(line) for line in signatures))
                known = [key for key in self._log_keys.witnesses if any(key.vkey.match(line) for line in signatures)]
                if not known:
                    raise UsageError(
                        "it carries no signature of a witness that [log] witnesses in coordinator.toml names"
                    )
                with self._ledger.write() as session:
                    for witness in known:
                        tlog.add_cosignature(session, request.note, log, witness, self._ledger.clock())
                        self._ledger.record(
                            session, "log.cosigned", detail=f"{checkpoint.size} leaves, by {witness.name}"
                        )
            except StopIteration:
                raise UsageError("it is not a checkpoint that this log has signed") from None
            except LogError as error:
                raise UsageError(str(error)) from None
            with self._ledger.read() as session:
                query = select(LogCheckpoint).where(LogCheckpoint.size == checkpoint.size)
                row = session.scalars(query.order_by(LogCheckpoint.id.desc()).limit(1)).one()
                return _checkpoint(row, tlog.full_note(session, row))
        raise AssertionError

    def GetCertificate(  # noqa: D102
        self, request: pb.GetCertificateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CertificatePiece]:
        with answering(context):
            data = certificates.make(self._ledger, self._log_keys, request.request_id, partial=request.partial)
            for start in range(0, len(data), _PIECE):
                yield pb.CertificatePiece(data=data[start : start + _PIECE])


def _indices(session: Session, request: pb.ProveLeavesRequest) -> list[int]:
    if request.HasField("index"):
        if request.index >= tlog.size_of(session):
            raise UsageError(f"the log has {tlog.size_of(session)} leaves, none of them is number {request.index}")
        return [request.index]
    found = tlog.indices_of(session, request.reference)
    if not found:
        raise UsageError(f"the log has no leaf '{request.reference}': see 'clue-coordinator log show'")
    if len(found) > _MOST_PROOFS:
        raise UsageError(f"the log has {len(found)} leaves '{request.reference}': ask for one of them by its number")
    return found


def _checkpoint(row: LogCheckpoint, note: str) -> pb.Checkpoint:
    return pb.Checkpoint(note=note, size=row.size, made_at=stamp(row.at))


def _leaf(leaf: LogLeaf) -> pb.LeafView:
    return pb.LeafView(index=leaf.id, kind=leaf.kind, reference=leaf.reference, digest=leaf.digest)
