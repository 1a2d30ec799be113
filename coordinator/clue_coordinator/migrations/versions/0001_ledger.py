"""Fleets, devices, requests, executions and their history."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables as they were before the ledger had versions."""
    op.create_table(
        "fleet",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.String(63), nullable=False, unique=True),
        sa.Column("fleet_id", sa.Integer, sa.ForeignKey("fleet.id"), nullable=False, index=True),
        sa.Column("node_id", sa.String(20), nullable=False, unique=True),
        sa.Column("receipt_key", sa.JSON, nullable=False),
        sa.Column("supernode_key", sa.String, nullable=False),
        sa.Column("classes", sa.JSON, nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("software_version", sa.String(64), nullable=False),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("last_seen", sa.Float),
        sa.Column("enrolled_at", sa.Float, nullable=False),
    )
    op.create_table(
        "request",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("fleet_id", sa.Integer, sa.ForeignKey("fleet.id"), nullable=False, index=True),
        sa.Column("forget_class", sa.String, nullable=False),
        sa.Column("method", sa.String(63), nullable=False),
        sa.Column("max_ua", sa.Float, nullable=False),
        sa.Column("max_ra_drop", sa.Float, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("idempotency_key", sa.String(64), unique=True),
        sa.Column("created_by", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
    )
    op.create_table(
        "execution",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("request_id", sa.String(36), sa.ForeignKey("request.id"), nullable=False),
        sa.Column("device_pk", sa.Integer, sa.ForeignKey("device.id"), nullable=False, index=True),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("lease_until", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("fraction", sa.Float, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("detail", sa.String, nullable=False),
        sa.Column("receipt_envelope", sa.LargeBinary),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("request_id", "device_pk"),
    )
    op.create_index("ix_execution_state", "execution", ["state", "lease_until"])
    op.create_table(
        "event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("fleet", sa.String(63), nullable=False),
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False, index=True),
        sa.Column("detail", sa.String, nullable=False),
    )
