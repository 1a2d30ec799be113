"""The agent's journal: exactly one receipt a request, whatever happens to the process or to the file."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clue_agent import journal as journal_module
from clue_agent.errors import AgentError, JournalWriteError
from clue_agent.journal import ERASED, EVALUATED, RECEIPTED, RECEIVED, STARTED, STEPS, SWAPPED, VERIFIED, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    book = Journal(tmp_path / "journal.sqlite")
    yield book
    book.close()


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def promise(journal: Journal, number: int, request: str = "r-1", at: float = 1.0) -> bytes:
    journal.receive(digest(number), request, b"envelope", at)
    return journal.verify(digest(number), request, at)


def test_every_step_is_a_row_that_survives_the_process(journal: Journal, tmp_path: Path) -> None:
    one = digest(1)
    assert journal.get(one) is None
    journal.receive(one, "said", b"envelope", 10.0)
    assert journal.verify(one, "r-1", 11.0) == one
    assert journal.begin_run(one, 12.0) == 1
    for step in (EVALUATED, SWAPPED, ERASED):
        journal.record(one, step, {"is": step}, 13.0)
    again = Journal(tmp_path / "journal.sqlite")
    [job] = again.unfinished()
    again.close()
    assert (job.request_id, job.envelope, job.received_at, job.runs) == ("r-1", b"envelope", 10.0, 1)
    assert job.step == ERASED
    assert job.steps[SWAPPED] == {"is": "swapped"}
    assert journal.finish(one, b"receipt", 14.0) == b"receipt"
    journal.deliver(one, 15.0)
    journal.deliver(one, 16.0)
    done = journal.get(one)
    assert done is not None
    assert done.receipt == b"receipt"
    assert sorted(done.steps, key=STEPS.index) == list(STEPS)
    assert journal.unfinished() == []


def test_the_first_word_stands(journal: Journal) -> None:
    promise(journal, 1)
    assert journal.record(digest(1), EVALUATED, {"n": 1}, 1.0) == {"n": 1}
    assert journal.record(digest(1), EVALUATED, {"n": 2}, 1.0) == {"n": 1}
    assert journal.finish(digest(1), b"first", 1.0) == b"first"
    assert journal.finish(digest(1), b"second", 1.0) == b"first"


def test_withdrawing_goes_back_to_the_work(journal: Journal) -> None:
    promise(journal, 1)
    journal.begin_run(digest(1), 1.0)
    journal.record(digest(1), EVALUATED, {}, 1.0)
    journal.withdraw(digest(1))
    assert [job.step for job in journal.unfinished()] == [STARTED]


def test_the_same_request_in_other_bytes_is_the_same_job(journal: Journal) -> None:
    assert promise(journal, 1) == digest(1)
    assert promise(journal, 2) == digest(1)
    assert journal.get(digest(2)) is None
    assert len(journal.unfinished()) == 1


def test_a_refusal_does_not_block_the_request_it_pretended_to_be(journal: Journal) -> None:
    journal.receive(digest(1), "r-1", b"e", 1.0)
    journal.refuse(digest(1), 1.0, b"refusal")
    assert promise(journal, 2) == digest(2)
    assert [job.digest for job in journal.unfinished()] == [digest(2)]


def test_the_first_refusal_stands_and_keeps_no_envelope(journal: Journal) -> None:
    journal.receive(digest(1), "r-1", b"e", 1.0)
    assert journal.refuse(digest(1), 1.0, b"first") == b"first"
    assert journal.refuse(digest(1), 2.0, b"second") == b"first"
    job = journal.get(digest(1))
    assert job is not None
    assert (job.step, job.envelope) == (RECEIPTED, b"")


def test_a_promised_job_cannot_be_refused(journal: Journal) -> None:
    promise(journal, 1)
    assert journal.refuse(digest(1), 2.0, b"refusal") is None
    assert [job.step for job in journal.unfinished()] == [VERIFIED]


def test_what_came_and_was_never_looked_at_is_found_again(journal: Journal) -> None:
    journal.receive(digest(1), "r-1", b"e", 1.0)
    assert [job.step for job in journal.unfinished()] == [RECEIVED]


def test_refusals_are_bounded_and_push_out_no_job(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_KEEP_REFUSED", 5)
    promise(journal, 0, "r-0")
    journal.finish(digest(0), b"receipt", 1.0)
    for number in range(1, 21):
        journal.receive(digest(number), "spam", b"e", float(number))
        assert journal.refuse(digest(number), float(number), b"no") == b"no"
    kept = [number for number in range(21) if journal.get(digest(number)) is not None]
    assert kept == [0, 16, 17, 18, 19, 20]


def test_attempts_are_counted_and_can_be_taken_back(journal: Journal, tmp_path: Path) -> None:
    promise(journal, 1)
    assert [journal.begin_run(digest(1), 1.0) for _ in range(3)] == [1, 2, 3]
    journal.cancel_run(digest(1))
    assert journal.begin_run(digest(1), 1.0) == 3


def test_a_failed_write_leaves_nothing(journal: Journal) -> None:
    with pytest.raises(JournalWriteError):
        journal.receive(digest(1), None, b"e", 1.0)  # type: ignore[arg-type]
    assert journal.unfinished() == []
    promise(journal, 1)  # the journal still works


# A file that is not what it was


@pytest.mark.parametrize("damage", ["foreign", "torn", "header"])
def test_a_damaged_journal_is_put_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.sqlite"
    if damage == "foreign":
        path.write_bytes(b"this is not a database" * 1000)
    else:
        book = Journal(path)
        for number in range(200):
            promise(book, number, f"r-{number}")
        book.close()
        data = bytearray(path.read_bytes())
        spot = slice(4096, 20480) if damage == "torn" else slice(0, 40)
        data[spot] = bytes(0xA5 for _ in range(spot.stop - spot.start))
        path.write_bytes(data)
    book = Journal(path)
    assert book.unfinished() == []
    promise(book, 1)
    book.close()
    assert [p.name for p in tmp_path.glob("*.damaged-*")]
    assert "put aside" in caplog.text


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(AgentError, match="cannot use the journal"):
        Journal(tmp_path / "journal.sqlite")


def test_a_full_disk_costs_the_reserve_first(journal: Journal, tmp_path: Path) -> None:
    """The first write that finds the disk full gets the reserve's room, and goes through."""
    reserve = tmp_path / "journal.sqlite.reserve"
    assert reserve.stat().st_size == 1 << 20
    promise(journal, 1)
    real, failed = journal._db, []

    class FullOnce:
        def execute(self, sql: str, *arguments: object) -> object:
            if sql == "COMMIT" and not failed:
                failed.append(sql)
                raise sqlite3.OperationalError("database or disk is full")
            return real.execute(sql, *arguments)  # type: ignore[arg-type]

    journal._db = FullOnce()  # type: ignore[assignment]
    journal.record(digest(1), EVALUATED, {}, 1.0)
    journal._db = real
    assert failed
    assert not reserve.exists()
    assert [job.step for job in journal.unfinished()] == [EVALUATED]
    journal.finish(digest(1), b"receipt", 2.0)
    assert reserve.exists()  # kept again for the next time


