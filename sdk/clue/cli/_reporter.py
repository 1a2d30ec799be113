"""How a long run shows what it does: a bar with the time left on a terminal, plain lines elsewhere."""

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_SECONDS_BETWEEN_LINES = 30.0


class ConsoleReporter:
    """A :class:`clue.bench.Reporter` on ``console`` (standard error, so that output can be piped)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} % {task.fields[detail]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._said = (0.0, "")  # when a plain line was last printed, and of which run

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """Something begins, or is worth knowing."""
        self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def progress(self, title: str, fraction: float, eta_seconds: float, detail: str) -> None:
        """A run has done ``fraction`` of its work."""
        left = "" if math.isnan(eta_seconds) else f", {_duration(eta_seconds)} left"
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(title, total=1.0, detail="")
            self._bar.update(self._task, completed=fraction, detail=detail + left)
            return
        now = time.monotonic()
        if self._said[1] != title:  # a run that is over within seconds says nothing
            self._said = (now, title)
        elif now - self._said[0] > _SECONDS_BETWEEN_LINES:
            self._said = (now, title)
            self.line(f"{title}: {100 * fraction:.0f} %, {detail}{left}")

    def finished(self, title: str) -> None:  # noqa: ARG002
        """A run has ended."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = None
        self._said = (0.0, "")


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
