"""``/metrics`` for Prometheus, read from the ledger at every scrape, so a restart loses nothing."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

import clue
from clue_coordinator import roots
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Fleet, Request
from clue_coordinator.receipts import is_verified
from clue_coordinator.states import ExecutionState, RequestState
from clue_coordinator.views import stored_receipt
from clue_protocol.v1 import forget_pb2 as pb

# Receipts of a device that are looked at for its measurements.
_RECENT = 5


class LedgerCollector(Collector):
    """Gauges over the whole installation and, per device, of its latest verified receipt."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """One consistent reading of the ledger."""
        with self._ledger.read() as session:
            yield _build_info()
            yield from _root(session)
            yield from _devices(session)
            yield from _counts(session)
            yield from _receipts(session)


def _build_info() -> Metric:
    family = GaugeMetricFamily("clue_coordinator_build_info", "Version of the coordinator.", labels=["version"])
    family.add_metric([clue.__version__], 1)
    return family


def _root(session: Session) -> Iterator[Metric]:
    trusted = roots.latest_or_none(session)
    if trusted is None:
        return
    version = GaugeMetricFamily("clue_root_version", "Version of the newest root.")
    version.add_metric([], trusted.root.version)
    expires = GaugeMetricFamily(
        "clue_root_expires_timestamp_seconds", "When devices stop unless there is a newer root, seconds since 1970."
    )
    expires.add_metric([], trusted.root.expires_ns / 1e9)
    yield version
    yield expires


def _devices(session: Session) -> Iterator[Metric]:
    enrolled = GaugeMetricFamily("clue_devices", "Enrolled devices.", labels=["fleet"])
    online = GaugeMetricFamily("clue_devices_online", "Devices connected to the SuperLink.", labels=["fleet"])
    for fleet in session.scalars(select(Fleet).order_by(Fleet.name).options(selectinload(Fleet.devices))):
        enrolled.add_metric([fleet.name], len(fleet.devices))
        online.add_metric([fleet.name], sum(device.online for device in fleet.devices))
    yield enrolled
    yield online


def _counts(session: Session) -> Iterator[Metric]:
    requests = GaugeMetricFamily("clue_requests", "Forget requests by state.", labels=["fleet", "state"])
    rows = session.execute(
        select(Fleet.name, Request.state, func.count()).join(Request.fleet).group_by(Fleet.name, Request.state)
    )
    found = Counter({(fleet, state): count for fleet, state, count in rows})
    executions = GaugeMetricFamily(
        "clue_executions", "Forget requests on single devices by state.", labels=["fleet", "state"]
    )
    rows = session.execute(
        select(Fleet.name, Execution.state, func.count())
        .join(Execution.request)
        .join(Request.fleet)
        .group_by(Fleet.name, Execution.state)
    )
    found_executions = Counter({(fleet, state): count for fleet, state, count in rows})
    for name in session.scalars(select(Fleet.name).order_by(Fleet.name)):
        # Every state always has a series: an alert must not depend on one having appeared.
        for state in RequestState:
            requests.add_metric([name, state], found[name, state])
        for execution_state in ExecutionState:
            executions.add_metric([name, execution_state], found_executions[name, execution_state])
    yield requests
    yield executions


def _receipts(session: Session) -> Iterator[Metric]:
    where = ["fleet", "device"]
    ua = GaugeMetricFamily(
        "clue_device_ua_ratio",
        "Accuracy on the forgotten class, on the device's holdout.",
        labels=[*where, "when"],
    )
    ra = GaugeMetricFamily(
        "clue_device_ra_ratio",
        "Accuracy on the retained classes, on the device's holdout.",
        labels=[*where, "when"],
    )
    joules = GaugeMetricFamily("clue_device_energy_joules", "Energy of the last unlearning.", labels=[*where, "source"])
    latency = GaugeMetricFamily(
        "clue_device_latency_seconds", "From accepting the request to the new model in use.", labels=where
    )
    unlearning = GaugeMetricFamily("clue_device_unlearning_seconds", "The unlearning alone.", labels=where)
    memory = GaugeMetricFamily("clue_device_peak_memory_bytes", "Peak memory of the unlearning.", labels=where)
    for device, receipt in latest_receipts(session):
        labels = [device.fleet.name, device.device_id]
        for family, before, after in (
            (ua, receipt.ua_before, receipt.ua_after),
            (ra, receipt.ra_before, receipt.ra_after),
        ):
            for when, accuracy in (("before", before), ("after", after)):
                if accuracy.samples:
                    family.add_metric([*labels, when], accuracy.correct / accuracy.samples)
        latency.add_metric(labels, receipt.latency_seconds)
        if receipt.HasField("energy"):
            joules.add_metric([*labels, receipt.energy.source], receipt.energy.joules)
            unlearning.add_metric(labels, receipt.unlearning_seconds)
            memory.add_metric(labels, receipt.peak_memory_bytes)
    yield from (ua, ra, joules, latency, unlearning, memory)


def latest_receipts(session: Session) -> Iterator[tuple[Device, pb.Receipt]]:
    """Of every device the newest receipt that verifies and carries measurements.

    One with an energy counts before one without: a repeated request has nothing to do and says
    nothing about what unlearning costs, and must not hide the receipt that does.
    """
    rank = func.row_number().over(partition_by=Execution.device_pk, order_by=Execution.updated_at.desc())
    ranked = (
        select(Execution.id, rank.label("rank"))
        .where(
            Execution.state.in_([ExecutionState.SUCCEEDED, ExecutionState.FAILED]),
            Execution.receipt_envelope.is_not(None),
        )
        .subquery()
    )
    rows = session.scalars(
        select(Execution)
        .join(ranked, Execution.id == ranked.c.id)
        # Bounded: a scrape must not read the whole history.
        .where(ranked.c.rank <= _RECENT)
        .order_by(Execution.device_pk, ranked.c.rank)
        .options(selectinload(Execution.device).selectinload(Device.fleet), selectinload(Execution.request))
    )
    for _, executions in groupby(rows, key=lambda execution: execution.device_pk):
        found = [
            (execution.device, receipt)
            for execution in executions
            if (receipt := stored_receipt(execution)) is not None
            and receipt.HasField("ua_after")
            and is_verified(execution.receipt_envelope, execution)
        ]
        if found:
            yield next((pair for pair in found if pair[1].HasField("energy")), found[0])


def serve(ledger: Ledger, port: int) -> WSGIServer:
    """Start the endpoint on loopback; CoordinatorError if the port cannot be had."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger))
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise CoordinatorError(f"cannot listen on 127.0.0.1:{port} for metrics: {error.strerror}") from None
    return server
