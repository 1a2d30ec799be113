"""What a scrape costs: a fleet's rollout in a real ledger, then both endpoints over HTTP, twenty times each.

Devices sign real receipts, which the coordinator takes one by one; a tenth of them has not answered, so that the
request is open. Flower is bypassed. Exit status 1 if the default endpoint is slower or larger than the limits.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fleet import _server
from fleet_devices import FLEET, make_devices, sign_receipts
from securesystemslib.signer import CryptoSigner

from clue_coordinator import metrics
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Request
from clue_coordinator.reports import report_receipt
from clue_coordinator.requests import ForgetOrder, create_request
from clue_coordinator.rollout import lease
from clue_protocol.net import free_port

SCRAPES = 20
LIMIT_SECONDS, LIMIT_BYTES = 0.2, 1e6
_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clue-metrics-") as folder, _server(options.database, True) as server:
        url = server.new_schema("metrics") if server else f"sqlite:///{folder}/ledger.sqlite"
        found = measure(url, options.devices)
    for name, row in found["endpoints"].items():
        print(
            f"{name:34} p50 {1e3 * row['p50']:7.1f} ms  p99 {1e3 * row['p99']:7.1f} ms  "
            f"{row['bytes'] / 1e6:.3f} MB, {row['gzip_bytes'] / 1e6:.3f} MB gzipped, {row['series']} series"
        )
    taken = found["receipt"]
    print(f"{'taking a receipt':34} p50 {1e3 * taken['p50']:7.1f} ms  p99 {1e3 * taken['p99']:7.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    default = found["endpoints"]["/metrics"]
    sys.exit(default["p99"] > LIMIT_SECONDS or default["bytes"] > LIMIT_BYTES)


def measure(url: str, number: int) -> dict[str, Any]:
    """Roll out to nine tenths of ``number`` devices and scrape."""
    devices = make_devices(url, number)
    ledger = Ledger(url)
    try:
        receipts = _roll_out(ledger, devices)
        with _serving(ledger) as base:
            endpoints = {
                "/metrics": scrape(f"{base}/metrics"),
                "/metrics, OpenMetrics": scrape(f"{base}/metrics", _OPENMETRICS),
                "/metrics/fleets/NAME, 1,000 shown": scrape(f"{base}/metrics/fleets/{FLEET}"),
            }
        return {"devices": number, "endpoints": endpoints, "receipt": _quantiles(receipts)}
    finally:
        ledger.close()


def scrape(url: str, accept: str = "*/*") -> dict[str, Any]:
    """Seconds from the connection to the last byte, as Prometheus sees them: gzipped."""

    def read(encoding: str) -> bytes:
        request = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": encoding})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    seconds = []
    for _ in range(SCRAPES):
        started = time.perf_counter()
        packed = read("gzip")
        seconds.append(time.perf_counter() - started)
    plain = read("identity")
    series = sum(not line.startswith(b"#") for line in plain.splitlines())
    return _quantiles(seconds) | {"bytes": len(plain), "gzip_bytes": len(packed), "series": series}


def _roll_out(ledger: Ledger, devices: list[Any]) -> list[float]:
    """Seconds that each receipt took."""
    request_id = create_request(ledger, ForgetOrder(FLEET, "bird", max_ua=0.1), CryptoSigner.generate_ed25519())
    with ledger.read() as session:
        envelope = session.get_one(Request, request_id).envelope
    here = [device for device in devices if device.index % 10]
    receipts = sign_receipts(here, request_id, envelope)
    nodes = [device.node for device in here]
    seconds = []
    while assignments := lease(ledger, nodes):
        for assignment in assignments:
            started = time.perf_counter()
            report_receipt(ledger, assignment.execution_id, assignment.node_id, receipts[assignment.node_id])
            seconds.append(time.perf_counter() - started)
    assert len(seconds) == len(here)
    return seconds


@contextmanager
def _serving(ledger: Ledger) -> Iterator[str]:
    port = free_port()
    server = metrics.serve(ledger, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


def _quantiles(seconds: list[float]) -> dict[str, float]:
    found = np.quantile(seconds, [0.5, 0.99])
    return {"p50": float(found[0]), "p99": float(found[1])}


if __name__ == "__main__":
    main()
