"""Limits of the worker: real children that eat memory and CPU, and recorded sensors."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from datetime import time as day_time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clue_agent.limits import (
    Ended,
    Hold,
    HoldKind,
    LimitsConfig,
    Sensors,
    Verdict,
    Watch,
    check_free,
    last_line,
    run_limited,
)
from clue_agent.limits import child as child_module
from clue_agent.limits import run as run_module
from clue_agent.limits.conditions import Temperature, Throttled

MIB = 1 << 20


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class Board:
    """A recorded /sys/class and a firmware, both of which a test can change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.firmware = "throttled=0x0\n"
        self.asked = 0

    def write(self, path: str, **values: object) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")

    def celsius(self, value: float, zone: str = "thermal_zone0", kind: str = "cpu-thermal") -> None:
        self.write(f"thermal/{zone}", type=kind, temp=round(1000 * value))

    def vcgencmd(self) -> str:
        self.asked += 1
        if not self.firmware:
            raise FileNotFoundError("vcgencmd")
        return self.firmware

    @property
    def sensors(self) -> Sensors:
        return Sensors(self.root, self.vcgencmd)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "sys")


class Clock:
    def __init__(self, local: datetime = datetime(2026, 7, 1, 12, 0)) -> None:
        self.seconds = 1000.0
        self.local = local

    def watch(self, config: LimitsConfig, board: Board) -> Watch:
        return Watch(config, board.sensors, local_time=lambda: self.local, monotonic=lambda: self.seconds)


def kind(watch: Watch) -> HoldKind | None:
    hold = watch.check()
    return hold.kind if hold else None


# --- the configuration


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"quiet_hours": "22-6"}, "written like 22:00-06:00"),
        ({"quiet_hours": "24:00-06:00"}, "written like 22:00-06:00"),
        ({"quiet_hours": "06:00-06:00"}, "begin and end at the same time"),
        ({"max_celsius": 70, "resume_celsius": 70}, "must be below max_celsius"),
        ({"cpu_percent": 0}, "greater than or equal to 5"),
        ({"max_paused_seconds": 0}, "greater than 0"),
        ({"memory_mb": 3}, "Extra inputs"),
    ],
)
def test_impossible_limits(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LimitsConfig.model_validate(values)


def test_the_daemon_loads_no_tensors_for_it() -> None:
    code = "import clue_agent.limits, sys; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


# --- sensors


def test_a_device_without_sensors(board: Board) -> None:
    board.firmware = ""
    sensors = board.sensors
    assert sensors.temperature() is None
    assert sensors.throttled() is None
    assert sensors.voltage_alarm() is None
    assert sensors.discharging_battery() is None
    assert Clock().watch(LimitsConfig(), board).check() is None


def test_the_hottest_zone_of_the_chip(board: Board) -> None:
    board.celsius(91, "thermal_zone0", "iwlwifi_1")
    assert board.sensors.temperature() == Temperature("iwlwifi_1", 91.0)  # better than nothing
    board.celsius(55.5, "thermal_zone1", "cpu-thermal")
    board.celsius(61.2, "thermal_zone2", "gpu-thermal")
    board.celsius(-274, "thermal_zone3", "soc_thermal")
    board.write("thermal/thermal_zone4", type="cpu-thermal", temp="")
    assert board.sensors.temperature() == Temperature("gpu-thermal", 61.2)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("throttled=0x0\n", Throttled(0)),
        ("throttled=0x50005\n", Throttled(0x50005)),
        ("throttled=0xe0008\n", Throttled(0xE0008)),
        ('error=1 error_msg="Command not registered"\n', None),
        ("VCHI initialization failed\n", None),
    ],
)
def test_the_firmware_flags(board: Board, text: str, flags: Throttled | None) -> None:
    board.firmware = text
    assert board.sensors.throttled() == flags


