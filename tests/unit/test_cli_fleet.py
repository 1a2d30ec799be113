"""The operator's commands against a real operator API: what is shown at which width, and as JSON."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, run_command
from operator_server import House, house
from pydantic import TypeAdapter
from staged_fleet import add_devices, answer, answer_all, lease
from test_coordinator_cli import one_line

from clue_coordinator import json_types, reports
from clue_coordinator.plan import parse_plan
from clue_coordinator.server import OperatorServer
from clue_coordinator.states import ExecutionState, RequestState, may_follow
from clue_protocol.v1 import dispatch_pb2
from clue_protocol.v1 import forget_pb2 as pb

Run = Callable[..., Result]
Rows = list[dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in ("CLUE_SERVER", "CLUE_CA_FILE", "CLUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object, columns: int = 120) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        return run_command(monkeypatch, capsys, *arguments)

    return call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house(tmp_path / "home", devices=0) as found:
        monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(found.config.home))
        yield found


def staged(
    home: House, devices: int, *, everyone: bool = False, **plan: Any
) -> tuple[str, list[dispatch_pb2.Assignment]]:
    """A request that two thirds of the devices have answered, one tenth is offline; the rest is at work."""
    offline = devices // 10
    add_devices(home.fleet, devices, offline=offline)
    request_id = home.fleet.order(plan=parse_plan(plan))
    found = lease(home.fleet, devices - offline)
    # Every answer is a transaction of its own: of many devices some will do.
    done = len(found) if everyone else min(len(found) * 2 // 3 or len(found), 150)
    answer_all(home.fleet, found[:done])
    for assignment in found[done:]:
        reports.report_progress(home.ledger, assignment.execution_id, assignment.node_id, "forget", 0.4)
    return request_id, found[done:]


def checked(kind: object, text: str) -> Any:
    """JSON that is exactly what json_types.py says."""
    TypeAdapter(kind).validate_json(text, strict=True)
    return json.loads(text)


# What is shown


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("devices", [1, 3, 50, 1000])
def test_every_page_fits(run: Run, home: House, devices: int, columns: int) -> None:
    request_id, _ = staged(home, devices)
    plan = ("forget", "--class", "bird", "--fleet", "yard", "--dry-run", "--canary", "5%", "--rate", "10/min")
    pages = {
        command: run(*command, columns=columns)
        for command in [
            ("request", "list"),
            ("request", "show", request_id[:8]),
            ("request", "show", request_id, "--all"),
            ("device", "list"),
            ("device", "show", "cam-0"),
            ("history", "--limit", "30"),
            ("fleet", "list"),
            ("token", "list"),
            plan,
        ]
    }
    for command, result in pages.items():
        assert result.code == 0, (command, result)
        for line in result.out.splitlines():
            assert len(line.rstrip()) <= columns, (command, line)
            assert "…" not in line, (command, line)
    assert (request_id if columns == 120 else request_id[:8]) in pages["request", "list"].out
    shown = pages["request", "show", request_id[:8]].out
    assert request_id in shown
    if devices >= 50:
        first, then = shown.split("answers, worst first")
        assert re.search(r"FAILED +\d+ +POLICY_NOT_MET: UA", first)
        assert re.search(r"REJECTED +\d+ +NO_FORGET_SAMPLES", first)
        drops = [100 - float(text) for text in re.findall(r"SUCCEEDED.*?100.0 -> ([0-9.]+)  +12", then)]
        assert drops == sorted(drops, reverse=True)
        assert f"{devices // 10} offline, asked when they are back" in shown
    assert ("--all shows every one" in shown) == (devices > 50)
    assert "shows every one" not in pages["request", "show", request_id, "--all"].out


def test_what_is_at_work_and_what_waits_for_what(run: Run, home: House) -> None:
    request_id, [asked] = staged(home, 20, canary_count=2, rate=5)
    page = run("request", "show", request_id).out
    assert "canary: the other devices wait for its answers, then 4 wave(s)" in page
    assert re.search(r"canary .* forget 40 %", page)
    answer(home.fleet, asked)
    home.fleet.tick()
    page = run("request", "show", request_id).out
    assert "wave 1 of 4" in page
    assert "aborts if failed>10%" in page
    assert re.search(r"\d+  offline, wave 4", page) or re.search(r"\d+  wave [234]", page)
    assert "deadline" in page
    assert run("request", "pause", request_id, "--comment", "storm").code == 0
    page = run("request", "show", request_id).out
    assert "IN_PROGRESS (paused)" in page or "SCHEDULED (paused)" in page
    assert f"paused: no device begins until 'request resume {request_id[:8]}'" in page
    assert "paused" in run("request", "list", columns=80).out
    one_line(run("request", "pause", request_id), 1, "is paused already")
    assert "goes on" in run("request", "resume", request_id).out
    one_line(run("request", "resume", request_id), 1, "is not paused")
    cancelled = run("request", "cancel", request_id, "--comment", "wrong class")
    assert "is cancelled" in cancelled.out
    page = run("request", "show", request_id).out
    assert "cancelled by local-admin: wrong class" in page
    one_line(run("request", "cancel", request_id), 1, "cannot be cancelled")
    one_line(run("request", "retry", request_id, "--device", "cam-99"), 2, "'cam-99'")
    history = run("history", "--request", request_id[:8]).out
    for word in ("request.paused", "storm", "request.resumed", "request.canceled", "wrong class", "local-admin"):
        assert word in history, word


def test_a_dry_run_changes_nothing_and_says_what_to_expect(run: Run, home: House) -> None:
    add_devices(home.fleet, 30, offline=3)
    before = len(home.fleet.events())
    command = ("forget", "--class", "bird", "--fleet", "yard", "--dry-run", "--canary", "2", "--rate", "10/min")
    page = run(*command, "--growth", "2", "--where", "site!=nice", "--quiet", "00:00-23:59", "--continuous").out
    assert re.search(r"canary +now +2 ", page)
    assert re.search(r"2 +1 min after the canary", page)
    assert "aborts if failed>10%" in page
    assert "offline now: asked when they are back" in page
    assert "quiet hours now" in page
    assert "come to match before the deadline" in page
    assert "nothing was changed" in page
    assert len(home.fleet.events()) == before
    assert run("request", "list").out == "no requests\n"
    one_line(run(*command, "--where", "site=="), 1, "no device of fleet 'yard' matches")
    one_line(run(*command, "--where", "site!nice"), 2, "--where", "site!nice")
    one_line(run(*command, "--device", "cam-999"), 2, "no device 'cam-999'", "did you mean")
    one_line(run(*command, "--wait"), 2, "--dry-run")


def test_a_pipe_is_never_cut(home: House) -> None:
    request_id, _ = staged(home, 20)
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    reason = "NO_FORGET_SAMPLES: this device has no image of 'bird'"
    for word, *command in (("hw=pi4 site=paris", "device", "list"), (reason, "request", "show", request_id)):
        program = [sys.executable, "-m", "clue_coordinator.cli", *command]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        assert "…" not in done.stdout
        assert word in done.stdout


def test_devices(run: Run, home: House) -> None:
    add_devices(home.fleet, 12, offline=2)
    listed = run("device", "list").out
    assert listed.index("cam-9 ") < listed.index("cam-10 ")
    assert "10 online, 2 offline" in listed
    assert "cam-11" in run("device", "list", "--offline").out
    assert "cam-0 " not in run("device", "list", "--where", "hw!=pi4").out
    labelled = run("device", "label", "cam-3", "site=oslo", "timezone=Europe/Oslo", "hw-")
    assert labelled.out == "cam-3: site=oslo timezone=Europe/Oslo\n"
    one_line(run("device", "label", "cam-3", "timezone=Mars/Olympus"), 2, "Mars/Olympus")
    one_line(run("device", "retire", "cam-99", "--yes"), 2, "no device 'cam-99'")
    one_line(run("device", "show", "cam"), 2, "no device 'cam'")
    assert run("device", "list", "--where", "site=atlantis").out == "no devices\n"
    shown = run("device", "show", "cam-3").out
    assert "device.labelled" in shown
    assert "local-admin" in shown


def test_status_says_whether_devices_are_reached(run: Run, home: House) -> None:
    request_id, _ = staged(home, 12)
    result = run("status")
    assert result.code == 1  # neither SuperLink nor dispatcher runs here
    assert "devices CANNOT connect" in result.out
    assert "11 of 12 device(s) online, 1 open request(s)" in result.out
    assert request_id[:8] in result.out
    home.service._flower.superlink_running = home.service._keeper.running = True
    result = run("status", "--json")
    assert result.code == 0
    assert checked(json_types.StatusData, result.out)["online"] == 11


# JSON


def test_documents_are_what_their_schema_says(run: Run, home: House, tmp_path: Path) -> None:
    request_id, left = staged(
        home, 30, everyone=True, canary_count=3, rate=100, abort_if=[{"state": "ANY", "share": 0.9}]
    )
    assert left == []
    home.fleet.tick()
    lease(home.fleet, 27)
    one = checked(json_types.RequestWithDevicesData, run("request", "show", request_id, "--json").out)
    assert one["request_id"] == request_id
    assert len(one["devices"]) == 30
    assert sum(one["counts"].values()) == 30
    failed = checked(
        json_types.RequestWithDevicesData, run("request", "show", request_id, "--json", "--state", "succeeded").out
    )
    assert {device["state"] for device in failed["devices"]} <= {"SUCCEEDED"}
    for kind, *command in (
        (list[json_types.RequestData], "request", "list"),
        (list[json_types.DeviceData], "device", "list"),
        (json_types.DeviceWithEventsData, "device", "show", "cam-0"),
        (list[json_types.EventData], "history"),
        (list[json_types.FleetData], "fleet", "list"),
        (json_types.FleetData, "fleet", "create", "barn"),
        (list[json_types.TokenData], "token", "list"),
        (json_types.NewTokenData, "token", "create", "ci", "--role", "viewer"),
        (json_types.NewTokenData, "token", "create", "cj", "--role", "viewer", "--out", str(tmp_path / "t")),
        (json_types.TokenData, "token", "revoke", "ci"),
        (json_types.RequestData, "request", "pause", request_id),
        (json_types.RequestData, "request", "resume", request_id),
        (json_types.RequestData, "request", "cancel", request_id),
        (json_types.RequestData, "request", "retry", request_id),
        (json_types.DeviceData, "device", "label", "cam-1", "a=b"),
        (json_types.DeviceData, "device", "retire", "cam-1", "--yes"),
    ):
        result = run(*command, "--json")
        assert result.code == 0, result
        assert checked(kind, result.out)
    dry = run("forget", "--class", "bird", "--fleet", "yard", "--dry-run", "--json", "-", "--abort-if", "any>5%")
    assert checked(json_types.PlanData, dry.out)["rollout"]["abort_if"] == [{"state": "ANY", "share": 0.05}]
    made = run("forget", "--class", "bird", "--fleet", "yard", "--json", tmp_path / "f.json")
    assert made.out.startswith("request ")
    assert checked(json_types.RequestWithDevicesData, (tmp_path / "f.json").read_text())["state"] == "SCHEDULED"


def test_the_pages_of_the_documentation_are_fresh() -> None:
    generate = Path(__file__).parents[2] / "docs" / "generate_json.py"
    done = subprocess.run([sys.executable, str(generate), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_says_which_state_may_follow_which() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \|.*\|([^|]*)\|$", guide.split("Of a request on one device:")[1], re.MULTILINE)
    said = {state: set(re.findall(r"`([A-Z_]+)`", after)) for state, after in rows}
    assert said == {old: {new for new in ExecutionState if may_follow(old, new)} for old in ExecutionState}
    rows = re.findall(r"^\| `([A-Z_]+)` \|", guide.split("Of a request:")[1].split("Of a request on")[0], re.MULTILINE)
    assert set(rows) == set(RequestState)


# Watching


def test_watching_ends_with_the_request(run: Run, home: House) -> None:
    request_id, left = staged(home, 3, everyone=True)
    assert left == []
    result = run("request", "watch", request_id[:6])
    assert result.code == 0, result
    assert "COMPLETED" in result.out
    lines = run("request", "watch", request_id, "--json").out.splitlines()
    assert [checked(json_types.RequestData, line)["state"] for line in lines] == ["COMPLETED"]
    one_line(run("request", "watch", "zzzz"), 2, "no request 'zzzz'")


def test_a_failure_is_an_exit_code(run: Run, home: House) -> None:
    add_devices(home.fleet, 1)
    request_id = home.fleet.order()
    [asked] = lease(home.fleet, 1)
    answer(home.fleet, asked, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_POLICY_NOT_MET, detail="UA 31 %")
    result = run("request", "watch", request_id)
    assert result.code == 1
    assert "POLICY_NOT_MET: UA 31 %" in result.out
    retried = run("request", "retry", request_id)
    assert "1 device(s) are asked again" in retried.out
    new_id = retried.out.split()[1].rstrip(":")
    assert f"repeats {request_id}" in run("request", "show", new_id).out


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, lines: int, columns: int, *command: str) -> None:
        main, part = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clue_coordinator.cli", *command],
            **{"stdin": part, "stdout": part, "stderr": subprocess.PIPE},
            env=environment,
            start_new_session=True,
        )
        os.close(part)
        self.text = ""
        self._main = main
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._main, 65536):
                self.text += data.decode(errors="replace")
        except OSError:
            return

    def until(self, word: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while word not in self.text:
            assert time.monotonic() < end, self.text[-3000:]
            assert self.process.poll() is None or word in self.text, self.text[-3000:]
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, err = self.process.communicate(timeout=30)
        self._reader.join(5)
        os.close(self._main)
        return self.process.returncode, err.decode()


@pytest.mark.parametrize(("lines", "columns"), [(12, 80), (24, 80), (40, 120)])
def test_the_live_view_fits_and_ctrl_c_leaves_the_request_running(home: House, lines: int, columns: int) -> None:
    request_id, left = staged(home, 50)
    assert left
    terminal = Terminal(lines, columns, "request", "watch", request_id[:8])
    terminal.until(" more")
    # A frame: from one return to the top to the next.
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in terminal.text.split("forgetting ")[1:]]
    for frame in frames:
        rows = [line.rstrip("\r") for line in frame.splitlines() if line.strip()]
        assert len(rows) < lines, frame
        assert all(len(row) <= columns for row in rows[1:])
    assert "FAILED" in terminal.text
    assert "IN_PROGRESS" in terminal.text
    terminal.process.send_signal(signal.SIGINT)
    code, err = terminal.end()
    assert code == 130
    assert "the request goes on without this window" in err
    assert f"clue-coordinator request watch {request_id}" in err
    assert home.fleet.request(request_id).state == "IN_PROGRESS"


def test_watching_survives_a_restart_of_the_coordinator(home: House) -> None:
    request_id, left = staged(home, 6)
    terminal = Terminal(24, 100, "request", "watch", request_id)
    terminal.until("IN_PROGRESS")
    home.server.close()
    terminal.until("the coordinator does not answer")
    answer_all(home.fleet, left)
    home.server = OperatorServer(home.service, home.config, home.ledger, 128)
    terminal.until("COMPLETED")
    code, _ = terminal.end()
    assert code == 0
