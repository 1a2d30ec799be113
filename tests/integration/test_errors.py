"""What goes wrong for the person at the terminal: one line that says what to do, the right exit code, no traceback."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.conftest import Digits
from integration.harness import FLEET, Installation, fingerprint, one_line, succeed, wait_all_gone, wait_for


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Installation]:
    """An installation that is not running."""
    with Installation(tmp_path / "house") as installation:
        installation.init()
        yield installation


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


# Operators


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["forget", "--class", "eigth", "--fleet", FLEET], "did you mean 'eight'"),
        (["forget", "--class", "eight", "--fleet", "homecam"], "did you mean 'homecams'"),
        (["forget", "--class", "", "--fleet", FLEET], "class"),
        (["forget", "--class", "eight", "--fleet", FLEET, "--set", "epochs"], "name=value"),
        (["device", "list", "--fleet", "nowhere"], "no fleet 'nowhere'"),
        (["device", "add", "/nowhere.json", "--fleet", FLEET, "--out", "/tmp/x"], "cannot read"),  # noqa: S108
        (["fleet", "create", "not a name"], "fleet"),
        (["request", "show", "nothing"], "no request 'nothing'"),
        (["request", "watch", "nothing"], "no request 'nothing'"),
        (["demo", "--data", "nothing"], "--data"),
        (["demo", "--data", "digits", "--class", "eleven"], "eleven"),
    ],
)
def test_wrong_arguments_exit_with_2(enrolled: Installation, arguments: list[str], words: str) -> None:
    assert words in one_line(enrolled.coordinator(*arguments), 2)


@pytest.mark.parametrize(
    "arguments", [["forget", "--class", "eight"], ["forget", "--class", "x", "--fleet", "y", "--max-ua", "7"], ["fly"]]
)
def test_bad_command_lines_exit_with_2(enrolled: Installation, arguments: list[str]) -> None:
    done = enrolled.coordinator(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_result_that_cannot_be_written_is_told_before_anything_is_forgotten(enrolled: Installation) -> None:
    before = succeed(enrolled.coordinator("request", "list"))
    target = enrolled.root / "no-folder" / "result.json"
    done = enrolled.coordinator("forget", "--class", "eight", "--fleet", FLEET, "--json", str(target))
    assert "no-folder" in one_line(done, 2)
    assert succeed(enrolled.coordinator("request", "list")) == before


def test_conflicts_exit_with_1(enrolled: Installation) -> None:
    assert "exists already" in one_line(enrolled.coordinator("fleet", "create", FLEET), 1)
    succeed(enrolled.coordinator("fleet", "create", "empty"))
    assert "has no devices" in one_line(enrolled.coordinator("forget", "--class", "eight", "--fleet", "empty"), 1)
    document = enrolled.device("pi-1") / "enrolment.json"
    again = enrolled.coordinator("device", "add", str(document), "--fleet", FLEET, "--out", str(enrolled.root / "x"))
    assert "enrolled already" in one_line(again, 1)
    assert "already holds a coordinator" in one_line(enrolled.coordinator("init"), 1)


def test_second_coordinator_on_the_same_home(enrolled: Installation) -> None:
    pid = enrolled._running["coordinator"].pid
    assert f"process {pid}" in one_line(enrolled.coordinator("serve"), 1)


def test_coordinator_that_does_not_run(house: Installation) -> None:
    for arguments in (["device", "list"], ["forget", "--class", "eight", "--fleet", FLEET], ["request", "watch", "x"]):
        assert "is not running" in one_line(house.coordinator(*arguments), 1)


def test_home_without_a_coordinator(house: Installation, tmp_path: Path) -> None:
    for command in (["serve"], ["device", "list"]):
        assert "clue-coordinator init" in one_line(house.coordinator(*command, "--home", str(tmp_path / "none")), 1)


@pytest.mark.parametrize("port", ["superlink_port", "operator_port", "enrolment_port", "metrics_port", "console_port"])
def test_port_in_use(house: Installation, port: str) -> None:
    number = getattr(house.config, port)
    with listening(number):
        line = one_line(house.coordinator("serve", timeout=60), 1)
    assert str(number) in line
    assert port in line
    wait_all_gone(house.root)


@pytest.mark.parametrize("name", ["request-key.pem", "operator.token", "ledger.sqlite", "coordinator.toml"])
def test_damaged_home(house: Installation, name: str) -> None:
    (house.home / name).write_bytes(b"\x80 not what it should be")
    line = one_line(house.coordinator("serve", timeout=60), 1)
    assert name in line
    wait_all_gone(house.root)


@pytest.mark.parametrize("name", ["pki/ca.pem", "pki/server-key.pem", "pki/server.pem"])
def test_damaged_certificates(house: Installation, name: str) -> None:
    (house.home / name).write_bytes(b"not a certificate")
    assert name.rpartition("/")[2] in one_line(house.coordinator("serve", timeout=120), 1)
    wait_all_gone(house.root)


def test_two_inits_at_once_make_one_whole_home(tmp_path: Path) -> None:
    house = Installation(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: house.coordinator("init"), range(4)))
    assert sorted(d.returncode for d in done) == [0, 1, 1, 1]
    for failed in (d for d in done if d.returncode):
        one_line(failed, 1)
    assert all(path.is_file() for path in (house.config.request_key, house.config.operator_token))
    assert (house.config.pki / "server-key.pem").is_file()


# Devices


def _init(house: Installation, digits: Digits, model: Path, name: str = "pi-9") -> "subprocess.CompletedProcess[str]":
    samples, holdout = digits.shares["pi-1"]
    return house.agent(
        *("init", "--device", name, "--home", str(house.device(name)), "--model", str(model)),
        *("--samples", str(samples), "--holdout", str(holdout)),
    )


def test_init_with_a_missing_or_damaged_model(house: Installation, digits: Digits, tmp_path: Path) -> None:
    assert "nothing-here" in one_line(_init(house, digits, tmp_path / "nothing-here"), 1)
    damaged = tmp_path / "damaged"
    shutil.copytree(digits.bundle, damaged)
    weights = next(damaged.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert str(weights.name) in one_line(_init(house, digits, damaged), 1)
    for path in damaged.iterdir():
        path.write_bytes(b"{")
    one_line(_init(house, digits, damaged), 1)
    assert not house.device("pi-9").exists()


def test_agent_that_was_not_admitted(house: Installation, digits: Digits) -> None:
    succeed(_init(house, digits, digits.bundle))
    config = str(house.device("pi-9") / "agent.toml")
    assert "clue-coordinator device add" in one_line(house.agent("run", "--config", config), 1)
    assert "not running" in succeed(house.agent("status", "--config", config))
    assert "trust document" in one_line(house.agent("trust", config, "--config", config), 1)


def test_init_over_an_agent_keeps_its_keys(house: Installation, digits: Digits) -> None:
    """Also where only agent.toml was lost: the device's identity must not be thrown away."""
    succeed(_init(house, digits, digits.bundle))
    home = house.device("pi-9")
    before = fingerprint(home)
    assert "already holds" in one_line(_init(house, digits, digits.bundle), 1)
    (home / "agent.toml").unlink()
    assert "already holds" in one_line(_init(house, digits, digits.bundle), 1)
    after = fingerprint(home)
    # The lock names the process that held it last.
    for name in ("agent.toml", "daemon.lock"):
        before.pop(name)
        after.pop(name, None)
    assert after == before


