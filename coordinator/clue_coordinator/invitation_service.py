"""The methods of the operator API about who may become a device and who is one no more, mixed into the service."""

import logging

import grpc

from clue_coordinator import invitations, roots
from clue_coordinator.answers import answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Invitation
from clue_coordinator.pki import ca_digest
from clue_coordinator.revocation import CutOff, revoke_device
from clue_coordinator.views import device_view, stamp
from clue_protocol import invitation as tokens
from clue_protocol.v1 import operator_pb2 as pb

log = logging.getLogger(__name__)


class InvitationMethods:
    """See operator.proto."""

    _config: CoordinatorConfig
    _ledger: Ledger
    cut_off: CutOff

    def CreateInvitation(  # noqa: D102
        self, request: pb.CreateInvitationRequest, context: grpc.ServicerContext
    ) -> pb.CreateInvitationResponse:
        with answering(context):
            with self._ledger.read() as session:
                root = roots.latest(session)
            invitation, secret = invitations.create_invitation(
                self._ledger,
                request.fleet,
                root.root.version,
                request.lifetime_seconds,
                request.device_id,
                dict(request.labels),
            )
            token = tokens.Invitation(
                host=self._config.hosts[0],
                port=self._config.enrolment_port,
                secret=secret,
                ca_digest=ca_digest(self._config.pki),
                root_digest=root.digest,
                installation=root.root.installation,
            )
            view = invitation_view(invitation, self._ledger.clock())
            return pb.CreateInvitationResponse(invitation=view, token=token.to_token())
        raise AssertionError

    def ListInvitations(  # noqa: D102
        self, request: pb.ListInvitationsRequest, context: grpc.ServicerContext
    ) -> pb.ListInvitationsResponse:
        with answering(context):
            found = invitations.list_invitations(self._ledger, include_closed=request.include_closed)
            now = self._ledger.clock()
            return pb.ListInvitationsResponse(invitations=[invitation_view(row, now) for row in found])
        raise AssertionError

    def WithdrawInvitation(  # noqa: D102
        self, request: pb.WithdrawInvitationRequest, context: grpc.ServicerContext
    ) -> pb.InvitationView:
        with answering(context):
            # Databases have their own limit for a number.
            if request.id >= 2**31:
                raise UsageError(f"there is no invitation {request.id}")
            row = invitations.withdraw_invitation(self._ledger, request.id)
            return invitation_view(row, self._ledger.clock())
        raise AssertionError

    def RevokeDevice(self, request: pb.RevokeDeviceRequest, context: grpc.ServicerContext) -> pb.Device:  # noqa: D102
        with answering(context):
            device = revoke_device(self._ledger, request.device_id, request.reason)
            log.warning("device %s is revoked: %s", device.device_id, device.revocation_reason)
            device.cut_off_at = self.cut_off.now(device)
            return device_view(device)
        raise AssertionError


def invitation_view(row: Invitation, now: float) -> pb.InvitationView:
    """A row, with its fleet and device, as the message that operators see."""
    return pb.InvitationView(
        id=row.id,
        fleet=row.fleet.name,
        device_id=row.device_id,
        labels=row.labels,
        created_at=stamp(row.created_at),
        created_by=row.created_by,
        expires_at=stamp(row.expires_at),
        withdrawn_at=stamp(row.withdrawn_at),
        used_at=stamp(row.used_at),
        used_by=row.device.device_id if row.device is not None else "",
        state=invitations.invitation_state(row, now),
    )
