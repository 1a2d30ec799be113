"""Updates: the change that forgetting made to this device's model, handed out with the receipt, then destroyed.

Whoever has an update and the new model can work out the old one, to within rounding; so on this device, which has
just destroyed its old model, an update is the last way back to it, and lives as shortly as it can: until

- an hour has gone by since it was last handed out (the answer may have been lost, and is then asked for again),
- or, if it never was, the request has expired, a week at the most,
- or the next class is forgotten, or a new base model goes live.
"""

import logging
import time
from contextlib import suppress

from clue_agent.boxes import Box
from clue_agent.journal import DELIVERED, Job, Journal
from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.v1 import forget_pb2 as pb

log = logging.getLogger(__name__)

KEEP_DELIVERED = 3600.0
KEEP_UNDELIVERED = 7 * 86400.0
# The clock of a device without a battery runs ahead or behind until it hears the time.
_SET_BACK = 60.0


class Updates:
    """The updates of a device that may still be asked for."""

    def __init__(self, box: Box, journal: Journal) -> None:
        self._box = box
        self._journal = journal

    def hand_out(self, job: Job) -> bytes:
        """The update of a job that has its receipt; empty if it has none (any more)."""
        data = self._box.get(job.digest) if self._box.has(job.digest) else None
        if data is None:
            return b""
        with suppress(OSError):  # a disk that cannot be written lets it live a little shorter
            self._box.touch(job.digest)
        return data

    def expire(self) -> None:
        """Destroy those whose time is over."""
        for digest in self._box.jobs():
            job = self._journal.get(digest)
            if job is None or job.recalled or (job.receipt is not None and self._is_over(job)):
                log.info("the update of request %s is destroyed", job.request_id if job is not None else "(unknown)")
                self._box.destroy(digest)

    def sweep(self) -> None:
        """Remove what was half written when the power went."""
        self._box.sweep()

    def drop(self, job: bytes) -> None:
        """The job did not end in a model that is used."""
        self._box.destroy(job)

    def destroy(self, but: bytes | None = None) -> None:
        """Destroy all, except that of the job ``but``."""
        for digest in self._box.jobs():
            if digest != but:
                self._box.destroy(digest)

    def _is_over(self, job: Job) -> bool:
        age = self._box.age(job.digest)
        if age < -_SET_BACK:
            self._box.touch(job.digest)
            return False
        if DELIVERED in job.steps:
            return age > KEEP_DELIVERED
        expires = peek_message(job.envelope, REQUEST_TYPE, pb.ForgetRequest).expires_at.ToNanoseconds() / 1e9
        return age > KEEP_UNDELIVERED or time.time() > expires
