"""Attempts and recalls: one receipt an attempt, nothing begun that was withdrawn, in any order and over restarts."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from agent_home import EVE, Device, FakeWorker, ask, deliver, envelope, receipt_of

from clue_agent import delivery
from clue_agent.agent import Agent
from clue_agent.errors import AgentError, JournalWriteError
from clue_agent.journal import EVALUATED, RECEIPTED, STARTED, SWAPPED, Journal
from clue_agent.observe import JournalReader
from clue_protocol.envelope import envelope_digest
from clue_protocol.v1 import forget_pb2 as pb

STRICT = pb.Policy(max_ua=0.0, max_ra_drop=1, max_tries=1)


def failing(worker: FakeWorker) -> None:
    worker.ua_after = 5


def test_a_failed_attempt_is_made_again_when_it_is_asked_for(device: Device, worker: FakeWorker) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=3)
    first = ask(agent, data, seconds=60)
    assert (receipt_of(first).outcome, receipt_of(first).attempt) == (pb.OUTCOME_FAILED, 1)
    assert ask(agent, data, attempt=1) == first
    assert len(worker.jobs) == 1
    second = ask(agent, data, seconds=60, attempt=2)
    assert (receipt_of(second).outcome, receipt_of(second).attempt) == (pb.OUTCOME_FAILED, 2)
    worker.ua_after = 0
    third = ask(agent, data, seconds=60, attempt=3)
    assert (receipt_of(third).outcome, receipt_of(third).attempt) == (pb.OUTCOME_SUCCEEDED, 3)
    assert len(worker.jobs) == 3
    # Each attempt has one receipt, byte for byte, also after a restart; more are not made.
    for again in (None, device.boot):
        agent = again() if again is not None else agent
        for attempt, answer in ((0, first), (1, first), (2, second), (3, third), (4, third), (2**32 - 1, third)):
            assert ask(agent, data, attempt=attempt) == answer
    work = JournalReader(device.config.journal).read()
    assert (work.outcomes["FAILED"], work.outcomes["SUCCEEDED"], work.unfinished) == (2, 1, 0)
    assert receipt_of(second).request_digest == receipt_of(third).request_digest == envelope_digest(data)


@pytest.mark.parametrize("signed", [0, 1, 2, 40])
def test_no_more_attempts_than_were_signed_for_and_never_more_than_twenty(
    device: Device, worker: FakeWorker, signed: int
) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=signed)
    numbers = [deliver(agent, data, attempt=attempt).attempt for attempt in range(1, 24)]
    allowed = max(1, min(signed, 20))
    assert numbers == [min(attempt, allowed) for attempt in range(1, 24)]
    assert len(worker.jobs) == allowed


def test_a_success_is_never_repeated(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(), envelope(max_attempts=5)
    first = ask(agent, data, seconds=60)
    assert ask(agent, data, attempt=2, seconds=60) == first
    assert ask(agent, data, attempt=2, recall=True) == first
    assert len(worker.jobs) == 1


def test_what_the_owner_may_put_right_is_looked_at_again(device: Device, worker: FakeWorker, tmp_path: Path) -> None:
    samples = tmp_path / "few"
    (samples / "red").mkdir(parents=True)
    image = (device.config.samples / "red" / "0.png").read_bytes()
    device.config = device.config.model_copy(update={"samples": samples})
    agent, data = device.boot(), envelope(max_attempts=3)
    first = ask(agent, data)
    assert (receipt_of(first).outcome, receipt_of(first).reason) == (pb.OUTCOME_REJECTED, pb.REASON_NO_FORGET_SAMPLES)
    second = ask(agent, data, attempt=2)
    assert (receipt_of(second).reason, receipt_of(second).attempt) == (pb.REASON_NO_FORGET_SAMPLES, 2)
    (samples / "red" / "0.png").write_bytes(image)
    assert ask(agent, data, attempt=2) == second
    third = deliver(agent, data, attempt=3)
    assert (third.outcome, third.attempt) == (pb.OUTCOME_SUCCEEDED, 3)
    assert ask(agent, data, attempt=1) == first


@pytest.mark.parametrize(
    "make", [lambda: envelope(EVE, max_attempts=9), lambda: envelope(fleet="farm", max_attempts=9), lambda: b"garbage"]
)
def test_other_refusals_stand(device: Device, worker: FakeWorker, make: object) -> None:
    agent, data = device.boot(), make()  # type: ignore[operator]
    first = ask(agent, data)
    assert receipt_of(first).outcome == pb.OUTCOME_REJECTED
    assert ask(agent, data, attempt=2) == first


def test_a_later_attempt_checks_the_request_anew(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=3, expires_in=2)
    first = ask(agent, data, seconds=60)
    assert receipt_of(first).outcome == pb.OUTCOME_FAILED
    threading.Event().wait(2.1)
    second = receipt_of(ask(agent, data, attempt=2))
    assert (second.outcome, second.reason, second.attempt) == (pb.OUTCOME_REJECTED, pb.REASON_EXPIRED, 2)
    assert ask(agent, data, attempt=1) == first
    assert receipt_of(ask(agent, data, attempt=3)) == second
    assert len(worker.jobs) == 1


def test_a_device_that_lost_its_journal_takes_the_attempt_that_is_asked_for(device: Device, worker: FakeWorker) -> None:
    data = envelope(max_attempts=3)
    first = ask(device.boot(), data, seconds=60, attempt=3)
    assert receipt_of(first).attempt == 3
    # It has none of the earlier ones: what it has is what there is.
    assert ask(device.boot(), data, attempt=1) == first


def test_the_same_request_in_other_bytes_may_ask_for_the_second_attempt(device: Device, worker: FakeWorker) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=2)
    deliver(agent, data)
    copy = json.dumps(json.loads(data), indent=2).encode()
    second = ask(agent, copy, seconds=60, attempt=2)
    assert receipt_of(second).attempt == 2
    assert receipt_of(second).request_digest == envelope_digest(data)
    assert ask(agent, data, attempt=2) == second
    assert len(worker.jobs) == 2


def test_parallel_deliveries_of_a_second_attempt_are_one_job(device: Device, worker: FakeWorker) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=2)
    deliver(agent, data)
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(agent, data, seconds=60, attempt=2).receipt_envelope))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert len(worker.jobs) == 2


class PowerCutError(BaseException):
    pass


@pytest.mark.parametrize("cut", ["before it is looked at", "before it is begun"])
def test_a_second_attempt_survives_a_power_cut(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=2)
    first = ask(agent, data, seconds=60)
    agent = device.boot(start=False)
    if cut == "before it is looked at":

        def die(*_: object) -> None:
            raise PowerCutError

        monkeypatch.setattr(agent._deliveries, "look_at", die)
        with pytest.raises(PowerCutError):
            ask(agent, data, attempt=2)
    else:
        assert not ask(agent, data, attempt=2).receipt_envelope
    # The receipt of the first attempt is there while the second is only promised.
    assert ask(agent, data, attempt=1) == first
    worker.ua_after = 0
    again = device.boot()
    second = deliver(again, data, attempt=2)
    assert (second.outcome, second.attempt) == (pb.OUTCOME_SUCCEEDED, 2)
    assert ask(again, data, attempt=1) == first
    assert len(worker.jobs) == 2


def test_a_second_attempt_that_cannot_be_written_down_is_not_refused(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalWriteError("full")

    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=2)
    deliver(agent, data)
    with monkeypatch.context() as patch:
        patch.setattr(device.journal, "repeat", full)
        assert ask(agent, data, attempt=2).progress.stage == "waiting"
    assert deliver(agent, data, attempt=2).attempt == 2


def test_a_second_attempt_waits_behind_what_was_begun(device: Device, worker: FakeWorker) -> None:
    """Its candidate would be written over one that is already named in the journal."""
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=2)
    deliver(agent, data)
    agent = device.boot(start=False)
    ask(agent, envelope(request_id="r-2", forget_class="blue"), "r-2")
    ask(agent, data, attempt=2)
    assert [job.request_id for job in device.journal.unfinished()] == ["r-2", "r-1"]


# Recalls


def recalled(agent: Agent, data: bytes, request_id: str = "r-1") -> bool:
    answer = ask(agent, data, request_id, recall=True)
    assert not (answer.not_begun and answer.receipt_envelope)
    return answer.not_begun


def test_an_unknown_request_is_recalled(device: Device, worker: FakeWorker) -> None:
    data = envelope()
    for _ in range(2):
        agent = device.boot()
        assert recalled(agent, data)
        assert agent.idle
    assert worker.jobs == []
    assert device.journal.get(envelope_digest(data)).recalled  # type: ignore[union-attr]
    assert JournalReader(device.config.journal).read().unfinished == 0


@pytest.mark.parametrize("make", [lambda: envelope(EVE), lambda: b"garbage"])
def test_a_recall_of_what_would_never_be_begun_is_not_written_down(device: Device, make: object) -> None:
    agent, data = device.boot(), make()  # type: ignore[operator]
    assert recalled(agent, data)
    assert device.journal.get(envelope_digest(data)) is None
    assert receipt_of(ask(agent, data)).outcome == pb.OUTCOME_REJECTED
    assert receipt_of(ask(agent, data, recall=True)).outcome == pb.OUTCOME_REJECTED


def test_a_promised_request_is_recalled_and_asked_for_again(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(start=False), envelope()
    ask(agent, data)
    copy = json.dumps(json.loads(data), indent=2).encode()
    assert recalled(agent, copy)
    again = device.boot()
    assert recalled(again, data)
    assert again.idle
    assert worker.jobs == []
    # Recalls are not signed: who could forge one could also have dropped the request. So asking again is heeded.
    assert deliver(again, data).outcome == pb.OUTCOME_SUCCEEDED
    assert not recalled(again, data)
    assert receipt_of(ask(again, data, recall=True)).outcome == pb.OUTCOME_SUCCEEDED


def test_what_waits_for_a_promised_request_hears_of_the_recall(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(start=False), envelope()
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(ask(agent, data, seconds=60)))
    waiting.start()
    while device.journal.get(envelope_digest(data)) is None or not device.journal.unfinished():
        threading.Event().wait(0.01)
    assert recalled(agent, data)
    waiting.join(30)
    assert [answer.not_begun for answer in answers] == [True]


def test_work_that_was_begun_is_finished(device: Device, worker: FakeWorker) -> None:
    go_on, running = threading.Event(), threading.Event()

    def work(job: object) -> None:
        running.set()
        go_on.wait(60)

    worker.action = work
    agent, data = device.boot(), envelope()
    ask(agent, data)
    assert running.wait(30)
    answer = ask(agent, data, recall=True)
    assert (answer.not_begun, answer.progress.stage) == (False, "unlearning")
    go_on.set()
    assert receipt_of(ask(agent, data, seconds=60, recall=True)).outcome == pb.OUTCOME_SUCCEEDED


def test_the_worker_thread_does_not_begin_what_was_recalled_a_moment_ago(device: Device, worker: FakeWorker) -> None:
    agent, data = device.boot(start=False), envelope()
    ask(agent, data)
    [job] = device.journal.unfinished()  # the thread has it in hand
    assert recalled(agent, data)
    agent._carry_out(job)
    assert worker.jobs == []
    assert STARTED not in device.journal.get(job.digest).steps  # type: ignore[union-attr]


def test_a_second_attempt_is_recalled(device: Device, worker: FakeWorker) -> None:
    failing(worker)
    agent, data = device.boot(), envelope(policy=STRICT, max_attempts=3)
    first = ask(agent, data, seconds=60)
    # Not asked for yet: there is nothing of it.
    assert ask(agent, data, attempt=2, recall=True).not_begun
    agent = device.boot(start=False)
    assert not ask(agent, data, attempt=2).receipt_envelope
    assert ask(agent, data, attempt=2, recall=True).not_begun
    again = device.boot()
    assert again.idle
    assert ask(again, data, attempt=1) == first
    assert deliver(again, data, attempt=3).attempt == 3
    assert len(worker.jobs) == 2


def test_a_recall_that_cannot_be_written_down_promises_nothing(
    device: Device, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalWriteError("full")

    agent, data = device.boot(start=False), envelope()
    monkeypatch.setattr(device.journal, "recall", full)
    answer = ask(agent, data, recall=True)
    assert not answer.not_begun
    assert answer.progress == delivery.WAITING


# A journal of before attempts were told apart


OLD = """
CREATE TABLE job (
    digest BLOB PRIMARY KEY, request_id TEXT NOT NULL, kind TEXT NOT NULL, envelope BLOB NOT NULL,
    received_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, receipt BLOB, refused INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE step (
    digest BLOB NOT NULL REFERENCES job ON DELETE CASCADE,
    name TEXT NOT NULL CHECK (name IN ('received', 'verified', 'started', 'evaluated', 'swapped', 'erased',
                                       'receipted', 'delivered')),
    at REAL NOT NULL, data TEXT NOT NULL, PRIMARY KEY (digest, name)
) STRICT;
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode=WAL;" + OLD)
        jobs = [(b"1" * 32, "r-1", 1, b"receipt"), (b"2" * 32, "r-2", 2, None)]
        for digest, request_id, attempts, receipt in jobs:
            db.execute(
                "INSERT INTO job VALUES (?, ?, 'forget', x'65', 5.0, ?, ?, 0)", (digest, request_id, attempts, receipt)
            )
            for name in ("received", "verified", "started", "evaluated"):
                data = '{"model_digest": "abc"}' if name == "evaluated" else "{}"
                db.execute("INSERT INTO step VALUES (?, ?, 6.0, ?)", (digest, name, data))
        db.commit()
    return path


def test_an_old_journal_is_read_as_it_is(old: Path) -> None:
    work = JournalReader(old).read()
    assert (work.unfinished, work.last is not None) == (1, True)


def test_an_old_journal_is_upgraded_in_place(old: Path) -> None:
    for _ in range(2):
        book = Journal(old)
        done, [open_job] = book.get(b"1" * 32), book.unfinished()
        assert done is not None
        assert (done.receipt, done.attempt, done.recalled) == (b"receipt", 1, False)
        assert (open_job.request_id, open_job.runs, open_job.attempt) == ("r-2", 2, 1)
        assert open_job.steps[EVALUATED] == {"model_digest": "abc"}
        book.close()
    book = Journal(old)
    book.record(b"2" * 32, SWAPPED, {}, 7.0)
    assert book.finish(b"2" * 32, b"failed", 8.0) == b"failed"
    assert book.repeat(b"2" * 32, 2, b"e", 9.0)
    [again] = book.unfinished()
    assert (again.attempt, again.runs, set(again.steps)) == (2, 0, {"received"})
    assert book.earlier_receipt(b"2" * 32, 1) == b"failed"
    with book._lock:
        kept = book._db.execute("SELECT name FROM step WHERE digest = ? AND attempt = 1", (b"2" * 32,)).fetchall()
    assert {name for (name,) in kept} == {"received", "verified", "started", EVALUATED, SWAPPED, RECEIPTED}
    book.close()
    assert not list(old.parent.glob("*.damaged-*"))


def test_an_upgrade_that_is_cut_off_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clue_agent.journal_schema as schema

    before = schema._FROM_BEFORE_ATTEMPTS
    for length in range(1, len(before) + 1):
        monkeypatch.setattr(schema, "_FROM_BEFORE_ATTEMPTS", (*before[:length], "SELECT no_such_column"))
        with pytest.raises(AgentError, match="no_such_column"):
            Journal(old)
    monkeypatch.setattr(schema, "_FROM_BEFORE_ATTEMPTS", before)
    book = Journal(old)
    assert [job.request_id for job in book.unfinished()] == ["r-2"]
    book.close()


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(AgentError, match="newer version"):
        Journal(path)
    assert path.read_bytes() == before
