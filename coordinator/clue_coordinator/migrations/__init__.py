"""The ledger's schema, step by step (alembic). Steps only go up; the way back is a backup.

``versions/`` holds one file per step. All steps that a ledger needs run in one transaction,
under the lock that every writer takes: a crash leaves the old ledger, and two daemons that
start at once do not meet.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from clue_coordinator.database import Database
from clue_coordinator.errors import LedgerVersionError
from clue_coordinator.models import Base

VERSION_TABLE = "ledger_version"
# What create_all made before there were versions. It never changes.
_UNVERSIONED = "0001"
_UNVERSIONED_TABLES = {
    "fleet": "id name created_at sequence",
    "device": "id device_id fleet_id node_id receipt_key supernode_key classes model_digest software_version online "
    "last_seen enrolled_at",
    "request": "id fleet_id forget_class method max_ua max_ra_drop state envelope idempotency_key created_by "
    "created_at expires_at finished_at",
    "execution": "id request_id device_pk state lease_until attempts stage fraction reason detail receipt_envelope "
    "updated_at",
    "event": "id at kind fleet device_id request_id detail",
}


def newest() -> str:
    """The revision that this software works with."""
    head = _scripts().get_current_head()
    assert head is not None  # noqa: S101
    return head


def is_known(revision: str) -> bool:
    """True if this software has the step ``revision``."""
    return revision in {script.revision for script in _scripts().walk_revisions()}


def revision_of(connection: Connection, name: str) -> str | None:
    """The ledger's revision, None if there is no ledger yet.

    Raises:
        LedgerVersionError: it is newer than this software, or its tables are no ledger's.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    revision = context.get_current_revision()
    if revision is not None:
        if not is_known(revision):
            raise LedgerVersionError(
                f"the ledger {name} is newer than this software (revision {revision}, known up to {newest()}): "
                "install the version that wrote it, or a newer one"
            )
        return revision
    inspector = inspect(connection)
    ours = set(inspector.get_table_names()) & set(_UNVERSIONED_TABLES)
    if not ours:
        return None
    found = {table: {str(column["name"]) for column in inspector.get_columns(table)} for table in ours}
    if found != {table: set(columns.split()) for table, columns in _UNVERSIONED_TABLES.items()}:
        raise LedgerVersionError(f"{name} holds tables that are no ledger ({', '.join(sorted(ours))}): use another")
    return _UNVERSIONED


def migrate(database: Database) -> None:
    """Bring a ledger to :func:`newest`, or make one; LedgerVersionError if that cannot be."""
    with database.reader.begin() as connection:
        # The usual case must not wait for a writer.
        if _stamped(connection) and revision_of(connection, database.name) == newest():
            return
    with database.writer.begin() as connection:
        # Looked at again: now nobody else can be at it.
        if revision_of(connection, database.name) is not None and not _stamped(connection):
            command.stamp(_config(connection), _UNVERSIONED)
        upgrade(connection)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the steps up to ``revision`` in the transaction of ``connection``."""
    command.upgrade(_config(connection), revision)


def drop(connection: Connection) -> None:
    """Remove a ledger with all it holds, in the transaction of ``connection``."""
    Base.metadata.drop_all(connection)
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {VERSION_TABLE}")


def _stamped(connection: Connection) -> bool:
    return inspect(connection).has_table(VERSION_TABLE)


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # The percent sign is special in alembic's configuration.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
