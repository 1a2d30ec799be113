"""The trust root: its version, and when it must have been replaced."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.orm import Session

from clue_coordinator import roots


def collect(session: Session) -> Iterator[Metric]:
    """Both families, without samples while there is no root."""
    version = GaugeMetricFamily("clue_root_version", "Version of the trust root; absent if there is none.")
    expiry = GaugeMetricFamily("clue_root_expiry_timestamp_seconds", "When the trust root expires; absent without one.")
    newest = roots.latest_or_none(session)
    if newest is not None:
        version.add_metric([], newest.root.version)
        expiry.add_metric([], newest.root.expires_ns / 1e9)
    yield from (version, expiry)
