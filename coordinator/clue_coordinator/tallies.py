"""Running counts of what receipts said, kept in the transaction of each receipt: no scrape reads the history.

A row counts the observations of one metric of a fleet, or of one request, in one bucket, with their sum and the last
of them. The rows are the histograms and counters of :mod:`clue_coordinator.metrics`.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import Insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from clue_coordinator.models import Execution, Tally
from clue_coordinator.receipts import measured_shares
from clue_protocol.v1 import forget_pb2 as pb

INFINITY = "+Inf"
# Upper bounds of the buckets. Dense around what policies allow: by default a UA of 0.1 and a loss of 0.05.
EDGES: dict[str, tuple[float, ...]] = {
    "ua_ratio": (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1),
    "ra_ratio": (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 1),
    "ra_drop_ratio": (0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1),
    # From a server's second to a Pi's hours, 1-2-5.
    "latency_seconds": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000),
    "unlearning_seconds": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000),
    "energy_joules": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000),
    # Between what a small model takes and what a Pi has.
    "peak_memory_bytes": tuple(2.0**20 * n for n in (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)),
}
# Kept for every request besides.
_OF_REQUEST = ("ra_drop_ratio", "receipts", "policy_missed")
# More is no measurement, and would drown all others in the sum.
_MOST = 1e15


@dataclass(frozen=True)
class Observation:
    """One value of a histogram (``edge`` is its bucket's upper bound), or a step of a counter (``edge`` is empty)."""

    name: str
    label: str
    edge: str
    value: float

    @classmethod
    def of(cls, name: str, label: str, value: float) -> "Observation":
        """Find the bucket."""
        edges = EDGES[name]
        index = bisect_left(edges, value)
        return cls(name, label, f"{edges[index]:.12g}" if index < len(edges) else INFINITY, value)


def observations(receipt: pb.Receipt, max_ua: float, max_ra_drop: float) -> list[Observation]:
    """What a receipt adds, under the policy of its request. A loss of RA is 0 where RA rose."""
    outcome = pb.Outcome.Name(receipt.outcome).removeprefix("OUTCOME_")
    found = [Observation("receipts", outcome, "", 1.0)]
    found += [Observation.of(*value) for value in _measured(receipt) if 0 <= value[2] <= _MOST]
    values = {(entry.name, entry.label): entry.value for entry in found}
    missed = {
        "ua": values.get(("ua_ratio", "after"), 0.0) > max_ua,
        "ra_drop": values.get(("ra_drop_ratio", ""), 0.0) > max_ra_drop,
    }
    return found + [Observation("policy_missed", bound, "", 1.0) for bound, is_missed in missed.items() if is_missed]


def _measured(receipt: pb.Receipt) -> Iterator[tuple[str, str, float]]:
    shares = measured_shares(receipt)
    for name, share in shares.items():
        kind, when = name.split("_")
        yield f"{kind}_ratio", when, share
    if shares.keys() >= {"ra_before", "ra_after"}:
        # Rounded: 0.95 - 0.92 must not miss a bound of 0.03.
        yield "ra_drop_ratio", "", max(round(shares["ra_before"] - shares["ra_after"], 12), 0.0)
    # A request that found nothing to do says nothing of what unlearning costs.
    if receipt.HasField("energy"):
        yield "latency_seconds", "", receipt.latency_seconds
        yield "unlearning_seconds", "", receipt.unlearning_seconds
        yield "energy_joules", energy_source(receipt.energy.source), receipt.energy.joules
        if receipt.peak_memory_bytes:
            yield "peak_memory_bytes", "", float(receipt.peak_memory_bytes)


def energy_source(source: str) -> str:
    """A source as a label: devices may write anything, and labels must be few."""
    meter, plus, _ = source.partition("+")
    known = meter in ("pmic", "rapl", "battery", "estimated") or meter in ("ina219", "ina226", "ina260", "ina3221")
    if not known:
        return "other"
    return f"{meter}+estimated" if plus else meter


def note_receipt(session: Session, execution: Execution, receipt: pb.Receipt, now: float) -> None:
    """Count an accepted receipt, and note what it tells of its device."""
    request, device = execution.request, execution.device
    device.last_receipt_at = now
    device.clock_skew_seconds = clock_skew(receipt, request.created_at, now)
    found = observations(receipt, request.max_ua, request.max_ra_drop)
    rows = [_row(request.fleet_id, "", entry, request.id, now) for entry in found]
    rows += [_row(request.fleet_id, request.id, entry, request.id, now) for entry in found if entry.name in _OF_REQUEST]
    _add(session, rows)


def note_refused(session: Session, execution: Execution, reason: str, now: float) -> None:
    """Count an answer that was not taken: ``signature``, ``unreadable`` or ``content``."""
    entry = Observation("receipts_refused", reason, "", 1.0)
    _add(session, [_row(execution.request.fleet_id, "", entry, execution.request_id, now)])


def clock_skew(receipt: pb.Receipt, made: float, received: float) -> float:
    """By how many seconds a device's clock is wrong at least; positive if it is fast, 0 if nothing speaks against it.

    Its work lies between the making of the request and the arrival of the receipt: a clock that says it ended after
    its arrival is fast, one that says it began before the request was made is slow. Smaller errors stay unseen.
    """
    if receipt.HasField("finished_at"):
        ahead = receipt.finished_at.seconds + receipt.finished_at.nanos / 1e9 - received
        if ahead > 0:
            return ahead
    if receipt.HasField("started_at"):
        behind = receipt.started_at.seconds + receipt.started_at.nanos / 1e9 - made
        if behind < 0:
            return behind
    return 0.0


def _row(fleet: int, scope: str, entry: Observation, request: str, now: float) -> dict[str, object]:
    return {
        "fleet_id": fleet,
        "request_id": scope,
        "name": entry.name,
        "label": entry.label,
        "edge": entry.edge,
        "count": 1,
        "total": entry.value,
        "last_request": request,
        "last_value": entry.value,
        "last_at": now,
    }


def _add(session: Session, rows: Sequence[dict[str, object]]) -> None:
    connection = session.connection()
    connection.execute(_upsert(connection.dialect.name), rows)


@cache
def _upsert(dialect: str) -> Insert:
    """Add to the row if it is there; the same statement in two dialects, for which SQLAlchemy has no common one."""
    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(Tally)
    return insert.on_conflict_do_update(
        index_elements=["fleet_id", "request_id", "name", "label", "edge"],
        set_={
            "count": Tally.count + insert.excluded.count,
            "total": Tally.total + insert.excluded.total,
            "last_request": insert.excluded.last_request,
            "last_value": insert.excluded.last_value,
            "last_at": insert.excluded.last_at,
        },
    )
