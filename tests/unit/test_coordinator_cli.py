"""``clue-coordinator``: errors are one line, exit codes are 1 and 2, nobody sees a traceback."""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Result, run_command

import clue
from clue_coordinator.cli_values import parse_settings
from clue_coordinator.config import load_config
from clue_coordinator.demo._processes import on_free_ports
from clue_coordinator.errors import ConfigError
from clue_protocol.files import HomeLock

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        return run_command(monkeypatch, capsys, *arguments)

    return call


def one_line(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.err.startswith("clue-coordinator: "), result
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


@pytest.fixture
def home(run: Run, tmp_path: Path) -> Path:
    """An installation whose coordinator does not run, on ports that nobody uses."""
    result = run("init", *on_free_ports())
    assert result.code == 0, result
    return tmp_path / "home"


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"{clue.__version__}\n", "")
    assert run("--help").code == 0


def test_console_of_a_coordinator_that_does_not_run(run: Run, home: Path) -> None:
    one_line(run("console"), 1, "is not running")
    settings = home / "coordinator.toml"
    settings.write_text(re.sub(r"(?m)^console_port = .*$", "console_port = 0", settings.read_text()))
    one_line(run("console"), 1, "switched off", "console_port")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--console-port", "9464"), ("ports must differ",)),
        (("--console-listen", "everywhere"), ("--console-listen", "IP address", "everywhere")),
    ],
)
def test_init_refuses_a_console_that_cannot_be(run: Run, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    one_line(run("init", *options), 2, *words)


def test_init_makes_a_private_home(home: Path) -> None:
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for secret in ("request-key.pem", "operator.token", "pki/ca-key.pem", "pki/server-key.pem"):
        assert stat.S_IMODE((home / secret).stat().st_mode) == 0o600, secret
    config = load_config(home)
    assert config.home == home
    assert config.superlink_address.startswith("127.0.0.1:")


def test_init_never_overwrites(run: Run, home: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    one_line(run("init"), 1, "already holds a coordinator")
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep")
    one_line(run("init", "--home", other), 1, "not empty")
    assert [p.name for p in other.iterdir()] == ["mine.txt"]


def test_init_leaves_nothing_behind_when_it_fails(run: Run, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file, no folder")
    one_line(run("init", "--home", blocker / "home"), 1, "cannot write")
    one_line(run("init", "--home", blocker), 1, "cannot use", "Not a directory")
    assert blocker.read_text() == "a file, no folder"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_bad_ports(run: Run, port: str, tmp_path: Path) -> None:
    result = run("init", "--superlink-port", port)
    assert result.code == 2
    assert "--superlink-port" in result.err
    assert not (tmp_path / "home").exists()


def test_ports_must_differ(run: Run, tmp_path: Path) -> None:
    one_line(run("init", "--superlink-port", 9464), 2, "ports must differ")
    assert not (tmp_path / "home").exists()


COMMANDS: list[tuple[str, ...]] = [
    ("forget", "--class", "bird", "--fleet", "yard"),
    ("fleet", "create", "yard"),
    ("fleet", "list"),
    ("device", "list", "--json"),
    ("request", "show", "r-1"),
    ("request", "list"),
    ("request", "watch", "r-1"),
    ("request", "pause", "r-1"),
    ("request", "resume", "r-1"),
    ("request", "cancel", "r-1"),
    ("request", "retry", "r-1", "--wait"),
    ("device", "show", "cam-1"),
    ("device", "label", "cam-1", "a=b"),
    ("device", "retire", "cam-1", "--yes"),
    ("history",),
    ("status",),
    ("token", "list"),
    ("forget", "--class", "bird", "--fleet", "yard", "--dry-run"),
]


@pytest.mark.parametrize("command", [*COMMANDS, ("serve",)])
def test_not_initialised(run: Run, command: tuple[str, ...], tmp_path: Path) -> None:
    one_line(run(*command), 1, str(tmp_path / "home"), "clue-coordinator init")


@pytest.mark.parametrize("command", COMMANDS)
def test_not_running(run: Run, home: Path, command: tuple[str, ...]) -> None:
    one_line(run(*command), 1, str(home), "not running", "clue-coordinator serve")


@pytest.mark.parametrize("setting", ["epochs", "=1", "", "="])
def test_bad_settings(run: Run, home: Path, setting: str) -> None:
    one_line(run(*COMMANDS[0], "--set", setting), 2, "--set takes name=value", f"'{setting}'")


def test_settings_are_json_or_text() -> None:
    text = parse_settings(["epochs=3", "lr=0.5", "on=true", "name=sgd", "text=a=b"])
    assert json.loads(text) == {"epochs": 3, "lr": 0.5, "on": True, "name": "sgd", "text": "a=b"}
    assert parse_settings([]) == ""


@pytest.mark.parametrize(
    "option",
    [
        ("--max-ua", "1.5"),
        ("--max-ra-drop", "-1"),
        ("--seed", "-1"),
        ("--seed", "18446744073709551616"),
        ("--growth", "0.5"),
        ("--attempts", "0"),
        ("--attempts", "many"),
        ("--after", "-1"),
        ("--min-updates", "0"),
        ("--deadline", "0"),
        ("--deadline", "soon"),
        ("--timeout", "5"),
        ("--backoff", "-1m"),
        ("--canary", "0"),
        ("--canary", "101%"),
        ("--rate", "50"),
        ("--rate", "0/min"),
        ("--rate", "5/year"),
        ("--quiet", "25:00-06:00"),
        ("--quiet", "06:00-06:00"),
        ("--abort-if", "failed>100%"),
        ("--abort-if", "succeeded>10%"),
        ("--without-samples", "ignore"),
        ("--colour", "red"),
    ],
)
def test_options_out_of_range(run: Run, home: Path, option: tuple[str, str]) -> None:
    one_line(run(*COMMANDS[0], *option), 2, option[0])


def test_missing_options_and_unknown_commands(run: Run) -> None:
    one_line(run("forget", "--class", "bird"), 2, "'--fleet'", "clue-coordinator forget --help")
    one_line(run("forgit"), 2, "'forgit'", "Did you mean 'forget'? see 'clue-coordinator --help'")
    one_line(run("fleet", "list", "yard"), 2, "yard", "clue-coordinator fleet list --help")
    one_line(run("request", "list", "--limit", "0"), 2, "--limit")
    one_line(run("request", "list", "--state", "done"), 2, "--state", "'done'", "completed")
    one_line(run("request", "show", "abcd", "--state", "done"), 2, "--state", "timed_out")
    one_line(run("device", "label", "cam-1", "site"), 2, "key=value", "'site'")
    assert run("fleet").code == 2


def test_device_add_checks_its_files_first(run: Run, home: Path, tmp_path: Path) -> None:
    document = tmp_path / "enrolment.json"
    add = ("device", "add", document, "--fleet", "yard", "--out")
    one_line(run(*add, tmp_path / "trust.json"), 2, "cannot read", "No such file")
    document.write_bytes(b"\xff\xfe")
    one_line(run(*add, tmp_path / "trust.json"), 2, "cannot read")
    document.write_text("{}")
    one_line(run(*add, tmp_path / "none" / "trust.json"), 2, "is not a folder")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hosts = [", "not valid TOML"),
        ("hosts = []", "hosts"),
        ("superlink_port = 0", "superlink_port"),
        ("colour = 'red'", "colour"),
        ("\xff", "not valid TOML"),
    ],
)
def test_a_damaged_configuration(run: Run, home: Path, text: str, problem: str) -> None:
    (home / "coordinator.toml").write_bytes(text.encode("latin-1"))
    one_line(run("fleet", "list"), 1, "coordinator.toml", problem)
    with pytest.raises(ConfigError):
        load_config(home)


def test_backup_and_restore(run: Run, home: Path, tmp_path: Path) -> None:
    assert (home / "ledger.sqlite").is_file()
    assert stat.S_IMODE((home / "coordinator.toml").stat().st_mode) == 0o600
    out = tmp_path / "ledger.backup"
    result = run("backup", "--out", out)
    assert result.code == 0, result
    assert "sha256" in result.out
    one_line(run("backup", "--out", out), 1, "exists already")
    one_line(run("backup", "--out", tmp_path / "none" / "b"), 1, "is not a folder")
    assert run("restore", out).code == 0
    one_line(run("restore", out), 1, "--force")  # the history says that it was restored
    assert run("restore", out, "--force").code == 0
    lock = HomeLock(home)
    lock.acquire()
    one_line(run("restore", out, "--force"), 1, "stop it first")
    lock.release()
    one_line(run("restore", home / "operator.token", "--force"), 1, "not a backup")
    (home / "ledger.sqlite").write_bytes(b"\x80 not what it should be")
    one_line(run("restore", out, "--force"), 1, "ledger.sqlite")
    (home / "ledger.sqlite").unlink()
    one_line(run("backup", "--out", tmp_path / "b"), 1, "there is no ledger")
    assert run("restore", out).code == 0


def test_init_refuses_a_ledger_it_cannot_use(run: Run, tmp_path: Path) -> None:
    one_line(run("init", "--ledger-url", "mysql://u:secret@h/d"), 1, "[ledger] url", "postgresql+psycopg")
    result = run("init", "--ledger-url", "postgresql+psycopg://u:secret@127.0.0.1:1/d")
    one_line(result, 1, "cannot use the ledger")
    assert "secret" not in result.err
    assert not (tmp_path / "home").exists()


def test_lost_credentials(run: Run, home: Path) -> None:
    (home / "operator.token").unlink()
    one_line(run("fleet", "list"), 1, "credentials")


def test_demo_arguments(run: Run) -> None:
    one_line(run("demo", "--data", "imagenet"), 2, "digits or cifar10")
    assert run("demo", "--devices", 0).code == 2
