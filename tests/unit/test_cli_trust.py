"""``key``, ``root`` and ``request approve``: what people do with files, and every way in which it can be wrong."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, run_command
from operator_server import House, house
from pydantic import TypeAdapter
from test_coordinator_cli import one_line

from clue_coordinator import json_types
from clue_coordinator.cli_keys import PASSPHRASE_VARIABLE

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """In a folder of its own, with a passphrase."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse battery staple")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(monkeypatch, capsys, *arguments)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house(tmp_path / "home", devices=1) as found:
        monkeypatch.setenv("CLUE_COORDINATOR_HOME", str(found.config.home))
        yield found


def done(result: Result) -> str:
    assert result.code == 0, result
    return result.out


def shown(result: Result, kind: Any) -> Any:
    """JSON that is exactly what json_types.py says."""
    TypeAdapter(kind).validate_json(done(result), strict=True)
    return json.loads(result.out)


def people(run: Run, *names: str) -> dict[str, str]:
    """Key ids, by name."""
    return {name: shown(run("key", "create", f"{name}.pem", "--json"), json_types.KeyData)["key_id"] for name in names}


def test_keys_are_made_without_a_coordinator(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [key_id] = people(run, "alice").values()
    assert (tmp_path / "alice.pem").stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in (tmp_path / "alice.pem").read_bytes()
    for file in ("alice.pub", "alice.pem"):
        assert key_id in done(run("key", "show", file))
    one_line(run("key", "create", "alice.pem"), 2, "never overwritten")
    one_line(run("key", "show", "nobody.pub"), 2, "cannot read nobody.pub")
    (tmp_path / "bad.pub").write_text((tmp_path / "alice.pub").read_text().replace(key_id, "0" * 64))
    one_line(run("key", "show", "bad.pub"), 2, "does not match its key id")
    one_line(run("key", "create", "a b.pem"), 2, "--name")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "short")
    one_line(run("key", "create", "bob.pem"), 1, "at least 16 characters")
    assert not (tmp_path / "bob.pub").exists()
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    one_line(run("key", "create", "bob.pem"), 2, PASSPHRASE_VARIABLE)


def test_the_root_goes_to_its_holders(run: Run, home: House, tmp_path: Path) -> None:
    people(run, "ann", "ben", "cid")
    holders = [part for name in ("ann", "ben", "cid") for part in ("--holder", f"{name}.pub")]
    drafted = shown(run("root", "draft", "next.json", *holders, "--threshold", 2, "--json"), json_types.RootData)
    assert (drafted["version"], drafted["root"]["threshold"], drafted["signed_by"]) == (3, 2, [])
    one_line(run("root", "draft", "next.json"), 2, "exists already")
    one_line(run("root", "publish", "next.json"), 1, "is signed by 0 of the 1 keys that may, 1 must")
    assert "1 of 1 signature(s) of holders of the last root" in done(run("root", "sign", "next.json", "--yes"))
    done(run("root", "sign", "next.json", "--key", "ann.pem", "--yes"))
    done(run("root", "sign", "next.json", "--key", "ann.pem", "--yes"))  # twice is once
    one_line(run("root", "publish", "next.json"), 1, "by its own keys", "1 of the 3 keys that may, 2 must")
    assert "ready for 'root publish'" in done(run("root", "sign", "next.json", "--key", "cid.pem", "--yes"))
    assert "delete it with --delete-home-key" in done(run("root", "publish", "next.json"))
    assert home.config.root_key.exists()
    one_line(run("root", "renew"), 1, "no root key in a home folder here")
    done(run("root", "publish", "next.json", "--delete-home-key"))
    assert not home.config.root_key.exists()
    assert "the root does not name it yet" in done(run("fleet", "create", "barn"))
    one_line(run("fleet", "create", "shed", "--approver", "ann.pub"), 1, "the root belongs to people")
    names = [fleet["name"] for fleet in json.loads(done(run("fleet", "list", "--json")))]
    assert names == ["barn", "yard"]
    one_line(run("root", "sign", "next.json", "--yes"), 2, "name a holder's key with --key")


