"""The operator API: every call answered from the ledger. Who may call is decided before, in access.py."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
from sqlalchemy import select
from sqlalchemy.orm import selectinload

import clue
from clue_coordinator import actor, devices, pages, requests, roots, views
from clue_coordinator.answers import answering as _answering
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.dispatch import DispatcherKeeper
from clue_coordinator.enrol import add_device, check_new_device, create_fleet
from clue_coordinator.errors import FlowerError, UsageError
from clue_coordinator.flower import Flower
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Fleet
from clue_coordinator.plan import parse_plan
from clue_coordinator.progress import progress_of
from clue_coordinator.targets import Target
from clue_coordinator.token_service import TokenMethods
from clue_coordinator.trust_service import TrustMethods, approver_role
from clue_coordinator.watching import WatchedRequests
from clue_protocol.documents import Enrolment, Trust
from clue_protocol.v1 import operator_pb2 as pb
from clue_protocol.v1 import operator_pb2_grpc

log = logging.getLogger(__name__)

_EXECUTIONS, _MAX_EXECUTIONS = 50, 500
_WATCH_PAUSE_SECONDS = 0.2


class OperatorService(TokenMethods, TrustMethods, operator_pb2_grpc.OperatorServiceServicer):
    """See operator.proto."""

    def __init__(
        self,
        config: CoordinatorConfig,
        ledger: Ledger,
        flower: Flower,
        keeper: DispatcherKeeper,
        keys: HomeKeys,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._flower = flower
        self._keeper = keeper
        self._keys = keys
        self._watched = WatchedRequests(ledger, self._view)

    def GetServerInfo(  # noqa: D102
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        with _answering(context), self._ledger.read() as session:
            root = roots.latest_or_none(session)
        return pb.GetServerInfoResponse(
            root_version=root.root.version if root is not None else 0,
            root_expires_at=views.stamp(root.root.expires_ns / 1e9) if root is not None else None,
            version=clue.__version__,
            metrics_url=self._config.metrics_url,
            superlink_address=self._config.superlink_address,
            superlink_running=self._flower.superlink_running,
            dispatcher_running=self._keeper.running,
        )

    def CreateFleet(self, request: pb.CreateFleetRequest, context: grpc.ServicerContext) -> pb.Fleet:  # noqa: D102
        with _answering(context):
            role, names = approver_role(request)
            return self._fleet_view(create_fleet(self._ledger, request.name, self._keys, role, names))
        raise AssertionError

    def ListFleets(  # noqa: D102
        self, request: pb.ListFleetsRequest, context: grpc.ServicerContext
    ) -> pb.ListFleetsResponse:
        with _answering(context), self._ledger.read() as session:
            fleets = session.scalars(select(Fleet).order_by(Fleet.name).options(selectinload(Fleet.devices)))
            return pb.ListFleetsResponse(fleets=[self._fleet_view(fleet) for fleet in fleets])
        raise AssertionError

    def AddDevice(self, request: pb.AddDeviceRequest, context: grpc.ServicerContext) -> pb.AddDeviceResponse:  # noqa: D102
        with _answering(context):
            enrolment = Enrolment.from_json(request.enrolment_json)
            enrolment = replace(enrolment, labels=devices.merged_labels(enrolment.labels, request.labels))
            check_new_device(self._ledger, request.fleet, enrolment)
            # Registering the same key again gives the same node, so a crash in between is harmless.
            node_id = self._flower.register(enrolment.supernode_key, enrolment.device_id)
            device = add_device(self._ledger, request.fleet, enrolment, node_id)
            return self._admission(device)
        raise AssertionError

    def GetDevice(self, request: pb.GetDeviceRequest, context: grpc.ServicerContext) -> pb.Device:  # noqa: D102
        with _answering(context), self._ledger.read() as session:
            return views.device_view(devices.require_device(session, request.device_id))
        raise AssertionError

    def GetTrustDocument(self, request: pb.GetDeviceRequest, context: grpc.ServicerContext) -> pb.AddDeviceResponse:  # noqa: D102
        with _answering(context):
            with self._ledger.read() as session:
                device = devices.require_device(session, request.device_id)
            devices.check_in_use(device)
            return self._admission(device)
        raise AssertionError

    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesResponse:  # noqa: D102
        with _answering(context), self._ledger.read() as session:
            found, token = pages.devices_page(session, request)
            return pb.ListDevicesResponse(devices=map(views.device_view, found), next_page_token=token)
        raise AssertionError

    def LabelDevice(self, request: pb.LabelDeviceRequest, context: grpc.ServicerContext) -> pb.Device:  # noqa: D102
        with _answering(context):
            labels, remove = dict(request.set), list(request.remove)
            return views.device_view(devices.label_device(self._ledger, request.device_id, labels, remove))
        raise AssertionError

    def RetireDevice(self, request: pb.RetireDeviceRequest, context: grpc.ServicerContext) -> pb.Device:  # noqa: D102
        with _answering(context):
            device = devices.retire_device(self._ledger, request.device_id)
            try:
                self._flower.unregister(int(device.node_id))
            except FlowerError as error:
                # It gets nothing any more, connected or not.
                log.warning("device %s is retired, but Flower still admits it: %s", device.device_id, error)
            return views.device_view(device)
        raise AssertionError

    def PlanForget(self, request: pb.ForgetCall, context: grpc.ServicerContext) -> pb.ForgetPlan:  # noqa: D102
        with _answering(context), self._ledger.read() as session:
            order = _order(request)
            now = self._ledger.clock()
            return views.plan_view(order, requests.plan_request(session, order, now), now)
        raise AssertionError

    def Forget(self, request: pb.ForgetCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            request_id = requests.create_request(self._ledger, _order(request), self._keys.request)
            log.info("request %s: forget '%s' on fleet %s", request_id, request.forget_class, request.fleet)
            return self._view(request_id)
        raise AssertionError

    def GetRequest(self, request: pb.GetRequestRequest, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            return self._view(request.request_id, request.max_executions)
        raise AssertionError

    def ListRequests(  # noqa: D102
        self, request: pb.ListRequestsRequest, context: grpc.ServicerContext
    ) -> pb.ListRequestsResponse:
        with _answering(context), self._ledger.read() as session:
            found, token = pages.requests_page(session, request)
            return pb.ListRequestsResponse(requests=map(views.request_view, found), next_page_token=token)
        raise AssertionError

    def ListExecutions(  # noqa: D102
        self, request: pb.ListExecutionsRequest, context: grpc.ServicerContext
    ) -> pb.ListExecutionsResponse:
        with _answering(context), self._ledger.read() as session:
            found, token = pages.executions_page(session, request)
            return pb.ListExecutionsResponse(executions=map(views.execution_view, found), next_page_token=token)
        raise AssertionError

    def ListEvents(self, request: pb.ListEventsRequest, context: grpc.ServicerContext) -> pb.ListEventsResponse:  # noqa: D102
        with _answering(context), self._ledger.read() as session:
            found, token = pages.events_page(session, request)
            return pb.ListEventsResponse(events=map(views.event_view, found), next_page_token=token)
        raise AssertionError

    def WatchRequest(  # noqa: D102
        self, request: pb.GetRequestRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RequestView]:
        last: pb.RequestView | None = None
        with _answering(context):
            watched = self._watched.watch(request.request_id, request.max_executions)
            while context.is_active():
                version, view = watched.now()
                if view != last:
                    yield view
                    last = view
                if view.HasField("finished_at"):
                    return
                self._ledger.wait_for_change(version, 2.0)
                # A busy fleet changes a hundred times a second; nobody reads that fast.
                time.sleep(_WATCH_PAUSE_SECONDS)

    def CancelRequest(self, request: pb.ChangeRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            return self._view(requests.cancel_request(self._ledger, request.request_id, request.comment))
        raise AssertionError

    def PauseRequest(self, request: pb.ChangeRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            return self._view(requests.pause_request(self._ledger, request.request_id, request.comment))
        raise AssertionError

    def ResumeRequest(self, request: pb.ChangeRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            return self._view(requests.resume_request(self._ledger, request.request_id, request.comment))
        raise AssertionError

    def RetryRequest(self, request: pb.RetryRequestCall, context: grpc.ServicerContext) -> pb.RequestView:  # noqa: D102
        with _answering(context):
            names, key = list(request.devices), request.idempotency_key or None
            return self._view(
                requests.retry_request(self._ledger, request.request_id, self._keys.request, names, idempotency_key=key)
            )
        raise AssertionError

    def _admission(self, device: Device) -> pb.AddDeviceResponse:
        with self._ledger.read() as session:
            root = roots.latest(session)
        trust = Trust(
            fleet=device.fleet.name,
            root=root.envelope,
            superlink=self._config.superlink_address,
            ca_pem=(self._config.pki / "ca.pem").read_text(encoding="ascii"),
        )
        return pb.AddDeviceResponse(device=views.device_view(device), trust_json=trust.to_json())

    def _fleet_view(self, fleet: Fleet) -> pb.Fleet:
        with self._ledger.read() as session:
            root = roots.latest_or_none(session)
        return views.fleet_view(fleet, root.root if root is not None else None, self._keys.request.public_key)

    def _view(self, request_id: str, executions: int = 0) -> pb.RequestView:
        if executions > _MAX_EXECUTIONS:
            raise UsageError(f"an answer has at most {_MAX_EXECUTIONS} executions: see ListExecutions for all")
        with self._ledger.read() as session:
            request = requests.require_request(session, request_id)
            limit = executions or _EXECUTIONS
            return views.request_view(request, progress_of(session, request, limit, self._ledger.clock()))


def _order(call: pb.ForgetCall) -> requests.ForgetOrder:
    return requests.ForgetOrder(
        fleet=call.fleet,
        forget_class=call.forget_class,
        method=call.method,
        hyperparameters=_hyperparameters(call.hyperparameters_json),
        seed=call.seed,
        max_ua=call.policy.max_ua,
        max_ra_drop=call.policy.max_ra_drop,
        max_tries=call.policy.max_tries,
        expires_in_seconds=call.expires_in_seconds,
        idempotency_key=call.idempotency_key or None,
        created_by=actor.current() or "operator",
        target=Target(where=call.target.where, devices=tuple(call.target.devices), continuous=call.target.continuous),
        plan=parse_plan(views.rollout_data(call.rollout)),
    )


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
