"""Invitations, what devices signed when they used one, and revocation."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table and the columns."""
    op.add_column("device", sa.Column("revoked_at", sa.Float))
    op.add_column("device", sa.Column("revocation_reason", sa.String, nullable=False, server_default=""))
    op.add_column("device", sa.Column("revocation", sa.LargeBinary))
    op.add_column("device", sa.Column("refused_receipts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("device", sa.Column("cut_off_at", sa.Float))
    op.add_column("device", sa.Column("enrolment_envelope", sa.LargeBinary))
    op.create_table(
        "invitation",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("fleet_id", sa.Integer, sa.ForeignKey("fleet.id"), nullable=False),
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("root_version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(63), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("withdrawn_at", sa.Float),
        sa.Column("receipt_keyid", sa.String(64)),
        sa.Column("device_pk", sa.Integer, sa.ForeignKey("device.id"), unique=True),
        sa.Column("used_at", sa.Float),
    )
