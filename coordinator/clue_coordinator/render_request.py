"""A request as an operator reads it: what is going on, what went wrong, what waits for what."""

import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clue_coordinator.plain import approvals_text, execution_state, request_state, rule_text
from clue_coordinator.terminal import duration_text, minute_text, names_text, natural, table, time_text
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb

COLOURS = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "REJECTED": "red",
    "TIMED_OUT": "red",
    "CANCELED": "yellow",
    "REMOVED": "yellow",
    "IN_PROGRESS": "cyan",
    "QUEUED": "",
}
_STATE_COLOURS = {"AWAITING_APPROVAL": "yellow", "COMPLETED": "green", "ABORTED": "red", "CANCELED": "yellow"}
_RANK = {"FAILED": 0, "TIMED_OUT": 1, "REJECTED": 2, "IN_PROGRESS": 3, "SUCCEEDED": 4, "QUEUED": 5}
_NAMES = 6
_NAME_COLUMNS = 32


def request_word(view: pb.RequestView) -> str:
    """State of a request, and whether it is paused."""
    return request_state(view) + (" (paused)" if _is_paused(view) else "")


def _is_paused(view: pb.RequestView) -> bool:
    return view.paused and request_state(view) in ("AWAITING_APPROVAL", "SCHEDULED", "IN_PROGRESS")


def state_text(view: pb.RequestView) -> Text:
    """The same in a list, where there is room for one word."""
    state = request_state(view)
    return Text("paused", "yellow") if _is_paused(view) else Text(state, _STATE_COLOURS.get(state, "cyan"))


def request_page(view: pb.RequestView) -> RenderableType:
    """A request and the executions that came with it: what went wrong, what was measured, what is still to come."""
    executions = most_telling(view.executions)
    answered = [e for e in executions if e.HasField("receipt")]
    lines: list[RenderableType] = [_title(view, "forget"), *_facts(view, now=time.time())]
    total = sum(view.counts.values())
    among = f" (among the {len(executions)} devices shown)" if len(executions) < total else ""
    for heading, part in (
        ("did not succeed", _problems(executions)),
        ("answers, worst first", _answers(answered) if answered else None),
        ("at work", _at_work([e for e in executions if execution_state(e) == "IN_PROGRESS"])),
        ("waiting", _waiting(view, [e for e in executions if execution_state(e) == "QUEUED"])),
    ):
        if part is not None:
            lines += [Text(), Text.assemble((heading, "bold"), (among, "dim")), part]
    if among:
        lines += [
            Text(),
            Text(f"{len(view.executions)} of {total:,} devices are shown: --all shows every one", style="dim"),
        ]
    return Group(*lines)


def most_telling(executions: Iterable[pb.ExecutionView]) -> list[pb.ExecutionView]:
    """What failed, what is going on, then by loss of retained accuracy, then what has not begun."""

    def key(execution: pb.ExecutionView) -> tuple[object, ...]:
        drop = execution.ra_drop if execution.HasField("ra_drop") else -2.0
        return _RANK.get(execution_state(execution), 6), -drop, natural(execution.device_id)

    return sorted(executions, key=key)


class LiveRequest:
    """A request while it runs, as many lines as the terminal has room for."""

    def __init__(self, view: pb.RequestView, note: str = "") -> None:
        self._view, self._note = view, note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        total = sum(view.counts.values())
        over = total - view.counts.get("QUEUED", 0) - view.counts.get("IN_PROGRESS", 0)
        head = Table.grid(padding=(0, 2))
        eta = f"about {duration_text(view.eta_seconds)} left" if view.HasField("eta_seconds") else ""
        head.add_row(ProgressBar(total=max(total, 1), completed=over, width=30), f"{over:,} of {total:,}", eta)
        above: list[RenderableType] = [_title(view, "forgetting"), head, *_facts(view, now=time.time())]
        if self._note:
            above.append(Text(self._note, "bold yellow"))
        yield from above
        # The cursor's own line, and the one that says how many are hidden.
        used = sum(len(console.render_lines(line, options, pad=False)) for line in above)
        room = max(1, console.size.height - used - 2)
        rows = _choose(most_telling(view.executions), room)
        if rows:
            yield _live_rows(rows)
        if len(rows) < total:
            yield Text(f"and {total - len(rows):,} more", style="dim")


