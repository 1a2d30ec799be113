"""The demo's processes: a coordinator and its agents, as an operator would start them. None outlives the demo."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clue_coordinator.client import OperatorClient
from clue_coordinator.config import load_config
from clue_coordinator.errors import CoordinatorError
from clue_protocol.net import free_ports
from clue_protocol.process import spawn, stop

_READY_SECONDS = 60.0


class Fleet:
    """A coordinator and agents under ``root``, driven by the real commands. Use as a context manager."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.home = root / "coordinator"
        self._coordinator = _program("clue-coordinator")
        self._agent = _program("clue-agent")
        self._env = os.environ | {"CLUE_COORDINATOR_HOME": str(self.home)}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        # Agents first: each stops its SuperNode, which otherwise would complain of a lost SuperLink.
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            stop(process, grace=15.0)
        self._running.clear()

    def start_coordinator(self) -> None:
        """Init and serve on free ports; returns when it answers."""
        self.command("init", *on_free_ports())
        self._start([self._coordinator, "serve"], "coordinator.log")
        with OperatorClient(load_config(self.home)) as client:
            deadline = time.monotonic() + _READY_SECONDS
            while True:
                try:
                    if client.server_info().dispatcher_running:
                        break
                except CoordinatorError:
                    pass
                self._check_alive(deadline, "the coordinator", "coordinator.log")
                time.sleep(0.2)
        self.command("fleet", "create", self.name)

    def add_agent(self, device: str, model: Path, samples: Path, holdout: Path) -> None:
        """Set up a device, admit it, and start its agent."""
        home = self.root / device
        self._run(
            [self._agent, "init", "--device", device, "--home", str(home)]
            + ["--model", str(model), "--samples", str(samples), "--holdout", str(holdout)]
        )
        trust = home / "trust-answer.json"
        self.command("device", "add", str(home / "enrolment.json"), "--fleet", self.name, "--out", str(trust))
        self._run([self._agent, "trust", str(trust), "--config", str(home / "agent.toml")])
        self._start([self._agent, "run", "--config", str(home / "agent.toml")], f"{device}.log")

    def wait_online(self, devices: int) -> None:
        """Until so many devices are connected."""
        deadline = time.monotonic() + _READY_SECONDS
        with OperatorClient(load_config(self.home)) as client:
            while sum(device.online for device in client.list_devices(self.name)) < devices:
                self._check_alive(deadline, "every device", "coordinator.log")
                time.sleep(0.2)

    def command(self, *arguments: str) -> str:
        """Run a ``clue-coordinator`` command quietly; returns its output."""
        return self._run([self._coordinator, *arguments])

    def command_shown(self, *arguments: str) -> int:
        """Run a ``clue-coordinator`` command on the user's own terminal; returns its exit code."""
        sys.stdout.flush()
        return subprocess.run([self._coordinator, *arguments], env=self._env, check=False).returncode

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise CoordinatorError(f"'{Path(command[0]).name} {command[1]}' failed: {lines[-1]}")
        return done.stdout

    def _start(self, command: Sequence[str], log_name: str) -> None:
        with (self.root / log_name).open("wb") as log:
            self._running.append(
                spawn(command, self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            )

    def _check_alive(self, deadline: float, who: str, log_name: str) -> None:
        if self._running[0].poll() is None and time.monotonic() < deadline:
            return
        lines = (self.root / log_name).read_text(errors="replace").strip().splitlines() or ["no output"]
        raise CoordinatorError(f"{who} did not come up: {lines[-1]}")


def on_free_ports() -> list[str]:
    """Options of ``clue-coordinator init`` for an installation whose ports nobody else uses."""
    names = ("superlink", "operator", "enrolment", "metrics", "console")
    return [f"--{name}-port={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]


def _program(name: str) -> str:
    """Path of one of our commands: beside this Python first, then on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise CoordinatorError(f"the command {name} is not installed: pip install 'clue-unlearning[agent,coordinator]'")
    return found
