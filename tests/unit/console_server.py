"""A real console on a free port, on a ledger of a test, without a daemon around it."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
from fleet_ledger import SIGNER, Fleet

from clue_coordinator import tokens
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.console.server import ConsoleServer, Health, serve_console
from clue_coordinator.home_keys import load_home_keys
from clue_coordinator.roles import Role
from clue_coordinator.setup import initialise
from clue_protocol.net import free_port


class ConsoleHouse:
    """A coordinator's home whose ledger has fleet ``yard``, and its console."""

    def __init__(self, config: CoordinatorConfig, devices: int) -> None:
        self.config = config
        # The home's root key makes the fleet, which belongs to the key that the test's own orders are signed with.
        keys = replace(load_home_keys(config), request=SIGNER)
        self.fleet = Fleet.make(config.ledger_file, devices, keys)
        # Codes and tokens are made by the real clock.
        self.request_id = ""
        self.health = Health(superlink_running=True, dispatcher_running=True)
        self.start()

    def start(self) -> None:
        """Serve, perhaps again."""
        self.server: ConsoleServer = serve_console(self.config, self.fleet.ledger, lambda: self.health)

    @property
    def origin(self) -> str:
        return self.config.console_url.rstrip("/")

    @property
    def local_token(self) -> str:
        return self.config.operator_token.read_text().strip()

    def token(self, role: Role, name: str = "") -> str:
        return tokens.create_token(self.fleet.ledger, name or f"a-{role}", role)[1]

    def stranger(self) -> httpx.Client:
        verify = ssl.create_default_context(cafile=self.config.pki / "ca.pem")
        return httpx.Client(base_url=self.origin, headers={"Origin": self.origin}, verify=verify)

    @contextmanager
    def browser(self, token: str = "") -> Iterator[httpx.Client]:
        """Signed in."""
        with self.stranger() as client:
            answer = client.post("/login", data={"token": token or self.local_token})
            assert answer.status_code == 303, answer.text
            yield client


@contextmanager
def console_house(folder: Path, devices: int = 1, listen: str = "127.0.0.1") -> Iterator[ConsoleHouse]:
    config = CoordinatorConfig(console_listen=listen, console_port=free_port(listen), home=folder)
    initialise(config)
    found = ConsoleHouse(config, devices)
    try:
        yield found
    finally:
        found.server.close()
        found.fleet.ledger.close()
