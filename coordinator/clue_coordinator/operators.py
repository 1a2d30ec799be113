"""The operator API: every call answered from the ledger. Who may call is decided before, in access.py."""

import json
import logging
import time
from collections.abc import Iterator

import grpc
from securesystemslib.signer import Signer
from sqlalchemy import select
from sqlalchemy.orm import selectinload

import clue
from clue_coordinator import actor, rollout, views
from clue_coordinator.answers import answering as _answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.dispatch import DispatcherKeeper
from clue_coordinator.enrol import add_device, check_new_device, create_fleet, require_fleet
from clue_coordinator.errors import UsageError
from clue_coordinator.flower import Flower
from clue_coordinator.ledger import Ledger, find_request
from clue_coordinator.models import Device, Fleet, Request
from clue_coordinator.states import FINAL_REQUEST
from clue_coordinator.token_service import TokenMethods
from clue_coordinator.watching import WatchedRequests
from clue_protocol.documents import Enrolment, Trust
from clue_protocol.v1 import operator_pb2 as pb
from clue_protocol.v1 import operator_pb2_grpc

log = logging.getLogger(__name__)

_WATCH_PAUSE_SECONDS = 0.2


class OperatorService(TokenMethods, operator_pb2_grpc.OperatorServiceServicer):
    """See operator.proto."""

    def __init__(
        self,
        config: CoordinatorConfig,
        ledger: Ledger,
        flower: Flower,
        keeper: DispatcherKeeper,
        signer: Signer,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._flower = flower
        self._keeper = keeper
        self._signer = signer
        self._watched = WatchedRequests(ledger, self._view)

    def GetServerInfo(  # noqa: D102
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version=clue.__version__,
            metrics_url=self._config.metrics_url,
            superlink_address=self._config.superlink_address,
            superlink_running=self._flower.superlink_running,
            dispatcher_running=self._keeper.running,
        )

    def CreateFleet(self, request: pb.CreateFleetRequest, context: grpc.ServicerContext) -> pb.Fleet:  # noqa: D102
        with _answering(context):
            return views.fleet_view(create_fleet(self._ledger, request.name))
        raise AssertionError

    def ListFleets(  # noqa: D102
        self, request: pb.ListFleetsRequest, context: grpc.ServicerContext
    ) -> pb.ListFleetsResponse:
        with _answering(context), self._ledger.read() as session:
            fleets = session.scalars(select(Fleet).order_by(Fleet.name).options(selectinload(Fleet.devices)))
            return pb.ListFleetsResponse(fleets=[views.fleet_view(fleet) for fleet in fleets])
        raise AssertionError

    def AddDevice(self, request: pb.AddDeviceRequest, context: grpc.ServicerContext) -> pb.AddDeviceResponse:  # noqa: D102
        with _answering(context):
            enrolment = Enrolment.from_json(request.enrolment_json)
            check_new_device(self._ledger, request.fleet, enrolment)
            # Registering the same key again gives the same node, so a crash in between is harmless.
            node_id = self._flower.register(enrolment.supernode_key, enrolment.device_id)
            device = add_device(self._ledger, request.fleet, enrolment, node_id)
            trust = Trust(
                fleet=request.fleet,
                request_keys=(self._signer.public_key,),
                superlink=self._config.superlink_address,
                ca_pem=(self._config.pki / "ca.pem").read_text(encoding="ascii"),
            )
            return pb.AddDeviceResponse(device=views.device_view(device), trust_json=trust.to_json())
        raise AssertionError

    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesResponse:  # noqa: D102
        with _answering(context), self._ledger.read() as session:
            query = select(Device).order_by(Device.device_id).options(selectinload(Device.fleet))
            if request.fleet:
                query = query.where(Device.fleet_id == require_fleet(session, request.fleet).id)
            return pb.ListDevicesResponse(devices=[views.device_view(d) for d in session.scalars(query)])
        raise AssertionError

    def Forget(self, request: pb.ForgetCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            order = rollout.ForgetOrder(
                fleet=request.fleet,
                forget_class=request.forget_class,
                method=request.method,
                hyperparameters=_hyperparameters(request.hyperparameters_json),
                seed=request.seed,
                max_ua=request.policy.max_ua,
                max_ra_drop=request.policy.max_ra_drop,
                expires_in_seconds=request.expires_in_seconds,
                idempotency_key=request.idempotency_key or None,
                created_by=actor.current(),
            )
            request_id = rollout.create_request(self._ledger, order, self._signer)
            log.info("request %s: forget '%s' on fleet %s", request_id, request.forget_class, request.fleet)
            return self._view(request_id)
        raise AssertionError

    def GetRequest(self, request: pb.GetRequestRequest, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            return self._view(request.request_id)
        raise AssertionError

    def ListRequests(  # noqa: D102
        self, request: pb.ListRequestsRequest, context: grpc.ServicerContext
    ) -> pb.ListRequestsResponse:
        with _answering(context), self._ledger.read() as session:
            query = select(Request).order_by(Request.created_at.desc()).options(selectinload(Request.fleet))
            if request.fleet:
                query = query.where(Request.fleet_id == require_fleet(session, request.fleet).id)
            found = [views.request_view(r, executions=False) for r in session.scalars(query)]
            return pb.ListRequestsResponse(requests=found)
        raise AssertionError

    def WatchRequest(  # noqa: D102
        self, request: pb.GetRequestRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RequestView]:
        last: pb.RequestView | None = None
        with _answering(context):
            watched = self._watched.watch(request.request_id)
            while context.is_active():
                version, view = watched.now()
                if view != last:
                    yield view
                    last = view
                if pb.RequestState.Name(view.state).removeprefix("REQUEST_STATE_") in FINAL_REQUEST:
                    return
                self._ledger.wait_for_change(version, 2.0)
                # A busy fleet changes a hundred times a second; nobody reads that fast.
                time.sleep(_WATCH_PAUSE_SECONDS)

    def _view(self, request_id: str) -> pb.RequestView:
        with self._ledger.read() as session:
            found = find_request(session, request_id)
            if found is None:
                raise UsageError(f"there is no request '{request_id}'")
            return views.request_view(found)


def _hyperparameters(text: str) -> dict[str, object] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError("the hyper-parameters are not a JSON object")
    return value
