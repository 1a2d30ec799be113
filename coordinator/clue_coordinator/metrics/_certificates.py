"""When the installation's certificates expire, read from their files."""

import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.renewal import certificate_states


class CertificateCollector(Collector):
    """The server's certificate and that of its authority."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config

    def collect(self) -> Iterator[Metric]:
        """Both of them."""
        name = "clue_certificate_expiry_timestamp_seconds"
        family = GaugeMetricFamily(name, "When a certificate expires.", labels=["certificate"])
        for found in certificate_states(self._config, time.time()):
            family.add_metric([found.name], found.expires_at)
        yield family
