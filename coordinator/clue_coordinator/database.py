"""Where the ledger lives: SQLite or PostgreSQL, opened so that both keep the same promises.

One transaction writes at a time, and what is committed is on the disk. SQLite does that with
``BEGIN IMMEDIATE``, WAL and full sync; PostgreSQL with an advisory lock that every writing
transaction takes first, and with synchronous commits. A reading transaction sees one moment
and never waits for the writer.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from clue_coordinator.errors import ConfigError

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 10
_CLAIM_SECONDS = 3.0
# Advisory locks are pairs of numbers: ours and one for the schema, so that ledgers in different schemas do not wait.
_WRITER, _DAEMON = 0x636C7565, 0x636C7566


def parse_url(where: Path | str) -> URL:
    """The URL of a ledger: an SQLite file, ``sqlite:////path`` or ``postgresql+psycopg://...``; else ConfigError."""
    if isinstance(where, Path):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        # Not repeated in the message: it may hold a password.
        raise ConfigError("[ledger] url is not a database URL") from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(
            f"[ledger] url begins with {url.drivername}: it must be sqlite:////path or postgresql+psycopg://..."
        )
    if url.drivername == "sqlite" and not Path(url.database or "").is_absolute():
        raise ConfigError("[ledger] url: an SQLite ledger needs an absolute path, sqlite:////path")
    return url


def describe(url: URL) -> str:
    """For messages: the file, or the URL without its password."""
    return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)


class Database:
    """Two ways into one engine: ``reader`` for reading transactions, ``writer`` for writing ones."""

    def __init__(self, where: Path | str) -> None:
        self.url = parse_url(where)
        self.name = describe(self.url)
        self.is_sqlite = self.url.drivername == "sqlite"
        if self.is_sqlite:
            self._engine = _open_sqlite(self.url)
            self.reader = self._engine
            self.writer = self._engine.execution_options(write=True)
        else:
            self._engine = _open_postgresql(self.url)
            self.reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            # Not stricter: the snapshot must be newer than the lock that the transaction waited for.
            self.writer = self._engine.execution_options(isolation_level="READ COMMITTED", write=True)

    def claim(self) -> Connection | None:
        """Be the one daemon of this ledger until the connection is closed; None if another is.

        An SQLite ledger is guarded by the lock of its home folder; the connection holds nothing then.
        """
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if self.is_sqlite:
            return connection
        query = f"SELECT pg_try_advisory_lock({_DAEMON}, hashtext(current_schema()))"
        try:
            # A server lets go of the lock of a daemon that has ended only once it sees that its connection is gone.
            patience = time.monotonic() + _CLAIM_SECONDS
            while not (taken := connection.exec_driver_sql(query).scalar()) and time.monotonic() < patience:
                time.sleep(0.1)
        except BaseException:
            connection.close()
            raise
        if not taken:
            connection.close()
            return None
        # Kept out of the pool: the lock belongs to the connection and must end with it.
        connection.detach()
        return connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def reason(error: SQLAlchemyError) -> str:
    """The database's own words, one line."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _open_sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver would start transactions by itself, too late and in the wrong mode.
        connection.isolation_level = None
        cursor = connection.cursor()
        # SQLite does not wait for its timeout here: where several turn a new file into WAL at once, some fail at once.
        Retrying(
            retry=retry_if_exception(_is_busy),
            stop=stop_after_delay(_BUSY_SECONDS),
            wait=wait_random_exponential(0.01, max=1),
            reraise=True,
        )(cursor.execute, "PRAGMA journal_mode=WAL")
        # Secure delete: updates and patches of devices must not stay readable in free pages.
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")

    return engine


def _open_postgresql(url: URL) -> Engine:
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    try:
        # A server that was restarted must not cost the first request after it.
        engine = create_engine(url, pool_pre_ping=True, connect_args=arguments)
    except ModuleNotFoundError:
        raise ConfigError("a ledger on PostgreSQL needs: pip install 'clue-unlearning[postgresql]'") from None

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{_BUSY_SECONDS}s'")
            # A server set to answer before it has written would lose what a crash interrupts.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("write"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER}, hashtext(current_schema()))")

    return engine
