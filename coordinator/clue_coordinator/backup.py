"""``clue-coordinator backup`` and ``restore``: the ledger as one file that either database reads.

The file is text, one JSON object a line: a header with the ledger's revision, every row under
its table's name, and a last line with the number of rows and the SHA-256 of all lines before
it. It is read in one transaction, so it shows one moment however busy the coordinator is. A
copy of the database's own format could hold no digest and would tie a backup to SQLite or to
one major version of PostgreSQL; this one also moves a ledger from one to the other.

The digest finds a file that is cut off or damaged. It is no signature: whoever can write the
file can write another digest.
"""

import base64
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, Integer, LargeBinary, MetaData, Table, func, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

import clue
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.database import Database, reason
from clue_coordinator.errors import BackupError, ConflictError, CoordinatorError
from clue_coordinator.migrations import drop, is_known, newest, revision_of, upgrade
from clue_coordinator.models import Base, Event
from clue_coordinator.roots import OWN_NAMES
from clue_coordinator.tokens import LOCAL
from clue_protocol.files import HomeLock, fsync_folder

FORMAT = "clue-ledger-backup/1"
_BATCH = 500


@dataclass(frozen=True)
class Summary:
    """What a backup holds."""

    at: float
    revision: str
    sha256: str
    rows: dict[str, int]


def back_up(config: CoordinatorConfig, out: Path) -> Summary:
    """Write the ledger to the new file ``out``; the coordinator may be running.

    Raises:
        ConflictError: ``out`` exists.
        CoordinatorError: there is no ledger, or it cannot be read.
    """
    if out.exists():
        raise ConflictError(f"{out} exists already")
    if not out.parent.is_dir():
        raise BackupError(f"{out.parent} is not a folder")
    with _database(config) as database:
        # Opening a file that is not there would make it.
        if database.is_sqlite and not Path(str(database.url.database)).exists():
            raise BackupError(f"there is no ledger at {database.name}")
        partial = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream, database.reader.begin() as connection:
                summary = _dump(connection, database.name, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        fsync_folder(out.parent)
        return summary


def restore(config: CoordinatorConfig, source: Path, *, force: bool = False) -> Summary:
    """Replace the ledger by the backup ``source``, in one transaction, and bring it to this software's revision.

    Raises:
        BackupError: ``source`` is no whole backup, or of newer software.
        ConflictError: the ledger holds something and ``force`` is not set, or a coordinator uses it.
        ProtocolError: a coordinator runs in this home folder.
    """
    summary = verify(source)
    lock = HomeLock(config.home)
    lock.acquire()
    try:
        with _database(config) as database:
            claim = database.claim()
            if claim is None:
                raise ConflictError(f"the ledger {database.name} is in use by a coordinator: stop it first")
            with claim, database.writer.begin() as connection:
                if revision_of(connection, database.name) is not None:
                    held = sum(_count(connection, table) for table in _tables(connection)) - _own_rows(connection)
                    if held and not force:
                        raise ConflictError(
                            f"the ledger {database.name} holds {held} rows: back it up, then restore with --force"
                        )
                drop(connection)
                upgrade(connection, summary.revision)
                _load(connection, source, summary)
                upgrade(connection)
                # The history says that it was cut here.
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(summary.at))
                detail = f"backup of {when}, sha256 {summary.sha256}"
                row = {"at": time.time(), "kind": "ledger.restored", "fleet": "", "device_id": "", "request_id": ""}
                connection.execute(insert(Event).values(row | {"detail": detail}))
    finally:
        lock.release()
    return summary


def verify(source: Path) -> Summary:
    """Read a backup to its end; BackupError says what is wrong with it."""
    digest = hashlib.sha256()
    rows: Counter[str] = Counter()
    header: dict[str, Any] | None = None
    pending: bytes | None = None
    try:
        with source.open("rb") as stream:
            for line in stream:
                if pending is not None:
                    digest.update(pending)
                    if header is None:
                        header = _parse(pending, source)
                        if header.get("format") != FORMAT:
                            raise BackupError(f"{source} is not a backup of a ledger ({FORMAT})")
                    else:
                        rows[next(iter(_parse(pending, source)), "")] += 1
                pending = line
    except OSError as error:
        raise BackupError(f"cannot read {source}: {error.strerror}") from None
    if header is None or pending is None:
        raise BackupError(f"{source} is not a backup of a ledger ({FORMAT})")
    end = _parse(pending, source)
    if end.get("sha256") != digest.hexdigest() or end.get("rows") != dict(rows):
        raise BackupError(f"{source} is cut off or damaged: its content does not match its SHA-256")
    summary = Summary(float(header["at"]), str(header["revision"]), digest.hexdigest(), dict(rows))
    if not is_known(summary.revision):
        raise BackupError(
            f"{source} is newer than this software (revision {summary.revision}, known up to {newest()}): "
            "install the version that wrote it, or a newer one"
        )
    return summary


