"""One-time codes: who can read the home's token gets into the console without typing it.

A code is made without asking the coordinator: the time, a nonce, and their HMAC-SHA-256 under the token in the home
folder. It is good once, for :data:`CODE_SECONDS`, and only for a coordinator that ran when it was made; the token
itself stays out of addresses, histories and logs.
"""

import base64
import binascii
import hmac
import secrets
import struct
import threading
from collections.abc import Callable

CODE_SECONDS = 120.0
_NONCE_BYTES = 16
_BODY_BYTES = 8 + _NONCE_BYTES
_CONTEXT = b"clue console code 1\0"


def make_code(token: str, now: float) -> str:
    """A new code, for a URL, from the home's token; ``now`` is in seconds since the epoch."""
    body = struct.pack(">d", now) + secrets.token_bytes(_NONCE_BYTES)
    return base64.urlsafe_b64encode(body + _mac(token, body)).decode().rstrip("=")


class Codes:
    """Takes codes back, each once. Safe from all threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._used: dict[bytes, float] = {}

    def redeem(self, code: str, token: str) -> bool:
        """True if ``code`` was made with ``token`` and is fresh and unused; it is used up then."""
        try:
            data = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))
        except (ValueError, binascii.Error):
            return False
        body, mac = data[:_BODY_BYTES], data[_BODY_BYTES:]
        if len(body) != _BODY_BYTES or not hmac.compare_digest(mac, _mac(token, body)):
            return False
        (at,) = struct.unpack(">d", body[:8])
        now = self._clock()
        # From before the start: it may have been used in the life before, which nobody remembers.
        if not max(self._started, now - CODE_SECONDS) <= at <= now:
            return False
        with self._lock:
            self._used = {used: when for used, when in self._used.items() if when > now - CODE_SECONDS}
            if body in self._used:
                return False
            self._used[body] = at
            return True


def _mac(token: str, body: bytes) -> bytes:
    return hmac.digest(token.encode(), _CONTEXT + body, "sha256")
