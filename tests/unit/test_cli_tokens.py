"""``clue-coordinator token``, and commands that go to a coordinator elsewhere."""

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command_line import Result, run_command
from cryptography import x509
from operator_server import House, house
from sqlalchemy import delete
from test_coordinator_cli import one_line

from clue_coordinator import daemon, tokens
from clue_coordinator.config import CoordinatorConfig, load_config
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Token
from clue_coordinator.pki import create_pki, uncovered
from clue_protocol.files import HomeLock

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("CLUE_SERVER", "CLUE_CA_FILE", "CLUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Result:
        return run_command(monkeypatch, capsys, *arguments)

    return call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[House]:
    with house(tmp_path / "home") as found:
        monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(found.config.home))
        yield found


def remote(home: House, token_file: Path) -> tuple[object, ...]:
    return (
        *("--server", f"localhost:{home.config.operator_port}"),
        *("--ca", home.config.pki / "ca.pem", "--token-file", token_file),
    )


# Tokens


def test_create_list_revoke(run: Run, home: House, tmp_path: Path) -> None:
    made = run("token", "create", "ci", "--role", "operator", "--expires", "30d")
    assert made.code == 0, made
    secret = made.out.strip()
    assert len(secret) == 43
    assert "'ci' is an operator" in made.err
    out = tmp_path / "viewer.token"
    made = run("token", "create", "dashboard", "--role", "viewer", "--out", out)
    assert made.code == 0, made
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert tokens.is_usable(home.ledger, out.read_text().strip())
    assert out.read_text().strip() not in made.out + made.err

    listed = run("token", "list", "--json")
    assert secret not in listed.out
    rows = {row["name"]: row for row in json.loads(listed.out)}
    assert list(rows) == ["ci", "dashboard", "local-admin"]
    assert rows["ci"]["role"] == "operator"
    assert rows["ci"]["created_by"] == "local-admin"
    assert rows["ci"]["expires_at"] is not None
    assert rows["dashboard"]["expires_at"] is None
    assert {row["state"] for row in rows.values()} == {"active"}

    assert run("token", "revoke", "ci") == (0, "token 'ci' is revoked\n", "")
    assert run("token", "revoke", "ci").code == 0
    [row] = [row for row in json.loads(run("token", "list", "--json").out) if row["name"] == "ci"]
    assert row["state"] == "revoked"
    assert "revoked" in run("token", "list").out
    one_line(run("token", "revoke", "local-admin"), 1, "last usable admin token", "make another")
    one_line(run("token", "revoke", "nobody"), 2, "no token 'nobody'")
    one_line(run("token", "create", "ci", "--role", "viewer"), 1, "'ci'", "choose another name")


