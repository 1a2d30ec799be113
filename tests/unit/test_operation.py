import hashlib
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from trust_house import HOUSE
from typer.testing import CliRunner

from clue.spec import ModelSpec
from clue_agent import doctor_home, doctor_machine, doctor_network, exporter, logs
from clue_agent.cli import app
from clue_agent.config import AgentConfig, config_text, load_config
from clue_agent.doctor import Finding, Level, examine, fail, healthy, ok, warn
from clue_agent.errors import AgentError, ConfigError
from clue_agent.flower import OnDemand
from clue_agent.notify import Notifier, wait
from clue_agent.observe import JournalReader
from clue_agent.once import Ending, Once
from clue_agent.sealed import KeyRing
from clue_agent.setup import save_trust
from clue_agent.status import read_status
from clue_agent.store import ModelStore
from clue_protocol.documents import Trust
from clue_protocol.envelope import RECEIPT_TYPE, sign_message
from clue_protocol.files import private_folder
from clue_protocol.keys import create_signing_key
from clue_protocol.net import free_port
from clue_protocol.process import Supervisor
from clue_protocol.v1 import forget_pb2 as pb

CLASSES = ("cat", "dog", "bird")


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """A device's home as 'init' leaves it, with a journal; nothing runs."""
    home = private_folder(tmp_path / "agent")
    for folder in ("samples", "holdout"):
        for name in CLASSES:
            (home / folder / name).mkdir(parents=True)
            for number in range(12):
                (home / folder / name / f"{number}.png").write_bytes(b"not looked at")
    config = AgentConfig(device_id="pi-1", samples=home / "samples", holdout=home / "holdout", home=home)
    (home / "agent.toml").write_text(config_text(config))
    store = ModelStore(config.store, KeyRing(config.keys))
    weights = os.urandom(5000)
    spec = ModelSpec("resnet20", CLASSES, forgotten=("bird",), weights_sha256=hashlib.sha256(weights).hexdigest())
    private_folder(config.store)
    for slot in ("a", "b"):
        store.write(slot, spec.to_json().encode(), weights)
    (config.store / "current").symlink_to("a")
    signer = create_signing_key(config.receipt_key)
    key = ec.generate_private_key(ec.SECP384R1())
    config.supernode_key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    config.supernode_key.chmod(0o600)
    with closing(sqlite3.connect(config.journal, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE job (digest BLOB PRIMARY KEY, received_at REAL NOT NULL, receipt BLOB, "
            "kind TEXT NOT NULL DEFAULT 'forget') STRICT"
        )
        for number, (outcome, measured) in enumerate(
            ((pb.OUTCOME_SUCCEEDED, True), (pb.OUTCOME_FAILED, False), (pb.OUTCOME_SUCCEEDED, False))
        ):
            receipt = pb.Receipt(request_id=f"r{number}", forget_class="bird", outcome=outcome)
            receipt.finished_at.FromSeconds(1000 + number)
            if measured:
                receipt.ua_before.CopyFrom(pb.Accuracy(correct=9, samples=10))
                receipt.ua_after.CopyFrom(pb.Accuracy(correct=0, samples=10))
                receipt.ra_after.CopyFrom(pb.Accuracy(correct=15, samples=20))
                receipt.energy.CopyFrom(pb.Energy(joules=42.5, source="pmic"))
                receipt.unlearning_seconds = 7.5
            signed = sign_message(receipt, RECEIPT_TYPE, [signer])
            db.execute(
                "INSERT INTO job (digest, received_at, receipt) VALUES (?, ?, ?)",
                (bytes([number]), float(number), signed),
            )
        db.execute("INSERT INTO job (digest, received_at, receipt) VALUES (x'99', 9.0, NULL)")
    return config


# sd_notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The service manager's end: the value of NOTIFY_SOCKET and the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        name = (
            str(tmp_path / "notify") if request.param == "path" else f"@clue-test-{os.getpid()}-{time.monotonic_ns()}"
        )
        channel.bind(name if name.startswith("/") else f"\0{name[1:]}")
        channel.settimeout(5)
        yield name, channel


def test_notifier_speaks_to_systemd_and_takes_the_variables_away(manager: tuple[str, socket.socket]) -> None:
    name, channel = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    notifier = Notifier(environment)
    assert environment == {"A": "b"}
    assert notifier.watchdog_seconds == 3.0
    notifier.ready()
    notifier.status("two\nlines")
    notifier.status("two lines")
    notifier.watchdog()
    notifier.stopping()
    said = [channel.recv(300).decode() for _ in range(4)]
    assert said == ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]


