"""The journal's tables, and how one that an earlier version left is brought to them."""

import sqlite3

from clue_agent.errors import AgentError

STEPS = ("received", "verified", "started", "evaluated", "swapped", "erased", "receipted", "delivered")

# Of PRAGMA user_version. 0 is an empty file, or one from before attempts were told apart.
_VERSION = 2

_JOB = """
CREATE TABLE job (
    digest BLOB PRIMARY KEY,            -- SHA-256 of the request envelope
    request_id TEXT NOT NULL,
    kind TEXT NOT NULL,                 -- 'forget', or 'model' for a new base model
    envelope BLOB NOT NULL,
    received_at REAL NOT NULL,          -- when the attempt was asked for
    attempt INTEGER NOT NULL DEFAULT 1, -- the newest; of the others 'earlier' has the receipts
    runs INTEGER NOT NULL DEFAULT 0,    -- how often the work of this attempt was begun, crashes included
    receipt BLOB,                       -- of this attempt: the signed envelope
    refused INTEGER NOT NULL DEFAULT 0, -- receipted without ever being verified
    recalled INTEGER NOT NULL DEFAULT 0 -- the sender withdrew it before it was begun
) STRICT
"""
_EARLIER = """
CREATE TABLE earlier (
    digest BLOB NOT NULL REFERENCES job ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    received_at REAL NOT NULL,
    receipt BLOB NOT NULL,
    PRIMARY KEY (digest, attempt)
) STRICT
"""
_STEP = f"""
CREATE TABLE step (
    digest BLOB NOT NULL REFERENCES job ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    name TEXT NOT NULL CHECK (name IN {STEPS}),
    at REAL NOT NULL,
    data TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (digest, attempt, name)
) STRICT
"""
_FIRST = (_JOB, _EARLIER, _STEP)
_FROM_BEFORE_ATTEMPTS = (
    "ALTER TABLE job RENAME COLUMN attempts TO runs",
    "ALTER TABLE job ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE job ADD COLUMN recalled INTEGER NOT NULL DEFAULT 0",
    _EARLIER,
    "ALTER TABLE step RENAME TO old_step",
    _STEP,
    "INSERT INTO step SELECT digest, 1, name, at, data FROM old_step",
    "DROP TABLE old_step",
)


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables, or bring older ones up to date, all at once or not at all.

    Raises:
        AgentError: a newer version wrote this journal.
        sqlite3.Error: it cannot be read or written.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        version = has_version(db)
        if version > _VERSION:
            raise AgentError(
                f"the journal was written by a newer version (its schema is {version}, this one knows {_VERSION}): "
                "install that version again"
            )
        if version < _VERSION:
            known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'job'").fetchone()
            for statement in _FROM_BEFORE_ATTEMPTS if known else _FIRST:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def has_version(db: sqlite3.Connection) -> int:
    """Which schema a journal has."""
    [(version,)] = db.execute("PRAGMA user_version").fetchall()
    return int(version)


def tells_attempts_apart(db: sqlite3.Connection) -> bool:
    """False for a journal that no agent of this version has opened yet."""
    return has_version(db) >= 2
