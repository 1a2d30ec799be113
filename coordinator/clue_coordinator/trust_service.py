"""The methods of the operator API that deal with roots and approvals, mixed into the service."""

import logging

import grpc

from clue_coordinator import approvals, requests, roots
from clue_coordinator.answers import answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import UsageError
from clue_coordinator.home_keys import HomeKeys, adopt_timestamp_key
from clue_coordinator.ledger import Ledger
from clue_coordinator.public_keys import parse_public_key
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import Role
from clue_protocol.v1 import operator_pb2 as pb

log = logging.getLogger(__name__)


class TrustMethods:
    """See operator.proto."""

    _config: CoordinatorConfig
    _ledger: Ledger
    _keys: HomeKeys

    def _view(self, request_id: str, executions: int = 0) -> pb.RequestView:
        raise NotImplementedError

    def GetRoot(self, request: pb.GetRootRequest, context: grpc.ServicerContext) -> pb.GetRootResponse:  # noqa: D102
        with answering(context), self._ledger.read() as session:
            version = request.version
            found = roots.at_version(session, version) if version else roots.latest(session)
            later = roots.since(session, request.after) if request.after else []
            return pb.GetRootResponse(envelope=found.envelope, successors=later, names=roots.key_names(session))
        raise AssertionError

    def PublishRoot(self, request: pb.PublishRootCall, context: grpc.ServicerContext) -> pb.GetRootResponse:  # noqa: D102
        with answering(context):
            self._keys.refresh()
            new = roots.publish(self._ledger, request.envelope, self._keys, request.names)
            adopt_timestamp_key(self._config, new.root.timestamp)
            self._keys.refresh()
            log.info("root version %d is published", new.root.version)
            return pb.GetRootResponse(envelope=new.envelope, names=request.names)
        raise AssertionError

    def GetRequestDocument(  # noqa: D102
        self, request: pb.GetRequestDocumentRequest, context: grpc.ServicerContext
    ) -> pb.GetRequestDocumentResponse:
        with answering(context):
            with self._ledger.read() as session:
                found = requests.require_request(session, request.request_id)
            return pb.GetRequestDocumentResponse(envelope=found.envelope, view=self._view(found.id))
        raise AssertionError

    def ApproveRequest(self, request: pb.ApproveRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with answering(context):
            return self._view(approvals.approve(self._ledger, request.request_id, request.envelope))
        raise AssertionError

    def RejectRequest(self, request: pb.ChangeRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with answering(context):
            return self._view(approvals.reject(self._ledger, request.request_id, request.comment))
        raise AssertionError


def approver_role(call: pb.CreateFleetRequest) -> tuple[Role | None, dict[str, str]]:
    """Who is to approve for a new fleet, and what the keys are called; UsageError if that makes no role."""
    if not call.approvers:
        if call.require > 1:
            raise UsageError(f"{call.require} approvals are to be required, but no approver is named")
        return None, {}
    named = [parse_public_key(item.key_json) for item in call.approvers]
    try:
        role = Role(tuple(item.key for item in named), call.require or 1)
    except ProtocolError as error:
        raise UsageError(str(error)) from None
    return role, {str(item.key.keyid): item.name for item in named if item.name}
