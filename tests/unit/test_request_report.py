"""``clue-coordinator report``: what the devices signed, on a page that stands alone, for any size of fleet."""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import html_page
import pytest
from command_line import Result, run_command
from operator_server import House, house
from staged_fleet import add_devices, answer, answer_all, lease
from test_coordinator_cli import one_line

from clue.report import render
from clue_coordinator import requests
from clue_coordinator.plan import parse_plan
from clue_coordinator.request_report import Gathered, request_page
from clue_coordinator.request_report._gather import DeviceAnswer
from clue_coordinator.roles import Role
from clue_coordinator.views import stamp
from clue_protocol.v1 import forget_pb2 as pb
from clue_protocol.v1 import operator_pb2

Run = Callable[..., Result]
EVIL = "<img src=http:x onerror=alert(1)></td>&amp; $x$ \x01"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house(tmp_path / "home", devices=0) as found:
        monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(found.config.home))
        monkeypatch.chdir(tmp_path)
        yield found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in ("CLUE_SERVER", "CLUE_CA_FILE", "CLUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: run_command(monkeypatch, capsys, *arguments)


def table(page: html_page.Reader, caption: str) -> html_page.Table:
    [found] = [table for table in page.tables if table.caption.startswith(caption)]
    return found


def test_a_small_fleet(run: Run, home: House, tmp_path: Path) -> None:
    add_devices(home.fleet, 9, offline=1)
    request_id = home.fleet.order(plan=parse_plan({}), created_by="anna")
    first, second, third, *rest = lease(home.fleet, 8)
    erased = pb.Erasure(samples=40, originals=2, old_model=True, detail=EVIL)
    energy = pb.Energy(joules=33.0, source="estimated")
    answer(home.fleet, first, erasure=erased, energy=energy, latency_seconds=7.25, peak_memory_bytes=200 * 2**20)
    answer(home.fleet, second, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_POLICY_NOT_MET, detail=EVIL)
    answer(home.fleet, third, ra_before=pb.Accuracy(correct=190, samples=200), erasure=erased)
    answer_all(home.fleet, rest)
    requests.pause_request(home.ledger, request_id, "a look first")

    out = tmp_path / "r.html"
    assert run("report", request_id[:8], "--out", out) == (0, f"report: {out}\n", "")
    text = out.read_text(encoding="utf-8")
    page = html_page.read(text)
    assert "onerror=alert" not in text.replace("&lt;img src=http:x onerror=alert", "")

    rows = {row[0]: row for row in table(page, "What every device answered").rows}
    assert len(rows) == 9
    assert rows["cam-0"][1:] == [
        *("succeeded", "90.0 → 10.0", "100.0 → 99.5", "0.5", "7.2", "33 est.", "200", "1", "verified"),
    ]
    assert rows["cam-2"][3:5] == ["95.0 → 99.5", "-4.5"]
    assert rows["cam-1"][1] == "failed"
    assert rows["cam-8"][1:] == ["queued", *["-"] * 6, "1", "none yet"]
    assert next(iter(rows)) == "cam-1"  # what went wrong comes first
    [failed, rejected] = sorted(table(page, "Devices that did not").rows)
    assert failed == ["failed", "POLICY_NOT_MET", "1", " ".join(EVIL.split()), "cam-1"]
    assert rejected[0:3] == ["rejected", "NO_FORGET_SAMPLES", "1"]
    said = "".join(page.text)
    assert "anna asked 9 devices of yard to forget “bird”. So far 6 of 9" in said
    assert "1 device is still open" in said
    assert "2 devices erased together 80 sealed images of the class and 4 original files" in said
    assert "2 devices destroyed the key of the model" in said
    energies = dict(zip(("rapl", "estimated"), table(page, "Where the energy").rows, strict=True))
    assert energies["rapl"] == ["rapl", "7", "465.5 J"]
    assert energies["estimated"] == ["estimated", "1", "33.0 J"]
    history = table(page, "History")
    assert [row[2] for row in history.rows] == ["request.created", "request.paused"]
    assert history.rows[1][4] == "a look first"
    assert {row[0] for row in table(page, "Waves").rows} == {"wave 1"}
    assert len(page.alternatives) == 4


def test_from_elsewhere_and_by_default(run: Run, home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_devices(home.fleet, 2)
    request_id = home.fleet.order()
    answer_all(home.fleet, lease(home.fleet, 2))
    token = tmp_path / "token"
    token.write_text(home.token(Role.VIEWER))
    monkeypatch.delenv("CLUE_COORDINATOR_HOME")
    where = ("--server", home.config.operator_address, "--ca", home.config.pki / "ca.pem", "--token-file", token)
    name = f"report-{request_id[:8]}.html"
    assert run(*where, "report", request_id) == (0, f"report: {name}\n", "")
    page = html_page.read((tmp_path / name).read_text())
    said = "".join(page.text)
    assert "All 2 have forgotten it" in said
    assert "No device failed, refused or ran out of time." in said
    assert "All 2 receipts carry a valid signature" in said


def test_nothing_answered_yet(run: Run, home: House, tmp_path: Path) -> None:
    add_devices(home.fleet, 2, offline=2)
    request_id = home.fleet.order()
    assert run("report", request_id, "--out", "r.html").code == 0
    assert "No device has measured its accuracy yet." in (tmp_path / "r.html").read_text()
    html_page.read((tmp_path / "r.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("report", "abcdef"), 2, "no request"),
        (("report", "abcdef", "--out", "r.txt"), 2, ".html"),
        (("report", "abcdef", "--out", "no/r.html"), 2, "folder does not exist"),
    ],
)
def test_wrong_input(run: Run, home: House, arguments: tuple[str, ...], code: int, words: str) -> None:
    one_line(run(*arguments), code, words)
    assert not list(Path.cwd().glob("*.html"))


def test_without_the_libraries(run: Run, home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    one_line(run("report", "abcdef"), 1, "pip install")


def large(devices: int) -> Gathered:
    found = []
    for index in range(devices):
        state = "FAILED" if index % 50 == 0 else "QUEUED" if index % 50 == 1 else "SUCCEEDED"
        receipt = pb.Receipt(
            ua_before=pb.Accuracy(correct=90, samples=100),
            ua_after=pb.Accuracy(correct=index % 8, samples=100),
            ra_before=pb.Accuracy(correct=190, samples=200),
            ra_after=pb.Accuracy(correct=190 - index % 9, samples=200),
            latency_seconds=20 + index % 40,
            energy=pb.Energy(joules=100 + index % 70, source="pmic" if index % 2 else "estimated"),
            peak_memory_bytes=(300 + index % 50) * 2**20,
        )
        open_ = state == "QUEUED"
        found.append(
            DeviceAnswer(
                name=f"cam-{index}", state=state, reason=f"R{index % 3}" if state == "FAILED" else "", detail="",
                wave=index // 500, attempts=1, patched=False, began=None if open_ else index * 0.3,
                ended=None if open_ else index * 0.3 + 50, receipt=None if open_ else receipt, verified=not open_,
            )
        )  # fmt: skip
    view = operator_pb2.RequestView(request_id="x" * 36, fleet="yard", forget_class="bird", state=2)
    view.created_at.CopyFrom(stamp(1_700_000_000.0))
    return Gathered(view, found, [], datetime.fromtimestamp(1_700_004_000, UTC), "0.1.0", Counter({"a": 30_000}))


def test_ten_thousand_devices() -> None:
    found = large(10_000)
    began = time.process_time()
    text = render(request_page(found))
    assert time.process_time() - began < 20
    assert len(text.encode()) < 1_000_000
    page = html_page.read(text)
    devices = table(page, "What every device answered")
    assert len(devices.rows) == 200
    assert "9,800 further devices are left out" in "".join(page.text)
    assert all(row[1] == "failed" for row in devices.rows)
    drops = [d.ra_drop for d in found.devices if d.ra_drop is not None]
    lost = next(row for row in page.tables[1].rows if row[0] == "RA lost, points")
    assert lost[1:] == ["0.0", f"{statistics.median(drops):.1f}", "4.0", f"{max(drops):.1f}", "9,800"]
    assert sum(int(row[2].replace(",", "")) for row in table(page, "Devices that did not").rows) == 200
    assert "30,000 further entries are left out" in "".join(page.text)
