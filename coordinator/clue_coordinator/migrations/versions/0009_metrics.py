"""Running counts of what receipts said, filled from the receipts that are there."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from clue_coordinator.tallies import clock_skew, observations
from clue_protocol.envelope import RECEIPT_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.v1 import forget_pb2 as pb

revision = "0009"
down_revision = "0007"

_OF_REQUEST = ("ra_drop_ratio", "receipts", "policy_missed")


def upgrade() -> None:
    """Make the table, the columns and the index, and count."""
    op.add_column("device", sa.Column("last_receipt_at", sa.Float))
    op.add_column("device", sa.Column("clock_skew_seconds", sa.Float))
    op.create_index("ix_execution_reason", "execution", ["reason", "state", "request_id"])
    op.create_table(
        "tally",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("fleet_id", sa.Integer, sa.ForeignKey("fleet.id"), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False, index=True),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("label", sa.String(32), nullable=False),
        sa.Column("edge", sa.String(32), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Float, nullable=False),
        sa.Column("last_request", sa.String(36), nullable=False),
        sa.Column("last_value", sa.Float, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
        sa.UniqueConstraint("fleet_id", "request_id", "name", "label", "edge"),
    )
    count_receipts(op.get_bind())


def count_receipts(connection: sa.Connection) -> None:
    """Fill the table and the columns, which must be empty."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    seen: dict[int, tuple[float, float]] = {}
    for device, request, fleet, max_ua, max_ra_drop, made, at, envelope in _receipts(connection):
        receipt = _parse(envelope)
        if receipt is None:
            continue
        if at >= seen.get(device, (0.0, 0.0))[0]:
            seen[device] = at, clock_skew(receipt, made, at)
        for entry in observations(receipt, max_ua, max_ra_drop):
            for scope in ("", request) if entry.name in _OF_REQUEST else ("",):
                key = (fleet, scope, entry.name, entry.label, entry.edge)
                names = ("fleet_id", "request_id", "name", "label", "edge")
                row = found.setdefault(
                    key, dict(zip(names, key, strict=True)) | {"count": 0, "total": 0.0, "last_at": 0.0}
                )
                row["count"] += 1
                row["total"] += entry.value
                if at >= row["last_at"]:
                    row |= {"last_request": request, "last_value": entry.value, "last_at": at}
    if found:
        rows = list(found.values())
        connection.execute(sa.insert(sa.table("tally", *map(sa.column, rows[0]))), rows)
    note = sa.text("UPDATE device SET last_receipt_at = :at, clock_skew_seconds = :skew WHERE id = :id")
    for device, (at, skew) in seen.items():
        connection.execute(note, {"id": device, "at": at, "skew": skew})


def _receipts(connection: sa.Connection) -> Iterator[Any]:
    """They were verified when they were taken."""
    columns = "e.device_pk, r.id, r.fleet_id, r.max_ua, r.max_ra_drop, r.created_at"
    joined = "execution e JOIN request r ON r.id = e.request_id"
    last = (
        f"SELECT {columns}, e.updated_at, e.receipt_envelope FROM {joined} "  # noqa: S608
        "WHERE e.receipt_envelope IS NOT NULL AND e.state IN ('SUCCEEDED', 'FAILED', 'REJECTED')"
    )
    past = (
        f"SELECT {columns}, p.received_at, p.envelope FROM {joined} JOIN past_receipt p ON p.execution_id = e.id "  # noqa: S608
        # A refusal after which no patch came is in both places.
        "WHERE e.receipt_envelope IS NULL OR e.receipt_envelope <> p.envelope"
    )
    for query in (last, past):
        yield from connection.execute(sa.text(query))


def _parse(envelope: bytes) -> pb.Receipt | None:
    try:
        return peek_message(bytes(envelope), RECEIPT_TYPE, pb.Receipt)
    except ProtocolError:
        return None
