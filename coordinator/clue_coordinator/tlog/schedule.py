"""Checkpoints when they are due."""

import logging

from clue_coordinator import tlog
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import LogCheckpoint
from clue_coordinator.tlog.keys import LogKeys

log = logging.getLogger(__name__)

_LOOK_SECONDS = 20.0


class CheckpointSchedule:
    """Signs the log once ``minutes`` have passed since the last checkpoint, if leaves have come since."""

    def __init__(self, ledger: Ledger, keys: LogKeys, minutes: float) -> None:
        self._ledger = ledger
        self._keys = keys
        self._seconds = 60.0 * minutes
        self._look_at = 0.0

    def advance(self) -> None:
        """Sign what is due; harmless to call often. LogDamagedError if the log is not what was signed before."""
        now = self._ledger.clock()
        # A clock that was set back must not stop it.
        if self._look_at - _LOOK_SECONDS <= now < self._look_at:
            return
        self._look_at = now + min(_LOOK_SECONDS, self._seconds)
        with self._ledger.read() as session:
            last = tlog.last_checkpoint(session)
            size = tlog.size_of(session)
        if size > (last.size if last else 0) and (last is None or not last.at <= now < last.at + self._seconds):
            note = checkpoint_now(self._ledger, self._keys)
            log.info("the log has %d leaves, and a checkpoint of them", note.size)


def checkpoint_now(ledger: Ledger, keys: LogKeys) -> LogCheckpoint:
    """Sign the log as it is, whatever the schedule; the row of the checkpoint. LogDamagedError as above."""
    with ledger.write() as session:
        tlog.make_checkpoint(session, keys.origin, keys.signer, ledger.clock())
        last = tlog.last_checkpoint(session)
        assert last is not None  # noqa: S101
        return last
