"""``clue-agent run-once``: be online until there is nothing left to do, for devices that a timer wakes.

A device cannot know that nothing waits for it; it can only be online for a while and see. So the agent ends when
no job is unfinished and for ``quiet_seconds`` nothing has come in or gone out, or after ``max_seconds`` at the
latest; what is unfinished then stays in the journal and is taken up the next time.
"""

import threading
import time
from collections.abc import Callable
from enum import StrEnum


class Ending(StrEnum):
    """Why run-once ended."""

    IDLE = "idle"
    OUT_OF_TIME = "out of time"
    STOPPED = "stopped"


class Once:
    """Ends a daemon that has become idle.

    Args:
        quiet_seconds: how long nothing must have happened.
        max_seconds: the longest it may take in all.
        clock: monotonic seconds.
        poll_seconds: between two looks.
    """

    def __init__(
        self,
        quiet_seconds: float,
        max_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        poll_seconds: float = 0.5,
    ) -> None:
        self._quiet_seconds = quiet_seconds
        self._max_seconds = max_seconds
        self._clock = clock
        self._poll_seconds = poll_seconds
        self.ending = Ending.STOPPED
        self.unfinished = 0

    def start(
        self, unfinished: Callable[[], int], last_activity: Callable[[], float], stopping: threading.Event
    ) -> None:
        """Watch from a thread of its own; see :meth:`watch`."""
        threading.Thread(
            target=self.watch, args=(unfinished, last_activity, stopping), name="run-once", daemon=True
        ).start()

    def watch(
        self, unfinished: Callable[[], int], last_activity: Callable[[], float], stopping: threading.Event
    ) -> None:
        """Set ``stopping`` when the daemon is idle or its time is over; returns then, or when somebody else set it.

        Args:
            unfinished: number of jobs without a receipt.
            last_activity: when something last came in or went out, by the same clock.
            stopping: the daemon's own event.
        """
        started = self._clock()
        busy_at = started
        while not stopping.is_set():
            now = self._clock()
            self.unfinished = unfinished()
            if self.unfinished:
                busy_at = now
            if now - started >= self._max_seconds:
                self.ending = Ending.OUT_OF_TIME
                break
            if now - max(busy_at, last_activity()) >= self._quiet_seconds:
                self.ending = Ending.IDLE
                break
            stopping.wait(self._poll_seconds)
        stopping.set()


__all__ = ["Ending", "Once"]
