"""Flower's server side: the SuperLink process, the registered SuperNodes, the dispatcher's run."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path

import tomli_w

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import FlowerError
from clue_protocol.files import private_folder
from clue_protocol.net import port_in_use
from clue_protocol.process import Supervisor

log = logging.getLogger(__name__)

_CONNECTION = "clue"
_COMMAND_SECONDS = 60.0
_START_SECONDS = 60.0
# Flower's words for an unknown node, or one that was unregistered.
_NO_NODE = "Node ID not found"


class Flower:
    """Starts and supervises the SuperLink, and runs `flwr` commands against it."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config
        self._home = private_folder(config.flower)
        private_folder(config.logs)
        self._env = os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_COLOR": "1",
        }
        self._env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self._env.get('PATH', '')}"
        self._commands = threading.Lock()
        self._superlink = Supervisor(
            "flower-superlink", self._superlink_command, self._env, config.logs / "superlink.log"
        )
        self._run_id: str | None = None

    @property
    def superlink_running(self) -> bool:
        """True while the SuperLink process lives."""
        return self._superlink.pid is not None

    @property
    def superlink_pid(self) -> int | None:
        """Process id of the SuperLink."""
        return self._superlink.pid

    def start(self) -> None:
        """Start the SuperLink and wait until it answers; FlowerError if it does not."""
        connection = {
            "address": f"127.0.0.1:{self._config.superlink_port}",
            "root-certificates": str(self._config.pki / "ca.pem"),
        }
        settings = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self._home / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        self._superlink.start()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if port_in_use(self._config.listen, self._config.superlink_port):
                return
            time.sleep(0.1)
        raise FlowerError(f"the SuperLink did not start in {_START_SECONDS:g} s: see {self._config.logs}/superlink.log")

    def close(self) -> None:
        """Stop the SuperLink and everything under it."""
        self._superlink.close()

    def register(self, supernode_key: str, name: str) -> int:
        """Admit a SuperNode by its public key; returns its node id, the same for the same key."""
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder) / "key.pub"
            key.write_text(f"{supernode_key} {name}\n", encoding="utf-8")
            answer = self._flwr("supernode", "register", str(key), _CONNECTION, "--name", name, "--format", "json")
        return int(str(answer["node-id"]))

    def unregister(self, node_id: int) -> None:
        """Take a SuperNode out again; no error if it is not there any more."""
        try:
            self._flwr("supernode", "unregister", str(node_id), _CONNECTION, "--format", "json")
        except FlowerError as error:
            if _NO_NODE not in str(error):
                raise

    def restart_superlink(self) -> None:
        """End the SuperLink; its supervisor starts it anew, with the certificate that is there then."""
        self._superlink.restart()

    def start_dispatcher(self, socket: Path) -> str:
        """Start a run of the dispatcher; returns the epoch that names it."""
        epoch = uuid.uuid4().hex
        with as_file(files("clue_coordinator") / "flower_app") as packaged:
            app = self._home / "app"
            shutil.rmtree(app, ignore_errors=True)
            shutil.copytree(packaged, app, ignore=shutil.ignore_patterns("__pycache__"))
        answer = self._flwr(
            "run", str(app), _CONNECTION, "-c", f'socket="{socket}" epoch="{epoch}"', "--format", "json"
        )
        self._run_id = str(answer["run-id"])
        log.info("dispatcher started (run %s)", self._run_id)
        return epoch

    def stop_dispatcher(self) -> None:
        """End the last run, if it still goes on."""
        if self._run_id is not None:
            with suppress(FlowerError):
                self._flwr("stop", self._run_id, _CONNECTION, "--format", "json")
            self._run_id = None

    def _superlink_command(self) -> list[str]:
        config = self._config
        program = shutil.which("flower-superlink", path=self._env["PATH"]) or "flower-superlink"
        return [
            program,
            "--ssl-ca-certfile",
            str(config.pki / "ca.pem"),
            "--ssl-certfile",
            str(config.pki / "server.pem"),
            "--ssl-keyfile",
            str(config.pki / "server-key.pem"),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            "--host",
            config.listen,
            "--port",
            str(config.superlink_port),
            "--database",
            str(self._home / "superlink.sqlite"),
        ]

    def _flwr(self, *arguments: str) -> dict[str, object]:
        program = shutil.which("flwr", path=self._env["PATH"]) or "flwr"
        # One at a time: concurrent commands would share Flower's own files.
        with self._commands:
            try:
                done = subprocess.run(
                    [program, *arguments],
                    env=self._env,
                    capture_output=True,
                    text=True,
                    timeout=_COMMAND_SECONDS,
                    stdin=subprocess.DEVNULL,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise FlowerError(f"'flwr {arguments[0]}' did not work: {error}") from None
        answer = _last_json(done.stdout)
        if done.returncode != 0 or not answer.get("success", False):
            text = str(answer.get("error-message") or done.stderr.strip() or done.stdout.strip() or "no output")
            raise FlowerError(f"'flwr {arguments[0]}' failed: {' '.join(text.split())[:300]}")
        return answer


def _last_json(text: str) -> dict[str, object]:
    """The JSON object in a command's output, which may carry log lines around it."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    if match:
        with suppress(ValueError):
            value = json.loads(match.group())
            if isinstance(value, dict):
                return value
    return {}
