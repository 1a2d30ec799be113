"""What Prometheus reads: the ledger as it is, and measurements from verified receipts alone."""

import json
import math
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from fleet_ledger import DEVICE_KEYS, KEYS, Fleet
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from securesystemslib.signer import CryptoSigner
from sqlalchemy import text

import clue
from clue_coordinator import enrol, metrics, migrations, reports, roots, tlog
from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Execution
from clue_coordinator.plan import parse_plan
from clue_coordinator.states import ExecutionState, RequestState
from clue_protocol.net import free_port
from clue_protocol.v1 import forget_pb2 as pb

OUTCOMES = ("SUCCEEDED", "FAILED", "REJECTED")
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
    """Both endpoints."""
    return _read(metrics.LedgerCollector(fleet.ledger)) | _read(metrics.DeviceCollector(fleet.ledger, "yard", 10))


def _read(collector: Collector) -> Samples:
    registry = CollectorRegistry()
    registry.register(collector)
    return parse(generate_latest(registry).decode())


def of_device(samples: Samples, device: str) -> dict[str, float]:
    """Measurements of a device, by name and remaining labels."""
    found = {}
    for (name, labels), value in samples.items():
        rest = dict(labels)
        if name.startswith("clue_device_") and rest.pop("device", None) == device:
            assert rest.pop("fleet") == "yard"
            found[" ".join([name.removeprefix("clue_device_"), *rest.values()])] = value
    return {name: value for name, value in found.items() if name not in KNOWN | {"pending_seconds"}}


# Of a device that has measured nothing, too.
KNOWN = {"online", "last_seen_timestamp_seconds", "last_receipt_timestamp_seconds", "clock_skew_seconds"}
MEASURED = {
    "ra_drop_ratio": 0.05,
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
    executions = {s: samples["clue_executions", (yard, ("reason", ""), ("state", s))] for s in ExecutionState}
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


def histogram(samples: Samples, name: str, **labels: str) -> dict[float, float]:
    """Buckets of a histogram of fleet ``yard``, cumulative."""
    wanted = {"fleet": "yard"} | labels
    found = {}
    for (sample, pairs), value in samples.items():
        rest = dict(pairs)
        if sample == f"{name}_bucket" and rest.items() >= wanted.items():
            found[float(rest["le"])] = value
    return found


def test_histograms_are_what_the_receipts_said_also_after_a_restart(fleet: Fleet) -> None:
    first, second = fleet.order(), fleet.order("cat")
    fleet.lease(0, 1)
    fleet.report(first)
    fleet.report(first, envelope=fleet.receipt(first))  # a duplicate
    fleet.report(first, 1, ra_after=pb.Accuracy(correct=15, samples=20), ua_after=pb.Accuracy(correct=10, samples=10))
    fleet.report(second, outcome=pb.OUTCOME_REJECTED, ua_after=None, ua_before=None, ra_before=None, energy=None)
    before = scrape(fleet)
    url = fleet.ledger._database.url.render_as_string(hide_password=False)
    fleet.ledger.close()
    fleet.ledger = Ledger(url, lambda: fleet.now)
    samples = scrape(fleet)
    assert samples == before
    drop = histogram(samples, "clue_ra_drop_ratio")
    assert (drop[0.04], drop[0.05], drop[0.2], drop[0.5], drop[math.inf]) == (0, 1, 1, 2, 2)
    assert samples["clue_ra_drop_ratio_sum", (("fleet", "yard"),)] == pytest.approx(0.05 + 0.25)
    assert histogram(samples, "clue_ua_ratio", when="after")[0.1] == 1
    assert histogram(samples, "clue_energy_joules", source="rapl")[100] == 2
    assert histogram(samples, "clue_peak_memory_bytes")[384 * 2**20] == 2
    assert histogram(samples, "clue_latency_seconds")[10] == 0
    assert histogram(samples, "clue_request_ra_drop_ratio", request=first) == drop
    for bound, count in (("ua", 1), ("ra_drop", 1)):
        assert samples["clue_policy_missed_total", (("bound", bound), ("fleet", "yard"))] == count
    outcomes = {o: samples["clue_receipts_total", (("fleet", "yard"), ("outcome", o))] for o in OUTCOMES}
    assert outcomes == {"SUCCEEDED": 2, "FAILED": 0, "REJECTED": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e300])
