"""The transparency log: leaves, the tree over them, checkpoints and cosignatures. All of it is append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# What besides its id makes a row of each table the only one: INSERT OR REPLACE removes rows by that, too.
_TABLES = {
    "log_leaf": "",
    "log_node": " OR (level = NEW.level AND position = NEW.position)",
    "log_checkpoint": "",
    "log_cosignature": "",
}


def upgrade() -> None:
    """Make the tables and their triggers."""
    op.create_table(
        "log_leaf",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("reference", sa.String(255), nullable=False, index=True),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "log_node",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("level", "position"),
    )
    op.create_table(
        "log_checkpoint",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("size", sa.Integer, nullable=False, index=True),
        sa.Column("note", sa.String, nullable=False),
    )
    op.create_table(
        "log_cosignature",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("checkpoint_id", sa.Integer, sa.ForeignKey("log_checkpoint.id"), nullable=False, index=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("line", sa.String, nullable=False),
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _sqlite() if sqlite else _postgresql():
        op.execute(statement)


def _sqlite() -> list[str]:
    refuse = "BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
    statements = []
    for table, same in _TABLES.items():
        taken = f"EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id{same})"  # noqa: S608
        statements += [
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {taken} {refuse}",
        ]
    return statements


def _postgresql() -> list[str]:
    statements = [
        "CREATE OR REPLACE FUNCTION log_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the log is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    ]
    for table in _TABLES:
        refuse = "EXECUTE FUNCTION log_append_only()"
        statements += [
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {refuse}",
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}",
        ]
    return statements