def test_batteries(board: Board) -> None:
    board.write("power_supply/mains", type="Mains", online=1)
    board.write("power_supply/mouse", type="Battery", scope="Device", status="Discharging", capacity=3)
    board.write("power_supply/gauge", type="Battery", status="Unknown", capacity=3)
    assert board.sensors.discharging_battery() is None
    board.write("power_supply/BAT0", type="Battery", status="Discharging", capacity=12)
    board.write("power_supply/BAT1", type="Battery", status="Discharging", capacity=64)
    assert board.sensors.discharging_battery() == 64


def test_the_real_vcgencmd_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$*" = get_throttled ] && echo throttled=0x10001\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Sensors(tmp_path).throttled() == Throttled.UNDER_VOLTAGE | Throttled.UNDER_VOLTAGE_OCCURRED
    program.write_text("#!/bin/sh\nexit 1\n")
    assert Sensors(tmp_path).throttled() is None


# --- the watch


def test_heat_has_hysteresis(board: Board) -> None:
    watch = Clock().watch(LimitsConfig(max_celsius=80, resume_celsius=72), board)
    seen = []
    for celsius in (79, 80, 75, 72, 71.9, 75, 81):
        board.celsius(celsius)
        seen.append(kind(watch) == HoldKind.HOT)
    assert seen == [False, True, True, True, False, False, True]
    hold = watch.check()
    assert hold is not None
    assert hold.detail == "cpu-thermal is at 81.0 degrees Celsius: at most 80, goes on below 72"


def test_undervoltage_by_the_firmware(board: Board) -> None:
    clock = Clock()
    watch = clock.watch(LimitsConfig(), board)
    board.firmware = "throttled=0x50000\n"  # some time since boot: no reason to wait now
    assert watch.check() is None
    board.firmware = "throttled=0x50005\n"
    clock.seconds += 4
    assert watch.check() is None  # asked once in five seconds only
    assert board.asked == 1
    clock.seconds += 1
    assert kind(watch) == HoldKind.UNDERVOLTAGE
    board.firmware = "throttled=0x50000\n"
    clock.seconds += 59
    hold = watch.check()
    assert hold is not None
    assert hold.detail == "the supply voltage was too low 59 s ago: goes on after 60 s without"
    clock.seconds += 1
    assert watch.check() is None
    board.firmware = "throttled=0x50005\n"
    assert clock.watch(LimitsConfig(pause_on_undervoltage=False), board).check() is None


def test_undervoltage_by_the_kernel_needs_no_vcgencmd(board: Board) -> None:
    watch = Clock().watch(LimitsConfig(), board)
    board.write("hwmon/hwmon0", name="cpu_thermal")
    board.write("hwmon/hwmon1", name="rpi_volt", in0_lcrit_alarm=0)
    assert watch.check() is None
    board.write("hwmon/hwmon1", in0_lcrit_alarm=1)
    assert kind(watch) == HoldKind.UNDERVOLTAGE
    assert board.asked == 0


def test_a_low_battery(board: Board) -> None:
    watch = Clock().watch(LimitsConfig(min_battery_percent=30), board)
    seen = []
    for status, charge in (
        ("Discharging", 30),
        ("Discharging", 29),
        ("Discharging", 34),
        ("Charging", 20),
        ("Discharging", 31),
    ):
        board.write("power_supply/BAT0", type="Battery", status=status, capacity=charge)
        seen.append(kind(watch) == HoldKind.BATTERY)
    assert seen == [False, True, True, False, False]
    board.write("power_supply/BAT0", capacity=1)
    assert Clock().watch(LimitsConfig(min_battery_percent=0), board).check() is None
    board.write("power_supply/BAT0", capacity=100)
    assert Clock().watch(LimitsConfig(min_battery_percent=100), board).check() is None


@given(
    begin=st.integers(0, 1439),
    end=st.integers(0, 1439),
    now=st.datetimes(datetime(2025, 1, 1), datetime(2030, 1, 1)),
)
def test_quiet_hours(tmp_path_factory: pytest.TempPathFactory, begin: int, end: int, now: datetime) -> None:
    if begin == end:
        return
    text = "{:02}:{:02}-{:02}:{:02}".format(*divmod(begin, 60), *divmod(end, 60))
    config = LimitsConfig(quiet_hours=text)
    assert config.quiet_between == (day_time(*divmod(begin, 60)), day_time(*divmod(end, 60)))
    # Counted from the begin, with the day as a circle.
    length = (end - begin) % 1440
    minute = now.hour * 60 + now.minute
    held = kind(Clock(now).watch(config, Board(Path("/nowhere"))))
    assert (held == HoldKind.QUIET_HOURS) == ((minute - begin) % 1440 < length)


