"""Charts of a fleet: one line a device where there are few, distributions where there are many."""

from collections.abc import Iterable, Sequence

from clue.report import AFTER, BEFORE, Bars, Histogram, bars, colour, drawing, histograms, svg
from clue_coordinator.render_request import energy_text
from clue_coordinator.request_report._gather import ENDED, DeviceAnswer
from clue_coordinator.terminal import duration_text
from clue_protocol.v1 import forget_pb2

FEW = 30
_STEPS = 400
_NAME = 24


def timeline(devices: Sequence[DeviceAnswer], now: float, alternative: str) -> str:
    """Who worked when: a bar a device, or the number of devices in each state over time."""
    return _bars(devices, now, alternative) if len(devices) <= FEW else _areas(devices, now, alternative)


def _bars(devices: Sequence[DeviceAnswer], now: float, alternative: str) -> str:
    with drawing(0.8 + 0.28 * max(2, len(devices))) as figure:
        axes = figure.add_subplot()
        shown: list[str] = []
        scale, unit = _unit(max([d.ended or now for d in devices if d.began is not None], default=now))
        for row, device in enumerate(devices):
            if device.began is None:
                end = device.ended if device.ended is not None else now
                axes.plot([0, end / scale], [row, row], color=colour("grid"), linewidth=2)
                continue
            end = device.ended if device.ended is not None else max(now, device.began)
            axes.plot([0, device.began / scale], [row, row], color=colour("grid"), linewidth=2)
            label = _word(device.state) if device.state not in shown else None
            shown.append(device.state)
            # A moment must be seen, too.
            width = max(end - device.began, 0.004 * max(now, end)) / scale
            axes.barh(
                row, width, left=device.began / scale, height=0.6, color=colour(device.state.lower()), label=label
            )
            text = "" if device.state == "SUCCEEDED" else f" {device.reason or _word(device.state)}"
            axes.annotate(
                text, ((device.began / scale) + width, row), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=8.5,
            )  # fmt: skip
        axes.set_yticks(range(len(devices)), [_short(device.name) for device in devices])
        axes.set_ylim(len(devices) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{unit} after the request was made")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        if shown:
            figure.legend(loc="outside upper left", ncols=4)
        return svg(figure, alternative)


def _areas(devices: Sequence[DeviceAnswer], now: float, alternative: str) -> str:
    """Stacked numbers of devices over time; each is in its last state from its end on."""
    import numpy as np

    last = max([d.ended for d in devices if d.ended is not None], default=now)
    end = now if any(d.ended is None for d in devices) else last
    times = np.linspace(0.0, max(end, 1e-3), _STEPS)
    scale, unit = _unit(end)
    states = [state for state in ENDED if any(d.state == state for d in devices)]
    layers = [
        np.searchsorted(sorted(d.ended for d in devices if d.state == state and d.ended is not None), times, "right")
        for state in states
    ]
    begun = np.searchsorted(sorted(d.began for d in devices if d.began is not None), times, "right")
    over = np.searchsorted(
        sorted(d.ended for d in devices if d.began is not None and d.ended is not None), times, "right"
    )
    layers.append(np.maximum(begun - over, 0))
    with drawing(3.2) as figure:
        axes = figure.add_subplot()
        names = [*states, "IN_PROGRESS"]
        axes.stackplot(
            times / scale, *layers, colors=[colour(name.lower()) for name in names],
            labels=[_word(name) for name in names], linewidth=0,
        )  # fmt: skip
        axes.axhline(len(devices), color=colour("soft"), linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(0, max(end, 1e-3) / scale)
        axes.set_ylim(0, 1.08 * len(devices))
        axes.set_xlabel(f"{unit} after the request was made")
        axes.set_ylabel(f"devices, of {len(devices):,}")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=5)
        return svg(figure, alternative)


def rates(devices: Sequence[DeviceAnswer], max_ua: float, alternative: str) -> str:
    """UA and RA before and after: two marks a device where there are few, else distributions."""
    if len(devices) > FEW:
        panels = []
        for name, title in (("ua", "UA, the forgotten class"), ("ra", "RA, the other classes")):
            both = [(BEFORE, f"{name}_before"), (AFTER, f"{name}_after")]
            groups = [(one.name, one.role, _known(d.rate(key) for d in devices)) for one, key in both]
            line = (100 * max_ua, "allowed") if name == "ua" else None
            panels.append(Histogram(title, "%", groups, line))
        return histograms(panels, alternative)
    with drawing(0.9 + 0.3 * max(2, len(devices))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, name, title in ((left, "ua", "UA, the forgotten class"), (right, "ra", "RA, the other classes")):
            for row, device in enumerate(devices):
                before, after = device.rate(f"{name}_before"), device.rate(f"{name}_after")
                if before is not None and after is not None:
                    axes.plot([before, after], [row, row], color=colour("grid"), linewidth=2.5, zorder=1)
            for one in (BEFORE, AFTER):
                found = [(device.rate(f"{name}_{one.name}"), row) for row, device in enumerate(devices)]
                known = [(value, row) for value, row in found if value is not None]
                axes.plot(
                    [value for value, _ in known], [row for _, row in known], one.marker, color=colour(one.role),
                    markersize=6.5, label=one.name if axes is left else None, clip_on=False,
                )  # fmt: skip
            axes.set_title(title)
            axes.set_xlabel("%")
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        left.axvline(100 * max_ua, color=colour("ink"), linewidth=1.2, linestyle=(0, (2, 2)), label="allowed")
        left.set_xlim(-2, 102)
        lowest = min(_known(d.rate(f"ra_{when}") for d in devices for when in ("before", "after")), default=0.0)
        right.set_xlim(max(-2.0, lowest - 0.3 * (100 - lowest) - 2), 101)
        left.set_yticks(range(len(devices)), [_short(device.name) for device in devices])
        left.set_ylim(len(devices) - 0.4, -0.6)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, alternative)


def drops(devices: Sequence[DeviceAnswer], max_ra_drop: float, alternative: str) -> str:
    """How much RA the devices lost."""
    lost = _known(device.ra_drop for device in devices)
    panel = Histogram("", "points of RA lost", [("devices", "after", lost)], (100 * max_ra_drop, "allowed"))
    return histograms([panel], alternative, height=2.4)


def costs(devices: Sequence[DeviceAnswer], alternative: str) -> str:
    """Energy, latency and peak memory."""
    receipts = [device.receipt for device in devices if device.receipt is not None and device.worked]
    if len(devices) <= FEW:
        return _cost_bars([_short(device.name) for device in devices], receipts, alternative)
    estimated = [r.energy.joules for r in receipts if r.energy.source == "estimated"]
    metered = [r.energy.joules for r in receipts if r.energy.source != "estimated"]
    energy = [("metered", "before", metered), ("estimated", "plain", estimated)]
    panels = [
        Histogram("energy", "J", [group for group in energy if group[2]]),
        Histogram("latency", "s", [("devices", "before", [r.latency_seconds for r in receipts])]),
        Histogram("peak memory", "MiB", [("devices", "before", [r.peak_memory_bytes / 2**20 for r in receipts])]),
    ]
    return histograms(panels, alternative, height=2.4)


def _cost_bars(names: Sequence[str], receipts: Sequence[forget_pb2.Receipt], alternative: str) -> str:
    memory = [receipt.peak_memory_bytes / 2**20 for receipt in receipts]
    panels = [
        Bars(
            "energy, J",
            [receipt.energy.joules for receipt in receipts],
            [energy_text(receipt.energy.joules, receipt.energy.source) for receipt in receipts],
        ),
        Bars("latency", [r.latency_seconds for r in receipts], [span(r.latency_seconds) for r in receipts]),
        Bars("peak memory, MiB", memory, [f"{value:.0f}" for value in memory]),
    ]
    return bars(names, panels, alternative, ["before"] * len(names))


def span(seconds: float) -> str:
    """A duration in words; less than two minutes to a tenth of a second."""
    return f"{seconds:.1f} s" if seconds < 120 else duration_text(seconds)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _unit(seconds: float) -> tuple[float, str]:
    for size, name in ((2 * 86400.0, "days"), (2 * 3600.0, "hours"), (180.0, "minutes")):
        if seconds >= size:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[name], name
    return 1.0, "seconds"


def _word(state: str) -> str:
    return state.lower().replace("_", " ")


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
