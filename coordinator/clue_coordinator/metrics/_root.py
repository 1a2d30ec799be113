"""The trust root, where the ledger keeps one: its version, and when it must have been replaced."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from clue_coordinator.models import Base
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.envelopes import ROOT_TYPE, parse_payload, read_envelope
from clue_protocol.trust.times import from_timestamp
from clue_protocol.v1 import trust_pb2 as pb


def collect(session: Session) -> Iterator[Metric]:
    """Both families, without samples while there is no root."""
    version = GaugeMetricFamily("clue_root_version", "Version of the trust root; absent if there is none.")
    expiry = GaugeMetricFamily("clue_root_expiry_timestamp_seconds", "When the trust root expires; absent without one.")
    table = _table()
    if table is not None:
        newest = select(table.c.version, table.c.envelope).order_by(table.c.version.desc()).limit(1)
        row = session.execute(newest).one_or_none()
        if row is not None:
            version.add_metric([], row.version)
            expires = _expires(row.envelope)
            if expires is not None:
                expiry.add_metric([], expires)
    yield from (version, expiry)


def _table() -> Table | None:
    return Base.metadata.tables.get("root")


def _expires(envelope: bytes) -> float | None:
    try:
        root = parse_payload(read_envelope(bytes(envelope), ROOT_TYPE), pb.Root)
        return from_timestamp(root.expires_at) / 1e9
    except (ProtocolError, ValueError):
        return None
