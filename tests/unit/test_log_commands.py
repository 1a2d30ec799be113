"""``clue-coordinator log`` and ``certificate`` over a real operator API, with a viewer's token."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Result, run_command
from operator_server import House, house

from clue_coordinator.roles import Role
from clue_coordinator.tlog.keys import load_log_keys
from clue_coordinator.tlog.schedule import CheckpointSchedule
from clue_protocol.certificate import verify_certificate
from clue_protocol.tlog import Evidence, Growth, NoteKey, parse_checkpoint

Run = Callable[..., Result]


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "home", devices=2) as found:
        yield found


@pytest.fixture
def run(yard: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    token = tmp_path / "viewer.token"
    token.write_text(yard.token(Role.VIEWER))
    monkeypatch.setenv("CLUE_SERVER", yard.config.operator_address)
    monkeypatch.setenv("CLUE_CA_FILE", str(yard.config.pki / "ca.pem"))
    monkeypatch.setenv("CLUE_TOKEN_FILE", str(token))
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: run_command(monkeypatch, capsys, *arguments)


def order(yard: House) -> str:
    from clue_coordinator import requests
    from clue_coordinator.requests import ForgetOrder

    return requests.create_request(yard.ledger, ForgetOrder("yard", "bird"), yard.keys.request)


def test_from_the_first_checkpoint_to_a_witness(yard: House, run: Run, tmp_path: Path) -> None:
    vkey = yard.config.log_verifier_keys
    shown = json.loads(run("log", "show", "--json").out)
    assert shown["checkpoint"] is None
    assert [leaf["kind"] for leaf in shown["leaves"]] == ["enrolment", "enrolment", "rotation", "rotation"]
    old, new, grown, cosigned = (tmp_path / name for name in ("old", "new", "grown", "cosigned"))
    assert run("log", "checkpoint", "--out", old).code == 0
    key = tmp_path / "witness.pem"
    made = run("log", "witness-key", "witness.example/w", "--key", key)
    witness = ["log", "witness", "--key", key, "--name", "witness.example/w", "--log-key", vkey]
    assert run(*witness, old, "--first", "--out", cosigned).code == 0
    refused = run("log", "add-cosignature", cosigned)
    assert (refused.code, "[log] witnesses" in refused.err) == (2, True)
    yard.config = yard.config.model_copy(
        update={"log": yard.config.log.model_copy(update={"witnesses": (made.out.strip(),)})}
    )
    yard.service._config = yard.config
    yard.service.__dict__.pop("_log_keys")
    assert "has 1 cosignature" in run("log", "add-cosignature", cosigned).out
    request_id = order(yard)
    assert run("log", "consistency", "--from", cosigned, "--out", grown).code == 0
    growth = Growth.from_json(grown.read_text())
    before, after = growth.verify(NoteKey.from_text(vkey.read_text()))
    assert (before.size, after.size) == (4, 5)
    assert run(*witness, grown, "--previous", cosigned, "--out", new).code == 0
    assert parse_checkpoint(new.read_text())[0].size == 5
    # Another log's checkpoint, or a step that was left out.
    other = run(*witness, grown, "--previous", new)
    assert (other.code, "does not begin with" in other.err) == (1, True)
    assert run(*witness, grown).code == 2
    evidence = run("log", "prove", request_id)
    assert Evidence.from_json(evidence.out).leaf.kind == "request"
    assert Evidence.from_json(run("log", "prove", "--leaf", 2).out).leaf.reference == "cam-0"
    for arguments in (("log", "prove", "nothing"), ("log", "prove"), ("log", "prove", "--leaf", 5)):
        assert run(*arguments).code == 2
    assert "the log is whole: 5 leaves, 2 checkpoint(s), and 3 document(s)" in run("log", "verify").out


def test_verify_names_what_was_changed(yard: House, run: Run) -> None:
    from sqlalchemy import text

    request_id = order(yard)
    with yard.ledger.write() as session:
        session.execute(text("UPDATE request SET envelope = x'78'"))
    result = run("log", "verify")
    assert result.code == 1
    assert result.err == (
        f"clue-coordinator: the request {request_id} in the ledger is not the one in the log: "
        "it was changed, or came there on another way\n"
    )


def test_checkpoints_come_by_themselves_where_something_changed(yard: House) -> None:
    now = 1000.0
    yard.ledger.clock = lambda: now
    schedule = CheckpointSchedule(yard.ledger, load_log_keys(yard.config), 60)

    def sizes() -> list[int]:
        from sqlalchemy import select

        from clue_coordinator.models import LogCheckpoint

        schedule.advance()
        with yard.ledger.read() as session:
            return list(session.scalars(select(LogCheckpoint.size).order_by(LogCheckpoint.id)))

    assert sizes() == [4]
    order(yard)
    now = 2000.0
    assert sizes() == [4]
    now = 4601.0
    assert sizes() == [4, 5]
    now = 90000.0
    assert sizes() == [4, 5]


def test_a_certificate(yard: House, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "certificate"
    request_id = order(yard)
    refused = run("certificate", request_id, "--out", out)
    assert (refused.code, "is open" in refused.err, out.exists()) == (1, True, False)
    assert run("certificate", request_id, "--out", yard.config.operator_token).code == 2
    result = run("certificate", request_id[:8], "--out", out, "--partial")
    assert result.code == 0, result
    assert "0 of 2 device(s) have forgotten 'bird'" in result.out
    assert sorted(path.name for path in out.iterdir()) == ["certificate.html", "certificate.json", "certificate.pdf"]
    with yard.ledger.read() as session:
        from clue_coordinator import roots

        chain = roots.since(session, 0)
    found = verify_certificate((out / "certificate.json").read_bytes(), chain[:1])
    assert found.statement.is_open
    assert "this certificate is partial" in (out / "certificate.html").read_text()
    assert run("certificate", request_id, "--out", out, "--partial").code == 2
    assert run("certificate", request_id, "--out", out, "--partial", "--force").code == 0