def test_the_beat_stops_with_the_health(manager: tuple[str, socket.socket]) -> None:
    name, channel = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "40000"})
    stopping, ask = threading.Event(), iter([True, True, False])

    def healthy_twice() -> bool:
        answer = next(ask, None)
        if answer is None:
            stopping.set()
            raise RuntimeError("a store that cannot be read")
        return answer

    wait(notifier, stopping, healthy_twice)
    said = [channel.recv(300).decode() for _ in range(3)]
    assert said == ["WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "junk"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_service_manager_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    notifier.ready()
    notifier.status("x")
    notifier.stopping()


# Status and journal


def test_status_reads_the_home_where_no_daemon_runs(config: AgentConfig) -> None:
    status = read_status(config)
    assert (status.running, status.device, status.fleet) == (False, "pi-1", "")
    assert (status.classes, status.forgotten) == (list(CLASSES), ["bird"])
    assert (status.unfinished, status.outcomes) == (1, {"succeeded": 2, "failed": 1, "rejected": 0})
    assert status.last is not None
    assert (status.last["request_id"], status.last["outcome"]) == ("r2", "succeeded")
    shown = CliRunner().invoke(app, ["status", "--config", str(config.home / "agent.toml")])
    assert shown.exit_code == 0
    assert "not running" in shown.stdout
    as_json = CliRunner().invoke(app, ["status", "--json", "--config", str(config.home / "agent.toml")])
    assert json.loads(as_json.stdout)["outcomes"]["failed"] == 1


def test_status_after_a_daemon_was_killed_says_not_running(config: AgentConfig) -> None:
    (config.home / "agent.socket-path").write_text(str(config.home / "agent.sock"))
    assert read_status(config).running is False


def test_the_journal_reader_changes_nothing_and_sees_what_is_added(config: AgentConfig) -> None:
    reader = JournalReader(config.journal)
    before = config.journal.read_bytes()
    assert reader.read().unfinished == 1
    assert config.journal.read_bytes() == before
    with closing(sqlite3.connect(config.journal, isolation_level=None)) as db:
        [(receipt,)] = db.execute("SELECT receipt FROM job WHERE digest = x'01'")
        db.execute("UPDATE job SET receipt = ? WHERE digest = x'99'", (receipt,))
    work = reader.read()
    assert (work.unfinished, work.outcomes["FAILED"]) == (0, 2)
    assert work.last_measured is not None
    assert work.last_measured.energy.joules == 42.5


def test_a_journal_that_is_no_database_is_an_error_of_one_line(config: AgentConfig) -> None:
    config.journal.write_bytes(b"x" * 4096)
    with pytest.raises(AgentError, match="cannot read the journal"):
        JournalReader(config.journal).read()


# Exporter


def test_metrics_follow_the_home_and_the_hold(config: AgentConfig) -> None:
    held = ["hot: 84 C"]
    serving = config.model_copy(update={"metrics_port": free_port()})
    server = exporter.serve(serving, "homecams", lambda: held[0])
    try:
        first = _scrape(serving.metrics_port)
        held[0] = ""
        config.journal.write_bytes(b"x" * 4096)
        second = _scrape(serving.metrics_port)
    finally:
        server.shutdown()
        server.server_close()
    assert first["clue_agent_jobs", ("succeeded",)] == 2
    assert first["clue_agent_jobs", ("rejected",)] == 0
    assert first["clue_agent_jobs_unfinished", ()] == 1
    assert first["clue_agent_last_ua_ratio", ("before",)] == 0.9
    assert first["clue_agent_last_ra_ratio", ("after",)] == 0.75
    assert first["clue_agent_last_energy_joules", ("pmic",)] == 42.5
    assert first["clue_agent_last_unlearning_seconds", ()] == 7.5
    assert first["clue_agent_held", ()] == 1
    assert first["clue_agent_hold_info", ("hot",)] == 1
    assert first["clue_agent_resident_memory_bytes", ("clue-agent",)] > 1e6
    assert (first["clue_agent_up", ()], second["clue_agent_up", ()]) == (1, 0)
    assert second["clue_agent_held", ()] == 0
    assert ("clue_agent_hold_info", ("hot",)) not in second


def test_a_port_in_use_is_an_error_of_one_line(config: AgentConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serving = config.model_copy(update={"metrics_port": taken.getsockname()[1]})
        with pytest.raises(AgentError, match="set another metrics_port"):
            exporter.serve(serving, "homecams", str)


def _scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, tuple(s.labels.values())): s.value for s in samples}