class JournalMachine(RuleBasedStateMachine):
    """Any order of calls: a receipt once given never changes, a request is one job, no step is taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()  # the journal keeps a reserve beside its file, even for ":memory:"
        self.journal = Journal(Path(self.folder.name) / "journal.sqlite")
        self.receipts: dict[bytes, bytes] = {}
        self.jobs: dict[str, bytes] = {}
        self.past: dict[tuple[bytes, int], bytes] = {}
        self.attempts: dict[bytes, int] = {}
        self.begun: set[bytes] = set()
        self.recalled: set[bytes] = set()

    digests = st.integers(0, 5).map(digest)
    requests = st.integers(0, 3).map("r-{}".format)
    texts = st.binary(min_size=1, max_size=4)

    @rule(one=digests, request=requests, receipt=texts)
    def refuse(self, one: bytes, request: str, receipt: bytes) -> None:
        if one not in self.jobs.values():
            self.journal.receive(one, request, b"e", 1.0)
        stands = self.journal.refuse(one, 1.0, receipt)
        promised = one in self.jobs.values() and one not in self.receipts
        assert stands == (None if promised else self.receipts.setdefault(one, receipt))

    @rule(one=digests, request=requests)
    def accept(self, one: bytes, request: str) -> None:
        if one in self.receipts or one in self.jobs.values():
            return  # deliver() answers from the journal before it comes this far
        self.journal.receive(one, request, b"e", 1.0)
        assert self.journal.verify(one, request, 1.0) == self.jobs.setdefault(request, one)

    @rule(request=requests, step=st.sampled_from([EVALUATED, SWAPPED, ERASED]))
    def record(self, request: str, step: str) -> None:
        if request in self.jobs:
            self.journal.record(self.jobs[request], step, {}, 1.0)

    @rule(request=requests, receipt=texts)
    def finish(self, request: str, receipt: bytes) -> None:
        if request in self.jobs and self.jobs[request] not in self.recalled:
            one = self.jobs[request]
            assert self.journal.finish(one, receipt, 1.0) == self.receipts.setdefault(one, receipt)

    @rule(request=requests, attempt=st.integers(1, 4))
    def repeat(self, request: str, attempt: int) -> None:
        one = self.jobs.get(request, b"")
        last = self.attempts.get(one, 1)
        anew = one in self.receipts and attempt > last
        assert self.journal.repeat(one, attempt, b"e", 1.0) is anew
        if anew:
            self.past[one, last] = self.receipts.pop(one)
            self.attempts[one] = attempt
            self.begun.discard(one)
            assert self.journal.verify(one, request, 1.0) == one

    @rule(request=requests)
    def begin(self, request: str) -> None:
        one = self.jobs.get(request, b"")
        if one not in self.jobs.values() or one in self.receipts:
            return
        assert (self.journal.begin_run(one, 1.0) > 0) is (one not in self.recalled)
        if one not in self.recalled:
            self.begun.add(one)

    @rule(request=requests)
    def recall(self, request: str) -> None:
        one = self.jobs.get(request)
        if one is None:
            return
        gone = one not in self.receipts and one not in self.begun
        assert self.journal.recall(one, request, b"e", 1, 1.0) is gone
        if gone:
            self.recalled.add(one)

    @rule(request=requests)
    def resume(self, request: str) -> None:
        if request in self.jobs:
            self.journal.resume(self.jobs[request], 1)
            self.recalled.discard(self.jobs[request])

    @invariant()
    def receipts_stand(self) -> None:
        for one, receipt in self.receipts.items():
            job = self.journal.get(one)
            assert job is not None
            assert job.receipt == receipt
        for (one, attempt), receipt in self.past.items():
            assert self.journal.earlier_receipt(one, attempt) == receipt

    @invariant()
    def unfinished_is_what_has_no_receipt(self) -> None:
        found = {job.request_id: job.digest for job in self.journal.unfinished()}
        assert found == {
            request: one for request, one in self.jobs.items() if one not in self.receipts and one not in self.recalled
        }

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_a_copy_that_was_dropped_is_not_refused(journal: Journal) -> None:
    promise(journal, 1)
    promise(journal, 2)
    assert journal.refuse(digest(2), 1.0, b"refusal") is None
    assert journal.get(digest(2)) is None


def test_a_journal_that_another_process_has_locked(journal: Journal, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    journal._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(JournalWriteError, match="locked"):
        journal.receive(digest(1), "r-1", b"envelope", 1.0)
    other.execute("ROLLBACK")
    other.close()
    journal.receive(digest(1), "r-1", b"envelope", 1.0)


def test_a_clock_that_is_set_back_changes_no_order(journal: Journal) -> None:
    promise(journal, 1, "r-1", at=10.0)
    promise(journal, 2, "r-2", at=1.0)
    assert [job.request_id for job in journal.unfinished()] == ["r-1", "r-2"]


def test_what_cannot_be_judged_yet_leaves_no_trace(journal: Journal) -> None:
    one, two = digest(1), digest(2)
    journal.receive(one, "r-1", b"envelope", 1.0)
    journal.let_go(one)
    assert (journal.get(one), journal.accepted(one)) == (None, False)
    # Of a further attempt, only that: the one before has its receipt.
    promise(journal, 1)
    journal.finish(one, b"receipt 1", 2.0)
    before = journal.get(one)
    assert journal.repeat(one, 2, b"envelope", 3.0)
    assert journal.accepted(one)
    journal.let_go(one)
    journal.let_go(one)
    assert journal.get(one) == before
    assert journal.unfinished() == []
    assert journal.repeat(one, 2, b"envelope", 4.0)
    # What was promised, or recalled, stays.
    assert journal.verify(one, "r-1", 5.0) == one
    journal.recall(two, "r-2", b"envelope", 1, 5.0)
    for each in (one, two):
        journal.let_go(each)
        assert journal.get(each) is not None
    assert [job.attempt for job in journal.unfinished()] == [2]
    assert not journal.accepted(two)
