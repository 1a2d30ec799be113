"""A client of the operator API, as the command line uses it."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.connection import Connection
from clue_coordinator.errors import CoordinatorError, UsageError
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


class OperatorClient:
    """Talks to a coordinator: the one whose home is on this machine, or any. Use as a context manager.

    Every call has a deadline, :meth:`watch_request` excepted: that one asks a silent server for a sign of life.
    """

    def __init__(self, where: CoordinatorConfig | Connection) -> None:
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
            return self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_SECONDS)

    def create_fleet(self, name: str) -> pb.Fleet:
        """Make an empty fleet."""
        with self._errors():
            return self._stub.CreateFleet(pb.CreateFleetRequest(name=name), timeout=_SECONDS)

    def list_fleets(self) -> list[pb.Fleet]:
        """All fleets, by name."""
        with self._errors():
            return list(self._stub.ListFleets(pb.ListFleetsRequest(), timeout=_SECONDS).fleets)

    def add_device(self, fleet: str, enrolment_json: str) -> pb.AddDeviceResponse:
        """Admit a device; the answer carries its trust document."""
        call = pb.AddDeviceRequest(fleet=fleet, enrolment_json=enrolment_json)
        with self._errors():
            return self._stub.AddDevice(call, timeout=_SLOW_SECONDS)

    def list_devices(self, fleet: str = "") -> list[pb.Device]:
        """Devices of a fleet, or all."""
        with self._errors():
            return list(self._stub.ListDevices(pb.ListDevicesRequest(fleet=fleet), timeout=_SECONDS).devices)

    def forget(
        self,
        fleet: str,
        forget_class: str,
        *,
        method: str = "",
        hyperparameters_json: str = "",
        seed: int = 0,
        max_ua: float = 0.10,
        max_ra_drop: float = 0.05,
        expires_in_seconds: float = 7 * 86400.0,
        idempotency_key: str = "",
    ) -> pb.RequestView:
        """Start a request; see ``ForgetCall`` in operator.proto."""
        call = pb.ForgetCall(
            fleet=fleet,
            forget_class=forget_class,
            method=method,
            hyperparameters_json=hyperparameters_json,
            seed=seed,
            policy=forget_pb2.Policy(max_ua=max_ua, max_ra_drop=max_ra_drop),
            expires_in_seconds=expires_in_seconds,
            idempotency_key=idempotency_key,
        )
        with self._errors():
            return self._stub.Forget(call, timeout=_SECONDS)

    def get_request(self, request_id: str) -> pb.RequestView:
        """One request with its executions."""
        with self._errors():
            return self._stub.GetRequest(pb.GetRequestRequest(request_id=request_id), timeout=_SECONDS)

    def list_requests(self, fleet: str = "") -> list[pb.RequestView]:
        """Requests, newest first, without executions."""
        with self._errors():
            return list(self._stub.ListRequests(pb.ListRequestsRequest(fleet=fleet), timeout=_SECONDS).requests)

    def watch_request(self, request_id: str) -> Iterator[pb.RequestView]:
        """The request now and after every change, until it is final."""
        with self._errors():
            yield from self._stub.WatchRequest(pb.GetRequestRequest(request_id=request_id))

    def create_token(self, name: str, role: str, lifetime_seconds: float = 0.0) -> pb.CreateTokenResponse:
        """Make a token with the role viewer, operator, approver or admin; 0 seconds is for ever."""
        known = pb.Role.keys()
        if f"ROLE_{role.upper()}" not in known:
            raise UsageError(f"there is no role '{role}': choose viewer, operator, approver or admin")
        call = pb.CreateTokenRequest(
            name=name, role=pb.Role.Value(f"ROLE_{role.upper()}"), lifetime_seconds=lifetime_seconds
        )
        with self._errors():
            return self._stub.CreateToken(call, timeout=_SECONDS)

    def list_tokens(self) -> list[pb.Token]:
        """All tokens by name, expired and revoked ones included."""
        with self._errors():
            return list(self._stub.ListTokens(pb.ListTokensRequest(), timeout=_SECONDS).tokens)

    def revoke_token(self, name: str) -> pb.Token:
        """Make a token useless for ever."""
        with self._errors():
            return self._stub.RevokeToken(pb.RevokeTokenRequest(name=name), timeout=_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code == grpc.StatusCode.UNAVAILABLE and "flwr" not in details and "SuperLink" not in details:
                raise CoordinatorError(self._unreachable(details)) from None
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