def test_what_is_signed_is_what_the_draft_says(run: Run, home: House, tmp_path: Path) -> None:
    people(run, "ann", "eve")
    done(run("root", "export", "own.dsse"))
    done(run("root", "renew"))
    done(run("root", "draft", "next.json", "--fleet", "yard", "--approver", "ann.pub"))
    one_line(run("root", "sign", "next.json", "--root", "own.dsse", "--yes"), 1, "does not follow own.dsse")
    one_line(run("root", "sign", "next.json", "--key", "eve.pem", "--yes"), 1, "holds neither this root nor")
    one_line(run("root", "sign", "own.dsse", "--yes"), 1, "no draft of one")
    draft = json.loads((tmp_path / "next.json").read_text())
    # Another root before it would make other changes of the same draft.
    draft["base"] = json.loads((tmp_path / "own.dsse").read_text())
    (tmp_path / "forged.json").write_text(json.dumps(draft))
    one_line(run("root", "sign", "forged.json", "--yes"), 1, "does not follow the root that is kept with it")
    for text in ("", "[]", "{}", '{"format": "clue-root-draft/1"}', "[" * 10000):
        (tmp_path / "odd.json").write_text(text)
        one_line(run("root", "show", "odd.json"), 2, "odd.json")
    one_line(run("root", "draft", "x.json", "--require", 2), 2, "go with --fleet")
    one_line(run("root", "draft", "x.json", "--reason", "y"), 2, "--revoke")
    one_line(run("root", "draft", "x.json", "--holder", "ann.pub", "--threshold", 2), 2, "cannot have the threshold 2")
    one_line(run("root", "draft", "x.json", "--holder", "ann.pem"), 2, "private key", "give ann.pub")
    assert not (tmp_path / "x.json").exists()


def test_the_key_of_the_time_is_exchanged(run: Run, home: House) -> None:
    old = home.config.timestamp_key.read_bytes()
    done(run("root", "draft", "next.json", "--rotate-timestamp"))
    assert home.config.timestamp_key.read_bytes() == old
    done(run("root", "sign", "next.json", "--yes"))
    done(run("root", "publish", "next.json"))
    assert home.config.timestamp_key.read_bytes() != old
    assert not home.config.next_timestamp_key.exists()


def test_an_approver_reads_and_signs_at_home(run: Run, home: House, tmp_path: Path) -> None:
    ids = people(run, "alice", "bob", "eve")
    done(run("root", "export", "before.dsse"))
    done(run("fleet", "approvers", "yard", "--approver", "alice.pub", "--approver", "bob.pub", "--require", 2))
    request_id = home.fleet.order()
    # Only home knows its own installation; the file of another one says so.
    with house(tmp_path / "other", devices=0) as other:
        done(run("root", "export", "other.dsse", "--home", other.config.home))
    approve = ("request", "approve", request_id[:8], "--key")
    one_line(run(*approve, "alice.pem", "--root", "other.dsse", "--yes"), 1, "does not follow other.dsse")
    one_line(run(*approve, "eve.pem", "--yes"), 1, "does not decide over fleet yard")
    out = done(run(*approve, "alice.pem", "--root", "before.dsse", "--yes"))
    assert "forget       'bird', for ever" in out
    assert f"1 of 2 approvals: alice (key {ids['alice'][:8]}); it waits for more" in out
    assert "1 of 2 approvals: alice" in done(run("request", "show", request_id))
    data = shown(run(*approve, "bob.pem", "--yes", "--json"), json_types.RequestData)
    assert (data["state"], [entry["name"] for entry in data["approvals"]]) == ("SCHEDULED", ["alice", "bob"])
    one_line(run("request", "reject", request_id), 1, "waits for no approval")
    unwanted = home.fleet.order()
    assert "rejected by local-admin: no" in done(run("request", "reject", unwanted, "--comment", "no"))


def test_a_device_gets_its_trust_once_more(run: Run, home: House, tmp_path: Path) -> None:
    done(run("root", "renew"))
    done(run("device", "trust", "cam-0", "--out", "trust.json"))
    (tmp_path / "root.json").write_text(json.loads((tmp_path / "trust.json").read_text())["root"])
    assert shown(run("root", "show", "root.json", "--json"), json_types.RootData)["version"] == 3
