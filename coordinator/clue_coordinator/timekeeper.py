"""Signed time for devices: in answer to the one that asks, and the same for all others for some seconds."""

import logging

from sqlalchemy.orm import Session

from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import TimeSequence
from clue_coordinator.role_keys import holds
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import TrustedRoot, attest_time

log = logging.getLogger(__name__)

# An attestation without a nonce only says that it is at least so late: it may be some seconds old.
_SHARED_SECONDS = 5.0


class Timekeeper:
    """Attests the time of one ledger's clock, with the key of ``keys`` that the newest root names."""

    def __init__(self, ledger: Ledger, keys: HomeKeys) -> None:
        self._ledger = ledger
        self._keys = keys
        self._shared = b""
        self._shared_at = 0.0
        self._shared_version = 0
        self._warned = False

    def attest(self, session: Session, root: TrustedRoot, nonce: bytes = b"") -> bytes:
        """An attestation, in a writing transaction; empty if no key here may sign it.

        Its number is stored before it leaves: milliseconds since 1970, or one more than the last.
        """
        now = self._ledger.clock()
        fresh = self._shared_at <= now < self._shared_at + _SHARED_SECONDS
        if not nonce and fresh and self._shared_version == root.root.version:
            return self._shared
        role = root.root.timestamp
        signer = next((s for s in self._keys.timestamps if holds(role, s.public_key)), None)
        if signer is None:
            if not self._warned:
                log.warning("no timestamp key in the home folder is in the root: devices are not told the time")
                self._warned = True
            return b""
        row = session.get(TimeSequence, 1)
        if row is None:
            row = TimeSequence(id=1, value=0)
            session.add(row)
        row.value = max(row.value + 1, int(now * 1000))
        try:
            envelope = attest_time(root, signer, int(now * 1e9), row.value, nonce)
        except (ProtocolError, ValueError) as error:
            log.warning("the time cannot be attested: %s", error)
            return b""
        if not nonce:
            self._shared, self._shared_at, self._shared_version = envelope, now, root.root.version
        return envelope
