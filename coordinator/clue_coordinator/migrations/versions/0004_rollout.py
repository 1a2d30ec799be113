"""Labels, targets, waves, attempts and patches."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns and tables, and count what there is."""
    _extend("device", labels=sa.JSON, retired_at=sa.Float)
    _extend(
        "request",
        target=sa.JSON,
        plan=sa.JSON,
        counts=sa.JSON,
        wave=1,
        wave_at=sa.Float,
        waves=1,
        paused_at=sa.Float,
        reason=sa.String,
        retry_of=sa.String(36),
        sequence=0,
    )
    op.create_table(
        "patch",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("request_id", sa.String(36), sa.ForeignKey("request.id"), nullable=False),
        sa.Column("base_digest", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("request_id", "base_digest"),
    )
    op.execute("ALTER TABLE execution RENAME COLUMN attempts TO faults")
    _extend(
        "execution",
        wave=1,
        not_before=sa.Float,
        handed_out=False,
        waiting=sa.String(16),
        attempt=1,
        ua_before=sa.Float,
        ua_after=sa.Float,
        ra_before=sa.Float,
        ra_after=sa.Float,
        ra_drop=sa.Float,
        base_digest=sa.String(64),
        started_at=sa.Float,
        finished_at=sa.Float,
    )
    # SQLite takes a reference in a new column only in this form.
    op.execute("ALTER TABLE execution ADD COLUMN patch_id VARCHAR(36) REFERENCES patch (id)")
    op.execute("UPDATE execution SET handed_out = (state = 'IN_PROGRESS')")
    op.create_index("ix_execution_request", "execution", ["request_id", "state", "wave"])
    op.create_table(
        "past_receipt",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("execution_id", sa.String(36), sa.ForeignKey("execution.id"), nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
    )
    op.create_table(
        "model_update",
        sa.Column("execution_id", sa.String(36), sa.ForeignKey("execution.id"), primary_key=True),
        sa.Column("base_digest", sa.String(64), nullable=False, index=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
    )
    _count()


def _extend(table: str, **columns: Any) -> None:
    """Add columns: numbers are defaults; text and JSON begin empty; floats and ids begin absent."""
    for name, kind in columns.items():
        column: sa.Column[Any]
        if isinstance(kind, bool):
            column = sa.Column(name, sa.Boolean, nullable=False, server_default=sa.true() if kind else sa.false())
        elif isinstance(kind, int):
            column = sa.Column(name, sa.Integer, nullable=False, server_default=str(kind))
        elif kind is sa.JSON:
            column = sa.Column(name, sa.JSON, nullable=False, server_default="{}")
        elif kind is sa.Float or name == "retry_of":
            column = sa.Column(name, kind, nullable=True)
        else:
            column = sa.Column(name, kind, nullable=False, server_default="")
        op.add_column(table, column)


def _count() -> None:
    connection = op.get_bind()
    counts: dict[str, dict[str, int]] = {}
    rows = connection.execute(sa.text("SELECT request_id, state, count(*) FROM execution GROUP BY request_id, state"))
    for request_id, state, number in rows:
        counts.setdefault(request_id, {})[state] = number
    update = sa.text("UPDATE request SET counts = :counts WHERE id = :id").bindparams(
        sa.bindparam("counts", type_=sa.JSON)
    )
    for request_id, found in counts.items():
        connection.execute(update, {"counts": found, "id": request_id})