def test_run_with_a_missing_or_damaged_model(enrolled: Installation) -> None:
    home = enrolled.root / "copy"
    shutil.copytree(enrolled.device("pi-1"), home, symlinks=True)
    config = str(home / "agent.toml")
    for slot in "ab":
        weights = home / "model" / slot / "weights.sealed"
        weights.write_bytes(weights.read_bytes()[:-100])
    assert "update-model" in one_line(enrolled.agent("run", "--config", config), 1)
    shutil.rmtree(home / "model")
    assert "clue-agent init" in one_line(enrolled.agent("run", "--config", config), 1)
    assert "does not exist" in one_line(enrolled.agent("run", "--config", str(home / "none.toml")), 1)


def test_second_agent_on_the_same_home(enrolled: Installation) -> None:
    pid = enrolled.start_agent("pi-1")
    socket_file = enrolled.device("pi-1") / "agent.socket-path"
    wait_for(socket_file.exists, 60, "the agent")
    config = str(enrolled.device("pi-1") / "agent.toml")
    assert f"process {pid}" in one_line(enrolled.agent("run", "--config", config), 1)
    assert enrolled.stop("pi-1") == 0


# Odd homes


@pytest.fixture
def odd_root() -> Iterator[Path]:
    """Short, with spaces and quotes in it."""
    with tempfile.TemporaryDirectory(prefix="a 'b' c") as folder:
        yield Path(folder)


def test_odd_homes_work(odd_root: Path, digits: Digits) -> None:
    """Spaces and quotes reach Flower's own option parser; a long path does not fit a Unix socket's address."""
    device = f"{'long-' * 12}pi"
    with Installation(odd_root) as house:
        house.init()
        house.serve()
        assert (house.home / "dispatch.sock").exists()
        succeed(house.coordinator("fleet", "create", FLEET))
        house.add_device(device, digits.bundle, *digits.shares["pi-1"])
        house.start_agent(device)
        house.wait_online(1)
        # Fails fast, without unlearning: the way there and back is the point.
        done = house.wait_completed(house.forget("eight", "--set", "no_such_setting=1"))
        assert done[device]["state"] == "FAILED"
        assert done[device]["reason"] == "INVALID_REQUEST"
        assert "no_such_setting" in done[device]["detail"]


def test_full_disk(tmp_path: Path, digits: Digits) -> None:
    """A home on a tiny file system: init says so in one line and leaves nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        house = Installation(disk)
        assert "No space left" in one_line(_init(house, digits, digits.bundle), 1)
        assert not house.device("pi-9").exists()
        (disk / "filler").write_bytes(b"x" * (disk_free(disk)))
        assert "No space left" in one_line(house.coordinator("init"), 1)
        assert not house.home.exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def disk_free(path: Path) -> int:
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_bsize
