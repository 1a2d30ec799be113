"""The default endpoint: aggregates and histograms by fleet. Its size does not depend on the number of devices."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

import clue
from clue_coordinator import tlog
from clue_coordinator.ledger import Ledger
from clue_coordinator.metrics import _requests, _root
from clue_coordinator.metrics._tallied import Tallied, read_fleets
from clue_coordinator.models import Device, Execution, Fleet, Request
from clue_coordinator.states import OPEN_REQUEST, ExecutionState, RequestState
from clue_protocol.v1 import forget_pb2 as pb

# A device may send a number that this version has no name for: labels must be few.
_REASONS = frozenset(name.removeprefix("REASON_") for name in pb.Reason.DESCRIPTOR.values_by_name) | frozenset(
    {"NO_RECEIPT", "TIMEOUT", "DEADLINE", "CANCELED", "ABORTED"}
)
# Always there, so that an alert sees the first one as a step.
_WATCHED = (("REJECTED", "BAD_SIGNATURE"), ("REJECTED", "BAD_ENVELOPE"), ("REJECTED", "EXPIRED"))
_COUNTERS = (
    ("receipts", "Receipts that were taken.", "outcome", ("SUCCEEDED", "FAILED", "REJECTED")),
    ("receipts_refused", "Answers that were no valid receipt.", "reason", ("signature", "unreadable", "content")),
    ("policy_missed", "Receipts with a value beyond the policy of their request.", "bound", ("ua", "ra_drop")),
)
_HISTOGRAMS = (
    ("ua_ratio", "Accuracy on the forgotten class, on the device's holdout.", "when"),
    ("ra_ratio", "Accuracy on the retained classes, on the device's holdout.", "when"),
    ("ra_drop_ratio", "Loss of accuracy on the retained classes; 0 where it rose.", ""),
    ("energy_joules", "Energy of the unlearning, by the meter that measured it.", "source"),
    ("latency_seconds", "From accepting the request to the new model in use.", ""),
    ("unlearning_seconds", "The unlearning alone.", ""),
    ("peak_memory_bytes", "Peak memory of the unlearning.", ""),
)


@dataclass(frozen=True)
class _Reading:
    """One consistent look at the ledger: every fleet's name by its number, and what has been counted."""

    session: Session
    fleets: dict[int, str]
    tallied: Tallied
    now: float