# Doctor


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def test_a_good_home_has_no_findings(config: AgentConfig) -> None:
    found = [finding for check in doctor_home.CHECKS for finding in check(config)]
    assert [f for f in found if f.level is not Level.OK] == []
    assert {"model slot a", "model slot b", "journal", "samples", "holdout", "disk", "receipt key"} <= set(
        levels(found)
    )


def test_without_a_holdout_folder_the_samples_are_what_is_split(config: AgentConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shared = config.model_copy(update={"samples": tmp_path / "empty", "holdout": None})
    found = [f for f in doctor_home.images(shared) if f.check == "holdout"]
    assert [f.level for f in found] == [Level.FAIL]
    assert f"{tmp_path / 'empty'}/<class>/" in found[0].advice


def test_a_home_of_an_earlier_version_is_one_line_with_the_way_out(config: AgentConfig) -> None:
    (config.home / "agent.toml").write_text('device_id = "cam-1"\nsamples = "s"\n[work]\ntimeout_seconds = 60\n')
    (config.store / "a" / "model.safetensors").write_bytes(b"in the clear")
    with pytest.raises(ConfigError, match=r"earlier version.*clue-agent init --model"):
        load_config(config.home / "agent.toml")


def test_every_damage_is_named_with_what_to_do(config: AgentConfig) -> None:
    config.receipt_key.chmod(0o644)
    config.supernode_key.write_text("not a key")
    sealed = config.store / "b" / "weights.sealed"
    sealed.write_bytes(sealed.read_bytes()[:-1] + b"x")
    raw = bytearray(config.journal.read_bytes())
    raw[100:] = os.urandom(len(raw) - 100)
    config.journal.write_bytes(raw)
    for image in (config.samples / "dog").iterdir():
        image.unlink()
    found = [finding for check in doctor_home.CHECKS for finding in check(config)]
    level = levels([f for f in found if f.level is not Level.OK])
    assert level == {
        "home": Level.FAIL,
        "receipt key": Level.FAIL,
        "supernode key": Level.FAIL,
        "model slot b": Level.WARN,
        "journal": Level.FAIL,
        "samples": Level.WARN,
    }
    assert all(f.advice for f in found if f.level is not Level.OK)


def test_a_damaged_model_in_use_fails(config: AgentConfig) -> None:
    KeyRing(config.keys).destroy((config.store / "a" / "key-id").read_text())
    level = levels(list(doctor_home.model(config)))
    assert level == {"model slot a": Level.FAIL, "model slot b": Level.OK}


def _authority(days: tuple[int, int]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clue test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now + timedelta(days[0])).not_valid_after(now + timedelta(days[1]))
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    return key, builder.sign(key, hashes.SHA256())


def _trust(certificate: x509.Certificate, port: int) -> Trust:
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Trust("yard", HOUSE.roots[0], f"localhost:{port}", pem)


@pytest.mark.parametrize(
    ("days", "check", "level"),
    [
        ((-10, 365), "certificate authority", Level.OK),
        ((-10, 9), "certificate authority", Level.WARN),
        ((-10, -1), "certificate authority", Level.FAIL),
        ((10, 20), "clock", Level.FAIL),
    ],
)
def test_certificate_expiry_and_clock(days: tuple[int, int], check: str, level: Level) -> None:
    assert levels(list(doctor_network.certificate_authority(_trust(_authority(days)[1], 1)))) == {check: level}


def test_superlink_over_real_tls(tmp_path: Path) -> None:
    key, certificate = _authority((-10, 365))
    _, stranger = _authority((-10, 365))
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            for _ in range(2):
                channel, _ = server.accept()
                try:
                    context.wrap_socket(channel, server_side=True).close()
                except OSError:
                    channel.close()

        thread = threading.Thread(target=answer)
        thread.start()
        good = levels(list(doctor_network.superlink(_trust(certificate, port))))
        [bad] = doctor_network.superlink(_trust(stranger, port))
        thread.join(5)
    assert good == {"superlink": Level.OK, "superlink certificate": Level.OK}
    assert bad.level is Level.FAIL
    assert "does not hold" in bad.detail
    [nobody] = doctor_network.superlink(_trust(certificate, free_port()))
    assert nobody.level is Level.FAIL
    assert "cannot connect" in nobody.detail


def test_machine_checks_read_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    monkeypatch.setattr(doctor_machine, "_THERMAL", tmp_path)
    (zone / "temp").write_text("85100\n")
    [hot] = doctor_machine.temperature()
    assert (hot.level, "85 C" in hot.detail) == (Level.WARN, True)
    (zone / "temp").write_text("45100\n")
    assert next(iter(doctor_machine.temperature())).level is Level.OK
    program = tmp_path / "vcgencmd"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for answer, level, word in (
        ("throttled=0x0", Level.OK, "no under-voltage"),
        ("throttled=0x50005", Level.WARN, "now: under-voltage, throttled"),
        ("throttled=0x20000", Level.WARN, "since the start: frequency capped"),
        ("nonsense", Level.WARN, "nonsense"),
    ):
        program.write_text(f"#!/bin/sh\necho {answer}\n")
        program.chmod(0o755)
        [finding] = doctor_machine.power_supply()
        assert (finding.level, word in finding.detail) == (level, True)


def test_doctor_command(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "CHECKS", (doctor_machine.system, doctor_machine.energy_meter))
    path = str(config.home / "agent.toml")
    without_trust = CliRunner().invoke(app, ["doctor", "--json", "--config", path])
    assert without_trust.exit_code == 1
    found = {finding["check"]: finding for finding in json.loads(without_trust.stdout)}
    assert found["trust"]["level"] == "fail"
    assert found["trust"]["advice"]
    assert found["energy meter"]["level"] == "ok"
    trust = _trust(_authority((-10, 365))[1], free_port())
    save_trust(config, trust.to_json())
    good = CliRunner().invoke(app, ["doctor", "--offline", "--config", path])
    assert good.exit_code == 0, good.stdout
    assert "warn" not in good.stdout
    assert CliRunner().invoke(app, ["doctor", "--config", path]).exit_code == 1  # nobody listens there


def test_doctor_without_a_home_still_looks_at_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble() -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/sys/x")
        yield ok("never", "")

    monkeypatch.setattr(doctor_machine, "CHECKS", (stumble, doctor_machine.system))
    found = levels(examine(tmp_path / "agent.toml"))
    assert found == {"config": Level.FAIL, "stumble": Level.FAIL, "system": Level.OK}


@given(st.lists(st.sampled_from([ok("a", "b"), warn("a", "b", "c"), fail("a", "b", "c")])))
def test_only_a_failure_is_unhealthy(findings: list[Finding]) -> None:
    assert healthy(findings) == (not any(f.level is Level.FAIL for f in findings))


def test_the_commands_bring_no_torch() -> None:
    code = "import clue_agent.cli, clue_agent.doctor_machine, clue_agent.status, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Logs


def test_logs_are_shown_without_secrets(tmp_path: Path) -> None:
    secret = "AAAAC3NzaC1lZDI1NTE5AAAAIJ5vd0X7y4mKTmYh2lCyNfPzXz8x"
    body = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secret}\n{secret}=\n-----END OPENSSH PRIVATE KEY-----\n"
    (tmp_path / "supernode.log").write_text(f"old\nstarted\n{body}FLWR_TOKEN=hunter2 port=1\n\x1b[92mINFO\x1b[0m: x\n")
    (tmp_path / "worker.log").write_text("one\n")
    (tmp_path / "worker.log.1").write_text("rotated\n")
    shown = list(logs.show(tmp_path, 7))
    assert shown == [
        "supernode: started",
        "supernode: [private key removed]",
        "supernode: [private key removed]",
        "supernode: FLWR_TOKEN=[removed] port=1",
        "supernode: INFO: x",
        "worker: one",
    ]


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=60))
def test_other_lines_are_shown_as_they_are(text: str) -> None:
    line = text.replace("\n", " ").replace("=", "-").replace(":", "-")
    assert list(logs._blank([line])) == [line]


