"""Tell systemd how the daemon is (the ``sd_notify`` protocol, see sd_notify(3)); without systemd nothing happens.

The unit says ``Type=notify`` and ``WatchdogSec=``: systemd waits for READY=1 before it counts the service as
started, and ends and restarts it when no WATCHDOG=1 came in time. So the beat must come from what has to be
alive, not from a thread that would go on by itself: :func:`wait` sends it only while ``healthy()`` holds.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, MutableMapping

log = logging.getLogger(__name__)

_STATUS_LENGTH = 200


class Notifier:
    """The service manager named in ``environment``. Every method returns at once and never raises.

    The variables are taken out of ``environment``, so that child processes do not speak for the daemon.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        self._watchdog_seconds = _watchdog_seconds(
            environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        )
        self._last_status = ""

    @property
    def active(self) -> bool:
        """True if somebody listens."""
        return self._address is not None

    @property
    def watchdog_seconds(self) -> float | None:
        """Longest time between two :meth:`watchdog` calls that the service manager bears; None: no watchdog."""
        return self._watchdog_seconds if self.active else None

    def ready(self) -> None:
        """The service has started."""
        self._send("READY=1")

    def watchdog(self) -> None:
        """The service is alive."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is shutting down."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        line = " ".join(text.split())[:_STATUS_LENGTH]
        if line != self._last_status:
            self._last_status = line
            self._send(f"STATUS={line}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # Never wait: a service manager that does not read must not stop the daemon.
                channel.setblocking(False)
                channel.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("cannot tell the service manager %r: %s", message, error)


def wait(
    notifier: Notifier,
    stopping: threading.Event,
    healthy: Callable[[], bool],
    status: Callable[[], str] | None = None,
    longest_seconds: float = 5.0,
) -> None:
    """Block until ``stopping`` is set, and meanwhile beat twice as often as asked while ``healthy()`` holds.

    Args:
        notifier: where to.
        stopping: ends the wait.
        healthy: called before every beat; False or an exception means no beat, and systemd acts when time is up.
        status: line for ``systemctl status``, asked for at every beat.
        longest_seconds: between two looks at ``healthy`` where no watchdog sets the pace.
    """
    asked = notifier.watchdog_seconds
    pause = longest_seconds if asked is None else min(longest_seconds, asked / 2)
    while not stopping.is_set():
        try:
            well = healthy()
            if status is not None:
                notifier.status(status())
        except Exception:
            log.exception("the daemon cannot say how it is")
            well = False
        if well:
            notifier.watchdog()
        stopping.wait(pause)
    notifier.stopping()


def _address(value: str) -> str | None:
    if value.startswith("@"):  # Linux's abstract namespace
        return f"\0{value[1:]}"
    return value if value.startswith("/") else None


def _watchdog_seconds(microseconds: str, pid: str) -> float | None:
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


__all__ = ["Notifier", "wait"]