class LedgerCollector(Collector):
    """Everything of an installation but its single devices."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """One consistent reading of the ledger."""
        with self._ledger.read() as session:
            fleets = {fleet.id: fleet.name for fleet in session.scalars(select(Fleet).order_by(Fleet.name))}
            reading = _Reading(session, fleets, read_fleets(session), self._ledger.clock())
            parts: Sequence[Callable[[_Reading], Iterator[Metric]]] = (
                _build_info,
                _devices,
                _request_counts,
                _execution_counts,
                _receipts,
                _log,
            )
            for part in parts:
                yield from part(reading)
            yield from _requests.collect(session, fleets, reading.now)
            yield from _root.collect(session)


def _build_info(_: _Reading) -> Iterator[Metric]:
    family = GaugeMetricFamily("clue_coordinator_build_info", "Version of the coordinator.", labels=["version"])
    family.add_metric([clue.__version__], 1)
    yield family


def _devices(reading: _Reading) -> Iterator[Metric]:
    enrolled = GaugeMetricFamily("clue_devices", "Enrolled devices.", labels=["fleet"])
    online = GaugeMetricFamily("clue_devices_online", "Devices connected to the SuperLink.", labels=["fleet"])
    skew = GaugeMetricFamily(
        "clue_clock_skew_max_seconds", "Worst error of a device's clock that a last receipt shows.", labels=["fleet"]
    )
    rows = reading.session.execute(
        select(
            Device.fleet_id,
            func.count(),
            func.sum(case((Device.online, 1), else_=0)),
            func.max(func.abs(Device.clock_skew_seconds)),
        )
        .where(Device.retired_at.is_(None))
        .group_by(Device.fleet_id)
    )
    found = {fleet: (count, connected, worst) for fleet, count, connected, worst in rows}
    for number, name in reading.fleets.items():
        count, connected, worst = found.get(number, (0, 0, None))
        enrolled.add_metric([name], count)
        online.add_metric([name], connected)
        skew.add_metric([name], worst or 0.0)
    yield from (enrolled, online, skew)


def _request_counts(reading: _Reading) -> Iterator[Metric]:
    family = GaugeMetricFamily("clue_requests", "Forget requests by state.", labels=["fleet", "state"])
    query = select(Request.fleet_id, Request.state, func.count()).group_by(Request.fleet_id, Request.state)
    found = Counter({(fleet, state): count for fleet, state, count in reading.session.execute(query)})
    for number, name in reading.fleets.items():
        # Every state always has a series: an alert must not depend on one having appeared.
        for state in RequestState:
            family.add_metric([name, state], found[number, state])
    yield family


def _execution_counts(reading: _Reading) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "clue_executions",
        "Forget requests on single devices by state, and by reason where there is one.",
        labels=["fleet", "state", "reason"],
    )
    queue = GaugeMetricFamily(
        "clue_queue_age_seconds",
        "How long the oldest open request has had devices in its queue; 0 if the queue is empty.",
        labels=["fleet"],
    )
    totals: Counter[tuple[int, str]] = Counter()
    oldest = dict.fromkeys(reading.fleets, reading.now)
    columns = select(Request.fleet_id, Request.state, Request.created_at, Request.counts)
    for fleet, state, created, counts in reading.session.execute(columns):
        totals.update({(fleet, name): number for name, number in counts.items()})
        if state in OPEN_REQUEST and counts.get(ExecutionState.QUEUED):
            oldest[fleet] = min(oldest[fleet], created)
    reasons = _reasons(reading.session)
    for number, name in reading.fleets.items():
        for execution_state in ExecutionState:
            explained = reasons[number, execution_state]
            rest = totals[number, execution_state] - explained.total()
            family.add_metric([name, execution_state, ""], rest)
            for reason, count in sorted(explained.items()):
                family.add_metric([name, execution_state, reason], count)
        queue.add_metric([name], reading.now - oldest[number])
    yield from (family, queue)


def _reasons(session: Session) -> dict[tuple[int, str], Counter[str]]:
    """Counts of reasons, by fleet and state."""
    found: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for fleet in session.scalars(select(Fleet.id)):
        for state, reason in _WATCHED:
            found[fleet, state][reason] = 0
    # Index-only where there is no reason: its cost is that of the failures.
    rows = session.execute(
        select(Request.fleet_id, Execution.state, Execution.reason, func.count())
        .join(Execution.request)
        .where(Execution.reason > "")
        .group_by(Request.fleet_id, Execution.state, Execution.reason)
    )
    for fleet, state, reason, count in rows:
        found[fleet, state][reason if reason in _REASONS else "OTHER"] += count
    return found


def _receipts(reading: _Reading) -> Iterator[Metric]:
    yield from _histograms(reading)
    for metric, help_text, label, values in _COUNTERS:
        counter = CounterMetricFamily(f"clue_{metric}", help_text, labels=["fleet", label])
        for number, name in reading.fleets.items():
            for value in values:
                reading.tallied.add_counter(counter, [name, value], number, metric, value)
        yield counter
    last = GaugeMetricFamily(
        "clue_last_receipt_timestamp_seconds", "When the last receipt came; absent before the first.", labels=["fleet"]
    )
    for number, name in reading.fleets.items():
        if (at := reading.tallied.last_receipt(number)) is not None:
            last.add_metric([name], at)
    yield last


def _histograms(reading: _Reading) -> Iterator[Metric]:
    for metric, help_text, label in _HISTOGRAMS:
        family = HistogramMetricFamily(f"clue_{metric}", help_text, labels=["fleet", *([label] if label else [])])
        for number, name in reading.fleets.items():
            # Which meters a fleet has is not known before its first receipt.
            values = {"when": ["before", "after"], "": [""]}.get(label) or reading.tallied.labels(number, metric)
            for value in values:
                labels = [name, value] if label else [name]
                reading.tallied.add_histogram(family, labels, number, metric, value)
        yield family


def _log(reading: _Reading) -> Iterator[Metric]:
    size = tlog.size_of(reading.session)
    checkpoint = tlog.last_checkpoint(reading.session)
    yield GaugeMetricFamily("clue_log_leaves", "Leaves of the transparency log.", value=size)
    yield GaugeMetricFamily(
        "clue_log_uncheckpointed_leaves",
        "Leaves of the log that no checkpoint covers.",
        value=size - (checkpoint.size if checkpoint is not None else 0),
    )
    family = GaugeMetricFamily(
        "clue_log_last_checkpoint_timestamp_seconds", "When the log last signed itself; absent before it first did."
    )
    if checkpoint is not None:
        family.add_metric([], checkpoint.at)
    yield family
