"""Who is signed in: sessions in memory, each tied to the token that opened it and gone with it."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from clue_coordinator.access import Access, Caller

SESSION_SECONDS = 12 * 3600.0
_MOST = 256


@dataclass(frozen=True)
class Session:
    """A browser that showed a valid token; ``form_token`` must come with everything that it posts."""

    caller: Caller
    begun: float
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))


class Sessions:
    """Open sessions. Only hashes of their ids are kept. Safe from all threads."""

    def __init__(self, access: Access, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def begin(self, caller: Caller) -> str:
        """Open one; returns its id, for the browser's cookie. Where there are too many, the oldest ends."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._open) >= _MOST:
                del self._open[next(iter(self._open))]
            self._open[_digest(secret)] = Session(caller, self._monotonic())
        return secret

    def find(self, secret: str) -> Session | None:
        """The session of a cookie; None if there is none, or it or its token has ended."""
        with self._lock:
            session = self._open.get(_digest(secret))
        if session is None:
            return None
        if self.alive(session):
            return session
        self.end(secret)
        return None

    def alive(self, session: Session) -> bool:
        """True while neither the session nor its token has ended."""
        return self._monotonic() - session.begun < SESSION_SECONDS and self._access.valid(session.caller)

    def end(self, secret: str) -> None:
        """Close it; nothing happens if it is closed."""
        with self._lock:
            self._open.pop(_digest(secret), None)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
