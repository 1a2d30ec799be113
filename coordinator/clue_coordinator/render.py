"""Requests, devices and plans as people read them (rich)."""

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clue_coordinator.cli_values import duration_text
from clue_coordinator.plain import (
    enrolled_device_data,
    event_data,
    execution_state,
    plan_data,
    request_data,
    request_state,
)
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb

__all__ = ["enrolled_device_data", "event_data", "plan_data", "request_data"]

_COLOURS = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "REJECTED": "red",
    "TIMED_OUT": "red",
    "CANCELED": "yellow",
    "REMOVED": "yellow",
    "IN_PROGRESS": "cyan",
    "QUEUED": "",
}
# Rows of the live view: more would not fit on a terminal.
_LIVE_ROWS = 12
_PLAN_DEVICES = 8


def request_word(view: pb.RequestView) -> str:
    """State of a request, and whether it is paused."""
    return request_state(view) + (" (paused)" if view.paused else "")


def request_table(view: pb.RequestView) -> RenderableType:
    """A request and the devices that came with it."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("UA %", "RA %", "seconds", "joules"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("receipt", no_wrap=True)
    for execution in view.executions:
        state = execution_state(execution)
        receipt = execution.receipt if execution.HasField("receipt") else None
        measured = receipt is not None and receipt.HasField("ua_after")
        table.add_row(
            execution.device_id,
            Text(state, _COLOURS[state]),
            change(receipt.ua_before, receipt.ua_after) if measured and receipt else "",
            change(receipt.ra_before, receipt.ra_after) if measured and receipt else "",
            f"{receipt.latency_seconds:.1f}" if measured and receipt else "",
            joules(receipt) if receipt is not None else "",
            receipt_word(execution),
        )
    problems = [
        Text(f"{e.device_id}: {e.reason or 'note'}: {e.detail}", style="red" if e.reason else "")
        for e in view.executions
        if e.detail and (e.reason or execution_state(e) not in ("SUCCEEDED",))
    ]
    lines: list[RenderableType] = [_title(view, "forget"), *_facts(view), table, *problems]
    total = sum(view.counts.values())
    if len(view.executions) < total:
        lines += [Text(f"{len(view.executions)} of {total} devices are shown: --all shows every one", style="dim")]
    return Group(*lines)


def live_view(view: pb.RequestView) -> RenderableType:
    """A request while it runs: how far it is, and a line for the devices that matter most."""
    total = sum(view.counts.values())
    over = total - view.counts.get("QUEUED", 0) - view.counts.get("IN_PROGRESS", 0)
    head = Table.grid(padding=(0, 2))
    eta = f"about {duration_text(view.eta_seconds)} left" if view.HasField("eta_seconds") else ""
    head.add_row(ProgressBar(total=max(total, 1), completed=over, width=30), f"{over} of {total}", eta)
    grid = Table.grid(padding=(0, 2))
    for execution in view.executions[:_LIVE_ROWS]:
        state = execution_state(execution)
        done = 1.0 if execution.HasField("receipt") else execution.progress.fraction
        bar = ProgressBar(total=1.0, completed=done, width=30)
        grid.add_row(execution.device_id, bar, Text(state, _COLOURS[state]), _note(execution))
    rest = len(view.executions[_LIVE_ROWS:])
    more = [Text(f"and {total - _LIVE_ROWS} more", style="dim")] if rest else []
    return Group(_title(view, "forgetting"), head, *_facts(view), grid, *more)


def _note(execution: pb.ExecutionView) -> str:
    """What there is to know of a device beside its state."""
    state = execution_state(execution)
    if state == "IN_PROGRESS":
        return execution.progress.stage
    if state == "SUCCEEDED" and execution.HasField("ra_drop"):
        return f"RA {-100 * execution.ra_drop:+.1f} points"
    if state == "QUEUED":
        if execution.HasField("not_before"):
            return f"not before {time_text(execution.not_before)}"
        return execution.detail or ("" if execution.online else "offline")
    return execution.reason


def _title(view: pb.RequestView, verb: str) -> Text:
    return Text.assemble(
        (f"{verb} ", "bold"),
        (view.forget_class, "bold magenta"),
        (f" on {view.fleet}", "bold"),
        f"  {request_word(view)}  {view.request_id}",
    )


def _facts(view: pb.RequestView) -> list[Text]:
    """Counts, wave, what it waits for, why it ended."""
    counts = [
        (f"{number} {state.lower().replace('_', ' ')}", _COLOURS.get(state, ""))
        for state in _COLOURS
        if (number := view.counts.get(state, 0))
    ]
    parts = Text("   ").join(Text(text, style) for text, style in counts)
    lines = [parts] if sum(view.counts.values()) > 1 else []
    waits = []
    if not view.HasField("finished_at"):
        if view.wave == 0:
            waits.append("canary")
        elif view.waves > 1:
            waits.append(f"wave {view.wave} of {view.waves}")
    if view.waiting_offline:
        waits.append(f"{view.waiting_offline} offline")
    if view.waiting_patch:
        waits.append(f"{view.waiting_patch} wait for a patch")
    if waits:
        lines.append(Text("   ".join(waits)))
    if view.reason:
        lines.append(Text(view.reason, "red" if request_state(view) == "ABORTED" else "yellow"))
    if view.retry_of:
        lines.append(Text(f"repeats {view.retry_of}", "dim"))
    return lines


def plan_table(plan: pb.ForgetPlan) -> RenderableType:
    """What ``--dry-run`` shows."""
    total = sum(len(wave.devices) for wave in plan.waves)
    title = Text.assemble(
        ("would forget ", "bold"),
        (plan.forget_class, "bold magenta"),
        (f" on {total} device(s) of {plan.fleet}", "bold"),
        f"  until {time_text(plan.expires_at)}",
    )
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("wave", no_wrap=True)
    table.add_column("begins", no_wrap=True)
    table.add_column("devices", justify="right", no_wrap=True)
    table.add_column("which (* offline now, ? class unknown, z quiet hours now)", overflow="fold")
    for wave in plan.waves:
        name = "canary" if wave.number == 0 else str(wave.number)
        begins = "now"
        if wave.number > 0 and plan.waves[0].number == 0:
            begins = "after the canary"
            if wave.earliest_seconds:
                begins += f" + {duration_text(wave.earliest_seconds)}"
        elif wave.earliest_seconds:
            begins = f"after {duration_text(wave.earliest_seconds)}"
        shown = " ".join(_planned(device) for device in wave.devices[:_PLAN_DEVICES])
        hidden = len(wave.devices) - _PLAN_DEVICES
        table.add_row(name, begins, str(len(wave.devices)), shown + (f" and {hidden} more" if hidden > 0 else ""))
    rules = ", ".join(
        f"{'any' if not rule.state else pb.ExecutionState.Name(rule.state).removeprefix('EXECUTION_STATE_').lower()}"
        f">{100 * rule.share:g}%"
        for rule in plan.rollout.abort_if
    )
    after = f" once {plan.rollout.abort_after} have answered" if plan.rollout.abort_after else ""
    footer = [Text(f"aborts if {rules}{after}")] if rules else []
    return Group(title, table, *footer, Text("nothing was changed; --json FILE lists every device", style="dim"))


def _planned(device: pb.PlannedDevice) -> str:
    marks = ("" if device.online else "*") + ("?" if device.unknown_class else "")
    return device.device_id + marks + ("z" if device.HasField("quiet_until") else "")


def device_table(device: pb.Device, events: list[pb.Event]) -> RenderableType:
    """One device with its newest history."""
    grid = Table.grid(padding=(0, 2))
    for name, value in enrolled_device_data(device).items():
        if isinstance(value, dict):
            value = " ".join(f"{key}={text}" for key, text in sorted(value.items()))
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        grid.add_row(Text(name.replace("_", " "), "bold"), str(value) if value is not None else "-")
    return Group(grid, events_table(events))


def events_table(events: list[pb.Event]) -> RenderableType:
    """A part of the history."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("time (UTC)", "event", "device", "request", "who"):
        table.add_column(name, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for event in events:
        at = time_text(event.at)
        table.add_row(at, event.kind, event.device_id, event.request_id[:8], event.actor, event.detail)
    return table


def time_text(stamp: Timestamp) -> str:
    """``2026-03-29 02:00:00``, UTC."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def change(before: forget_pb2.Accuracy, after: forget_pb2.Accuracy) -> str:
    """``78.4 -> 3.2``, in percent."""
    return f"{percent(before)} -> {percent(after)}"


def percent(accuracy: forget_pb2.Accuracy) -> str:
    """An accuracy in percent, ``-`` without samples."""
    return f"{100 * accuracy.correct / accuracy.samples:.1f}" if accuracy.samples else "-"


def joules(receipt: forget_pb2.Receipt) -> str:
    """Energy with its source."""
    if not receipt.HasField("energy"):
        return ""
    return energy_text(receipt.energy.joules, receipt.energy.source)


def energy_text(joules: float, source: str) -> str:
    """``66 est.``: joules, and where they come from."""
    return f"{joules:.0f} {'est.' if source == 'estimated' else source}"


def receipt_word(execution: pb.ExecutionView) -> str:
    """Whether the receipt verifies."""
    if not execution.receipt_envelope:
        return "none yet"
    return "verified" if execution.receipt_verified else "NOT VERIFIED"