def test_following_survives_rotation_and_new_files(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    log.write_text("before\n")
    lines = logs.follow(tmp_path, wait_seconds=0.0)
    assert next(lines) == ""
    with log.open("a") as stream:
        stream.write("a\nhalf")
    assert next(lines) == "supernode: a"
    with log.open("a") as stream:
        stream.write(" done\n")
    assert [line for line in (next(lines), next(lines), next(lines)) if line] == ["supernode: half done"]
    log.rename(tmp_path / "supernode.log.1")
    log.write_text("new file\n")
    (tmp_path / "worker.log").write_text("w\n")
    assert sorted(line for line in (next(lines), next(lines), next(lines), next(lines)) if line) == [
        "supernode: new file",
        "worker: w",
    ]


# run-once


def _once(unfinished: list[int], active_at: list[float], quiet: float, limit: float) -> tuple[Once, float]:
    """Run the watch on a clock that moves one second a look; returns it and when it ended."""
    now = [0.0]
    once = Once(quiet, limit, clock=lambda: now[0], poll_seconds=0.0)
    stopping = threading.Event()

    def jobs() -> int:
        now[0] += 1.0
        return unfinished.pop(0) if unfinished else 0

    def activity() -> float:
        return max((at for at in active_at if at <= now[0]), default=float("-inf"))

    once.watch(jobs, activity, stopping)
    assert stopping.is_set()
    return once, now[0]


def test_run_once_ends_when_quiet() -> None:
    once, ended = _once([0] * 5 + [1] * 20, [3.0], 10.0, 100.0)
    assert (once.ending, once.unfinished) == (Ending.IDLE, 0)
    assert 33 <= ended <= 36  # the last busy look was at 25


def test_run_once_ends_in_time_with_work_left() -> None:
    once, ended = _once([2] * 1000, [], 10.0, 30.0)
    assert (once.ending, once.unfinished) == (Ending.OUT_OF_TIME, 2)
    assert ended <= 32


def test_run_once_ends_with_the_daemon() -> None:
    once = Once(60.0, 600.0)
    stopping = threading.Event()
    stopping.set()
    once.watch(lambda: 0, time.monotonic, stopping)
    assert once.ending is Ending.STOPPED


# The SuperExec on demand


def _sleeper(tmp_path: Path, code: str) -> OnDemand:
    def make() -> Supervisor:
        return Supervisor("sleeper", lambda: [sys.executable, "-c", code], os.environ, tmp_path / "sleeper.log")

    return OnDemand(make, 1.0)


def _until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_on_demand_starts_when_woken_and_ends_when_forgotten(tmp_path: Path) -> None:
    process = _sleeper(tmp_path, "import time; time.sleep(60)")
    process.start()
    try:
        time.sleep(0.1)
        assert process.pid is None
        process.wake()
        assert _until(lambda: process.pid is not None)
        first = process.pid
        process.restart()
        process.wake()
        assert _until(lambda: process.pid not in (None, first))
        assert _until(lambda: process.pid is None)
    finally:
        process.close()


def test_on_demand_waits_for_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(2.5)']); input()"
    process = _sleeper(tmp_path, f"import time\n{code.replace('input()', 'time.sleep(60)')}")
    process.start()
    try:
        process.wake()
        assert _until(process.busy)
        started = time.monotonic()
        pid = process.pid
        assert pid is not None
        assert _until(lambda: not psutil.pid_exists(pid))
        assert time.monotonic() - started > 1.5  # longer than the linger
    finally:
        process.close()
