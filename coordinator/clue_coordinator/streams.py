"""Open streams of the operator API: how many there may be, and their end when the token ends.

A stream keeps a thread of the server for as long as it is open. Their number is bounded, and the pool has more threads
than that, so that watchers never keep a call from being answered.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from clue_coordinator.access import Access, Caller

MOST_STREAMS = 128
_CHECK_SECONDS = 1.0
# A handler that looks at ``is_active`` ends by itself and can say why; after that its call is cut.
_PATIENCE_SECONDS = 4.0

if TYPE_CHECKING:
    _Base = grpc.ServicerContext
else:
    _Base = object


class Stream(_Base):
    """The context of a streaming call, inactive as soon as its token is."""

    def __init__(self, context: grpc.ServicerContext, caller: Caller, access: Access) -> None:
        self._context = context
        self._caller = caller
        self._access = access
        self.ended_at: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property
    def token_ended(self) -> bool:
        """True once the token has expired or was revoked."""
        if self.ended_at is None and not self._access.valid(self._caller):
            self.ended_at = time.monotonic()
        return self.ended_at is not None

    def cut(self) -> None:
        """End the call: the client sees CANCELLED."""
        self._context.cancel()  # type: ignore[no-untyped-call]

    def is_active(self) -> bool:
        """True while there is a client with a valid token."""
        return bool(self._context.is_active()) and not self.token_ended


class Streams(threading.Thread):
    """Counts open streams and, in a thread, cuts those whose token has ended; writes down the use of tokens too."""

    def __init__(self, access: Access, most: int = MOST_STREAMS) -> None:
        super().__init__(daemon=True, name="operator-streams")
        self._access = access
        self.most = most
        self._lock = threading.Lock()
        self._open: set[Stream] = set()
        self._closing = threading.Event()

    def enter(self, stream: Stream) -> bool:
        """Count ``stream`` as open; False if there are too many."""
        with self._lock:
            if len(self._open) >= self.most:
                return False
            self._open.add(stream)
            return True

    def leave(self, stream: Stream) -> None:
        """It is closed."""
        with self._lock:
            self._open.discard(stream)

    def run(self) -> None:
        """Look after the streams until :meth:`close`."""
        while not self._closing.wait(_CHECK_SECONDS):
            with self._lock:
                streams = list(self._open)
            for stream in streams:
                if stream.token_ended and time.monotonic() - (stream.ended_at or 0.0) > _PATIENCE_SECONDS:
                    stream.cut()
            self._access.write_uses()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        self.join(5)
        self._access.write_uses()
