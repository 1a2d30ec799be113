"""The dispatcher's side of the coordinator: a gRPC service on a private Unix socket, and its watchdog."""

import logging
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from clue_coordinator import reports, rollout
from clue_coordinator.errors import CoordinatorError, FlowerError
from clue_coordinator.flower import Flower
from clue_coordinator.ledger import Ledger
from clue_coordinator.presence import Seen
from clue_coordinator.timekeeper import Timekeeper
from clue_protocol.envelope import MAX_UPDATE_BYTES
from clue_protocol.v1 import dispatch_pb2 as pb
from clue_protocol.v1 import dispatch_pb2_grpc

log = logging.getLogger(__name__)

# A dispatcher that has not asked for work for so long is taken for dead.
_SILENCE_SECONDS = 45.0
_UNREACHABLE = "node unavailable"


class DispatchService(dispatch_pb2_grpc.DispatchServiceServicer):
    """Serves one dispatcher at a time: the one whose epoch is current."""

    def __init__(self, ledger: Ledger, timekeeper: Timekeeper | None = None) -> None:
        self._ledger = ledger
        self._timekeeper = timekeeper
        self._lock = threading.Lock()
        self._epoch = ""
        self._seen = Seen()
        self.last_heard = 0.0

    def adopt(self, epoch: str) -> None:
        """From now on only the dispatcher of ``epoch`` is served."""
        with self._lock:
            self._epoch = epoch
        rollout.release_all(self._ledger)

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseResponse:
        """See dispatch.proto."""
        self._check(request.epoch, context)
        self.last_heard = time.monotonic()
        assignments = rollout.lease(self._ledger, list(request.online_nodes), self._seen, self._timekeeper)
        return pb.LeaseResponse(assignments=assignments, poll_seconds=rollout.POLL_SECONDS)

    def Report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportResponse:
        """See dispatch.proto."""
        # A receipt is evidence whoever carries it, so a late one from an old dispatcher counts too.
        told = reports.Told(request.root_version, request.time_nonce)
        try:
            match request.WhichOneof("result"):
                case "receipt_envelope":
                    reports.report_receipt(
                        self._ledger,
                        request.execution_id,
                        request.node_id,
                        request.receipt_envelope,
                        request.update,
                        told,
                    )
                case "progress":
                    reports.report_progress(
                        self._ledger,
                        request.execution_id,
                        request.node_id,
                        request.progress.stage,
                        request.progress.fraction,
                        told,
                    )
                case "not_begun":
                    reports.report_not_begun(self._ledger, request.execution_id, request.node_id, told)
                case _:
                    reports.report_error(
                        self._ledger,
                        request.execution_id,
                        request.node_id,
                        request.error,
                        unreachable=request.error == _UNREACHABLE,
                        told=told,
                    )
        except CoordinatorError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.ReportResponse()

    def _check(self, epoch: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            current = self._epoch
        if current and epoch != current:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another dispatcher has taken over")


def serve(service: DispatchService, socket: Path) -> grpc.Server:
    """Start the service on ``socket``; the caller stops it."""
    socket.unlink(missing_ok=True)
    # Reports carry updates; gRPC's own limit is 4 MiB.
    options = [
        ("grpc.max_receive_message_length", MAX_UPDATE_BYTES + 2**20),
        ("grpc.max_send_message_length", -1),
    ]
    workers = futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="dispatch")
    server = grpc.server(workers, options=options)
    dispatch_pb2_grpc.add_DispatchServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    socket.chmod(0o600)
    return server


class DispatcherKeeper(threading.Thread):
    """Keeps one dispatcher run alive: starts it, and starts another when it falls silent."""

    def __init__(self, flower: Flower, service: DispatchService, socket: Path) -> None:
        super().__init__(daemon=True, name="dispatcher-keeper")
        self._flower = flower
        self._service = service
        self._socket = socket
        self._closing = threading.Event()
        self._superlink = flower.superlink_pid

    @property
    def running(self) -> bool:
        """True if the dispatcher asked for work lately."""
        return time.monotonic() - self._service.last_heard < _SILENCE_SECONDS and self._service.last_heard > 0

    def run(self) -> None:
        """Watch until :meth:`close`."""
        delay = 1.0
        while not self._closing.is_set():
            try:
                epoch = self._flower.start_dispatcher(self._socket)
            except FlowerError as error:
                log.warning("%s; trying again in %.0f s", error, delay)
                self._closing.wait(delay)
                delay = min(2 * delay, 30.0)
                continue
            delay = 1.0
            self._service.adopt(epoch)
            self._service.last_heard = time.monotonic()
            self._superlink = self._flower.superlink_pid
            while not self._closing.wait(1.0):
                # The run dies with its SuperLink; there is no point in waiting for silence then.
                if self._flower.superlink_pid != self._superlink or not self.running:
                    log.warning("the dispatcher is gone; starting another")
                    self._flower.stop_dispatcher()
                    break

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self.join(10)
