"""The coordinator's side of ``fleet.py``, in a process of its own: ledger, dispatch service, tick loop, operator calls.

All of it is the product's own code; only the SuperLink, the dispatcher's run and the operators' TLS server are left
out. It is told what to do by JSON lines on standard input and answers each with one on standard output.
"""

import argparse
import base64
import cProfile
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from fleet_devices import bench_keys
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import func, select

from clue_coordinator import dispatch
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.executions import check_counts
from clue_coordinator.ledger import Ledger
from clue_coordinator.metrics import LedgerCollector
from clue_coordinator.models import Event, Execution, Request
from clue_coordinator.operators import OperatorService
from clue_coordinator.patches import Patcher
from clue_coordinator.plan import parse_plan
from clue_coordinator.requests import ForgetOrder, create_request
from clue_coordinator.tick import tick
from clue_coordinator.timekeeper import Timekeeper
from clue_protocol.v1 import dispatch_pb2, operator_pb2

# As the daemon.
_TICK_SECONDS = 0.5


class Profiles:
    """One profile per kind of work. Does nothing without a folder; profiled work is done one at a time."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._profiles: dict[str, cProfile.Profile] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Profile what is done inside."""
        if self._folder is None:
            yield
            return
        with self._lock:
            profile = self._profiles.setdefault(name, cProfile.Profile())
            profile.enable()
            try:
                yield
            finally:
                profile.disable()

    def save(self) -> None:
        """Write ``NAME.prof`` files, for ``python -m pstats``."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, profile in self._profiles.items():
                profile.dump_stats(self._folder / f"{name}.prof")


class ProfiledService(dispatch.DispatchService):
    """The dispatch service, under the profiler where one is asked for."""

    def __init__(self, ledger: Ledger, timekeeper: Timekeeper, profiles: Profiles) -> None:
        super().__init__(ledger, timekeeper)
        self._profiles = profiles

    def Lease(self, request: dispatch_pb2.LeaseRequest, context: grpc.ServicerContext) -> dispatch_pb2.LeaseResponse:
        with self._profiles.of("lease"):
            return super().Lease(request, context)

    def Report(self, request: dispatch_pb2.ReportRequest, context: grpc.ServicerContext) -> dispatch_pb2.ReportResponse:
        with self._profiles.of("report"):
            return super().Report(request, context)


class Context:
    """What an operator's call sees of gRPC where there is no network."""

    def is_active(self) -> bool:
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise RuntimeError(f"{code.name}: {details}")


class Side:
    """The coordinator without Flower; public methods are the commands."""

    def __init__(self, url: str, socket: Path, profiles: Profiles) -> None:
        self._ledger = Ledger(url)
        self._profiles = profiles
        keys = bench_keys()
        self._signer = keys.request
        timekeeper = Timekeeper(self._ledger, keys)
        self._server = dispatch.serve(ProfiledService(self._ledger, timekeeper, profiles), socket)
        # These calls reach neither Flower nor the keeper of its dispatcher.
        self._operators = OperatorService(
            CoordinatorConfig(home=socket.parent),
            self._ledger,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            keys,
        )
        self._registry = CollectorRegistry()
        self._registry.register(LedgerCollector(self._ledger))
        self._stopping = threading.Event()
        self._ticks: list[float] = []
        self._ticker = threading.Thread(target=self._tick, daemon=True, name="ticks")
        self._ticker.start()

    def order(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Create a request for the whole fleet."""
        order = ForgetOrder("bench", "bird", max_ua=0.1, plan=parse_plan(plan))
        started = time.perf_counter()
        with self._profiles.of("order"):
            request_id = create_request(self._ledger, order, self._signer)
        seconds = time.perf_counter() - started
        with self._ledger.read() as session:
            envelope = session.get_one(Request, request_id).envelope
        return {"seconds": seconds, "request_id": request_id, "envelope": base64.b64encode(envelope).decode()}

    def look(self, request_id: str) -> dict[str, Any]:
        """Seconds of what operators and Prometheus ask for; the median of three."""
        context: Any = Context()
        show = operator_pb2.GetRequestRequest(request_id=request_id)
        first = operator_pb2.ListExecutionsRequest(request_id=request_id)
        page = self._operators.ListExecutions(first, context)
        later = operator_pb2.ListExecutionsRequest(request_id=request_id, page_token=page.next_page_token)
        devices = operator_pb2.ListDevicesRequest(fleet="bench")
        return {
            "show": self._median("show", lambda: self._operators.GetRequest(show, context)),
            "watch": self._median("watch", lambda: next(self._operators.WatchRequest(show, context))),
            "list_requests": self._median(
                "list-requests", lambda: self._operators.ListRequests(operator_pb2.ListRequestsRequest(), context)
            ),
            "executions_page": self._median("executions", lambda: self._operators.ListExecutions(first, context)),
            "executions_next": self._median("executions", lambda: self._operators.ListExecutions(later, context)),
            "devices_page": self._median("devices", lambda: self._operators.ListDevices(devices, context)),
            "events_page": self._median(
                "events", lambda: self._operators.ListEvents(operator_pb2.ListEventsRequest(), context)
            ),
        }

    def metrics(self) -> dict[str, Any]:
        """One scrape."""
        started = time.perf_counter()
        with self._profiles.of("metrics"):
            text = generate_latest(self._registry)
        return {"seconds": time.perf_counter() - started, "bytes": len(text), "series": text.count(b"\n")}

    def state(self, request_id: str) -> dict[str, Any]:
        """Where the request is, read row by row and held against what the ledger counts."""
        with self._ledger.read() as session:
            request = session.get_one(Request, request_id)
            rows = session.execute(
                select(Execution.state, func.count())
                .where(Execution.request_id == request_id)
                .group_by(Execution.state)
            )
            ends = session.execute(
                select(func.count(), func.count(Event.device_id.distinct())).where(
                    Event.request_id == request_id, Event.kind.in_(["execution.succeeded", "execution.failed"])
                )
            ).one()
            return {
                "state": request.state,
                "counts": {str(state): int(number) for state, number in rows},
                "counts_agree": check_counts(session, request),
                "answers": ends[0],
                "devices_with_answers": ends[1],
                "wave": request.wave,
                "waves": request.waves,
                "reason": request.reason,
            }

    def ticks(self) -> list[float]:
        """Seconds of every tick since the last call."""
        found, self._ticks = self._ticks, []
        return found

    def close(self) -> None:
        self._server.stop(0.5).wait(2.0)
        self._stopping.set()
        self._ticker.join(10)
        self._ledger.close()
        self._profiles.save()

    def _median(self, name: str, call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            with self._profiles.of(name):
                call()
            seconds.append(time.perf_counter() - started)
        return sorted(seconds)[1]

    def _tick(self) -> None:
        patcher = Patcher(self._ledger, self._signer)
        while not self._stopping.wait(_TICK_SECONDS):
            started = time.perf_counter()
            with self._profiles.of("tick"):
                tick(self._ledger)
                patcher.advance()
            self._ticks.append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ledger", required=True, metavar="URL")
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    side = Side(options.ledger, options.socket, Profiles(options.profile))
    try:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            call = json.loads(line)
            print(json.dumps(getattr(side, call.pop("call"))(**call)), flush=True)
    finally:
        side.close()


if __name__ == "__main__":
    main()