def test_a_token_that_cannot_be_kept_is_not_made(run: Run, home: House, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    create = ("token", "create", "x", "--role", "viewer")
    one_line(run(*create, "--out", tmp_path / "there"), 2, "exists already")
    one_line(run(*create, "--out", tmp_path / "none" / "file"), 2, "is not a folder")
    one_line(run(*create, "--expires", "soon"), 2, "--expires", "'soon' is no time")
    one_line(run(*create, "--expires", "20000d"), 2, "1 minute to 10 years")
    one_line(run("token", "create", "a b", "--role", "viewer", "--out", tmp_path / "new"), 2, "token name")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").read_text() == "mine"
    one_line(run(*create, "--expires", "0d"), 2, "--expires", "'0d' is no time")
    one_line(run("token", "create", "x", "--role", "boss"), 2, "--role", "'boss'", "token create --help")
    assert [token.name for token in tokens.list_tokens(home.ledger)] == ["local-admin"]


# From elsewhere


def test_commands_go_to_another_machine(run: Run, home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_file = tmp_path / "ops.token"
    assert run("token", "create", "ops", "--role", "operator", "--out", token_file).code == 0
    monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(tmp_path / "none"))
    one_line(run("fleet", "list"), 1, "clue-coordinator init")
    assert "yard" in run(*remote(home, token_file), "fleet", "list").out
    one_line(run(*remote(home, token_file), "token", "list"), 1, "needs the role admin", "'ops' is an operator")
    # The same from the environment.
    _, server, _, ca, _, token = remote(home, token_file)
    for name, value in (("CLUE_SERVER", server), ("CLUE_CA_FILE", ca), ("CLUE_TOKEN_FILE", token)):
        monkeypatch.setenv(name, str(value))
    assert "yard" in run("fleet", "list").out
    made = run("forget", "--class", "bird", "--fleet", "yard", "--json", "-")
    assert home.fleet.request(json.loads(made.out)["request_id"]).created_by == "ops"
    # What is nearer wins.
    assert run("token", "list", "--home", home.config.home).code == 0


def test_another_token_at_home(run: Run, home: House, tmp_path: Path) -> None:
    token_file = tmp_path / "viewer.token"
    assert run("token", "create", "eye", "--role", "viewer", "--out", token_file).code == 0
    assert run("--token-file", token_file, "fleet", "list").code == 0
    one_line(run("--token-file", token_file, "fleet", "create", "barn"), 1, "needs the role admin", "'eye' is a viewer")


def test_wrong_ways_to_another_machine(run: Run, home: House, tmp_path: Path) -> None:
    good = home.config.operator_token
    everything = remote(home, good)
    for server in ("localhost", "localhost:0", "localhost:99999", "https://x:1", ":9443", "a b:1"):
        one_line(run("--server", server, *everything[2:], "fleet", "list"), 2, "HOST:PORT", f"'{server}'")
    one_line(run(*everything[:4], "fleet", "list"), 2, "--token-file", "CLUE_TOKEN_FILE")
    one_line(run(*everything[:2], *everything[4:], "fleet", "list"), 2, "--ca", "CLUE_CA_FILE")
    one_line(run(*everything, "fleet", "list", "--home", home.config.home), 2, "--server and --home")
    one_line(run(*remote(home, tmp_path / "none"), "fleet", "list"), 2, "cannot read", "none")
    (tmp_path / "two").write_text("one two")
    one_line(run(*remote(home, tmp_path / "two"), "fleet", "list"), 1, "holds no token")
    one_line(run(*everything[:2], "--ca", good, *everything[4:], "fleet", "list"), 2, "no PEM certificate")
    (tmp_path / "wrong").write_text("wrong" * 9)
    one_line(run(*remote(home, tmp_path / "wrong"), "fleet", "list"), 1, "token is not valid")
    create_pki(tmp_path / "pki", ["127.0.0.1"])
    stranger = ("--ca", tmp_path / "pki" / "ca.pem")
    one_line(
        run(*everything[:2], *stranger, *everything[4:], "fleet", "list"), 1, "certificate is of another authority"
    )
    elsewhere = f"127.0.0.2:{home.config.operator_port}"
    one_line(run("--server", elsewhere, *everything[2:], "fleet", "list"), 1, "cannot reach a coordinator", elsewhere)


def test_a_name_that_is_not_in_the_certificate(run: Run, tmp_path: Path) -> None:
    with house(tmp_path / "home", operator_listen="127.0.0.2", listen_on="0.0.0.0") as home:  # noqa: S104
        port = home.config.operator_port
        everything = ("--ca", home.config.pki / "ca.pem", "--token-file", home.config.operator_token, "fleet", "list")
        for host in ("127.0.0.1", "127.0.0.2", "localhost"):
            assert run("--server", f"{host}:{port}", *everything).code == 0, host
        one_line(run("--server", f"127.0.0.3:{port}", *everything), 1, "does not name that host")


# The home's own token


def test_init_makes_an_admin_token(run: Run, home: House) -> None:
    [token] = tokens.list_tokens(home.ledger)
    assert (token.name, token.role, token.created_by) == ("local-admin", "admin", "local")
    assert token.digest == tokens.digest_of(home.config.operator_token.read_text().strip())


def test_a_home_of_before_there_were_tokens_is_adopted_once(tmp_path: Path) -> None:
    secret = "the-only-token-of-a-former-home"
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        daemon._adopt(ledger, secret)
        assert tokens.is_usable(ledger, secret)
        daemon._adopt(ledger, secret)
        daemon._adopt(ledger, "another-token-put-into-the-file")
        assert [token.name for token in tokens.list_tokens(ledger)] == ["local-admin"]
        assert not tokens.is_usable(ledger, "another-token-put-into-the-file")


def test_recover(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "h"
    assert run("init", "--home", home).code == 0
    lock = HomeLock(home)
    lock.acquire()
    one_line(run("token", "recover", "--home", home), 1, "stop it first")
    lock.release()
    (home / "operator.token").unlink()
    result = run("token", "recover", "--home", home)
    assert result.code == 0, result
    assert "local-admin-2" in result.out
    assert stat.S_IMODE((home / "operator.token").stat().st_mode) == 0o600
    with closing(Ledger(load_config(home).ledger_place)) as ledger:
        assert tokens.is_usable(ledger, (home / "operator.token").read_text().strip())
    one_line(run("token", "recover", "--home", tmp_path / "none"), 1, "clue-coordinator init")


def test_a_restored_ledger_that_does_not_know_the_home(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for home in (one, two):
        assert run("init", "--home", home).code == 0
    assert run("backup", "--out", tmp_path / "b", "--home", one).code == 0
    # A home that was only just made has nothing to lose.
    restored = run("restore", tmp_path / "b", "--home", two)
    assert restored.code == 0, restored
    assert "token recover" in restored.out
    assert "token recover" not in run("restore", tmp_path / "b", "--home", one).out
    with closing(Ledger(load_config(one).ledger_place)) as ledger, ledger.write() as session:
        session.execute(delete(Token))
    # Without any token the home's own will be adopted.
    assert run("backup", "--out", tmp_path / "c", "--home", one).code == 0
    assert "token recover" not in run("restore", tmp_path / "c", "--home", two, "--force").out


# Where it listens


def test_operator_listen(run: Run, tmp_path: Path) -> None:
    one_line(run("init", "--operator-listen", "cams.example.org"), 2, "IP address", "cams.example.org")
    assert not (tmp_path / "none").exists()
    done = run("init", "--host", "cams.example.org", "--host", "192.0.2.7", "--operator-listen", "0.0.0.0")  # noqa: S104
    assert done.code == 0, done
    config = load_config(tmp_path / "none")
    assert config.operator_listen_address == "0.0.0.0:9443"
    assert config.operator_address == "127.0.0.1:9443"
    certificate = x509.load_pem_x509_certificate((config.pki / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cams.example.org", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1"]
    assert uncovered(config.pki, config.certificate_hosts) == []
    assert uncovered(config.pki, ["127.0.0.1", "198.51.100.1", "other.example.org"]) == [
        "198.51.100.1",
        "other.example.org",
    ]
    path = tmp_path / "none" / "coordinator.toml"
    path.write_text(path.read_text().replace("0.0.0.0", "everywhere"))  # noqa: S104
    one_line(run("fleet", "list"), 1, "operator_listen", "'everywhere' is not an IP address")


def test_addresses() -> None:
    there = CoordinatorConfig(operator_listen="2001:db8::1")
    assert there.operator_address == "[2001:db8::1]:9443"
    assert there.certificate_hosts == ("127.0.0.1", "2001:db8::1")
    assert CoordinatorConfig(operator_listen="::").operator_address == "127.0.0.1:9443"
    assert CoordinatorConfig(operator_listen="::").operator_listen_address == "[::]:9443"
