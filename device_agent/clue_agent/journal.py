"""What the agent has promised and done, in SQLite: the reason a request ends in exactly one receipt.

A job is found by the SHA-256 of the envelope that asked for it. Every step it has reached is a row of
its own, written (WAL, full sync) before the next one begins, and no step is ever taken back::

    received -> verified -> started -> evaluated -> swapped -> erased -> receipted -> delivered
        \\___________\\__________\\______(refused or failed)______________/

After a crash the daemon goes on from the last row: up to ``started`` the work is done again, from
``evaluated`` on (the new model is whole, has passed the guard and is named here) it can only be completed.
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
from clue_protocol.files import fsync_folder

log = logging.getLogger(__name__)

RECEIVED, VERIFIED, STARTED, EVALUATED, SWAPPED, ERASED, RECEIPTED, DELIVERED = STEPS = (
    "received",
    "verified",
    "started",
    "evaluated",
    "swapped",
    "erased",
    "receipted",
    "delivered",
)
# Kind of the jobs that bring a base model in.
MODEL_JOB = "model"
_KEEP_REFUSED = 1000
# Given back to the file system when it is full, so that work that was begun can be recorded to its end.
_RESERVE_BYTES = 1 << 20

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS job (
    digest BLOB PRIMARY KEY,           -- SHA-256 of the request envelope
    request_id TEXT NOT NULL,
    kind TEXT NOT NULL,                -- 'forget', or 'model' for a new base model
    envelope BLOB NOT NULL,
    received_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    receipt BLOB,                      -- receipted: the signed envelope
    refused INTEGER NOT NULL DEFAULT 0 -- receipted without ever being verified
) STRICT;
CREATE TABLE IF NOT EXISTS step (
    digest BLOB NOT NULL REFERENCES job ON DELETE CASCADE,
    name TEXT NOT NULL CHECK (name IN {STEPS}),
    at REAL NOT NULL,
    data TEXT NOT NULL,                -- JSON
    PRIMARY KEY (digest, name)
) STRICT;
"""


@dataclass(frozen=True)
class Job:
    """One job and the steps it has reached, with what was written down at each."""

    digest: bytes
    request_id: str
    kind: str
    envelope: bytes
    received_at: float
    attempts: int
    receipt: bytes | None
    steps: dict[str, dict[str, Any]]

    @property
    def step(self) -> str:
        """The furthest step."""
        return max(self.steps, key=STEPS.index)


_COLUMNS = "digest, request_id, kind, envelope, received_at, attempts, receipt"


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
            db.executescript(_SCHEMA)
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
        """Jobs without a receipt, in the order in which they came (the clock may have been set back since)."""
        query = f"SELECT {_COLUMNS} FROM job WHERE receipt IS NULL ORDER BY rowid"  # noqa: S608
        with self._lock:
            return [self._job(row) for row in self._db.execute(query).fetchall()]

    def _job(self, row: tuple[bytes, str, str, bytes, float, int, bytes | None]) -> Job:
        steps = self._db.execute("SELECT name, data FROM step WHERE digest = ?", (row[0],))
        return Job(*row, {name: json.loads(data) for name, data in steps})

    # Writing

    def receive(self, digest: bytes, request_id: str, envelope: bytes, now: float, kind: str = "forget") -> None:
        """Write down that these bytes came, before they are looked at."""
        with self._write() as db:
            db.execute(
                "INSERT INTO job (digest, request_id, kind, envelope, received_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (digest) DO NOTHING",
                (digest, request_id, kind, envelope, now),
            )
            _step(db, digest, RECEIVED, now, {})

    def verify(self, digest: bytes, request_id: str, now: float) -> bytes:
        """The request is one to work on; returns the digest of the job that stands for it.

        That is ``digest`` itself, or the one under which the same request came before in other bytes: then
        the new row is dropped.
        """
        with self._write() as db:
            row = db.execute(
                "SELECT digest FROM job JOIN step USING (digest) WHERE request_id = ? AND name = 'verified' "
                "AND refused = 0 AND digest != ?",
                (request_id, digest),
            ).fetchone()
            if row:
                db.execute("DELETE FROM job WHERE digest = ? AND receipt IS NULL", (digest,))
                return bytes(row[0])
            # The sender's word for it may have been another.
            db.execute("UPDATE job SET request_id = ? WHERE digest = ?", (request_id, digest))
            _step(db, digest, VERIFIED, now, {})
            return digest

    def refuse(self, digest: bytes, now: float, receipt: bytes) -> bytes | None:
        """Record a refusal and return its receipt; the first one stands.

        None if these bytes were verified meanwhile: a promised job is not refused any more.
        """
        with self._write() as db:
            if not db.execute("SELECT 1 FROM job WHERE digest = ?", (digest,)).fetchone():
                return None  # found to be the copy of another job
            verified = db.execute(
                "SELECT 1 FROM step JOIN job USING (digest) WHERE digest = ? AND name = 'verified' AND refused = 0",
                (digest,),
            ).fetchone()
            if not verified:
                # An envelope that was not accepted is not worth its space on the card.
                db.execute(
                    "UPDATE job SET receipt = ?, refused = 1, envelope = x'' WHERE digest = ? AND receipt IS NULL",
                    (receipt, digest),
                )
                _step(db, digest, RECEIPTED, now, {})
                db.execute(
                    "DELETE FROM job WHERE refused = 1 AND rowid NOT IN "
                    "(SELECT rowid FROM job WHERE refused = 1 ORDER BY rowid DESC LIMIT ?)",
                    (_KEEP_REFUSED,),
                )
            row = db.execute("SELECT receipt FROM job WHERE digest = ?", (digest,)).fetchone()
            return None if row is None or row[0] is None else bytes(row[0])

    def begin_attempt(self, digest: bytes, now: float) -> int:
        """Count one more attempt at a job; returns how many there were."""
        with self._write() as db:
            db.execute("UPDATE job SET attempts = attempts + 1 WHERE digest = ?", (digest,))
            _step(db, digest, STARTED, now, {})
            row = db.execute("SELECT attempts FROM job WHERE digest = ?", (digest,)).fetchone()
            return int(row[0])

    def cancel_attempt(self, digest: bytes) -> None:
        """The attempt was interrupted by an orderly stop: it says nothing about the job."""
        with self._write() as db:
            db.execute("UPDATE job SET attempts = max(0, attempts - 1) WHERE digest = ?", (digest,))

    def record(self, digest: bytes, step: str, data: dict[str, Any], now: float) -> dict[str, Any]:
        """Write down that ``step`` is done; returns the data that stands (of the first time it was)."""
        with self._write() as db:
            _step(db, digest, step, now, data)
            row = db.execute("SELECT data FROM step WHERE digest = ? AND name = ?", (digest, step)).fetchone()
            return dict(json.loads(row[0]))

    def withdraw(self, digest: bytes) -> None:
        """The evaluated model turned out damaged before its switch was complete: work on the request again."""
        with self._write() as db:
            db.execute("DELETE FROM step WHERE digest = ? AND name IN ('evaluated', 'swapped')", (digest,))

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
        with self._lock:
            known = self._db.execute("SELECT 1 FROM step WHERE digest = ? AND name = 'delivered'", (digest,)).fetchone()
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


def _step(db: sqlite3.Connection, digest: bytes, name: str, at: float, data: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO step (digest, name, at, data) VALUES (?, ?, ?, ?) ON CONFLICT (digest, name) DO NOTHING",
        (digest, name, at, json.dumps(data)),
    )
