"""What the agent has promised and done, in SQLite: the reason an attempt ends in exactly one receipt.

A job is found by the SHA-256 of the envelope that asked for it. Every step that an attempt at it has reached is
a row of its own, written (WAL, full sync) before the next one begins, and no step is ever taken back::

    received -> verified -> started -> evaluated -> swapped -> erased -> receipted -> delivered
        \\___________\\__________\\______(refused or failed)______________/

After a crash the daemon goes on from the last row: up to ``started`` the work is done again, from
``evaluated`` on (the new model is whole, has passed the guard and is named here) it can only be completed.
A further attempt (:meth:`Journal.repeat`) begins again at ``received``; receipts and steps of those before it stay.
A job that was never begun may be recalled, and taken up again later.
A journal that is damaged is put aside under another name and a new one is begun: requests that come
again are then found done, because the model itself says what it has forgotten.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clue_agent.errors import AgentError, JournalWriteError
from clue_agent.journal_schema import STEPS, prepare
from clue_protocol.files import fsync_folder

log = logging.getLogger(__name__)

RECEIVED, VERIFIED, STARTED, EVALUATED, SWAPPED, ERASED, RECEIPTED, DELIVERED = STEPS
# Kind of the jobs that bring a base model in.
MODEL_JOB = "model"
_KEEP_REFUSED = 1000
# Given back to the file system when it is full, so that work that was begun can be recorded to its end.
_RESERVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """One job at its newest attempt, and the steps that this has reached, with what was written down at each.

    Attributes:
        digest: SHA-256 of the request envelope.
        request_id: of the request.
        kind: "forget", or :data:`MODEL_JOB`.
        envelope: the request as it came; empty if it was refused.
        received_at: when the attempt was asked for, in seconds since 1970.
        attempt: its number, from 1.
        runs: how often its work was begun.
        receipt: its signed receipt, None while there is none.
        recalled: the sender withdrew it before it was begun.
        steps: by name.
    """

    digest: bytes
    request_id: str
    kind: str
    envelope: bytes
    received_at: float
    attempt: int
    runs: int
    receipt: bytes | None
    recalled: bool
    steps: dict[str, dict[str, Any]]

    @property
    def step(self) -> str:
        """The furthest step."""
        return max(self.steps, key=STEPS.index)


_COLUMNS = "digest, request_id, kind, envelope, received_at, attempt, runs, receipt, recalled"


class Journal:
    """The journal at ``path``. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._reserve = path.with_name(f"{path.name}.reserve")
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise AgentError(f"cannot use the journal {path}: {error}") from None
            self._put_aside(str(error))
            self._db = self._open()
        self._refill_reserve()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA foreign_keys=ON")
            [(verdict,)] = db.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _put_aside(self, problem: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
        fsync_folder(self.path.parent)
        log.error("the journal is damaged (%s): it was put aside as %s and a new one begun", problem, aside.name)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    # Reading

    def get(self, digest: bytes) -> Job | None:
        """The job of an envelope, if it was ever received."""
        with self._lock:
            row = self._db.execute(f"SELECT {_COLUMNS} FROM job WHERE digest = ?", (digest,)).fetchone()  # noqa: S608
            return self._job(row) if row else None

    def unfinished(self) -> list[Job]:
        """Jobs to work on, in the order in which they came (the clock may have been set back since)."""
        query = f"SELECT {_COLUMNS} FROM job WHERE receipt IS NULL AND recalled = 0 ORDER BY rowid"  # noqa: S608
        with self._lock:
            return [self._job(row) for row in self._db.execute(query).fetchall()]

    def earlier_receipt(self, digest: bytes, attempt: int) -> bytes | None:
        """The receipt of an attempt before the newest."""
        query = "SELECT receipt FROM earlier WHERE digest = ? AND attempt = ?"
        with self._lock:
            row = self._db.execute(query, (digest, attempt)).fetchone()
        return bytes(row[0]) if row else None

    def accepted(self, digest: bytes) -> bool:
        """Was this request found to be one to work on before, at this attempt or an earlier one?"""
        query = (
            "SELECT 1 FROM step WHERE digest = ?1 AND name = 'verified' "
            "UNION ALL SELECT 1 FROM earlier WHERE digest = ?1"
        )
        with self._lock:
            return self._db.execute(query, (digest,)).fetchone() is not None

    def stands_for(self, digest: bytes, request_id: str) -> bytes:
        """The digest under which a verified request is worked on: its own, or that of the same one in other bytes."""
        with self._lock:
            return _standing(self._db, digest, request_id) or digest

    def _job(self, row: tuple[bytes, str, str, bytes, float, int, int, bytes | None, bool]) -> Job:
        steps = self._db.execute(f"SELECT name, data FROM step WHERE {_NOW}", (row[0],))  # noqa: S608
        return Job(*row, {name: json.loads(data) for name, data in steps})

    # Writing

    def receive(
        self, digest: bytes, request_id: str, envelope: bytes, now: float, kind: str = "forget", attempt: int = 1
    ) -> None:
        """Write down that these bytes came, before they are looked at; what is known already stays as it is."""
        with self._write() as db:
            _receive(db, digest, request_id, envelope, now, kind, attempt)

    def verify(self, digest: bytes, request_id: str, now: float) -> bytes:
        """The request is one to work on; returns the digest of the job that stands for it.

        That is ``digest`` itself, or the one under which the same request came before in other bytes: then
        the new row is dropped.
        """
        with self._write() as db:
            standing = _standing(db, digest, request_id)
            if standing is not None:
                db.execute("DELETE FROM job WHERE digest = ? AND receipt IS NULL", (digest,))
                return standing
            # The sender's word for it may have been another.
            db.execute("UPDATE job SET request_id = ? WHERE digest = ?", (request_id, digest))
            _step(db, digest, VERIFIED, now, {})
            return digest

    def let_go(self, digest: bytes) -> None:
        """An attempt that was written down cannot be judged yet: as if it had never come. A promised one stays."""
        with self._write() as db:
            open_one = "digest = ?1 AND receipt IS NULL AND recalled = 0"
            if not db.execute(f"SELECT 1 FROM job WHERE {open_one}", (digest,)).fetchone():  # noqa: S608
                return
            if db.execute(f"SELECT 1 FROM step WHERE {_NOW} AND name = 'verified'", (digest,)).fetchone():  # noqa: S608
                return
            last = db.execute("SELECT max(attempt) FROM earlier WHERE digest = ?", (digest,)).fetchone()[0]
            if last is None:
                db.execute("DELETE FROM job WHERE digest = ?", (digest,))
                return
            db.execute(f"DELETE FROM step WHERE {_NOW}", (digest,))  # noqa: S608
            db.execute(
                "UPDATE job SET (attempt, received_at, receipt) = "
                "(SELECT attempt, received_at, receipt FROM earlier WHERE digest = ?1 AND attempt = ?2) "
                "WHERE digest = ?1",
                (digest, last),
            )
            db.execute("DELETE FROM earlier WHERE digest = ? AND attempt = ?", (digest, last))

    def refuse(self, digest: bytes, now: float, receipt: bytes) -> bytes | None:
        """Record a refusal and return its receipt; the first one stands.

        None if these bytes were verified meanwhile (a promised job is not refused any more), or recalled.
        """
        with self._write() as db:
            if not db.execute("SELECT 1 FROM job WHERE digest = ? AND recalled = 0", (digest,)).fetchone():
                return None  # recalled, or found to be the copy of another job
            verified = db.execute(
                f"SELECT 1 FROM step JOIN job USING (digest) WHERE {_NOW} AND name = 'verified' AND refused = 0",  # noqa: S608
                (digest,),
            ).fetchone()
            if not verified:
                db.execute("UPDATE job SET receipt = ? WHERE digest = ? AND receipt IS NULL", (receipt, digest))
                # An envelope that was not accepted is not worth its space on the card.
                db.execute(
                    "UPDATE job SET refused = 1, envelope = x'' WHERE digest = ? "
                    "AND NOT EXISTS (SELECT 1 FROM earlier WHERE earlier.digest = job.digest)",
                    (digest,),
                )
                _step(db, digest, RECEIPTED, now, {})
                db.execute(
                    "DELETE FROM job WHERE refused = 1 AND rowid NOT IN "
                    "(SELECT rowid FROM job WHERE refused = 1 ORDER BY rowid DESC LIMIT ?)",
                    (_KEEP_REFUSED,),
                )
            row = db.execute("SELECT receipt FROM job WHERE digest = ?", (digest,)).fetchone()
            return None if row is None or row[0] is None else bytes(row[0])

    def repeat(self, digest: bytes, attempt: int, envelope: bytes, now: float) -> bool:
        """Begin a job with a receipt anew, as ``attempt``; False if that one, or a later one, is known already.

        ``envelope`` is kept only where the journal has let go of it.
        """
        with self._write() as db:
            before = "digest = ? AND receipt IS NOT NULL AND attempt < ?"
            copied = db.execute(
                f"INSERT INTO earlier SELECT digest, attempt, received_at, receipt FROM job WHERE {before}",  # noqa: S608
                (digest, attempt),
            )
            if copied.rowcount == 0:
                return False
            db.execute(
                "UPDATE job SET attempt = ?, runs = 0, receipt = NULL, refused = 0, recalled = 0, received_at = ?, "
                "envelope = CASE length(envelope) WHEN 0 THEN ? ELSE envelope END WHERE digest = ?",
                (attempt, now, envelope, digest),
            )
            _to_the_end(db, digest)
            _step(db, digest, RECEIVED, now, {})
            return True

    def recall(self, digest: bytes, request_id: str, envelope: bytes, attempt: int, now: float) -> bool:
        """Write down that the sender withdrew a request; False if it was begun before, or has a receipt."""
        with self._write() as db:
            _receive(db, digest, request_id, envelope, now, "forget", attempt)
            db.execute(
                "UPDATE job SET recalled = 1 WHERE digest = ? AND receipt IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM step WHERE step.digest = job.digest AND step.attempt = job.attempt "
                "AND name = 'started')",
                (digest,),
            )
            return bool(db.execute("SELECT recalled FROM job WHERE digest = ?", (digest,)).fetchone()[0])

    def resume(self, digest: bytes, attempt: int) -> None:
        """The sender asks again for what it had withdrawn; nothing was done, so it may count as a later attempt."""
        with self._write() as db:
            query = "SELECT attempt FROM job WHERE digest = ? AND recalled = 1"
            row = db.execute(query, (digest,)).fetchone()
            if row is None:
                return
            later = max(attempt, row[0])
            db.execute("UPDATE job SET recalled = 0, attempt = ? WHERE digest = ?", (later, digest))
            db.execute("UPDATE step SET attempt = ? WHERE digest = ? AND attempt = ?", (later, digest, row[0]))
            _to_the_end(db, digest)

    def begin_run(self, digest: bytes, now: float) -> int:
        """Count one more run of an attempt; returns how many there were, 0 if the request was recalled meanwhile."""
        with self._write() as db:
            if not db.execute("UPDATE job SET runs = runs + 1 WHERE digest = ? AND recalled = 0", (digest,)).rowcount:
                return 0
            _step(db, digest, STARTED, now, {})
            row = db.execute("SELECT runs FROM job WHERE digest = ?", (digest,)).fetchone()
            return int(row[0])

    def cancel_run(self, digest: bytes) -> None:
        """The run was interrupted by an orderly stop: it says nothing about the job."""
        with self._write() as db:
            db.execute("UPDATE job SET runs = max(0, runs - 1) WHERE digest = ?", (digest,))

    def record(self, digest: bytes, step: str, data: dict[str, Any], now: float) -> dict[str, Any]:
        """Write down that ``step`` is done; returns the data that stands (of the first time it was)."""
        with self._write() as db:
            _step(db, digest, step, now, data)
            query = f"SELECT data FROM step WHERE {_NOW} AND name = ?"  # noqa: S608
            row = db.execute(query, (digest, step)).fetchone()
            return dict(json.loads(row[0]))

    def withdraw(self, digest: bytes) -> None:
        """The evaluated model turned out damaged before its switch was complete: work on the request again."""
        with self._write() as db:
            db.execute(f"DELETE FROM step WHERE {_NOW} AND name IN ('evaluated', 'swapped')", (digest,))  # noqa: S608

    def finish(self, digest: bytes, receipt: bytes, now: float) -> bytes:
        """Record the receipt of a job and return the one that stands."""
        with self._write() as db:
            db.execute("UPDATE job SET receipt = ? WHERE digest = ? AND receipt IS NULL", (receipt, digest))
            _step(db, digest, RECEIPTED, now, {})
            row = db.execute("SELECT receipt FROM job WHERE digest = ?", (digest,)).fetchone()
        self._refill_reserve()
        return bytes(row[0])

    def deliver(self, digest: bytes, now: float) -> None:
        """The receipt was handed to the sender (it may ask again)."""
        query = f"SELECT 1 FROM step WHERE {_NOW} AND name = 'delivered'"  # noqa: S608
        with self._lock:
            known = self._db.execute(query, (digest,)).fetchone()
        if not known:
            with self._write() as db:
                _step(db, digest, DELIVERED, now, {})

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._retried(lambda: self._db.execute("BEGIN IMMEDIATE"))
                yield self._db
                self._retried(lambda: self._db.execute("COMMIT"))
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._give_up_reserve()
                    raise JournalWriteError(f"cannot write the journal {self.path}: {error}") from None
                raise

    def _retried(self, action: Callable[[], object]) -> None:
        try:
            action()
        except sqlite3.OperationalError:
            if not self._give_up_reserve():
                raise
            action()

    def _give_up_reserve(self) -> bool:
        try:
            self._reserve.unlink()
        except OSError:
            return False
        log.warning("the disk is full: gave up the reserve of %d KiB to finish what was begun", _RESERVE_BYTES >> 10)
        return True

    def _refill_reserve(self) -> None:
        """Best effort: without it the agent works, but a full disk leaves it less room."""
        if self.path.name == ":memory:":
            return
        with suppress(OSError):
            if not self._reserve.exists():
                temporary = self._reserve.with_suffix(".new")
                temporary.write_bytes(b"\0" * _RESERVE_BYTES)
                temporary.replace(self._reserve)


# Steps of the newest attempt.
_NOW = "step.digest = ?1 AND step.attempt = (SELECT attempt FROM job WHERE digest = ?1)"


def _receive(
    db: sqlite3.Connection, digest: bytes, request_id: str, envelope: bytes, now: float, kind: str, attempt: int
) -> None:
    db.execute(
        "INSERT INTO job (digest, request_id, kind, envelope, received_at, attempt) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (digest) DO NOTHING",
        (digest, request_id, kind, envelope, now, attempt),
    )
    _step(db, digest, RECEIVED, now, {})


def _standing(db: sqlite3.Connection, digest: bytes, request_id: str) -> bytes | None:
    row = db.execute(
        "SELECT digest FROM job JOIN step USING (digest) WHERE request_id = ? AND name = 'verified' "
        "AND refused = 0 AND digest != ?",
        (request_id, digest),
    ).fetchone()
    return bytes(row[0]) if row else None


def _to_the_end(db: sqlite3.Connection, digest: bytes) -> None:
    """Behind all others: one of them may have a candidate that must not be written over."""
    db.execute("UPDATE job SET rowid = 1 + (SELECT max(rowid) FROM job) WHERE digest = ?", (digest,))


def _step(db: sqlite3.Connection, digest: bytes, name: str, at: float, data: dict[str, Any]) -> None:
    """A step of the newest attempt; the first time stands."""
    db.execute(
        "INSERT INTO step (digest, attempt, name, at, data) "
        "VALUES (?1, (SELECT attempt FROM job WHERE digest = ?1), ?2, ?3, ?4) "
        "ON CONFLICT (digest, attempt, name) DO NOTHING",
        (digest, name, at, json.dumps(data)),
    )
