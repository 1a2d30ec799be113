"""Lists, devices, plans and the history as people read them."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clue_coordinator.plain import rule_text
from clue_coordinator.render_request import COLOURS, state_text
from clue_coordinator.states import ACTIVE, UNSUCCESSFUL
from clue_coordinator.terminal import duration_text, minute_text, names_text, natural, table, time_text
from clue_protocol.v1 import operator_pb2 as pb

_PLAN_DEVICES = 8
_SHORT_ID = 8
_WHOLE_ID_COLUMNS = 110


def requests_table(views: Iterable[pb.RequestView], columns: int) -> Table:
    """Requests, a line each; their whole ids where there is room."""
    found = table(
        *("request", "asked (UTC)", "fleet", "class", "state", "succeeded", "bad", "open"),
        right=("succeeded", "bad", "open"),
        wide=("fleet", "class"),
    )
    for view in views:
        counts = view.counts
        failed = sum(counts.get(state, 0) for state in UNSUCCESSFUL)
        left = sum(counts.get(state, 0) for state in ACTIVE)
        found.add_row(
            view.request_id[:_SHORT_ID] if columns < _WHOLE_ID_COLUMNS else view.request_id,
            minute_text(view.created_at),
            view.fleet,
            view.forget_class,
            state_text(view),
            f"{counts.get('SUCCEEDED', 0)} of {sum(counts.values())}",
            Text(str(failed), COLOURS["FAILED"]) if failed else "",
            str(left) if left else "",
        )
    return found


def fleets_table(fleets: Iterable[pb.Fleet]) -> Table:
    """Fleets, a line each."""
    found = table("fleet", "devices", "decides", "classes", right=["devices"], wide=("fleet", "classes"))
    for fleet in fleets:
        people = f"{fleet.require} of {len(fleet.approvers)}" if fleet.require else Text("nobody yet", "yellow")
        decides = "coordinator" if fleet.self_approved else people
        found.add_row(fleet.name, str(fleet.devices), decides, ", ".join(fleet.classes))
    return found


def devices_table(devices: Iterable[pb.Device]) -> RenderableType:
    """Devices, a line each."""
    found = table(
        "device", "fleet", "online", "last seen (UTC)", "labels", "model", "version", wide=("fleet", "labels")
    )
    rows = sorted(devices, key=lambda device: natural(device.device_id))
    for device in rows:
        found.add_row(
            device.device_id,
            device.fleet,
            _presence(device),
            minute_text(device.last_seen) if device.HasField("last_seen") else "never",
            _labels(device),
            device.model_digest[:_SHORT_ID],
            device.software_version,
        )
    online = sum(device.online for device in rows)
    retired = sum(device.HasField("retired_at") for device in rows)
    tail = f", {retired:,} retired" if retired else ""
    return Group(found, Text(f"{online:,} online, {len(rows) - online - retired:,} offline{tail}", style="dim"))


def _presence(device: pb.Device) -> Text:
    if device.HasField("retired_at"):
        return Text("retired", "yellow")
    return Text("yes", "green") if device.online else Text("no", "red")


def _labels(device: pb.Device) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(device.labels.items()))


def plan_page(plan: pb.ForgetPlan) -> RenderableType:
    """What ``--dry-run`` shows."""
    devices = [device for wave in plan.waves for device in wave.devices]
    title = Text.assemble(
        ("would forget ", "bold"),
        (plan.forget_class, "bold magenta"),
        (f" on {len(devices):,} device(s) of {plan.fleet}", "bold"),
        f", deadline {minute_text(plan.expires_at)} UTC",
    )
    waves = table("wave", "begins", "devices", "which", right=["devices"], wide=("which",))
    canary = bool(plan.waves) and plan.waves[0].number == 0
    for wave in plan.waves:
        shown = names_text([_planned(device) for device in wave.devices], _PLAN_DEVICES)
        name = "canary" if wave.number == 0 else str(wave.number)
        waves.add_row(name, _begins(wave, canary), f"{len(wave.devices):,}", shown)
    return Group(
        title, waves, *_remarks(plan, devices), Text("nothing was changed; --json FILE lists every device", style="dim")
    )


def _begins(wave: pb.Wave, after_canary: bool) -> str:
    later = duration_text(wave.earliest_seconds) if wave.earliest_seconds else ""
    if wave.number > 0 and after_canary:
        return f"{later} after the canary" if later else "after the canary"
    return f"after {later}" if later else "now"


def _planned(device: pb.PlannedDevice) -> str:
    marks = ("" if device.online else "*") + ("?" if device.unknown_class else "")
    return device.device_id + marks + ("~" if device.HasField("quiet_until") else "")


def _remarks(plan: pb.ForgetPlan, devices: Sequence[pb.PlannedDevice]) -> list[Text]:
    """What an operator should know before they leave out --dry-run."""
    lines = []
    rules = ", ".join(rule_text(rule) for rule in plan.rollout.abort_if)
    after = f" once {plan.rollout.abort_after} have answered" if plan.rollout.abort_after else ""
    if rules:
        lines.append(Text(f"aborts if {rules}{after}"))
    if plan.target.continuous:
        lines.append(Text("devices that come to match before the deadline are asked too"))
    for mark, number, what in (
        ("*", sum(not d.online for d in devices), "offline now: asked when they are back"),
        (
            "?",
            sum(d.unknown_class for d in devices),
            "have a model that does not know the class, and will answer REJECTED",
        ),
        ("~", sum(d.HasField("quiet_until") for d in devices), "have quiet hours now, and begin after them"),
    ):
        if number:
            lines.append(Text(f"{mark} {number:,} {what}", "yellow"))
    return lines


def device_page(device: pb.Device, events: list[pb.Event]) -> RenderableType:
    """One device with its newest history."""
    grid = Table.grid(padding=(0, 2))
    seen = f"last seen {time_text(device.last_seen)} UTC" if device.HasField("last_seen") else "never seen"
    retired = f"retired {minute_text(device.retired_at)} UTC" if device.HasField("retired_at") else ""
    for name, value in (
        ("device", device.device_id),
        ("fleet", device.fleet),
        ("presence", Text.assemble(retired or ("online" if device.online else ("offline", "red")), f", {seen}")),
        ("labels", _labels(device) or "none"),
        ("classes", ", ".join(device.classes)),
        ("model", device.model_digest),
        ("software", device.software_version),
        ("enrolled", f"{minute_text(device.enrolled_at)} UTC"),
        ("node", str(device.node_id)),
    ):
        grid.add_row(Text(name, "bold"), value)
    return Group(grid, Text(), events_table(events, hide=("device",)))


def events_table(events: Iterable[pb.Event], hide: Sequence[str] = ()) -> RenderableType:
    """A part of the history; a column in which nothing stands is left out."""
    rows = [
        {
            "time (UTC)": time_text(event.at),
            # The state of a device says so by itself.
            "event": event.kind.removeprefix("execution."),
            "device": event.device_id,
            "request": event.request_id[:_SHORT_ID],
            "who": event.actor,
            "detail": event.detail,
        }
        for event in events
    ]
    if not rows:
        return Text("nothing happened yet", style="dim")
    names = [name for name in rows[0] if name not in hide and any(row[name] for row in rows)]
    found = table(*names, wide=("detail",))
    for row in rows:
        found.add_row(*(Text(row[name], COLOURS.get(row[name].upper(), "")) for name in names))
    return found