def _choose(executions: Sequence[pb.ExecutionView], room: int) -> list[pb.ExecutionView]:
    """At most ``room``: where there are more, failures may not push out what is going on, nor that the answers."""
    if len(executions) <= room:
        return list(executions)
    kinds: dict[int, list[pb.ExecutionView]] = {}
    for execution in executions:
        kinds.setdefault(_RANK.get(execution_state(execution), 6), []).append(execution)
    share = dict.fromkeys(sorted(kinds), 0)
    while room > 0:
        for kind in share:
            if room > 0 and share[kind] < len(kinds[kind]):
                share[kind] += 1
                room -= 1
    return [execution for kind in share for execution in kinds[kind][: share[kind]]]


def _live_rows(executions: Sequence[pb.ExecutionView]) -> Table:
    grid = Table.grid(padding=(0, 2))
    name = min(max(len(execution.device_id) for execution in executions), _NAME_COLUMNS)
    for width in (name, max(map(len, COLOURS))):
        grid.add_column(no_wrap=True, overflow="ellipsis", width=width)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for execution in executions:
        state = execution_state(execution)
        grid.add_row(execution.device_id, Text(state, COLOURS[state]), _note(execution, time.time()))
    return grid


def _note(execution: pb.ExecutionView, now: float) -> Text:
    """What there is to know of a device beside its state."""
    state = execution_state(execution)
    if state == "IN_PROGRESS":
        filled = round(20 * execution.progress.fraction)
        since = f"  for {duration_text(now - execution.started_at.seconds)}" if execution.started_at.seconds else ""
        bar = Text("━" * filled, "cyan").append("━" * (20 - filled), "bright_black")
        return bar.append(f"  {_stage(execution)}{since}", "default")
    if state == "SUCCEEDED":
        parts = [_accuracies(execution.receipt), "patched" if execution.patched else ""]
        return Text("  ".join(filter(None, parts)))
    if state == "QUEUED":
        return Text(_why_queued(execution))
    return Text(_why(execution))


def _why(execution: pb.ExecutionView) -> str:
    """Reason and detail, unless the one says the other."""
    reason, detail = execution.reason, execution.detail
    says_it = not reason or reason in ("CANCELED", "ABORTED")
    return detail if detail and says_it else f"{reason}: {detail}" if detail else reason


def _accuracies(receipt: forget_pb2.Receipt) -> str:
    return f"RA {change(receipt.ra_before, receipt.ra_after)}  UA {change(receipt.ua_before, receipt.ua_after)}"


def _stage(execution: pb.ExecutionView) -> str:
    done = f" {100 * execution.progress.fraction:.0f} %" if execution.progress.fraction else ""
    again = f", attempt {execution.attempts}" if execution.attempts > 1 else ""
    return f"{execution.progress.stage or 'asked'}{done}{again}" + ("" if execution.online else ", offline")


def _why_queued(execution: pb.ExecutionView, current_wave: int | None = None) -> str:
    reasons = [] if execution.online else ["offline"]
    if current_wave is not None and execution.wave > current_wave:
        reasons.append(f"wave {execution.wave}")
    if execution.HasField("not_before") and execution.not_before.seconds > time.time():
        reasons.append(f"not before {time_text(execution.not_before)} UTC")
    if execution.attempts > 1:
        reasons.append(f"attempt {execution.attempts}")
    if execution.detail:
        reasons.append(execution.detail)
    return ", ".join(reasons) or "ready"


def _title(view: pb.RequestView, verb: str) -> Text:
    state = request_word(view)
    return Text.assemble(
        (f"{verb} ", "bold"),
        (view.forget_class, "bold magenta"),
        (f" on {view.fleet}  ", "bold"),
        (state, _STATE_COLOURS.get(request_state(view), "yellow" if _is_paused(view) else "cyan")),
        f"  {view.request_id}",
    )


def _facts(view: pb.RequestView, now: float) -> list[Text]:
    """Counts, when, how, what it waits for, why it ended."""
    counts = [
        (f"{number:,} {state.lower().replace('_', ' ')}", COLOURS[state])
        for state in COLOURS
        if (number := view.counts.get(state, 0))
    ]
    lines = [Text("   ").join(Text(text, style) for text, style in counts) if counts else Text("no devices yet")]
    lines += [Text(_when(view, now)), *_plan(view), *_waits(view)]
    if view.reason:
        lines.append(Text(view.reason, "red" if request_state(view) == "ABORTED" else "yellow"))
    if view.approvals_needed > 1 and request_state(view) != "AWAITING_APPROVAL":
        lines.append(Text(approvals_text(view), "dim"))
    if view.retry_of:
        lines.append(Text(f"repeats {view.retry_of}", "dim"))
    return lines