def test_a_clock_that_was_never_set_has_no_quiet_hours(board: Board) -> None:
    clock = Clock(datetime(1970, 1, 1, 0, 5))
    watch = clock.watch(LimitsConfig(quiet_hours="22:00-06:00"), board)
    assert watch.check() is None
    clock.local = datetime(2026, 7, 1, 0, 5)  # the time server was reached
    hold = watch.check()
    assert hold == Hold(HoldKind.QUIET_HOURS, "it is 00:05, inside the quiet hours 22:00-06:00")
    clock.local += timedelta(hours=6)
    assert watch.check() is None


def test_several_reasons_at_once(board: Board) -> None:
    watch = Clock().watch(LimitsConfig(quiet_hours="10:00-13:00"), board)
    board.celsius(90)
    assert kind(watch) == HoldKind.HOT
    board.celsius(60)
    assert kind(watch) == HoldKind.QUIET_HOURS


# --- the disk


def test_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_free(tmp_path, 1, 1) is None
    assert "make room for" in str(check_free(tmp_path, 1 << 60, 0))
    assert "must stay free" in str(check_free(tmp_path, 0, 1 << 60))
    assert "cannot see" in str(check_free(tmp_path / "nowhere", 1, 1))

    def disk(**values: int) -> None:
        real = {"f_flag": 0, "f_files": 1000, "f_favail": 900, "f_bavail": 100, "f_frsize": MIB} | values
        monkeypatch.setattr(os, "statvfs", lambda folder: type("statvfs", (), real))

    disk()
    assert check_free(tmp_path, 60 * MIB, 40 * MIB) is None
    assert str(check_free(tmp_path, 60 * MIB + 1, 40 * MIB)) == (
        f"the disk of {tmp_path} has 100 MiB free, but the job needs 61 and 40 must stay free: make room for 1 MiB"
    )
    disk(f_flag=os.ST_RDONLY)
    assert "read-only" in str(check_free(tmp_path, 1, 1))
    disk(f_favail=3)
    assert "3 more files" in str(check_free(tmp_path, 1, 1))
    disk(f_files=0, f_favail=0)  # btrfs has no such number
    assert check_free(tmp_path, 1, 1) is None


# --- the supervised child


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_WATCH_EVERY", 0.1)
    monkeypatch.setattr(run_module, "_CHECK_EVERY", 0.05)
    monkeypatch.setattr(run_module, "_FAMILY_EVERY", 0.2)


class Runner:
    """Runs a Python program under limits in a thread and keeps what it said."""

    def __init__(self, board: Board, folder: Path) -> None:
        self.board = board
        self.log = folder / "worker.log"
        self.cancelled = threading.Event()
        self.lines: list[bytes] = []
        self.holds: list[HoldKind | None] = []
        self.ended: Ended | None = None
        self._thread: threading.Thread | None = None

    def run(self, code: str, *arguments: str, **limits: object) -> Ended:
        config = LimitsConfig.model_validate({"memory_mib": 2048, **limits})
        return run_limited(
            [sys.executable, "-u", "-c", code, *arguments],
            limits=config,
            watch=Watch(config, self.board.sensors),
            cancelled=self.cancelled,
            environment=os.environ,
            log_path=self.log,
            on_line=self.lines.append,
            on_hold=lambda hold: self.holds.append(hold.kind if hold else None),
            nice=1,
        )

    def start(self, code: str, *arguments: str, **limits: object) -> None:
        def run() -> None:
            self.ended = self.run(code, *arguments, **limits)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self) -> Ended:
        assert self._thread is not None
        self._thread.join(20)
        assert self.ended is not None
        return self.ended


