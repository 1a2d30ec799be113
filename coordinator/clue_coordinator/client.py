"""A client of the operator API, as the command line uses it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import grpc

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.connection import Connection
from clue_coordinator.errors import CoordinatorError, UnavailableError, UsageError
from clue_protocol.v1 import forget_pb2, operator_pb2_grpc
from clue_protocol.v1 import operator_pb2 as pb

_OPTIONS = [
    # A stream has no deadline; a server that is gone without a word is noticed after 20 + 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one, what is unanswered while nothing else is sent counts as lost only after 60 s.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_SECONDS = 15.0
# Adding a device runs a Flower command on the server.
_SLOW_SECONDS = 90.0
# One transaction for every device of a large fleet.
_LONG_SECONDS = 120.0
_AWAY_SECONDS = 1.0
_PAGE = 1000


class OperatorClient:
    """Talks to a coordinator: the one whose home is on this machine, or any. Use as a context manager.

    Every call has a deadline, :meth:`watch_request` excepted: that one asks a silent server for a sign of life.
    """

    def __init__(self, where: CoordinatorConfig | Connection, *, seconds: float = _SECONDS) -> None:
        """``seconds``: deadline of a short call."""
        self._seconds = seconds
        to = where if isinstance(where, Connection) else Connection.local(where)
        self._address = to.address
        self._home = to.home
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(to.ca_pem), grpc.access_token_call_credentials(to.token)
        )
        self._channel = grpc.secure_channel(to.address, credentials, options=_OPTIONS)
        self._stub = operator_pb2_grpc.OperatorServiceStub(self._channel)

    def __enter__(self) -> "OperatorClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def server_info(self) -> pb.GetServerInfoResponse:
        """Version and health of the daemon."""
        with self._errors():
            return self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=self._seconds)

    def create_fleet(self, name: str, approvers: Sequence[str] = (), require: int = 0) -> pb.Fleet:
        """Make an empty fleet; ``approvers`` are public keys in JSON, of which ``require`` must sign its requests."""
        keys = [pb.NamedKey(key_json=text) for text in approvers]
        with self._errors():
            call = pb.CreateFleetRequest(name=name, approvers=keys, require=require)
            return self._stub.CreateFleet(call, timeout=self._seconds)

    def list_fleets(self) -> list[pb.Fleet]:
        """All fleets, by name."""
        with self._errors():
            return list(self._stub.ListFleets(pb.ListFleetsRequest(), timeout=self._seconds).fleets)

    def add_device(
        self, fleet: str, enrolment_json: str, labels: Mapping[str, str] | None = None
    ) -> pb.AddDeviceResponse:
        """Admit a device; the answer carries its trust document."""
        call = pb.AddDeviceRequest(fleet=fleet, enrolment_json=enrolment_json, labels=labels)
        with self._errors():
            return self._stub.AddDevice(call, timeout=_SLOW_SECONDS)

    def get_device(self, device_id: str) -> pb.Device:
        """One device."""
        with self._errors():
            return self._stub.GetDevice(pb.GetDeviceRequest(device_id=device_id), timeout=self._seconds)

    def trust_document(self, device_id: str) -> pb.AddDeviceResponse:
        """What an enrolled device must trust, anew."""
        with self._errors():
            return self._stub.GetTrustDocument(pb.GetDeviceRequest(device_id=device_id), timeout=self._seconds)

    def list_devices(
        self, fleet: str = "", *, where: str = "", online: bool | None = None, retired: bool = False
    ) -> Iterator[pb.Device]:
        """Devices by name, all pages of them."""
        presence = {None: pb.PRESENCE_ANY, True: pb.PRESENCE_ONLINE, False: pb.PRESENCE_OFFLINE}[online]
        call = pb.ListDevicesRequest(fleet=fleet, where=where, presence=presence, include_retired=retired)
        for page in self._pages(self._stub.ListDevices, call):
            yield from page.devices

    def label_device(self, device_id: str, labels: dict[str, str], remove: Sequence[str] = ()) -> pb.Device:
        """Set and remove labels."""
        with self._errors():
            call = pb.LabelDeviceRequest(device_id=device_id, set=labels, remove=remove)
            return self._stub.LabelDevice(call, timeout=self._seconds)

    def retire_device(self, device_id: str) -> pb.Device:
        """Take a device out for good."""
        with self._errors():
            return self._stub.RetireDevice(pb.RetireDeviceRequest(device_id=device_id), timeout=_SLOW_SECONDS)

    def forget(self, call: pb.ForgetCall) -> pb.RequestView:
        """Start a request; see :func:`forget_call`."""
        with self._errors():
            return self._stub.Forget(call, timeout=_LONG_SECONDS)

    def plan(self, call: pb.ForgetCall) -> pb.ForgetPlan:
        """Which devices a request would go to, and in which waves; nothing is changed."""
        with self._errors():
            return self._stub.PlanForget(call, timeout=_LONG_SECONDS)

    def get_request(self, request_id: str, *, executions: int = 0) -> pb.RequestView:
        """One request with its most telling executions; a unique beginning of its id is enough."""
        with self._errors():
            call = pb.GetRequestRequest(request_id=request_id, max_executions=executions)
            return self._stub.GetRequest(call, timeout=self._seconds)

    def list_requests(
        self, fleet: str = "", *, states: Sequence[pb.RequestState.ValueType] = (), limit: int | None = None
    ) -> Iterator[pb.RequestView]:
        """Requests, newest first, without executions; all pages, or ``limit`` of them."""
        size = min(limit or _PAGE, _PAGE)
        call = pb.ListRequestsRequest(fleet=fleet, states=states, page_size=size)
        yield from islice((r for page in self._pages(self._stub.ListRequests, call) for r in page.requests), limit)

    def list_executions(
        self, request_id: str, *, states: Sequence[pb.ExecutionState.ValueType] = ()
    ) -> Iterator[pb.ExecutionView]:
        """What every device of a request answered, by device; all pages."""
        call = pb.ListExecutionsRequest(request_id=request_id, states=states, page_size=500)
        for page in self._pages(self._stub.ListExecutions, call):
            yield from page.executions

    def list_events(
        self, *, request_id: str = "", device_id: str = "", fleet: str = "", limit: int | None = None
    ) -> Iterator[pb.Event]:
        """The history, newest first; all pages, or ``limit`` of it."""
        size = min(limit or _PAGE, _PAGE)
        call = pb.ListEventsRequest(request_id=request_id, device_id=device_id, fleet=fleet, page_size=size)
        yield from islice((e for page in self._pages(self._stub.ListEvents, call) for e in page.events), limit)

    def cancel_request(self, request_id: str, comment: str = "") -> pb.RequestView:
        """No device begins any more."""
        with self._errors():
            return self._stub.CancelRequest(_change(request_id, comment), timeout=_LONG_SECONDS)

    def pause_request(self, request_id: str, comment: str = "") -> pb.RequestView:
        """No device begins until it is resumed."""
        with self._errors():
            return self._stub.PauseRequest(_change(request_id, comment), timeout=self._seconds)

    def resume_request(self, request_id: str, comment: str = "") -> pb.RequestView:
        """Go on with a paused request."""
        with self._errors():
            return self._stub.ResumeRequest(_change(request_id, comment), timeout=self._seconds)

    def retry_request(self, request_id: str, devices: Sequence[str] = (), idempotency_key: str = "") -> pb.RequestView:
        """A new request for the devices on which this one did not succeed."""
        call = pb.RetryRequestCall(request_id=request_id, devices=devices, idempotency_key=idempotency_key)
        with self._errors():
            return self._stub.RetryRequest(call, timeout=_LONG_SECONDS)

    def watch_request(self, request_id: str, *, executions: int = 0) -> Iterator[pb.RequestView]:
        """The request now and after changes, until it is over; CoordinatorError if the coordinator goes away."""
        with self._errors():
            call = pb.GetRequestRequest(request_id=request_id, max_executions=executions)
            yield from self._stub.WatchRequest(call)

    def follow_request(
        self, request_id: str, *, executions: int = 0, patience: float = 300.0
    ) -> Iterator[pb.RequestView | None]:
        """As :meth:`watch_request`, through restarts of the coordinator: None while it is away.

        CoordinatorError if it is not there at the beginning, or stays away for ``patience`` seconds.
        """
        gone_since: float | None = None
        seen = False
        while True:
            try:
                for view in self.watch_request(request_id, executions=executions):
                    gone_since, seen = None, True
                    yield view
                return
            except UnavailableError:
                now = time.monotonic()
                gone_since = gone_since or now
                if not seen or now - gone_since > patience:
                    raise
                yield None
                time.sleep(_AWAY_SECONDS)

    def get_root(self, version: int = 0, *, after: int = 0) -> pb.GetRootResponse:
        """The newest root or this version, and with ``after`` all versions after that one."""
        with self._errors():
            return self._stub.GetRoot(pb.GetRootRequest(version=version, after=after), timeout=self._seconds)

    def publish_root(self, envelope: bytes, names: Mapping[str, str]) -> pb.GetRootResponse:
        """Make a root the newest; ``names`` says what people call its keys, by key id."""
        with self._errors():
            return self._stub.PublishRoot(pb.PublishRootCall(envelope=envelope, names=names), timeout=self._seconds)

    def get_request_document(self, request_id: str) -> pb.GetRequestDocumentResponse:
        """What there is to sign of a request; what it says must be read from the document itself."""
        with self._errors():
            call = pb.GetRequestDocumentRequest(request_id=request_id)
            return self._stub.GetRequestDocument(call, timeout=self._seconds)

    def approve_request(self, request_id: str, envelope: bytes) -> pb.RequestView:
        """Hand in signatures over a request's document."""
        with self._errors():
            call = pb.ApproveRequestCall(request_id=request_id, envelope=envelope)
            return self._stub.ApproveRequest(call, timeout=self._seconds)

    def reject_request(self, request_id: str, comment: str = "") -> pb.RequestView:
        """Cancel a request that waits for approval."""
        with self._errors():
            return self._stub.RejectRequest(_change(request_id, comment), timeout=_LONG_SECONDS)

    def _pages(self, method: Callable[..., Any], call: Any) -> Iterator[Any]:
        while True:
            with self._errors():
                page = method(call, timeout=self._seconds)
            yield page
            if not page.next_page_token:
                return
            call.page_token = page.next_page_token

    def create_token(self, name: str, role: str, lifetime_seconds: float = 0.0) -> pb.CreateTokenResponse:
        """Make a token with the role viewer, operator, approver or admin; 0 seconds is for ever."""
        known = pb.Role.keys()
        if f"ROLE_{role.upper()}" not in known:
            raise UsageError(f"there is no role '{role}': choose viewer, operator, approver or admin")
        call = pb.CreateTokenRequest(
            name=name, role=pb.Role.Value(f"ROLE_{role.upper()}"), lifetime_seconds=lifetime_seconds
        )
        with self._errors():
            return self._stub.CreateToken(call, timeout=self._seconds)

    def list_tokens(self) -> list[pb.Token]:
        """All tokens by name, expired and revoked ones included."""
        with self._errors():
            return list(self._stub.ListTokens(pb.ListTokensRequest(), timeout=self._seconds).tokens)

    def revoke_token(self, name: str) -> pb.Token:
        """Make a token useless for ever."""
        with self._errors():
            return self._stub.RevokeToken(pb.RevokeTokenRequest(name=name), timeout=self._seconds)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code == grpc.StatusCode.UNAVAILABLE and "flwr" not in details and "SuperLink" not in details:
                raise UnavailableError(self._unreachable(details)) from None
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise CoordinatorError(f"the coordinator at {self._address} did not answer in time") from None
            if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                raise UsageError(details) from None
            raise CoordinatorError(details or f"the coordinator answered {code.name}") from None

    def _unreachable(self, details: str) -> str:
        """Why there is no connection, in one line."""
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return f"the server at {self._address} is not the expected one: its certificate is of another authority"
        if "peer certificate" in details or "Hostname Verification" in details:
            return f"the certificate of the server at {self._address} does not name that host"
        if "ping timeout" in details or "keepalive" in details:
            return f"the coordinator at {self._address} fell silent: look whether it runs, then ask again"
        if self._home is not None:
            return f"the coordinator of {self._home} is not running: start it with 'clue-coordinator serve'"
        return f"cannot reach a coordinator at {self._address}"


def _change(request_id: str, comment: str) -> pb.ChangeRequestCall:
    return pb.ChangeRequestCall(request_id=request_id, comment=comment)


def forget_call(
    fleet: str,
    forget_class: str,
    *,
    max_ua: float = 0.10,
    max_ra_drop: float = 0.05,
    expires_in_seconds: float = 7 * 86400.0,
    **fields: Any,
) -> pb.ForgetCall:
    """The call of :meth:`OperatorClient.forget`.

    Args:
        fleet: name of the fleet.
        forget_class: name of the class.
        max_ua: highest accuracy on it that a device accepts, in [0, 1].
        max_ra_drop: largest loss of accuracy on the others, in [0, 1].
        expires_in_seconds: how long devices may take.
        fields: further ones of ``ForgetCall`` in operator.proto, such as ``target`` and ``rollout``.
    """
    return pb.ForgetCall(
        fleet=fleet,
        forget_class=forget_class,
        policy=forget_pb2.Policy(max_ua=max_ua, max_ra_drop=max_ra_drop),
        expires_in_seconds=expires_in_seconds,
        **fields,
    )
