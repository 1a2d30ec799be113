"""Flower's device side: the SuperNode that is always connected, and its SuperExec, which runs only when needed.

A SuperNode holds the connection; a SuperExec asks it for tasks and starts a ClientApp process for each. By
itself the SuperNode would start a SuperExec that stays for ever, about 100 MB that wait for a request a device
sees a few times a year. Flower lets an operator run the SuperExec (``--isolation process``): so it is started
when the SuperNode has something to say, and ended when it has been silent, with no ClientApp running, for
``linger_seconds``. An idle SuperNode prints nothing; what it prints is not looked at.
"""

import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from clue_agent.config import AgentConfig
from clue_protocol.documents import Trust
from clue_protocol.files import private_folder, write_atomic
from clue_protocol.net import free_port
from clue_protocol.process import Supervisor

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


class FlowerNode:
    """The SuperNode of a device and its SuperExec. Start with :meth:`start`, stop with :meth:`close`."""

    def __init__(self, config: AgentConfig, trust: Trust, socket: Path) -> None:
        self._config = config
        self._trust = trust
        self._socket = socket
        self._home = private_folder(config.home / "flower")
        private_folder(config.logs)
        self._ca = self._home / "ca.pem"
        self._secret = self._home / "superexec-secret"
        write_atomic(self._ca, trust.ca_pem.encode())
        # Other users of this machine can reach a port on loopback; without the secret they get no task from it.
        write_atomic(self._secret, os.urandom(32), mode=0o600)
        self._port = 0
        environment = _environment(self._home)
        self.executor = OnDemand(
            lambda: Supervisor("flower-superexec", self._superexec_command, environment, config.logs / "superexec.log"),
            config.superexec_linger_seconds,
        )
        self._supernode = Supervisor(
            "flower-supernode",
            self._supernode_command,
            environment,
            config.logs / "supernode.log",
            on_line=lambda _: self.executor.wake(),
        )

    @property
    def pid(self) -> int | None:
        """Process id of the SuperNode, None between two starts."""
        return self._supernode.pid

    def last_activity(self) -> float:
        """When a message last came or was being answered, in seconds of time.monotonic()."""
        return time.monotonic() if self.executor.busy() else self.executor.woken_at

    def start(self) -> None:
        """Connect; returns at once."""
        self.executor.start()
        self._supernode.start()

    def close(self) -> None:
        """Disconnect and end both processes."""
        self._supernode.close()
        self.executor.close()

    def _supernode_command(self) -> list[str]:
        # A port of its own for every start. The SuperExec of the port before it cannot reach anything any more.
        self._port = free_port()
        self.executor.restart()
        return [
            _program("flower-supernode", self._home),
            *("--root-certificates", str(self._ca)),
            *("--superlink", self._trust.superlink),
            *("--host", _LOOPBACK, "--port", str(self._port)),
            *("--auth-supernode-private-key", str(self._config.supernode_key)),
            *("--node-config", f'device="{self._config.device_id}" socket="{self._socket}"'),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret)),
        ]

    def _superexec_command(self) -> list[str]:
        return [
            _program("flower-superexec", self._home),
            # Plain HTTP, on loopback, as in Flower's own subprocess mode.
            *("--insecure", "--runtime-api-address", f"{_LOOPBACK}:{self._port}"),
            *("--superexec-auth-secret-file", str(self._secret)),
        ]


class OnDemand:
    """A supervised process that is started by :meth:`wake` and ended when it has not been woken for a while.

    Args:
        make: makes the supervisor of one run of the process.
        linger_seconds: how long it stays after the last :meth:`wake`; infinity means for ever. While it has
            child processes it stays in any case.
    """

    def __init__(self, make: Callable[[], Supervisor], linger_seconds: float) -> None:
        self._make = make
        self._linger = linger_seconds
        self._supervisor: Supervisor | None = None
        self._woken_at = -math.inf
        self._changed = threading.Condition()
        self._closing = self._restarting = False
        self._thread = threading.Thread(target=self._run, name="on-demand", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        supervisor = self._supervisor
        return supervisor.pid if supervisor is not None else None

    @property
    def woken_at(self) -> float:
        """When :meth:`wake` was last called, in seconds of time.monotonic(); minus infinity if never."""
        return self._woken_at

    def busy(self) -> bool:
        """True while the process has child processes."""
        pid = self.pid
        with suppress(psutil.Error):
            children = psutil.Process(pid).children() if pid is not None else []
            return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
        return False

    def start(self) -> None:
        """Be ready for :meth:`wake`."""
        self._thread.start()

    def wake(self) -> None:
        """The process is needed now. Returns at once, from any thread."""
        with self._changed:
            self._woken_at = time.monotonic()
            self._changed.notify_all()

    def restart(self) -> None:
        """What the process was started with is out of date: end it, and start it anew when it is needed."""
        with self._changed:
            self._restarting = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the process for good."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(40)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, self._pause())
                closing, outdated = self._closing, self._restarting
                self._restarting = False
                wanted = not closing and time.monotonic() - self._woken_at < self._linger
            if self._supervisor is not None and (closing or outdated or (not wanted and not self._still_busy())):
                self._supervisor.close()
                self._supervisor = None
            if closing:
                return
            if wanted and self._supervisor is None:
                self._supervisor = self._make()
                self._supervisor.start()

    def _is_due(self) -> bool:
        running = self._supervisor is not None
        if self._closing or (self._restarting and running):
            return True
        return running != (time.monotonic() - self._woken_at < self._linger)

    def _pause(self) -> float | None:
        if self._supervisor is None:
            return None
        left = self._woken_at + self._linger - time.monotonic()
        # A busy process whose time is over is looked at once a second.
        return None if math.isinf(left) else max(left, 0.0)

    def _still_busy(self) -> bool:
        if not self.busy():
            return False
        time.sleep(1.0)
        return True


def _environment(flower_home: Path) -> dict[str, str]:
    environment = os.environ | {"FLWR_HOME": str(flower_home), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def _program(name: str, flower_home: Path) -> str:
    return shutil.which(name, path=_environment(flower_home)["PATH"]) or name
