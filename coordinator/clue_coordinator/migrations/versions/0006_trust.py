"""Roots, signed time, numbers of 64 bits, approvals."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables, and number what there is."""
    op.create_table(
        "root",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "time_sequence",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "key_name",
        sa.Column("keyid", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    for table in ("fleet", "request"):
        # SQLite's integers have 64 bits already.
        if not sqlite:
            op.alter_column(table, "sequence", type_=sa.BigInteger)
    _add("device", "root_version", sa.BigInteger, "0")
    _add("device", "time_nonce", sa.LargeBinary, "")
    _add("device", "begun_sequence", sa.BigInteger, "0")
    _add("request", "approvals_needed", sa.Integer, "1")
    _add("request", "approvals", sa.JSON, "[]")
    _add("execution", "sequence", sa.BigInteger, "0")
    # Those that wait for a patch, or have one, keep the request's: a patch of before comes first and hurts nobody.
    op.execute("UPDATE execution SET sequence = (SELECT sequence FROM request WHERE request.id = execution.request_id)")
    op.execute(
        "UPDATE device SET begun_sequence = coalesce((SELECT max(execution.sequence) FROM execution WHERE "
        "execution.device_pk = device.id AND execution.started_at IS NOT NULL), 0)"
    )
    for statement in _SQLITE if sqlite else _POSTGRESQL:
        op.execute(statement)


def _add(table: str, name: str, kind: Any, default: str) -> None:
    op.add_column(table, sa.Column(name, kind, nullable=False, server_default=default))


_SQLITE = [
    "CREATE TRIGGER root_no_update BEFORE UPDATE ON root BEGIN SELECT RAISE(ABORT, 'roots are append-only'); END",
    "CREATE TRIGGER root_no_delete BEFORE DELETE ON root BEGIN SELECT RAISE(ABORT, 'roots are append-only'); END",
    "CREATE TRIGGER root_no_replace BEFORE INSERT ON root WHEN EXISTS (SELECT 1 FROM root WHERE version = NEW.version) "
    "BEGIN SELECT RAISE(ABORT, 'roots are append-only'); END",
]
_POSTGRESQL = [
    "CREATE OR REPLACE FUNCTION root_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'roots are append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$",
    "CREATE TRIGGER root_no_change BEFORE UPDATE OR DELETE ON root FOR EACH ROW EXECUTE FUNCTION root_append_only()",
    "CREATE TRIGGER root_no_truncate BEFORE TRUNCATE ON root FOR EACH STATEMENT EXECUTE FUNCTION root_append_only()",
]