@pytest.fixture
def runner(board: Board, tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(board, tmp_path)
    yield runner
    runner.cancelled.set()


# Says its number, then counts up twenty times a second.
COUNTER = (
    "import itertools, os, time\nprint(os.getpid())\nfor n in itertools.count():\n    print(n); time.sleep(0.05)\n"
)


def test_a_child_that_ends_by_itself(runner: Runner) -> None:
    ended = runner.run("import sys; print('one'); print('two', end=''); print('oh', file=sys.stderr); sys.exit(3)")
    assert ended.verdict is Verdict.FINISHED
    assert ended.returncode == 3
    assert ended.detail.startswith("ended with code 3 after ")
    assert ended.detail.endswith("MiB at most: oh")
    assert runner.lines == [b"one", b"two"]
    assert runner.holds == []
    assert last_line(runner.log) == "oh"
    ended = runner.run("import os; os.kill(os.getpid(), 11)")
    assert (ended.verdict, ended.returncode) == (Verdict.FINISHED, -11)
    assert ended.detail.startswith("ended by signal 11 after ")


def test_what_the_child_runs_under(runner: Runner) -> None:
    code = (
        "import os, resource\n"
        "print(os.nice(0)); print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0]); print(resource.getrlimit(resource.RLIMIT_DATA)[1])\n"
        "print(open('/proc/self/oom_score_adj').read().strip())\n"
        "print(sorted(os.listdir('/proc/self/fd')))\n"
    )
    assert runner.run(code, memory_mib=512).returncode == 0
    assert runner.lines[0] == b"%d" % min(19, os.nice(0) + 1)
    assert runner.lines[1] == b"1 1"
    assert int(runner.lines[2]) in (0, 1)
    assert runner.lines[3] == b"%d" % (832 * MIB)
    assert runner.lines[4] == b"800"
    assert runner.lines[5] == b"['0', '1', '2', '3']"  # 3 is the listing itself


def test_a_command_that_does_not_exist(runner: Runner, tmp_path: Path) -> None:
    config = LimitsConfig()
    ended = run_limited(
        [str(tmp_path / "no-such-command")],
        limits=config,
        watch=Watch(config, runner.board.sensors),
        cancelled=runner.cancelled,
        environment=os.environ,
        log_path=runner.log,
        on_line=runner.lines.append,
        on_hold=lambda hold: None,
    )
    assert ended.returncode == 1
    assert "no-such-command: No such file or directory" in ended.detail


def test_memory_error_inside(runner: Runner) -> None:
    # Far more at once than it may hold: refused before a byte of it is there.
    code = (
        "import mmap\n"
        # Allocated and never touched, as torch does: no reason to fail.
        "spare = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "try: held = bytearray(800 << 20)\n"
        "except MemoryError as error: print(type(error).__name__)\n"
    )
    ended = runner.run(code, memory_mib=96)
    assert ended.verdict is Verdict.FINISHED
    assert ended.returncode == 0
    assert runner.lines == [b"MemoryError"]
    assert ended.peak_bytes <= 96 * MIB


def test_memory_that_is_eaten_step_by_step(runner: Runner) -> None:
    code = "import time\nheld = []\nwhile True: held.append(b'x' * (4 << 20)); time.sleep(0.02)\n"
    ended = runner.run(code, memory_mib=96)
    assert ended.verdict is Verdict.OUT_OF_MEMORY
    assert ended.returncode == -signal.SIGKILL
    assert 96 * MIB < ended.peak_bytes < 192 * MIB
    assert ended.detail.endswith("96 are allowed")


def test_memory_that_the_kernel_limit_does_not_see(runner: Runner) -> None:
    # Shared memory is no data segment.
    code = (
        "import mmap, time\n"
        "held = mmap.mmap(-1, 400 << 20)\n"
        "for n in range(100): held[n << 22:(n + 1) << 22] = b'x' * (1 << 22); time.sleep(0.01)\n"
        "print('survived'); time.sleep(20)\n"
    )
    ended = runner.run(code, memory_mib=96)
    assert ended.verdict is Verdict.OUT_OF_MEMORY
    assert ended.returncode == -signal.SIGKILL
    assert b"survived" not in runner.lines
    assert ended.detail.endswith("96 are allowed")
    assert ended.peak_bytes > 96 * MIB


def test_memory_of_children_counts_and_none_is_left(runner: Runner) -> None:
    # None of the three holds more than it may; one has left the group.
    code = (
        "import os, subprocess, sys, time\n"
        "eat = 'held = bytearray(50 << 20); held[::4096] = b\"x\" * len(held[::4096]); import time; time.sleep(60)'\n"
        "for session in (False, True, False):\n"
        "    print(subprocess.Popen([sys.executable, '-c', eat], start_new_session=session).pid)\n"
        "time.sleep(60)\n"
    )
    ended = runner.run(code, memory_mib=96)
    assert ended.verdict is Verdict.OUT_OF_MEMORY
    wait_for(lambda: not any(is_alive(int(line)) for line in runner.lines))


def test_children_left_by_a_command_that_ended(runner: Runner) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    started = time.monotonic()
    assert runner.run(code).returncode == 0  # and not after a minute, though sleep holds the pipe
    assert time.monotonic() - started < 20
    wait_for(lambda: not is_alive(int(runner.lines[0])))


def test_a_pause_stops_the_work_and_it_goes_on(runner: Runner) -> None:
    runner.board.celsius(50)
    runner.start(COUNTER, budget_seconds=60)
    wait_for(lambda: len(runner.lines) > 3)
    runner.board.celsius(85)
    wait_for(lambda: psutil.Process(int(runner.lines[0])).status() == psutil.STATUS_STOPPED)
    time.sleep(0.2)
    before = len(runner.lines)
    time.sleep(0.5)
    assert len(runner.lines) == before
    runner.board.celsius(60)
    wait_for(lambda: len(runner.lines) > before + 3)
    runner.cancelled.set()
    ended = runner.wait()
    assert runner.holds == [HoldKind.HOT, None]
    assert ended.paused_seconds >= 0.6
    assert runner.lines[1:] == [b"%d" % n for n in range(len(runner.lines) - 1)]  # nothing lost, nothing twice


def test_paused_time_does_not_count(runner: Runner) -> None:
    runner.board.celsius(50)
    runner.start(COUNTER, budget_seconds=4.0)  # of which a busy machine takes some to start it
    wait_for(lambda: len(runner.lines) > 1)
    started = time.monotonic()
    runner.board.celsius(85)
    wait_for(lambda: runner.holds == [HoldKind.HOT])
    time.sleep(4.6)
    assert runner.ended is None
    runner.board.celsius(50)
    ended = runner.wait()
    assert ended.verdict is Verdict.OUT_OF_TIME
    assert ended.detail == "still busy after 4 s, which is all it may take"
    assert 4.0 <= ended.active_seconds < 8
    assert ended.paused_seconds >= 4.5
    assert time.monotonic() - started > 4.6


def test_a_paused_child_dies_when_cancelled(runner: Runner) -> None:
    runner.board.celsius(50)
    runner.start(COUNTER)
    wait_for(lambda: runner.lines)
    runner.board.celsius(85)
    pid = int(runner.lines[0])
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    runner.cancelled.set()
    ended = runner.wait()
    assert ended.verdict is Verdict.CANCELLED
    assert ended.returncode == -signal.SIGKILL
    assert not is_alive(pid)


def test_nothing_is_started_on_a_hot_device(runner: Runner) -> None:
    runner.board.celsius(85)
    runner.start("print('started')")
    wait_for(lambda: runner.holds == [HoldKind.HOT])
    time.sleep(0.3)
    assert runner.lines == []
    assert not runner.log.exists()
    runner.board.celsius(50)
    assert runner.wait().returncode == 0
    assert runner.lines == [b"started"]
    assert runner.holds == [HoldKind.HOT, None]


def test_a_pause_that_lasts_too_long(runner: Runner) -> None:
    runner.board.celsius(85)
    ended = runner.run("print('started')", max_paused_seconds=0.3)
    assert ended.verdict is Verdict.PAUSED_TOO_LONG
    assert ended.returncode is None
    assert ended.detail.startswith("paused for 0.3 s in all: cpu-thermal is at 85.0")
    runner.board.celsius(50)
    runner.start(COUNTER, max_paused_seconds=0.3)
    wait_for(lambda: runner.lines)
    runner.board.celsius(85)
    ended = runner.wait()
    assert ended.verdict is Verdict.PAUSED_TOO_LONG
    assert ended.returncode == -signal.SIGKILL


def test_cpu_percent(runner: Runner) -> None:
    # The kernel counts time on a CPU, and time in which it was ready but others ran: on a busy machine their sum is
    # what the cap allowed, without the cap all of the time.
    code = (
        "import time\n"
        "end = time.monotonic() + 2\n"
        "while time.monotonic() < end: pass\n"
        "print(open('/proc/self/schedstat').read()); print(time.process_time())\n"
    )
    started = time.monotonic()
    ended = runner.run(code, cpu_percent=40)
    seconds = time.monotonic() - started
    running, ready, _ = (int(word) / 1e9 for word in runner.lines[0].split())
    assert 0.25 <= (running + ready) / seconds <= 0.55
    assert float(runner.lines[-1]) / seconds <= 0.55
    assert ended.paused_seconds == 0  # it is slower by choice, not on hold


def test_a_paused_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    board = Board(tmp_path / "sys")
    board.celsius(50)
    code = (
        "import os, sys, threading; from pathlib import Path\n"
        "from clue_agent.limits import *; from clue_agent.limits import run\n"
        "run._WATCH_EVERY = 0.1; c = LimitsConfig()\n"
        "run_limited([sys.executable, '-u', '-c', 'import os, time; print(os.getpid()); time.sleep(60)'], limits=c,\n"
        "    watch=Watch(c, Sensors(Path(sys.argv[1]))), cancelled=threading.Event(), environment=os.environ,\n"
        "    log_path=Path(sys.argv[2]), on_line=lambda line: print(line.decode(), flush=True), on_hold=lambda h: None)"
    )
    arguments = [str(board.root), str(tmp_path / "log")]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        board.celsius(85)
        wait_for(lambda: psutil.Process(child).status() == psutil.STATUS_STOPPED)
        parent.kill()
        parent.wait(10)
    wait_for(lambda: not is_alive(child))


def test_a_callback_that_raises_ends_the_child(runner: Runner) -> None:
    pids: list[int] = []

    def broken(line: bytes) -> None:
        pids.append(int(line))
        raise RuntimeError("the journal is full")

    runner.lines = type("Lines", (), {"append": staticmethod(broken)})()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="journal is full"):
        runner.run(COUNTER)
    assert len(pids) == 1
    assert not is_alive(pids[0])


