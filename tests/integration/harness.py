"""A whole installation on loopback: real daemons, real SuperLink and SuperNodes, driven by the real commands."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore, StoredModel
from clue_coordinator.client import OperatorClient
from clue_coordinator.config import CoordinatorConfig, load_config
from clue_coordinator.demo._processes import on_free_ports
from clue_coordinator.errors import CoordinatorError
from clue_protocol.process import spawn, stop

FLEET = "homecams"
READY_SECONDS = 120.0
# A tenth of the default method's work, and digits are forgotten all the same: for tests of what is around it.
BRIEF = ("--set", "steps=40", "--set", "proxies_per_class=4", "--set", "proxy_steps=1")
# Every process of an installation inherits this variable, however deep it sits: that is how leftovers are found.
_MARK = "CLUE_TEST_INSTALLATION"
_BIN = Path(sys.executable).parent

T = TypeVar("T")


class Installation:
    """Coordinator and devices under ``root``. Use as a context manager: nothing outlives it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "coordinator"
        self.env = os.environ | {
            "CLUE_COORDINATOR_HOME": str(self.home),
            _MARK: str(root),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Installation":
        self.root.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
        for process in processes_of(self.root):
            process.kill()

    # Commands

    def coordinator(self, *arguments: str, timeout: float = 180.0) -> "subprocess.CompletedProcess[str]":
        """Run ``clue-coordinator`` to its end."""
        return self._run("clue-coordinator", *arguments, timeout=timeout)

    def agent(self, *arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run ``clue-agent`` to its end."""
        return self._run("clue-agent", *arguments, timeout=timeout)

    def _run(self, program: str, *arguments: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(_BIN / program), *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    # Daemons

    def init(self, *options: str) -> None:
        """Make the coordinator's home, on free ports."""
        succeed(self.coordinator("init", *on_free_ports(), *options))

    def serve(self) -> int:
        """Start the coordinator and wait until its dispatcher runs; returns its pid."""
        process = self._start("coordinator", "clue-coordinator", "serve")

        def ready() -> bool:
            assert process.poll() is None, f"the coordinator ended: {self.log('coordinator')[-2000:]}"
            try:
                with OperatorClient(self.config) as client:
                    return client.server_info().dispatcher_running
            except CoordinatorError:
                return False

        wait_for(ready, READY_SECONDS, "the coordinator to answer")
        return process.pid

    def add_device(self, name: str, model: Path, samples: Path, holdout: Path, *options: str) -> None:
        """Set up a device and admit it; its agent is not started. It gets copies of the images, which are its own."""
        home = self.device(name)
        samples = Path(shutil.copytree(samples, self.root / f"{name}-samples"))
        holdout = Path(shutil.copytree(holdout, self.root / f"{name}-holdout"))
        succeed(
            self.agent(
                *("init", "--device", name, "--home", str(home), "--model", str(model)),
                *("--samples", str(samples), "--holdout", str(holdout), *options),
            )
        )
        answer = home / "answer.json"
        succeed(self.coordinator("device", "add", str(home / "enrolment.json"), "--fleet", FLEET, "--out", str(answer)))
        succeed(self.agent("trust", str(answer), "--config", str(home / "agent.toml")))

    def start_agent(self, name: str) -> int:
        """Start the agent of a device; returns its pid."""
        return self._start(name, "clue-agent", "run", "--config", str(self.device(name) / "agent.toml")).pid

    def _start(self, name: str, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        assert name not in self._running
        with (self.root / f"{name}.log").open("ab") as log:
            process = spawn(
                [str(_BIN / program), *arguments],
                self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running[name] = process
        return process

    def kill(self, name: str) -> None:
        """``kill -9`` of a daemon that this object started, and of nothing else."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop(self, name: str) -> int:
        """Stop a daemon as a service manager would; returns its exit code."""
        process = self._running.pop(name)
        process.terminate()
        try:
            return process.wait(30)
        finally:
            stop(process, 1.0)

    def stop_all(self) -> None:
        """Stop every daemon, agents first."""
        for process in self._running.values():
            process.terminate()
        for name in reversed(list(self._running)):
            stop(self._running.pop(name), 20.0)

    # Looking at it

    @property
    def config(self) -> CoordinatorConfig:
        return load_config(self.home)

    def device(self, name: str) -> Path:
        """Home of a device."""
        return self.root / name

    def model(self, name: str) -> StoredModel:
        """The model in use on a device, every byte checked."""
        return ModelStore(self.device(name) / "model", KeyRing(self.device(name) / "keys")).read()

    def model_folder(self, name: str) -> Path:
        """Where it lies, sealed."""
        return self.device(name) / "model" / "current"

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")

    def wait_online(self, count: int) -> None:
        """Until so many devices are connected."""
        with OperatorClient(self.config) as client:
            wait_for(
                lambda: sum(d.online for d in client.list_devices(FLEET)) == count,
                READY_SECONDS,
                f"{count} device(s) to connect",
            )

    def forget(self, name: str, *options: str) -> str:
        """Ask for a class to be forgotten, without waiting; returns the request's id."""
        target = self.root / "request.json"
        succeed(self.coordinator("forget", "--class", name, "--fleet", FLEET, "--json", str(target), *options))
        return str(json.loads(target.read_text())["request_id"])

    def show(self, request_id: str) -> dict[str, Any]:
        """``request show ID --json``."""
        shown: dict[str, Any] = json.loads(succeed(self.coordinator("request", "show", request_id, "--json")))
        return shown

    def wait_completed(self, request_id: str, seconds: float = 240.0) -> dict[str, dict[str, Any]]:
        """Until the request is over; returns its devices by name."""

        def over() -> bool:
            try:
                with OperatorClient(self.config) as client:
                    return client.get_request(request_id).HasField("finished_at")
            except CoordinatorError:
                return False  # it was killed, perhaps, and comes back

        try:
            wait_for(over, seconds, f"request {request_id} to end")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.show(request_id)['devices']}") from None
        shown = self.show(request_id)
        assert shown["state"] == "COMPLETED"
        return {d["device_id"]: d for d in shown["devices"]}

    def ledger(self) -> sqlite3.Connection:
        """The coordinator's database, opened beside it."""
        return sqlite3.connect(self.config.ledger_file, timeout=20)

    def events(self, request_id: str, kind: str) -> list[str]:
        """The devices to which ``kind`` happened in a request, in order."""
        with self.ledger() as ledger:
            query = "SELECT device_id FROM event WHERE request_id = ? AND kind = ? ORDER BY id"
            return [row[0] for row in ledger.execute(query, (request_id, kind))]


def succeed(done: "subprocess.CompletedProcess[str]") -> str:
    """Standard output of a command that must have succeeded."""
    assert done.returncode == 0, f"{done.args}: exit code {done.returncode}: {done.stderr}"
    return done.stdout


def one_line(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The single error line of a command that must have failed with ``code``."""
    assert done.returncode == code, f"{done.args}: exit code {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, f"{done.args}: {done.stderr}"
    return lines[0]


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Poll until ``condition`` holds and return what it returned; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


def processes_of(root: Path) -> list[psutil.Process]:
    """Every live process that belongs to the installation under ``root``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            named = any(str(root) in part for part in process.cmdline())
            if named or process.environ().get(_MARK) == str(root):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_all_gone(root: Path, seconds: float = 15.0) -> None:
    """Until no process of the installation is left."""
    deadline = time.monotonic() + seconds
    while left := processes_of(root):
        assert time.monotonic() < deadline, f"still there: {[p.cmdline() for p in left if p.is_running()]}"
        time.sleep(0.1)


def child(pid: int, word: str, seconds: float = 60.0) -> psutil.Process:
    """The descendant of ``pid`` with ``word`` in its command line, as soon as there is one."""

    def find() -> psutil.Process | None:
        parent = psutil.Process(pid)
        assert parent.status() != psutil.STATUS_ZOMBIE, f"{pid} has ended, and there was no '{word}'"
        for process in parent.children(recursive=True):
            try:
                if any(word in part for part in process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    found = wait_for(find, seconds, f"a child process '{word}'")
    assert found is not None
    return found


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file and link under ``folder`` with its content's SHA-256."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            seen[name] = f"-> {path.readlink()}"
        elif path.is_file():
            seen[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen
