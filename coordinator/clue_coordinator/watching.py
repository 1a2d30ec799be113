"""One reading of the ledger for all who watch the same request."""

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from clue_coordinator.ledger import Ledger
from clue_protocol.v1 import operator_pb2 as pb


class WatchedRequest:
    """A request whose view is made once per version of the ledger, however many streams want it."""

    def __init__(self, ledger: Ledger, make_view: Callable[[], pb.RequestView]) -> None:
        self._ledger = ledger
        self._make_view = make_view
        self._lock = threading.Lock()
        self._version = -1
        self._view: pb.RequestView | None = None

    def now(self) -> tuple[int, pb.RequestView]:
        """The ledger's version, to wait for the next, and the request as it is since; do not change the view."""
        with self._lock:
            # Read before the view is made: it then holds at least this version's changes.
            version = self._ledger.version
            if self._view is None or self._version != version:
                self._view = self._make_view()
                self._version = version
            return version, self._view


class WatchedRequests:
    """The requests that are being watched; one is forgotten with its last stream."""

    def __init__(self, ledger: Ledger, make_view: Callable[[str, int], pb.RequestView]) -> None:
        self._ledger = ledger
        self._make_view = make_view
        self._lock = threading.Lock()
        self._watched: WeakValueDictionary[tuple[str, int], WatchedRequest] = WeakValueDictionary()

    def watch(self, request_id: str, executions: int) -> WatchedRequest:
        """The one that all streams of ``request_id`` share that want as much of it; keep it while you watch."""
        with self._lock:
            found = self._watched.get((request_id, executions))
            if found is None:
                found = WatchedRequest(self._ledger, lambda: self._make_view(request_id, executions))
                self._watched[request_id, executions] = found
            return found
