"""The endpoint of one fleet: series of its single devices, of so many at most."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Device, Execution, Fleet, Request
from clue_coordinator.receipts import is_verified, measured_shares
from clue_coordinator.states import ACTIVE, ExecutionState
from clue_coordinator.tallies import energy_source
from clue_coordinator.views import stored_receipt
from clue_protocol.v1 import forget_pb2 as pb

# Receipts of a device that are looked at for its measurements.
_RECENT = 5
_LABELS = ("fleet", "device")


class DeviceCollector(Collector):
    """The devices of a fleet, the first ``limit`` by name, with their latest receipts that verify now."""

    def __init__(self, ledger: Ledger, fleet: str, limit: int) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """One consistent reading of the ledger."""
        with self._ledger.read() as session:
            in_fleet = select(Device).join(Device.fleet).where(Fleet.name == self._fleet, Device.retired_at.is_(None))
            number = session.scalar(select(func.count()).select_from(in_fleet.subquery())) or 0
            devices = list(session.scalars(in_fleet.order_by(Device.device_id).limit(self._limit)))
            names = {device.id: [self._fleet, device.device_id] for device in devices}
            for name, help_text, value in (
                ("shown", "Devices of the fleet that have series of their own.", len(devices)),
                ("omitted", "Devices left out here: raise metrics_device_limit.", number - len(devices)),
            ):
                family = GaugeMetricFamily(f"clue_fleet_devices_{name}", help_text, labels=["fleet"])
                family.add_metric([self._fleet], value)
                yield family
            yield from _known(devices, names)
            yield from _pending(session, names, self._ledger.clock())
            yield from _receipts(session, names)


def _known(devices: Sequence[Device], names: dict[int, list[str]]) -> Iterator[Metric]:
    online = _gauge("online", "1 if it is connected to the SuperLink.")
    seen = _gauge("last_seen_timestamp_seconds", "When it was last connected.")
    receipt = _gauge("last_receipt_timestamp_seconds", "When its last receipt came.")
    skew = _gauge(
        "clock_skew_seconds",
        "By how much its clock is wrong at least, as its last receipt shows; positive if it is fast.",
    )
    for device in devices:
        online.add_metric(names[device.id], device.online)
        for family, value in (
            (seen, device.last_seen),
            (receipt, device.last_receipt_at),
            (skew, device.clock_skew_seconds),
        ):
            if value is not None:
                family.add_metric(names[device.id], value)
    yield from (online, seen, receipt, skew)


def _pending(session: Session, names: dict[int, list[str]], now: float) -> Iterator[Metric]:
    family = _gauge("pending_seconds", "Age of the oldest request that it has not answered; 0 if there is none.")
    rows = session.execute(
        select(Execution.device_pk, func.min(Request.created_at))
        .join(Execution.request)
        .where(Execution.state.in_(ACTIVE))
        .group_by(Execution.device_pk)
    )
    found = {row[0]: row[1] for row in rows}
    for device, labels in names.items():
        family.add_metric(labels, now - found.get(device, now))
    yield family


def _receipts(session: Session, names: dict[int, list[str]]) -> Iterator[Metric]:
    ua = _gauge("ua_ratio", "Accuracy on the forgotten class, on the device's holdout.", "when")
    ra = _gauge("ra_ratio", "Accuracy on the retained classes, on the device's holdout.", "when")
    drop = _gauge("ra_drop_ratio", "Loss of accuracy on the retained classes; negative if it rose.")
    joules = _gauge("energy_joules", "Energy of the last unlearning.", "source")
    latency = _gauge("latency_seconds", "From accepting the request to the new model in use.")
    unlearning = _gauge("unlearning_seconds", "The unlearning alone.")
    memory = _gauge("peak_memory_bytes", "Peak memory of the unlearning.")
    for device, receipt in _latest_receipts(session, names):
        labels = names[device]
        shares = measured_shares(receipt)
        for name, share in shares.items():
            kind, when = name.split("_")
            (ua if kind == "ua" else ra).add_metric([*labels, when], share)
        if shares.keys() >= {"ra_before", "ra_after"}:
            drop.add_metric(labels, shares["ra_before"] - shares["ra_after"])
        latency.add_metric(labels, receipt.latency_seconds)
        if receipt.HasField("energy"):
            joules.add_metric([*labels, energy_source(receipt.energy.source)], receipt.energy.joules)
            unlearning.add_metric(labels, receipt.unlearning_seconds)
            memory.add_metric(labels, receipt.peak_memory_bytes)
    yield from (ua, ra, drop, joules, latency, unlearning, memory)


def _latest_receipts(session: Session, devices: dict[int, list[str]]) -> Iterator[tuple[int, pb.Receipt]]:
    """Of every device the newest receipt that verifies and carries measurements.

    One with an energy counts before one without: a repeated request has nothing to do and says
    nothing about what unlearning costs, and must not hide the receipt that does.
    """
    rank = func.row_number().over(partition_by=Execution.device_pk, order_by=Execution.updated_at.desc())
    ranked = (
        select(Execution.id, rank.label("rank"))
        .where(
            Execution.device_pk.in_(list(devices)),
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
        .options(selectinload(Execution.device), selectinload(Execution.request))
    )
    for device, executions in groupby(rows, key=lambda execution: execution.device_pk):
        found = [
            receipt
            for execution in executions
            if (receipt := stored_receipt(execution)) is not None
            and receipt.HasField("ua_after")
            and is_verified(execution.receipt_envelope, execution)
        ]
        if found:
            yield device, next((receipt for receipt in found if receipt.HasField("energy")), found[0])


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"clue_device_{name}", help_text, labels=[*_LABELS, *labels])
