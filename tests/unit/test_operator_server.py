"""The operator API's server and client: many watchers, bounds, health, reflection, silence, remote use."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from operator_server import House, bearer, house

from clue_coordinator import client as client_module
from clue_coordinator import server as server_module
from clue_coordinator import streams as streams_module
from clue_coordinator import tokens
from clue_coordinator.client import OperatorClient
from clue_coordinator.connection import Connection
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.roles import SERVICE, Role
from clue_protocol.v1 import operator_pb2 as pb

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "home", devices=3) as found:
        yield found


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_streams(home: House) -> int:
    return len(home.server._streams._open)


# Many at once


def test_64_watchers_leave_room_for_calls(home: House) -> None:
    """Each call is answered in time while 64 streams are open, and each stream sees the end."""
    request = home.fleet.order()
    secret = home.token(Role.VIEWER)
    with ThreadPoolExecutor(64) as pool, home.client(secret) as caller:

        def watch(_: int) -> list[int]:
            with home.client(secret) as client:
                return [view.state for view in client.watch_request(request)]

        watchers = [pool.submit(watch, number) for number in range(64)]
        wait_until(lambda: open_streams(home) == 64, 30)
        slowest = 0.0
        for _ in range(20):
            started = time.monotonic()
            caller.list_fleets()
            slowest = max(slowest, time.monotonic() - started)
        # Without a thread for it, it would wait until its deadline.
        assert slowest < 10.0
        home.fleet.lease(0, 1, 2)
        for index in range(3):
            home.fleet.report(request, index)
        seen = [watcher.result(30) for watcher in watchers]
    assert all(states[0] == pb.REQUEST_STATE_SCHEDULED for states in seen)
    assert all(states[-1] == pb.REQUEST_STATE_COMPLETED for states in seen)
    wait_until(lambda: open_streams(home) == 0)


def test_one_reading_serves_all_watchers(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    request = home.fleet.order()
    made: list[str] = []
    real = home.service._view

    def count(request_id: str, executions: int) -> pb.RequestView:
        made.append(request_id)
        return real(request_id, executions)

    monkeypatch.setattr(home.service._watched, "_make_view", count)
    with home.client(home.token(Role.VIEWER)) as client:
        watches = [client.watch_request(request) for _ in range(8)]
        for watch in watches:
            next(watch)
        assert made == [request]
        home.fleet.lease(0)
        assert {next(watch).state for watch in watches} == {pb.REQUEST_STATE_IN_PROGRESS}
        assert len(made) == 2
    wait_until(lambda: len(home.service._watched._watched) == 0)


def test_more_streams_than_there_may_be(tmp_path: Path) -> None:
    with house(tmp_path / "home", most_streams=3) as home:
        request = home.fleet.order()
        with home.client(home.token(Role.VIEWER)) as client, home.client(home.token(Role.OPERATOR)) as other:
            watches = [client.watch_request(request) for _ in range(3)]
            for watch in watches:
                next(watch)
            with pytest.raises(CoordinatorError, match="3 streams are open, which is the most"):
                next(client.watch_request(request))
            assert other.list_fleets()
        # Watchers that went away make room again.
        wait_until(lambda: open_streams(home) == 0)
        with home.client(home.token(Role.ADMIN)) as client:
            next(client.watch_request(request))


def test_a_stream_that_does_not_look_is_cut_when_its_token_ends(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reflection blocks on what its client says next."""
    monkeypatch.setattr(streams_module, "_PATIENCE_SECONDS", 0.2)
    secret = home.token(Role.VIEWER, "reader")
    ended = threading.Event()

    def ask() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait(30)

    with home.channel() as channel:
        call = reflect(channel, "v1alpha", ask(), secret)
        assert next(call).list_services_response.service
        assert open_streams(home) == 1
        tokens.revoke_token(home.ledger, "reader")
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert time.monotonic() - started < 15.0
        assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAUTHENTICATED)
        ended.set()
    wait_until(lambda: open_streams(home) == 0)


# Health


def test_health_needs_no_token(home: House) -> None:
    with home.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=15).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=15)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        assert next(watch).status == SERVING
        home.server.drain()
        assert next(watch).status == NOT_SERVING
        # Drained, not deaf: calls that come meanwhile are answered.
        for name in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=15).status == NOT_SERVING
        watch.cancel()


def test_who_watches_the_health_is_told_before_the_end(home: House) -> None:
    with home.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == SERVING
        home.server.close()
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watch)


