"""The console's HTTP server, in a thread of the daemon."""

import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.console._app import Console, Health
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger

__all__ = ["ConsoleServer", "Health", "serve_console"]

# What comes on top is answered 503 at once.
_MOST_CONNECTIONS = 200
_START_SECONDS = 10.0


class ConsoleServer:
    """Serves from construction until :meth:`close`. CoordinatorError if the port cannot be had.

    On loopback it speaks plain HTTP; on any other address TLS with the certificate of the operator API.
    """

    def __init__(self, config: CoordinatorConfig, console: Console) -> None:
        self._console = console
        self._socket = _listen(config)
        self._server = uvicorn.Server(
            uvicorn.Config(
                console.app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=2,
                ssl_certfile=config.pki / "server.pem" if config.console_tls else None,
                ssl_keyfile=config.pki / "server-key.pem" if config.console_tls else None,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="console", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise CoordinatorError(f"the console did not start on {config.console_url}: see the log")
            time.sleep(0.01)

    def close(self) -> None:
        """End all connections and stop."""
        self._console.stop()
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()


def serve_console(config: CoordinatorConfig, ledger: Ledger, health: Callable[[], Health]) -> ConsoleServer:
    """Start the console of ``config``."""
    return ConsoleServer(config, Console(config, ledger, health))


def _listen(config: CoordinatorConfig) -> socket.socket:
    host, port = config.console_listen, config.console_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's delay off only then: 40 ms on every answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
        return listening
    except OSError as error:
        listening.close()
        raise CoordinatorError(
            f"cannot listen on {host}:{port} for the console: {error.strerror}; "
            f"set console_port and console_listen in {config.home}/coordinator.toml"
        ) from None
