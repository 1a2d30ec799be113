"""``/metrics``, ``/metrics/fleets/NAME`` and ``/metrics/targets`` over HTTP, on loopback."""

import json
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from sqlalchemy import select

from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.metrics._devices import DeviceCollector
from clue_coordinator.metrics._overview import LedgerCollector
from clue_coordinator.models import Fleet

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_FLEETS = "/metrics/fleets/"


class MetricsApp:
    """The endpoints as a WSGI application; OpenMetrics, with exemplars, for those who ask for it."""

    def __init__(self, ledger: Ledger, device_limit: int, more: Sequence[Collector] = ()) -> None:
        self._ledger = ledger
        self._device_limit = device_limit
        self._overview = _app(LedgerCollector(ledger), *more)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one scrape."""
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                return self._overview(environ, start_response)
            if path == "/metrics/targets":
                return _answer(start_response, "200 OK", "application/json", self._targets(environ))
            if path.startswith(_FLEETS):
                name = unquote(path.removeprefix(_FLEETS))
                if name in self._fleets():
                    collector = DeviceCollector(self._ledger, name, self._device_limit)
                    return _app(collector)(environ, start_response)
                return _answer(start_response, "404 Not Found", "text/plain", f"there is no fleet {name!r}\n")
        except CoordinatorError as error:
            return _answer(start_response, "503 Service Unavailable", "text/plain", f"{error}\n")
        known = "/metrics, /metrics/fleets/NAME and /metrics/targets are here\n"
        return _answer(start_response, "404 Not Found", "text/plain", known)

    def _fleets(self) -> list[str]:
        with self._ledger.read() as session:
            return list(session.scalars(select(Fleet.name).order_by(Fleet.name)))

    def _targets(self, environ: "WSGIEnvironment") -> str:
        """One target per fleet, as Prometheus's HTTP service discovery has it."""
        host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        return json.dumps(
            [{"targets": [host], "labels": {"__metrics_path__": _FLEETS + quote(name)}} for name in self._fleets()]
        )


def serve(ledger: Ledger, port: int, device_limit: int = 1000, more: Sequence[Collector] = ()) -> WSGIServer:
    """Start the endpoints on loopback, ``/metrics`` with ``more``; CoordinatorError if the port cannot be had."""
    try:
        server = make_server(
            "127.0.0.1", port, MetricsApp(ledger, device_limit, more), ThreadingWSGIServer, handler_class=_Silent
        )
    except OSError as error:
        raise CoordinatorError(f"cannot listen on 127.0.0.1:{port} for metrics: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()
    return server


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def _app(*collectors: Collector) -> "WSGIApplication":
    # A registry of its own: the library's default one holds what other packages put there.
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return make_wsgi_app(registry)


def _answer(start_response: "StartResponse", status: str, kind: str, text: str) -> list[bytes]:
    body = text.encode()
    start_response(status, [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
