"""Signals as exceptions: whatever a library makes of them, the block ends as if nothing had come between."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module

import pytest
import typer

from clue import stopping
from clue.cli._run import run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

BOTH = pytest.mark.parametrize(
    ("number", "status", "kind"), [(signal.SIGINT, 130, KeyboardInterrupt), (signal.SIGTERM, 143, SystemExit)]
)


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    """Under a runner that leaves SIGINT ignored, the block must see what a terminal's program has."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert not 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 60  # the runner's own is longer
    signal.signal(signal.SIGINT, before)


def lost(number: int) -> None:
    """Send the signal where its exception is dropped, as in a destructor or a C extension's import."""
    with suppress(BaseException):
        signal.raise_signal(number)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends_with(kind: type[BaseException], work: Callable[[], None]) -> None:
    """``work`` in a stoppable block raises ``kind``."""
    with pytest.raises(kind) as stopped, stopping.stoppable():
        work()
    # A block that waited in vain ends as a stop, too.
    assert not isinstance(stopped.value.__cause__, AssertionError)


@BOTH
@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, SystemExit])
def test_a_stop_that_a_library_turns_into_an_error_is_a_stop(number, status, kind, error, capfd) -> None:
    """numpy, cut off while torch imports it, is imported again and fails with an ImportError."""
    app = typer.Typer()

    @app.command()
    def load() -> None:
        lost(number)
        raise error("cannot load module more than once per process")

    if kind is SystemExit:
        with pytest.raises(SystemExit) as stopped:
            run(app, [])
        assert stopped.value.code == status
    else:
        assert run(app, []) == status
    assert "cannot load" not in capfd.readouterr().err


@BOTH
def test_a_stop_that_is_lost_is_asked_for_again(number, status, kind, monkeypatch) -> None:
    monkeypatch.setattr(stopping, "_ASK_AGAIN_SECONDS", 0.05)

    def work() -> None:
        lost(number)
        wait_until(lambda: False)

    ends_with(kind, work)


@BOTH
def test_cleaning_up_is_not_cut_off(number, status, kind, monkeypatch) -> None:
    monkeypatch.setattr(stopping, "_ASK_AGAIN_SECONDS", 0.01)
    asked: list[bool] = []
    unwinding = stopping._is_unwinding
    monkeypatch.setattr(stopping, "_is_unwinding", lambda: asked.append(unwinding()) or asked[-1])
    cleaned: list[str] = []

    def clean_up() -> None:
        asked.clear()
        try:
            raise FileNotFoundError
        except FileNotFoundError:  # an error of its own does not make it look like work
            wait_until(lambda: len(asked) >= 3)
        cleaned.append("all")

    def work() -> None:
        with ExitStack() as stack:
            stack.callback(clean_up)
            signal.raise_signal(number)

    ends_with(kind, work)
    assert cleaned == ["all"]
    assert all(asked)


MODULE = """
import signal, time
for _ in range({times}):
    signal.raise_signal({number})
time.sleep(0.3)
"""


@BOTH
@pytest.mark.parametrize("times", [1, 2])
def test_an_import_is_brought_to_its_end_unless_somebody_asks_twice(
    number, status, kind, times, tmp_path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"cut_off_{status}_{times}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(number=int(number), times=times))

    def work() -> None:
        import_module(name)
        wait_until(lambda: False)

    ends_with(kind, work)
    assert (name in sys.modules) == (times == 1)


def test_without_a_signal_errors_pass_as_they_are() -> None:
    with pytest.raises(ValueError, match="as it is"), stopping.stoppable():
        raise ValueError("as it is")


def test_an_alarm_of_somebody_else_stays_theirs() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: rung.append(number))
    try:
        with stopping.stoppable():
            signal.raise_signal(signal.SIGALRM)
            signal.setitimer(signal.ITIMER_REAL, 100)
        assert rung == [signal.SIGALRM]
        assert signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A shell's background job is not stopped by the Ctrl-C meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
