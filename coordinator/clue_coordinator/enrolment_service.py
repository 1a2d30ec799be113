"""The service with which devices enrol themselves: a gRPC server of its own, open to anybody who can reach its port."""

import logging
from concurrent import futures

import grpc
from sqlalchemy.orm import Session

from clue_coordinator import roots
from clue_coordinator.answers import answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import CoordinatorError, WrongTokenError
from clue_coordinator.invitations import find_invitation
from clue_coordinator.ledger import Ledger
from clue_coordinator.lockout import Lockout
from clue_coordinator.models import Invitation
from clue_coordinator.renewal import server_credentials
from clue_coordinator.self_enrolment import Registrar, SelfEnrolment
from clue_protocol.documents import Trust
from clue_protocol.enrolment import MAX_MESSAGE_BYTES
from clue_protocol.invitation import SECRET_BYTES
from clue_protocol.v1 import enrolment_pb2 as pb
from clue_protocol.v1 import enrolment_pb2_grpc

log = logging.getLogger(__name__)

_THREADS = 8
_MOST_WAITING = 64
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    # A device asks two or three things and is gone.
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_concurrent_streams", 8),
]


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """See enrolment.proto."""

    def __init__(
        self, config: CoordinatorConfig, ledger: Ledger, registrar: Registrar, lockout: Lockout | None = None
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._self_enrolment = SelfEnrolment(ledger, registrar)
        self._lockout = lockout or Lockout()

    def GetAuthority(self, request: pb.GetAuthorityRequest, context: grpc.ServicerContext) -> pb.GetAuthorityResponse:  # noqa: D102
        with answering(context):
            return pb.GetAuthorityResponse(ca_pem=self._ca_pem())
        raise AssertionError

    def GetInvitation(  # noqa: D102
        self, request: pb.GetInvitationRequest, context: grpc.ServicerContext
    ) -> pb.GetInvitationResponse:
        with answering(context), self._ledger.read() as session:
            row = self._invitation(session, request.secret, context)
            return pb.GetInvitationResponse(fleet=row.fleet.name, device_id=row.device_id, labels=row.labels)
        raise AssertionError

    def Enrol(self, request: pb.EnrolRequest, context: grpc.ServicerContext) -> pb.EnrolResponse:  # noqa: D102
        with answering(context):
            with self._ledger.read() as session:
                version = self._invitation(session, request.secret, context).root_version
                installation = roots.latest(session).root.installation
            device = self._self_enrolment.enrol(request.secret, request.statement_envelope, installation)
            with self._ledger.read() as session:
                newest = roots.latest(session)
                # The one that the token names, first: the device knows its digest and walks on from there.
                chain = roots.since(session, version - 1)
            trust = Trust(
                fleet=device.fleet.name,
                root=newest.envelope,
                superlink=self._config.superlink_address,
                ca_pem=self._ca_pem(),
            )
            return pb.EnrolResponse(device_id=device.device_id, trust_json=trust.to_json(), root_envelopes=chain)
        raise AssertionError

    def _invitation(self, session: Session, secret: bytes, context: grpc.ServicerContext) -> Invitation:
        peer = context.peer()
        left = self._lockout.seconds_left(peer)
        if left:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"too many wrong tokens came from this address: wait {left:.0f} s",
            )
        try:
            if len(secret) != SECRET_BYTES:
                raise WrongTokenError("the secret has the wrong length")
            return find_invitation(session, secret, self._ledger.clock())
        except WrongTokenError:
            self._lockout.note(peer)
            log.warning("a wrong enrolment token came from %s", peer)
            raise

    def _ca_pem(self) -> str:
        try:
            return (self._config.pki / "ca.pem").read_text(encoding="ascii")
        except OSError as error:
            raise CoordinatorError(f"the certificate authority cannot be read: {error.strerror}") from None


class EnrolmentServer:
    """Serves from construction until :meth:`close`. CoordinatorError if the port cannot be had."""

    def __init__(self, service: EnrolmentService, config: CoordinatorConfig) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="enrolment"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=_THREADS + _MOST_WAITING,
        )
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(service, self._server)
        try:
            self._server.add_secure_port(config.enrolment_listen_address, server_credentials(config.pki))
        except RuntimeError:
            raise CoordinatorError(
                f"cannot listen on {config.enrolment_listen_address}: the port is in use, "
                "or listen is no address of this machine"
            ) from None
        self._server.start()

    def close(self) -> None:
        """End all calls and stop."""
        self._server.stop(2.0).wait(5.0)
