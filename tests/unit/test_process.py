"""Children: started again when they die, gone when the daemon is gone, however it went."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from clue_protocol import net, process
from clue_protocol.net import free_port, free_ports, port_in_use
from clue_protocol.process import Supervisor, spawn, stop

# Writes its process id and that of a child of its own, then sleeps.
FAMILY = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '60'])\n"
    "path = sys.argv[1] + '/' + str(os.getpid())\n"
    "open(path + '.tmp', 'w').write(str(child.pid)); os.rename(path + '.tmp', path + '.pids')\n"
)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def families(folder: Path) -> list[tuple[int, int]]:
    """(process, its child) for every start so far, in the order of the starts."""
    paths = sorted(folder.glob("*.pids"), key=lambda p: p.stat().st_mtime_ns)
    return [(int(p.stem), int(p.read_text())) for p in paths]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(process, "_LONGEST_DELAY", 0.1)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    started: list[Supervisor] = []

    def start(code: str, **options: object) -> Supervisor:
        command = [sys.executable, "-c", code, str(tmp_path)]
        supervisor = Supervisor("child", lambda: command, os.environ, tmp_path / "child.log", **options)  # type: ignore[arg-type]
        started.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in started:
        supervisor.close()


def test_a_child_that_dies_is_started_again(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    codes: list[int] = []
    supervisor = supervise(FAMILY + "time.sleep(60)", on_exit=codes.append)
    wait_for(lambda: len(families(tmp_path)) == 1)
    [(first, orphan)] = families(tmp_path)
    assert supervisor.pid == first
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(families(tmp_path)) == 2)
    second = families(tmp_path)[1][0]
    assert second != first
    assert supervisor.pid == second
    assert codes == [-signal.SIGKILL]
    # What the dead child had started must not stay behind beside what the new one starts.
    wait_for(lambda: not is_alive(orphan))


def test_close_leaves_nothing(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = supervise(FAMILY + "time.sleep(60)")
    wait_for(lambda: families(tmp_path))
    supervisor.close()
    [(child, grandchild)] = families(tmp_path)
    assert not is_alive(child)
    wait_for(lambda: not is_alive(grandchild))
    assert supervisor.pid is None
    time.sleep(0.2)
    assert len(families(tmp_path)) == 1  # and it is not started again


def test_stop_ends_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY + "time.sleep(60)"
    child = spawn([sys.executable, "-c", stubborn, str(tmp_path)])
    wait_for(lambda: families(tmp_path))
    [(pid, grandchild)] = families(tmp_path)
    assert pid == child.pid  # the wrapper became the command
    stop(child, grace=0.3)
    assert child.returncode == -signal.SIGKILL
    wait_for(lambda: not is_alive(grandchild))
    stop(child)  # twice is harmless


def test_a_child_dies_when_its_parent_is_killed() -> None:
    code = (
        "import time; from clue_protocol.process import spawn\n"
        "print(spawn(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(lambda: is_alive(child) and psutil.Process(child).name() == "sleep")
        parent.kill()
        parent.wait(10)
    wait_for(lambda: not is_alive(child))


def test_a_command_that_cannot_run(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    child = spawn([str(tmp_path / "no-such-command")], stderr=subprocess.PIPE)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 1
    assert errors.decode().startswith("cannot run ")
    assert errors.count(b"\n") == 1


def test_output_goes_to_the_log(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervise(
        "import sys, time; print('to stdout'); print('to stderr', file=sys.stderr); sys.stdout.flush()\ntime.sleep(60)"
    )
    log = tmp_path / "child.log"
    wait_for(lambda: log.exists() and {"to stdout", "to stderr"} <= set(log.read_text().splitlines()))


def test_several_ports_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    few = net.NOT_EPHEMERAL[:: len(net.NOT_EPHEMERAL) // 8]
    monkeypatch.setattr(net, "NOT_EPHEMERAL", few)
    for _ in range(20):
        found = free_ports(5)
        assert len(set(found)) == 5
        assert set(found) <= set(few)
    with pytest.raises(OSError, match="no 10 free ports"):
        free_ports(10)


def test_ports() -> None:
    import socket

    port = free_port()
    assert not port_in_use("127.0.0.1", port)
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        assert port_in_use("127.0.0.1", port)