def test_a_number_that_is_no_measurement_does_not_spoil_the_sum(tmp_path: Path, value: float) -> None:
    fleet = Fleet.make(tmp_path / "one.sqlite", 1)
    request_id = fleet.order()
    fleet.lease(0)
    fleet.report(request_id, energy=pb.Energy(joules=value, source="someone's toaster"), latency_seconds=1.5)
    samples = scrape(fleet)
    fleet.ledger.close()
    assert histogram(samples, "clue_energy_joules") == {}
    assert histogram(samples, "clue_latency_seconds")[2] == 1


def test_failures_by_reason_and_answers_that_were_refused(fleet: Fleet) -> None:
    first = fleet.order()
    fleet.lease(0, 1)
    fleet.report(first, envelope=b"?")
    fleet.report(first, 1, envelope=fleet.receipt(first, 1, key=DEVICE_KEYS[0]))
    fleet.now += 60
    fleet.lease(0, 1)
    fleet.report(first, envelope=fleet.receipt(first, request_digest=b"other"))
    fleet.now += 60
    fleet.lease(0, 1)
    # Of a device that is newer than we are.
    fleet.report(first, outcome=pb.OUTCOME_REJECTED, reason=999)
    fleet.report(first, 1, outcome=pb.OUTCOME_REJECTED, reason=pb.REASON_BAD_SIGNATURE)
    samples = scrape(fleet)
    refused = {
        r: samples["clue_receipts_refused_total", (("fleet", "yard"), ("reason", r))]
        for r in ("signature", "unreadable", "content")
    }
    assert refused == {"signature": 1, "unreadable": 1, "content": 1}
    rejected = {
        dict(labels)["reason"]: value
        for (name, labels), value in samples.items()
        if name == "clue_executions" and ("state", "REJECTED") in labels and value
    }
    assert rejected == {"OTHER": 1, "BAD_SIGNATURE": 1}


@pytest.mark.parametrize(
    ("started", "finished", "skew"), [(10, 20, 0), (10, 1000, 900), (-5000, -4990, -5000), (None, None, 0)]
)
def test_a_clock_that_cannot_be_right(tmp_path: Path, started: int | None, finished: int | None, skew: int) -> None:
    fleet = Fleet.make(tmp_path / "one.sqlite", 1)
    request_id, made = fleet.order(), fleet.now
    fleet.now += 100
    fleet.lease(0)
    times = {}
    if started is not None and finished is not None:
        times = {
            "started_at": Timestamp(seconds=int(made) + started),
            "finished_at": Timestamp(seconds=int(made) + finished),
        }
    fleet.report(request_id, **times)
    samples = scrape(fleet)
    fleet.ledger.close()
    assert samples["clue_device_clock_skew_seconds", (("device", "cam-0"), ("fleet", "yard"))] == skew
    assert samples["clue_clock_skew_max_seconds", (("fleet", "yard"),)] == abs(skew)


def test_a_request_from_its_queue_to_its_end(fleet: Fleet) -> None:
    request_id = fleet.order(max_ua=0.2)
    fleet.now += 30
    fleet.lease(0)
    fleet.now += 12

    def of_request() -> dict[str, float]:
        found = {}
        for (name, labels), value in scrape(fleet).items():
            rest = dict(labels)
            if rest.pop("request", None) == request_id and not name.startswith("clue_request_ra_drop_ratio"):
                assert rest.pop("fleet") == "yard"
                found[" ".join([name.removeprefix("clue_request_"), *rest.values()])] = value
        return found

    begun = of_request()
    assert begun["progress_ratio"] == 0
    assert (begun["devices_pending true"], begun["devices_pending false"], begun["devices_due"]) == (1, 1, 1)
    assert begun["longest_running_seconds"] == 12
    assert begun["max_ua_ratio"] == 0.2
    assert scrape(fleet)["clue_queue_age_seconds", (("fleet", "yard"),)] == 42
    fleet.report(request_id)
    half = of_request()
    assert (half["progress_ratio"], half["longest_running_seconds"]) == (0.5, 0)
    assert half["last_change_timestamp_seconds"] == fleet.now
    fleet.lease(1)
    fleet.report(request_id, 1)
    assert (of_request()["progress_ratio"], of_request()["open"]) == (1, 0)
    assert scrape(fleet)["clue_queue_age_seconds", (("fleet", "yard"),)] == 0
    fleet.now += 2 * 86_400
    assert of_request() == {}