def test_a_talkative_child_fills_neither_memory_nor_disk(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_MOST_LOG_BYTES", 1000)
    monkeypatch.setattr(child_module, "_LONGEST_LINE", 100_000)
    code = (
        "import sys, time\n"
        "sys.stdout.write('x' * 1_000_000 + '\\n'); print('short')\n"
        "for n in range(60): print('warning', n, 'y' * 100, file=sys.stderr); time.sleep(0.02)\n"
        "print('the last words', file=sys.stderr)\n"
    )
    assert runner.run(code).returncode == 0
    assert runner.lines == [b"short"]
    assert runner.log.stat().st_size < 4000
    assert last_line(runner.log) == "the last words"


def test_output_at_full_speed_does_not_hide_the_limits(runner: Runner) -> None:
    ended = runner.run("while True: print('x' * 1000)", budget_seconds=0.5)
    assert ended.verdict is Verdict.OUT_OF_TIME
    assert ended.active_seconds < 20
    assert len(set(runner.lines[:-1])) == 1  # whole lines


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=6), st.data())
def test_lines_do_not_depend_on_how_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    seen: list[bytes] = []
    reader = child_module._Lines(seen.append)
    for begin, end in itertools.pairwise([0, *cuts, len(text)]):
        reader.feed(text[begin:end])
    reader.close()
    assert seen == lines
