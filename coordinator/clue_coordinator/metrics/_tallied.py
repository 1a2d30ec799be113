"""Histograms and counters out of the tallies."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily
from sqlalchemy import select
from sqlalchemy.orm import Session

from clue_coordinator.models import Tally
from clue_coordinator.tallies import EDGES, INFINITY


@dataclass
class Tallied:
    """Rows of the tallies, by scope (a fleet's number, a request's id), name and label."""

    rows: dict[tuple[int | str, str, str], list[Tally]] = field(default_factory=lambda: defaultdict(list))

    def labels(self, scope: int | str, name: str) -> list[str]:
        """Labels that were counted, sorted."""
        return sorted(label for found, of, label in self.rows if (found, of) == (scope, name))

    def last_receipt(self, scope: int | str) -> float | None:
        """When the last receipt came (s since 1970), None if none did."""
        at = [row.last_at for label in self.labels(scope, "receipts") for row in self.rows[scope, "receipts", label]]
        return max(at, default=None)

    def add_histogram(
        self, family: HistogramMetricFamily, labels: Sequence[str], scope: int | str, name: str, label: str
    ) -> None:
        """Add one; the last receipt of every bucket is its exemplar."""
        # One that nothing was counted in is there too: else a rate would not see the first receipts.
        rows = self.rows.get((scope, name, label), [])
        # Rows of an older version may have other edges: they are in the next bucket of ours.
        by_bound = sorted((float(row.edge), row) for row in rows)
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        count = position = 0
        for edge in (*(f"{edge:.12g}" for edge in EDGES[name]), INFINITY):
            last = None
            while position < len(by_bound) and by_bound[position][0] <= float(edge):
                last = by_bound[position][1]
                count += last.count
                position += 1
            buckets.append((edge, count) if last is None else (edge, count, _exemplar(last)))
        family.add_metric(labels, buckets, sum(row.total for row in rows))

    def add_counter(
        self, family: CounterMetricFamily, labels: Sequence[str], scope: int | str, name: str, label: str
    ) -> None:
        """Add one; 0 if nothing was counted, so that an alert sees the first step too."""
        rows = self.rows.get((scope, name, label))
        if rows:
            family.add_metric(labels, rows[0].count, exemplar=_exemplar(rows[0]))
        else:
            family.add_metric(labels, 0)


def read_fleets(session: Session) -> Tallied:
    """The tallies of all fleets, by their numbers."""
    found = Tallied()
    for row in session.scalars(select(Tally).where(Tally.request_id == "")):
        found.rows[row.fleet_id, row.name, row.label].append(row)
    return found


def read_requests(session: Session, ids: Sequence[str]) -> Tallied:
    """The tallies of these requests, by their ids."""
    found = Tallied()
    for row in session.scalars(select(Tally).where(Tally.request_id.in_(ids))):
        found.rows[row.request_id, row.name, row.label].append(row)
    return found


def _exemplar(row: Tally) -> Exemplar:
    return Exemplar({"request_id": row.last_request}, row.last_value, row.last_at)
