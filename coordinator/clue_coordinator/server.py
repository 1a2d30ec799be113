"""The operator API's gRPC server: TLS, tokens, bounds, health and reflection around the service."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from clue_coordinator import actor
from clue_coordinator.access import Access, Refused
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.renewal import server_credentials
from clue_coordinator.roles import SERVICE
from clue_coordinator.streams import MOST_STREAMS, Stream, Streams
from clue_protocol.v1 import operator_pb2_grpc

# Threads for calls that are no streams; each stream has one more.
CALL_THREADS = 16
# Calls that may wait for a thread. What comes on top is refused at once: RESOURCE_EXHAUSTED.
_MOST_WAITING = 512
_MOST_HEALTH_WATCHERS = 64
_OPTIONS = [
    # Two daemons must not share a port without knowing.
    ("grpc.so_reuseport", 0),
    # Ask a silent client whether it is there: the stream of one that is gone would keep its thread.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Clients that watch ask the same of us every 20 s; the default takes that for an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

if TYPE_CHECKING:
    # Generic in the type stubs only.
    _Interceptor = grpc.ServerInterceptor[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Interceptor = grpc.ServerInterceptor
    _Handler = grpc.RpcMethodHandler


class OperatorServer:
    """Serves from construction until :meth:`close`. CoordinatorError if the port cannot be had."""

    def __init__(
        self,
        service: operator_pb2_grpc.OperatorServiceServicer,
        config: CoordinatorConfig,
        ledger: Ledger,
        most_streams: int = MOST_STREAMS,
    ) -> None:
        access = Access(ledger)
        self._streams = Streams(access, most_streams)
        self._health = _Health()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(CALL_THREADS + most_streams, thread_name_prefix="operator"),
            interceptors=[_AccessInterceptor(access, self._streams)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=CALL_THREADS + most_streams + _MOST_WAITING,
        )
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server)
        try:
            self._server.add_secure_port(config.operator_listen_address, server_credentials(config.pki))
        except RuntimeError:
            raise CoordinatorError(
                f"cannot listen on {config.operator_listen_address}: the port is in use, "
                "or operator_listen is no address of this machine"
            ) from None
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._streams.start()
        self._server.start()

    def drain(self) -> None:
        """Say NOT_SERVING from now on: load balancers send their next calls elsewhere."""
        self._health.enter_graceful_shutdown()

    def close(self) -> None:
        """End all calls and stop."""
        self.drain()
        self._server.stop(0.5).wait(2.0)
        self._streams.close()


class _AccessInterceptor(_Interceptor):
    """Lets a call through whose token may make it, in the name of that token.

    The token is looked up in the thread that works on the call: the one that intercepts serves all connections.
    """

    def __init__(self, access: Access, streams: Streams) -> None:
        self._access = access
        self._streams = streams

    def intercept_service(
        self, continuation: Callable[[Any], _Handler | None], details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        handler = continuation(details)
        # A load balancer has no token, and learns no more than that we run.
        if handler is None or details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return handler
        given = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        # Two headers are nobody's honest mistake.
        authorization = str(given[0]) if len(given) == 1 else ""
        kind = f"{_shape(handler.request_streaming)}_{_shape(handler.response_streaming)}"
        wrap = self._stream if handler.response_streaming else self._call
        wrapped = wrap(getattr(handler, kind), authorization, details.method)
        new_handler = getattr(grpc, f"{kind}_rpc_method_handler")
        return new_handler(  # type: ignore[no-any-return]
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _call(self, behaviour: Callable[..., Any], authorization: str, path: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _refusing(context):
                caller = self._access.caller(authorization, path, context.peer())
            with actor.acting(caller.name):
                return behaviour(request, context)

        return call

    def _stream(self, behaviour: Callable[..., Any], authorization: str, path: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _refusing(context):
                caller = self._access.caller(authorization, path, context.peer())
            stream = Stream(context, caller, self._access)
            if not self._streams.enter(stream):
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._streams.most} streams are open, which is the most: close one, or ask again later",
                )
            try:
                answers = iter(behaviour(request, stream))
                while not stream.token_ended:
                    with actor.acting(caller.name):
                        answer = next(answers, None)
                    if answer is None:
                        break
                    yield answer
                if stream.token_ended:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the operator token has expired or was revoked")
            finally:
                self._streams.leave(stream)

        return call


@contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        context.abort(refusal.code, str(refusal))
    except CoordinatorError as error:
        # The ledger could not be asked.
        context.abort(grpc.StatusCode.INTERNAL, str(error))


class _Health(health.HealthServicer):
    """The library's, with a bound on watchers: anybody may watch, and each costs memory."""

    def __init__(self) -> None:
        super().__init__()
        self._room = threading.BoundedSemaphore(_MOST_HEALTH_WATCHERS)

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        if not self._room.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch this server's health: use Check")
        if not context.add_callback(self._room.release):
            self._room.release()
        return super().Watch(request, context, send_response_callback)


def _add_reflection(server: grpc.Server) -> None:
    """Reflection under both its names: v1 has the messages of v1alpha, and newer tools ask for v1 alone."""
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
            ),
        )
    )


def _shape(streaming: bool) -> str:
    return "stream" if streaming else "unary"
