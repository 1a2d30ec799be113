"""Who calls the operator API: a bearer token becomes a name and a role, or the call is refused.

The ledger is asked for a token at most once in :data:`CACHE_SECONDS`: a token that was revoked is refused after that
time at the latest, whichever process revoked it.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from sqlalchemy import select

from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Token
from clue_coordinator.roles import Role, needed_role
from clue_coordinator.tokens import digest_of, note_use

log = logging.getLogger(__name__)

CACHE_SECONDS = 1.0
USE_SECONDS = 60.0
_LONGEST_TOKEN = 512
_MISSING = "this call needs a token: send 'authorization: Bearer TOKEN'"
# The same line for all three: who guesses learns nothing. The log says which it was.
_INVALID = "the operator token is not valid: it is unknown, expired or revoked"


@dataclass(frozen=True)
class Caller:
    """A token that was valid at ``checked`` (monotonic seconds)."""

    row: int
    name: str
    role: Role
    digest: str
    expires_at: float | None
    last_used_at: float
    checked: float


class Refused(Exception):
    """A call is refused with this gRPC status and line."""

    def __init__(self, code: grpc.StatusCode, line: str) -> None:
        super().__init__(line)
        self.code = code


class Access:
    """Looks tokens up, and notes when they were used. Safe from all threads."""

    def __init__(self, ledger: Ledger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, Caller] = {}
        self._used: dict[int, float] = {}
        self._noted: dict[int, float] = {}

    def caller(self, authorization: str, path: str, peer: str) -> Caller:
        """Who may call ``path`` with this ``authorization`` header; Refused says why not."""
        kind, _, secret = authorization.partition(" ")
        if kind.lower() != "bearer" or not secret:
            log.warning("refused %s from %s: no token", path, peer)
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, _MISSING)
        found, problem = self._find(digest_of(secret)) if len(secret) <= _LONGEST_TOKEN else (None, "unknown token")
        if found is None:
            log.warning("refused %s from %s: %s", path, peer, problem)
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, _INVALID)
        self._note(found)
        needed = needed_role(path)
        if not found.role.includes(needed):
            log.warning("refused %s from %s: token '%s' is %s", path, peer, found.name, found.role.phrase)
            method = path.rpartition("/")[2]
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{method} needs the role {needed}, and '{found.name}' is {found.role.phrase}",
            )
        return found

    def valid(self, caller: Caller) -> bool:
        """True as long as the token may be used; a ledger that cannot be asked changes nothing."""
        try:
            return self._find(caller.digest)[0] is not None
        except CoordinatorError:
            return True

    def write_uses(self) -> None:
        """Put into the ledger when tokens were last used, each at most once in :data:`USE_SECONDS`."""
        with self._lock:
            due = {row: at for row, at in self._used.items() if at >= self._noted.get(row, 0.0) + USE_SECONDS}
        if not due:
            return
        try:
            note_use(self._ledger, due)
        except CoordinatorError as error:
            log.warning("cannot note the use of tokens: %s", error)
            return
        with self._lock:
            self._noted.update(due)

    def _find(self, digest: str) -> tuple[Caller | None, str]:
        """The token's caller, or None and what is wrong with it."""
        now = self._monotonic()
        with self._lock:
            known = self._known.get(digest)
        if known is None or not 0 <= now - known.checked < CACHE_SECONDS:
            with self._ledger.read() as session:
                token = session.scalar(select(Token).where(Token.digest == digest))
            if token is None or token.revoked_at is not None:
                # Only good tokens are remembered: what is sent from outside must not fill the memory.
                with self._lock:
                    self._known.pop(digest, None)
                return None, "unknown token" if token is None else f"token '{token.name}' is revoked"
            last = token.last_used_at or 0.0
            known = Caller(token.id, token.name, Role(token.role), digest, token.expires_at, last, now)
            with self._lock:
                self._known[digest] = known
        if known.expires_at is not None and known.expires_at <= self._ledger.clock():
            return None, f"token '{known.name}' has expired"
        return known, ""

    def _note(self, caller: Caller) -> None:
        with self._lock:
            self._used[caller.row] = self._ledger.clock()
            # The row may be younger than what this process knows: it was restarted.
            self._noted[caller.row] = max(self._noted.get(caller.row, 0.0), caller.last_used_at)
