"""Metrics for Prometheus, read from the ledger at every scrape, so a restart loses nothing.

One process exports: the daemon, of which there is one per ledger. All others of an installation report to it, so
there is nothing to gather from several processes, and prometheus-client's multiprocess mode is not used.
"""

from clue_coordinator.metrics._certificates import CertificateCollector
from clue_coordinator.metrics._devices import DeviceCollector
from clue_coordinator.metrics._endpoint import MetricsApp, serve
from clue_coordinator.metrics._overview import LedgerCollector

__all__ = ["CertificateCollector", "DeviceCollector", "LedgerCollector", "MetricsApp", "serve"]