def test_the_log_and_its_last_checkpoint(fleet: Fleet) -> None:
    before = scrape(fleet)
    assert ("clue_log_last_checkpoint_timestamp_seconds", ()) not in before
    with fleet.ledger.write() as session:
        for index in range(3):
            tlog.append(session, "receipt", b"%d" % index, f"r/{index}")
        tlog.make_checkpoint(session, "log.example/a", CryptoSigner.generate_ed25519(), 999.0)
        tlog.append(session, "receipt", b"3", "r/3")
    samples = scrape(fleet)
    assert samples["clue_log_leaves", ()] == before["clue_log_leaves", ()] + 4
    assert samples["clue_log_uncheckpointed_leaves", ()] == 1
    assert samples["clue_log_last_checkpoint_timestamp_seconds", ()] == 999


def test_the_newest_root(fleet: Fleet) -> None:
    before = scrape(fleet)
    enrol.create_fleet(fleet.ledger, "barn", KEYS)
    samples = scrape(fleet)
    assert samples["clue_root_version", ()] == before["clue_root_version", ()] + 1
    with fleet.ledger.read() as session:
        root = roots.latest(session).root
    assert samples["clue_root_expiry_timestamp_seconds", ()] == root.expires_ns / 1e9 > fleet.now


def test_a_ledger_from_before_the_tallies_is_counted_once_when_it_is_upgraded(fleet: Fleet) -> None:
    """What the step counts is what would have been counted receipt by receipt."""
    first, second = fleet.order(plan=parse_plan({"max_attempts": 2})), fleet.order("cat")
    fleet.lease(0, 1)
    fleet.report(first, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_WORKER_FAILED, attempt=1)
    fleet.report(first, 1, finished_at=Timestamp(seconds=int(fleet.now) + 500))
    fleet.now += 3600
    fleet.lease(0, 1)
    fleet.report(first, attempt=2)
    fleet.report(second, ra_after=pb.Accuracy(correct=10, samples=20))
    assert fleet.states(first) == ["SUCCEEDED", "SUCCEEDED"]
    counted = scrape(fleet)
    [script] = [s for s in migrations._scripts().walk_revisions() if s.path.endswith("_metrics.py")]
    with fleet.ledger._database.writer.begin() as connection:
        connection.execute(text("DELETE FROM tally"))
        connection.execute(text("UPDATE device SET last_receipt_at = NULL, clock_skew_seconds = NULL"))
        script.module.count_receipts(connection)
    assert scrape(fleet) == counted


def test_the_endpoint(fleet: Fleet) -> None:
    port = free_port()
    server = metrics.serve(fleet.ledger, port, device_limit=1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert parse(answer.read().decode())["clue_devices", (("fleet", "yard"),)] == 2
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics/targets", timeout=10) as answer:
            [target] = json.loads(answer.read())
        assert target["targets"] == [f"127.0.0.1:{port}"]
        path = target["labels"]["__metrics_path__"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            samples = parse(answer.read().decode())
        assert samples["clue_fleet_devices_omitted", (("fleet", "yard"),)] == 1
        assert {dict(labels).get("device") for _, labels in samples} == {None, "cam-0"}
        for wrong in ("/metrics/fleets/attic", "/"):
            with pytest.raises(HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{wrong}", timeout=10)
        with pytest.raises(CoordinatorError, match=f"cannot listen on 127.0.0.1:{port}"):
            metrics.serve(fleet.ledger, port)
    finally:
        server.shutdown()
        server.server_close()


def test_openmetrics_has_the_request_of_the_last_receipt_in_every_bucket(fleet: Fleet) -> None:
    first, second = fleet.order(), fleet.order("cat")
    fleet.lease(0, 1)
    fleet.report(first)
    fleet.report(second, ra_after=pb.Accuracy(correct=10, samples=20))
    app = metrics.MetricsApp(fleet.ledger, 10)
    headers: dict[str, str] = {}

    def start(status: str, found: list[tuple[str, str]], _: object = None) -> Callable[[bytes], object]:
        assert status == "200 OK"
        headers.update(found)
        return print

    environ = {
        "PATH_INFO": "/metrics",
        "REQUEST_METHOD": "GET",
        "HTTP_ACCEPT": "application/openmetrics-text; version=1.0.0",
    }
    body = b"".join(app(environ, start)).decode()
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    exemplars = {
        (sample.labels["le"], sample.exemplar.labels["request_id"], round(sample.exemplar.value, 6))
        for family in openmetrics_families(body)
        for sample in family.samples
        if sample.name == "clue_ra_drop_ratio_bucket" and sample.exemplar
    }
    assert exemplars == {("0.05", first, 0.05), ("0.5", second, 0.5)}
