"""What Prometheus reads: the ledger as it is, and measurements from verified receipts alone."""

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_ledger import DEVICE_KEYS, Fleet
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import clue
from clue_coordinator import metrics, reports
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.models import Execution
from clue_coordinator.states import ExecutionState, RequestState
from clue_protocol.net import free_port
from clue_protocol.v1 import forget_pb2 as pb

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def fleet(new_url: Callable[[], str]) -> Iterator[Fleet]:
    made = Fleet.make(new_url(), 2)
    yield made
    made.ledger.close()


def parse(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a series appears twice"
            found[key] = sample.value
    return found


def scrape(fleet: Fleet) -> Samples:
    registry = CollectorRegistry()
    registry.register(metrics.LedgerCollector(fleet.ledger))
    return parse(generate_latest(registry).decode())


def of_device(samples: Samples, device: str) -> dict[str, float]:
    """``clue_device_*`` values of a device, by name and remaining labels."""
    found = {}
    for (name, labels), value in samples.items():
        rest = dict(labels)
        if name.startswith("clue_device_") and rest.pop("device", None) == device:
            assert rest.pop("fleet") == "yard"
            found[" ".join([name.removeprefix("clue_device_"), *rest.values()])] = value
    return found


MEASURED = {
    "ua_ratio before": 0.9,
    "ua_ratio after": 0.1,
    "ra_ratio before": 1.0,
    "ra_ratio after": 0.95,
    "latency_seconds": 12.5,
    "unlearning_seconds": 8.25,
    "energy_joules rapl": 66.5,
    "peak_memory_bytes": 3e8,
}


def test_an_empty_installation(tmp_path: Path) -> None:
    empty = Fleet.make(tmp_path / "empty.sqlite", 0)
    samples = scrape(empty)
    empty.ledger.close()
    assert samples["clue_coordinator_build_info", (("version", clue.__version__),)] == 1
    assert samples["clue_devices", (("fleet", "yard"),)] == 0


def test_counts_have_a_series_for_every_state(fleet: Fleet) -> None:
    fleet.order()
    fleet.lease(0)
    samples = scrape(fleet)
    yard = ("fleet", "yard")
    assert samples["clue_devices", (yard,)] == 2
    assert samples["clue_devices_online", (yard,)] == 1
    requests = {s: samples["clue_requests", (yard, ("state", s))] for s in RequestState}
    assert requests == {s: float(s == "IN_PROGRESS") for s in RequestState}
    executions = {s: samples["clue_executions", (yard, ("state", s))] for s in ExecutionState}
    assert executions == {s: float(s in ("QUEUED", "IN_PROGRESS")) for s in ExecutionState}


def test_the_measurements_of_a_verified_receipt(fleet: Fleet) -> None:
    request_id = fleet.order()
    fleet.lease(0, 1)
    assert of_device(scrape(fleet), "cam-0") == {}
    fleet.report(request_id)
    samples = scrape(fleet)
    assert of_device(samples, "cam-0") == pytest.approx(MEASURED)
    assert of_device(samples, "cam-1") == {}


def test_a_forged_receipt_is_never_shown_and_hides_no_honest_one(fleet: Fleet) -> None:
    honest = fleet.order()
    fleet.lease(0, 1)
    fleet.report(honest)
    fleet.now += 10
    later = fleet.order("cat")
    forged = fleet.receipt(later, key=DEVICE_KEYS[1], ua_after=pb.Accuracy(correct=0, samples=10))
    assert fleet.report(later, envelope=forged) != "SUCCEEDED"
    # Even written into the ledger behind the coordinator's back it does not count.
    with fleet.ledger.write() as session:
        row = session.get(Execution, fleet.execution(later).id)
        assert row is not None
        row.receipt_envelope, row.state, row.updated_at = forged, ExecutionState.SUCCEEDED, fleet.now
    assert of_device(scrape(fleet), "cam-0") == pytest.approx(MEASURED)


def test_the_newest_measurement_counts(fleet: Fleet) -> None:
    first, second, third = fleet.order(), fleet.order("cat"), fleet.order("owl")
    fleet.lease(0)
    fleet.report(first, latency_seconds=1.0)
    fleet.now += 10
    fleet.report(second, latency_seconds=2.0, outcome=pb.OUTCOME_FAILED)
    fleet.now += 10
    # Newer, but nothing was measured.
    fleet.report(third, outcome=pb.OUTCOME_REJECTED, ua_after=None, ua_before=None, energy=None)
    assert of_device(scrape(fleet), "cam-0")["latency_seconds"] == 2.0


def test_a_device_that_never_answered_keeps_its_last_measurement(fleet: Fleet) -> None:
    first = fleet.order()
    fleet.lease(0)
    fleet.report(first)
    second = fleet.order("cat")
    for _ in range(reports.MAX_FAULTS):
        fleet.now += 60
        fleet.lease(0)
        fleet.report(second, envelope=b"?")
    assert fleet.execution(second).state == "FAILED"
    assert of_device(scrape(fleet), "cam-0") == pytest.approx(MEASURED)


def test_two_receipts_at_the_same_moment_are_one_series(fleet: Fleet) -> None:
    first, second = fleet.order(), fleet.order("cat")
    fleet.lease(0)
    fleet.report(first)
    fleet.report(second)
    assert of_device(scrape(fleet), "cam-0") == pytest.approx(MEASURED)


def test_the_endpoint(fleet: Fleet) -> None:
    port = free_port()
    server = metrics.serve(fleet.ledger, port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert parse(answer.read().decode())["clue_devices", (("fleet", "yard"),)] == 2
        with pytest.raises(CoordinatorError, match=f"cannot listen on 127.0.0.1:{port}"):
            metrics.serve(fleet.ledger, port)
    finally:
        server.shutdown()
        server.server_close()