@contextmanager
def _database(config: CoordinatorConfig) -> Iterator[Database]:
    database = Database(config.ledger_place)
    try:
        yield database
    except SQLAlchemyError as error:
        raise CoordinatorError(f"cannot use the ledger {database.name}: {reason(error)}") from None
    finally:
        database.close()


def _dump(connection: Connection, name: str, stream: BinaryIO) -> Summary:
    revision = revision_of(connection, name)
    if revision is None:
        raise BackupError(f"there is no ledger at {name}")
    digest = hashlib.sha256()
    rows: Counter[str] = Counter()
    at = time.time()

    def put(data: dict[str, Any]) -> None:
        line = json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        digest.update(line)
        stream.write(line)

    put({"format": FORMAT, "revision": revision, "software": clue.__version__, "at": at})
    for table in _tables(connection):
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
        for row in connection.execute(query).mappings():
            put({table.name: {column.name: _out(row[column]) for column in table.columns}})
            rows[table.name] += 1
    end = {"rows": dict(rows), "sha256": digest.hexdigest()}
    stream.write(json.dumps(end, separators=(",", ":")).encode() + b"\n")
    return Summary(at, revision, digest.hexdigest(), dict(rows))


def _load(connection: Connection, source: Path, summary: Summary) -> None:
    tables = {table.name: table for table in _tables(connection)}
    batch: list[dict[str, Any]] = []
    current: Table | None = None
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        lines = iter(stream)
        digest.update(next(lines))
        # Rows stand table by table, in the order in which they may refer to each other.
        for _ in range(sum(summary.rows.values())):
            line = next(lines, b"")
            digest.update(line)
            [(name, row)] = _parse(line, source).items()
            if name not in tables:
                raise BackupError(f"{source} holds a table '{name}' that revision {summary.revision} has not")
            if current is not None and (current.name != name or len(batch) == _BATCH):
                connection.execute(insert(current), batch)
                batch = []
            current = tables[name]
            batch.append({column.name: _in(row[column.name], column.type) for column in current.columns})
    if current is not None:
        connection.execute(insert(current), batch)
    if digest.hexdigest() != summary.sha256:
        raise BackupError(f"{source} changed while it was read")
    if connection.dialect.name == "postgresql":
        for table in tables.values():
            _advance_sequence(connection, table)


def _advance_sequence(connection: Connection, table: Table) -> None:
    """The next number that PostgreSQL gives out must follow the restored ones; SQLite looks for itself."""
    [key] = table.primary_key.columns
    highest = connection.scalar(select(func.max(key))) if isinstance(key.type, Integer) else None
    if highest is not None:
        connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, key.name), highest)))


def _tables(connection: Connection) -> list[Table]:
    """The ledger's tables as they are in this database, those that are referred to first."""
    metadata = MetaData()
    there = set(inspect(connection).get_table_names()) & set(Base.metadata.tables)
    metadata.reflect(connection, only=sorted(there))
    return metadata.sorted_tables


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _own_rows(connection: Connection) -> int:
    """Rows that ``init`` writes: the home folder's token, the first root, their events. They are nobody's work."""
    tables = {table.name: table for table in _tables(connection)}
    if "token" not in tables:
        return 0
    token, event = tables["token"].c, tables["event"].c
    own: list[tuple[Any, ...]] = [(token.created_by == LOCAL,), (event.kind == "token.created", event.actor == LOCAL)]
    if "root" in tables:
        root, leaf, name = tables["root"].c, tables["log_leaf"].c, tables["key_name"].c
        first = event.detail.startswith("version 1,")
        own += [
            (root.version == 1,),
            (name.name.in_(OWN_NAMES),),
            (event.kind == "root.published", first),
            (leaf.id == 0, leaf.kind == "rotation"),
        ]
    return sum(connection.scalar(select(func.count()).where(*where)) or 0 for where in own)


def _parse(line: bytes, source: Path) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise BackupError(f"{source} is not a backup of a ledger ({FORMAT}), or it is cut off or damaged")
    return data


def _out(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes | memoryview) else value


def _in(value: Any, kind: object) -> Any:
    return base64.b64decode(value) if isinstance(kind, LargeBinary) and value is not None else value
