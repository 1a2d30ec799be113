"""A real operator API over TLS on a ledger of a test, without a daemon around it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from fleet_ledger import SIGNER, Fleet

from clue_coordinator import tokens
from clue_coordinator.client import OperatorClient
from clue_coordinator.config import CoordinatorConfig, LedgerConfig
from clue_coordinator.connection import Connection
from clue_coordinator.errors import FlowerError
from clue_coordinator.home_keys import load_home_keys
from clue_coordinator.ledger import Ledger
from clue_coordinator.operators import OperatorService
from clue_coordinator.roles import Role
from clue_coordinator.server import OperatorServer
from clue_coordinator.setup import initialise
from clue_protocol.net import free_ports
from clue_protocol.v1 import operator_pb2_grpc


class Off:
    """Stands where Flower and the dispatcher would be: neither runs."""

    superlink_running = False
    running = False

    def unregister(self, node_id: int) -> None:
        raise FlowerError("the SuperLink is not running")


class House:
    """A coordinator's home, its ledger with fleet ``yard``, and the API."""

    def __init__(self, config: CoordinatorConfig, devices: int, most_streams: int) -> None:
        self.config = config
        self.fleet = Fleet(Ledger(config.ledger_place))
        from clue_coordinator import enrol

        # Fleet ``yard`` belongs to the key that the test's own orders are signed with.
        self.keys = replace(load_home_keys(config), request=SIGNER)
        enrol.create_fleet(self.ledger, "yard", self.keys)
        for index in range(devices):
            self.fleet.add_device(index)
        off: Any = Off()
        self.service = OperatorService(config, self.ledger, off, off, self.keys)
        self.server = OperatorServer(self.service, config, self.ledger, most_streams)

    @property
    def ledger(self) -> Ledger:
        return self.fleet.ledger

    @property
    def ca_pem(self) -> bytes:
        return (self.config.pki / "ca.pem").read_bytes()

    def token(self, role: Role, name: str = "", lifetime_seconds: float = 0.0) -> str:
        return tokens.create_token(self.ledger, name or f"a-{role}", role, lifetime_seconds)[1]

    def client(self, token: str) -> OperatorClient:
        return OperatorClient(Connection(self.config.operator_address, self.ca_pem, token))

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """TLS, and nothing that says who calls."""
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        with grpc.secure_channel(self.config.operator_address, credentials) as channel:
            yield channel

    @contextmanager
    def stub(self) -> Iterator[operator_pb2_grpc.OperatorServiceStub]:
        with self.channel() as channel:
            yield operator_pb2_grpc.OperatorServiceStub(channel)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@contextmanager
def house(
    folder: Path,
    ledger_url: str = "",
    devices: int = 1,
    most_streams: int = 128,
    operator_listen: str = "127.0.0.1",
    listen_on: str = "",
) -> Iterator[House]:
    """``listen_on`` is where it listens after its certificate was made for ``operator_listen``."""
    superlink, operators, metrics, enrolment = free_ports(4)
    config = CoordinatorConfig(
        operator_listen=operator_listen,
        superlink_port=superlink,
        operator_port=operators,
        metrics_port=metrics,
        enrolment_port=enrolment,
        ledger=LedgerConfig(url=ledger_url),
        home=folder,
    )
    initialise(config)
    if listen_on:
        config = config.model_copy(update={"operator_listen": listen_on})
    found = House(config, devices, most_streams)
    try:
        yield found
    finally:
        found.server.close()
        found.ledger.close()
