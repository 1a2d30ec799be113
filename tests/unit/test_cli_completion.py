"""Completion as a shell asks for it: in a process of its own, quick, and silent when nobody can be asked."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_server import House, house
from staged_fleet import add_devices

from clue_protocol.net import free_port

PROGRAM = Path(sys.executable).parent / "clue-coordinator"
# It takes half a second on a quiet machine; a slow one that runs other tests beside it needs several times that.
SECONDS = 5.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("completion") / "home", devices=0) as found:
        add_devices(found.fleet, 1200)
        yield found


def ask(home: Path, line: str, shell: str = "bash", **more: str) -> tuple[list[str], float]:
    """What is offered for the last word of ``line``, and the seconds that took."""
    words = line.split(" ")
    environment = os.environ | {
        "CLUE_COORDINATOR_HOME": str(home),
        "_CLUE_COORDINATOR_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        **more,
    }
    begin = time.monotonic()
    done = subprocess.run([str(PROGRAM)], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line], time.monotonic() - begin


def ask_again(home: Path, line: str, shell: str = "bash") -> tuple[list[str], float]:
    """As whoever presses the key once more: a coordinator that a busy machine lets wait is not asked for long."""
    for _ in range(5):
        found, seconds = ask(home, line, shell)
        if found:
            break
    return found, seconds


def test_commands_and_states(tmp_path: Path) -> None:
    assert ask(tmp_path, "clue-coordinator requ")[0] == ["request"]
    assert ask(tmp_path, "clue-coordinator request list --state in")[0] == ["in_progress"]
    assert "timed_out" in ask(tmp_path, "clue-coordinator request show abcd --state ")[0]


def test_names_that_the_coordinator_knows(home: House) -> None:
    request_id = home.fleet.order()
    where = home.config.home
    for line, expected in (
        ("forget --class bird --fleet ", ["yard"]),
        ("device list --fleet y", ["yard"]),
        ("device show cam-119", ["cam-119", *[f"cam-119{digit}" for digit in range(10)]]),
        ("forget --fleet yard --device cam-1199", ["cam-1199"]),
        (f"request show {request_id[:5]}", [request_id]),
        ("history --request ", [request_id]),
        (f"request watch --home {where} {request_id[:2]}", [request_id]),
    ):
        found, seconds = ask_again(where, f"clue-coordinator {line}")
        assert found == expected, line
        assert seconds < SECONDS
    assert len(ask_again(where, "clue-coordinator device show ")[0]) == 200
    for shell in ("zsh", "fish"):
        assert "cam-1199" in "".join(ask_again(where, "clue-coordinator device show cam-1199", shell)[0])


def test_a_coordinator_elsewhere(home: House, tmp_path: Path) -> None:
    config = home.config
    options = f"--server {config.operator_address} --ca {config.pki / 'ca.pem'} --token-file {config.operator_token}"
    assert ask_again(tmp_path, f"clue-coordinator {options} forget --fleet ")[0] == ["yard"]
    assert ask(tmp_path, f"clue-coordinator {options.replace('ca.pem', 'none')} forget --fleet ")[0] == []


def test_nobody_to_ask(home: House, tmp_path: Path) -> None:
    line = "clue-coordinator device show "
    assert ask(tmp_path / "none", line)[0] == []
    assert ask(tmp_path, f"clue-coordinator device show --home {tmp_path / 'none'} c")[0] == []
    # Someone who takes the connection and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = home.config
        for port in (silent.getsockname()[1], free_port()):
            found, seconds = ask(
                tmp_path,
                line,
                CLUE_SERVER=f"127.0.0.1:{port}",
                CLUE_CA_FILE=str(config.pki / "ca.pem"),
                CLUE_TOKEN_FILE=str(config.operator_token),
            )
            assert found == []
            # The deadline of the call is two seconds.
            assert seconds < 2 + SECONDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing_it(shell: str, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for option in ("--show-completion", "--install-completion"):
        command = [str(PROGRAM), option, shell]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        assert "clue-coordinator" in done.stdout or shell in done.stdout
    installed = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert f"_CLUE_COORDINATOR_COMPLETE=complete_{shell}" in installed


def test_a_command_starts_without_grpc_and_tensors() -> None:
    code = "import sys, clue_coordinator.cli; print([m for m in ('grpc', 'torch', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