def test_watchers_of_the_health_are_bounded_and_take_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MOST_HEALTH_WATCHERS", 40)
    with house(tmp_path / "home", most_streams=1) as home, home.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(40)]
        assert {next(watch).status for watch in watches} == {SERVING}  # the pool has 17 threads
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=15))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with home.client(home.token(Role.VIEWER)) as client:
            assert client.list_fleets()
        for watch in watches:
            watch.cancel()

        def watch_again() -> bool:
            with suppress(grpc.RpcError):
                return bool(next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=15)).status == SERVING)
            return False

        wait_until(watch_again)


# Reflection


def reflect(
    channel: grpc.Channel, version: str, requests: Iterator[reflection_pb2.ServerReflectionRequest], token: str
) -> Iterator[reflection_pb2.ServerReflectionResponse]:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return call(requests, metadata=bearer(token) if token else [], timeout=30)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_viewers_all_methods(home: House, version: str) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    with home.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            next(reflect(channel, version, iter(requests), ""))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        listed, described = reflect(channel, version, iter(requests), home.token(Role.VIEWER))
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    found = set()
    for data in described.file_descriptor_response.file_descriptor_proto:
        for service in descriptor_pb2.FileDescriptorProto.FromString(data).service:
            if service.name == "OperatorService":
                found |= {method.name for method in service.method}
    assert found == {method.name for method in pb.DESCRIPTOR.services_by_name["OperatorService"].methods}


def test_the_librarys_reflection_client_finds_the_service(home: House) -> None:
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(home.ca_pem), grpc.access_token_call_credentials(home.token(Role.VIEWER))
    )
    with grpc.secure_channel(home.config.operator_address, credentials) as channel:
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_an_unknown_method_is_said_to_be_unknown(home: House) -> None:
    """Tools ask for the newest reflection first and go on with an older one only after this answer."""
    with home.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/clue.v1.OperatorService/Nothing")(b"", timeout=15)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# A server that is gone


@contextmanager
def line_to(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A TCP line to ``port`` that goes dead, without a word, when the event is set."""
    dead = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = [listener]

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not dead.is_set():
                    target.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                sockets.extend((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], dead
    finally:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life twenty times as often, on both sides."""
    for module in (client_module, server_module):
        options = [(name, value // 20 if name.endswith("_ms") else value) for name, value in module._OPTIONS]
        monkeypatch.setattr(module, "_OPTIONS", options)


@pytest.mark.usefixtures("hurried")
def test_a_watch_notices_a_server_that_fell_silent(tmp_path: Path) -> None:
    with house(tmp_path / "home") as home, line_to(home.config.operator_port) as (port, dead):
        request = home.fleet.order()
        where = Connection(f"127.0.0.1:{port}", home.ca_pem, home.token(Role.VIEWER))
        with OperatorClient(where) as client:
            views = client.watch_request(request)
            next(views)
            dead.set()
            started = time.monotonic()
            with pytest.raises(CoordinatorError, match="fell silent"):
                next(views)
            assert time.monotonic() - started < 15.0
        # And the server its client: the thread of the stream is free again.
        wait_until(lambda: open_streams(home) == 0)


@pytest.mark.usefixtures("hurried")
def test_a_quiet_watch_is_not_taken_for_an_attack(tmp_path: Path) -> None:
    """A server that finds the signs of life too many ends the connection; by default it does at the third."""
    with house(tmp_path / "home") as home, home.client(home.token(Role.VIEWER)) as client:
        request = home.fleet.order()
        views = client.watch_request(request)
        next(views)
        time.sleep(5.5)
        home.fleet.lease(0)
        assert next(views).state == pb.REQUEST_STATE_IN_PROGRESS


def test_a_call_that_is_not_answered_in_time(home: House) -> None:
    with line_to(home.config.operator_port) as (port, dead):
        where = Connection(f"127.0.0.1:{port}", home.ca_pem, home.token(Role.VIEWER))
        with OperatorClient(where, seconds=0.5) as client:
            client.list_fleets()
            dead.set()
            with pytest.raises(CoordinatorError, match="did not answer in time"):
                client.list_fleets()


def test_a_stopped_server_ends_its_watches(home: House) -> None:
    request = home.fleet.order()
    with home.client(home.token(Role.VIEWER)) as client:
        views = client.watch_request(request)
        next(views)
        threading.Timer(0.2, home.server.close).start()
        with pytest.raises(CoordinatorError):
            next(views)