def _when(view: pb.RequestView, now: float) -> str:
    asked = f"asked {minute_text(view.created_at)} UTC by {view.created_by}"
    if view.HasField("finished_at"):
        took = duration_text(view.finished_at.seconds - view.created_at.seconds)
        return f"{asked}, over {minute_text(view.finished_at)} after {took}"
    left = view.expires_at.seconds - now
    return f"{asked}, deadline {minute_text(view.expires_at)}" + (
        f" in {duration_text(left)}" if left > 0 else " is past"
    )


def _plan(view: pb.RequestView) -> Iterator[Text]:
    parts = []
    if view.target.where:
        parts.append(f"only {view.target.where}")
    if view.target.devices:
        parts.append("only " + names_text(list(view.target.devices), _NAMES))
    if view.target.continuous:
        parts.append("continuous")
    if view.rollout.abort_if and not view.HasField("finished_at"):
        parts.append("aborts if " + ", ".join(rule_text(rule) for rule in view.rollout.abort_if))
    if parts:
        yield Text("; ".join(parts))


def _waits(view: pb.RequestView) -> Iterator[Text]:
    if view.HasField("finished_at"):
        return
    if request_state(view) == "AWAITING_APPROVAL":
        approve = f"'clue-coordinator request approve {view.request_id[:8]} --key FILE'"
        yield Text(f"{approvals_text(view)}; no device is asked before that: {approve}", "yellow")
        return
    if _is_paused(view):
        yield Text(f"paused: no device begins until 'request resume {view.request_id[:8]}'", "yellow")
    over = request_state(view) in ("ABORTED", "CANCELED")
    if over and view.counts.get("IN_PROGRESS", 0):
        yield Text("devices that have begun finish, and their receipts count", "yellow")
    parts = []
    if not over and view.wave == 0:
        parts.append(f"canary: the other devices wait for its answers, then {view.waves} wave(s)")
    elif not over and view.waves > 1:
        parts.append(f"wave {view.wave} of {view.waves}")
    if view.waiting_offline:
        parts.append(f"{view.waiting_offline:,} offline, asked when they are back")
    if view.waiting_patch:
        parts.append(f"{view.waiting_patch:,} wait for a patch")
    if parts:
        yield Text("; ".join(parts))


def _problems(executions: Sequence[pb.ExecutionView]) -> Table | None:
    """What did not succeed, the same trouble in one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for execution in executions:
        state = execution_state(execution)
        if state not in ("SUCCEEDED", "IN_PROGRESS", "QUEUED"):
            why = _why(execution)
            groups.setdefault((state, why), []).append(execution.device_id)
    if not groups:
        return None
    found = table("state", "devices", "why", "which", right=["devices"], wide=["why", "which"])
    for (word, why), names in groups.items():
        found.add_row(Text(word, COLOURS[word]), str(len(names)), why, names_text(names, _NAMES))
    return found


def _answers(executions: Sequence[pb.ExecutionView]) -> Table:
    numbers = ("UA %", "RA %", "seconds", "joules")
    found = table("device", "state", *numbers, "receipt", right=numbers)
    for execution in executions:
        state, receipt = execution_state(execution), execution.receipt
        measured = receipt.HasField("ua_after")
        found.add_row(
            execution.device_id,
            Text(state, COLOURS[state]),
            change(receipt.ua_before, receipt.ua_after) if measured else "",
            change(receipt.ra_before, receipt.ra_after) if measured else "",
            f"{receipt.latency_seconds:.1f}" if measured else "",
            joules(receipt),
            Text("verified") if execution.receipt_verified else Text("NOT VERIFIED", "bold red"),
        )
    return found


def _at_work(executions: Sequence[pb.ExecutionView]) -> Table | None:
    if not executions:
        return None
    found = table("device", "wave", "since (UTC)", "what", right=["wave"], wide=["what"])
    for e in executions:
        found.add_row(
            e.device_id, _wave_word(e.wave), time_text(e.started_at) if e.started_at.seconds else "", _stage(e)
        )
    return found


def _waiting(view: pb.RequestView, executions: Sequence[pb.ExecutionView]) -> Table | None:
    """Grouped by what they wait for: a thousand devices of a later wave are one line."""
    if not executions:
        return None
    groups: dict[str, list[str]] = {}
    for execution in executions:
        groups.setdefault(_why_queued(execution, view.wave), []).append(execution.device_id)
    found = table("devices", "for", "which", right=["devices"], wide=["for", "which"])
    for why, names in groups.items():
        found.add_row(str(len(names)), why, names_text(names, _NAMES))
    return found


def _wave_word(number: int) -> str:
    return "canary" if number == 0 else str(number)


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
