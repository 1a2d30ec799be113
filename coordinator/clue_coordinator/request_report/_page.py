"""The page about one request."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import clue
from clue.report import Badge, Block, Facts, Page, Picture, Section, Table, Text, Tile, Tone
from clue_coordinator.plain import request_state, rule_text
from clue_coordinator.render_request import energy_text
from clue_coordinator.request_report import _charts
from clue_coordinator.request_report._gather import DeviceAnswer, Gathered
from clue_coordinator.request_report._words import (
    change,
    clipped,
    count,
    days_and_hours,
    number,
    percent,
    progress_in_words,
    state_word,
)
from clue_coordinator.terminal import names_text, time_text
from clue_protocol.v1 import operator_pb2 as pb

MOST_ROWS = 200
_NAMES = 8
_RANK = {"FAILED": 0, "TIMED_OUT": 1, "REJECTED": 2, "IN_PROGRESS": 3, "CANCELED": 4, "REMOVED": 5, "SUCCEEDED": 6}
_TONES: dict[str, Tone] = {
    "SUCCEEDED": "good",
    "FAILED": "bad",
    "TIMED_OUT": "bad",
    "REJECTED": "warn",
    "COMPLETED": "good",
    "ABORTED": "bad",
}
_NO_SUCCESS = ("FAILED", "TIMED_OUT", "REJECTED", "CANCELED", "REMOVED")


def request_page(found: Gathered) -> Page:
    """The report on what was gathered."""
    view = found.view
    state = request_state(view)
    all_well = len(found.having("SUCCEEDED")) == len(found.devices)
    badge = Badge(state_word(state), "warn" if state == "COMPLETED" and not all_well else _TONES.get(state, "calm"))
    sections = [_rollout(found), _accuracy(found), _drops(found), _costs(found), _failures(found), _erased(found)]
    sections += [_devices(found), _history(found), _request(view)]
    return Page(
        title=f"Forget “{view.forget_class}” on {view.fleet}",
        kicker="CLUE report on one request",
        badge=badge,
        summary=_summary(found),
        tiles=_tiles(found),
        sections=sections,
        footer=(
            f"Written by clue {clue.__version__} from the answers of a coordinator {found.version} on "
            f"{found.made_at:%Y-%m-%d %H:%M:%S} UTC. All times are UTC."
        ),
    )


def _summary(found: Gathered) -> list[str]:
    view, total = found.view, len(found.devices)
    done = found.having("SUCCEEDED")
    said = [
        f"On {time_text(view.created_at)}, {view.created_by or 'an operator'} asked {count(total, 'device')} of "
        f"{view.fleet} to forget “{view.forget_class}”. {progress_in_words(found)}"
    ]
    ua, ra = _values(done, "ua_after"), [d.ra_drop for d in done if d.ra_drop is not None]
    if ua:
        before = _values(done, "ua_before")
        said.append(
            f"On the devices that succeeded, the model recognised {number(statistics.median(before), '%')} of the "
            f"class before and {number(statistics.median(ua), '%')} after (medians; the most any device still "
            f"recognises is {number(max(ua), '%')}, the request allows {percent(view.policy.max_ua)}). On the other "
            f"classes a device {change(statistics.median(ra))} in the median, {change(max(ra))} in the worst case "
            f"({percent(view.policy.max_ra_drop)} are allowed). Every device measured this on images of its own that "
            "it never learns from."
        )
    wrong = found.having(*_NO_SUCCESS)
    if wrong:
        reasons = Counter(f"{state_word(d.state)}: {d.reason or 'no reason given'}" for d in wrong)
        listed = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(4))
        more = f" and {len(reasons) - 4} further reasons" if len(reasons) > 4 else ""
        said.append(
            f"{count(len(wrong), 'device')} did not forget it ({listed}{more}): there the old model is still in use."
        )
    receipts = [d for d in found.devices if d.receipt is not None]
    bad = [d for d in receipts if not d.verified]
    if bad:
        said.append(
            f"{count(len(bad), 'receipt')} of {len(receipts):,} carry NO valid signature of their device; do not rely "
            f"on them: {names_text([d.name for d in bad], _NAMES)}."
        )
    elif receipts:
        said.append(f"All {count(len(receipts), 'receipt')} carry a valid signature of their device over this request.")
    return said


def _tiles(found: Gathered) -> list[Tile]:
    done, total = found.having("SUCCEEDED"), len(found.devices)
    wrong = found.having("FAILED", "TIMED_OUT", "REJECTED")
    open_ = found.having("QUEUED", "IN_PROGRESS")
    tiles = [
        Tile("forgot the class", f"{len(done):,} of {total:,}", "", "good" if len(done) == total else "calm"),
        Tile("did not", f"{len(wrong):,}", "failed, rejected or timed out", "bad" if wrong else "good"),
    ]
    if open_:
        tiles.append(Tile("still open", f"{len(open_):,}", f"{len(found.having('IN_PROGRESS')):,} at work", "warn"))
    for label, values, unit in (
        ("UA after, median", _values(done, "ua_after"), "%"),
        ("RA lost, median", [d.ra_drop for d in done if d.ra_drop is not None], "points"),
    ):
        if values:
            tiles.append(Tile(label, number(statistics.median(values), unit), f"worst {number(max(values), unit)}"))
    worked = [d.receipt for d in found.devices if d.receipt is not None and d.worked]
    if worked:
        joules = sum(r.energy.joules for r in worked)
        estimated = sum(r.energy.source == "estimated" for r in worked)
        note = "estimated" if estimated == len(worked) else f"{estimated:,} estimated" if estimated else "metered"
        tiles.append(Tile("energy, all devices", _joules(joules), note))
        slowest = max(r.latency_seconds for r in worked)
        median = statistics.median(r.latency_seconds for r in worked)
        tiles.append(Tile("latency, median", _charts.span(median), f"slowest {_charts.span(slowest)}"))
    return tiles


def _rollout(found: Gathered) -> Section:
    devices, view = found.devices, found.view
    now = max(0.0, found.made_at.timestamp() - view.created_at.ToNanoseconds() / 1e9)
    waves = []
    for wave in sorted({device.wave for device in devices}):
        members = [device for device in devices if device.wave == wave]
        began = [device.began for device in members if device.began is not None]
        ended = [device.ended for device in members if device.ended is not None]
        states = Counter(device.state for device in members)
        waves.append(
            (
                "canary" if wave == 0 else f"wave {wave}",
                f"{len(members):,}",
                _charts.span(min(began)) if began else "-",
                _charts.span(max(ended)) if ended else "-",
                ", ".join(
                    f"{n:,} {state_word(s)}" for s, n in sorted(states.items(), key=lambda i: _RANK.get(i[0], 9))
                ),
            )
        )
    blocks: list[Block] = []
    if devices:
        done = Counter(d.state for d in devices)
        said = ", ".join(f"{n:,} {state_word(state)}" for state, n in done.most_common())
        caption = (
            "From begin to end of each device's newest attempt; the thin line is the time before."
            if len(devices) <= _charts.FEW
            else "Devices by state over time. The dashed line is all of them."
        )
        blocks.append(Picture(_charts.timeline(devices, now, f"Timeline of the rollout; in the end {said}."), caption))
    shown, left_out = waves[:60], max(0, len(waves) - 60)
    columns = ("wave", "devices", "first begin", "last end", "came to")
    note = f"{left_out:,} further waves are left out." if left_out else "Times count from the request."
    blocks.append(Table("Waves", columns, shown, frozenset({0, 4}), note))
    return Section("Rollout", blocks)


def _accuracy(found: Gathered) -> Section:
    answered = [d for d in found.devices if d.rate("ua_after") is not None or d.rate("ra_after") is not None]
    if not answered:
        return Section("Accuracy", [Text("No device has measured its accuracy yet.")])
    texts = []
    for name in ("ua", "ra"):
        before, after = _values(answered, f"{name}_before"), _values(answered, f"{name}_after")
        if before and after:
            middle = [number(statistics.median(values), "%") for values in (before, after)]
            texts.append(f"median {name.upper()} {middle[0]} before, {middle[1]} after")
    chart = _charts.rates(answered, found.view.policy.max_ua, f"UA and RA before and after: {'; '.join(texts)}.")
    caption = (
        f"UA and RA of {count(len(answered), 'device')} before and after, each on the device's own holdout. UA is the "
        "accuracy on the forgotten class, RA that on the others. A device that failed measured this and kept its old "
        "model; the dashed line is the most UA that the request allows."
    )
    return Section("Accuracy", [Picture(chart, caption), _spread_table(answered)])


def _spread_table(devices: Sequence[DeviceAnswer]) -> Table:
    rows = []
    for label, name in (
        ("UA before, %", "ua_before"),
        ("UA after, %", "ua_after"),
        ("RA before, %", "ra_before"),
        ("RA after, %", "ra_after"),
    ):
        rows.append(_spread(label, _values(devices, name), lambda value: f"{value:.1f}"))
    rows.append(_spread("RA lost, points", [d.ra_drop for d in devices if d.ra_drop is not None], "{:.1f}".format))
    return Table("Over the devices", ("", "lowest", "median", "95th percentile", "highest", "devices"), rows)


def _drops(found: Gathered) -> Section:
    lost = [d for d in found.devices if d.ra_drop is not None]
    if not lost:
        return Section("Loss of retained accuracy", [Text("No device has measured it yet.")])
    allowed = found.view.policy.max_ra_drop
    above = [d for d in lost if (d.ra_drop or 0.0) > 100 * allowed + 1e-9]
    values = [d.ra_drop or 0.0 for d in lost]
    said = f"median {number(statistics.median(values), 'points')}, worst {number(max(values), 'points')}"
    chart = _charts.drops(lost, allowed, f"Distribution of RA lost: {said}.")
    text = f"{count(len(above), 'device')} of {len(lost):,} lost more than the {percent(allowed)} that are allowed."
    worst = [d for d in sorted(lost, key=lambda device: -(device.ra_drop or 0.0))[:5] if (d.ra_drop or 0.0) > 0]
    if worst:
        text += " Most lost: " + ", ".join(f"{d.name} ({number(d.ra_drop or 0.0, 'points')})" for d in worst) + "."
    return Section("Loss of retained accuracy", [Text(text), Picture(chart, "Points of RA lost, by device.")])


def _costs(found: Gathered) -> Section:
    worked = [d for d in found.devices if d.worked]
    receipts = [d.receipt for d in worked if d.receipt is not None]
    if not receipts:
        return Section("Energy, latency and memory", [Text("No device has done work that was measured yet.")])
    said = (
        f"median {_joules(statistics.median(r.energy.joules for r in receipts))}, "
        f"{_charts.span(statistics.median(r.latency_seconds for r in receipts))}, "
        f"{statistics.median(r.peak_memory_bytes for r in receipts) / 2**20:.0f} MiB"
    )
    blocks: list[Block] = [
        Picture(
            _charts.costs(worked, f"Distributions of energy, latency and peak memory: {said}."),
            f"What it cost {count(len(worked), 'device')}. Energy is that of the work, idle power subtracted where it "
            "is known; latency runs from taking the request to the new model being in use; memory is the worker's.",
        )
    ]
    rows = [
        _spread("energy, J", [r.energy.joules for r in receipts], "{:,.1f}".format),
        _spread("latency, s", [r.latency_seconds for r in receipts], "{:,.1f}".format),
        _spread("unlearning alone, s", [r.unlearning_seconds for r in receipts], "{:,.1f}".format),
        _spread("peak memory, MiB", [r.peak_memory_bytes / 2**20 for r in receipts], "{:,.0f}".format),
    ]
    blocks.append(Table("Over the devices", ("", "lowest", "median", "95th percentile", "highest", "devices"), rows))
    sources: dict[str, list[float]] = {}
    for receipt in receipts:
        sources.setdefault(receipt.energy.source or "not said", []).append(receipt.energy.joules)
    rows = [
        (clipped(source, 40), f"{len(joules):,}", _joules(sum(joules)))
        for source, joules in sorted(sources.items(), key=lambda item: -len(item[1]))[:20]
    ]
    blocks.append(Table("Where the energy figures come from", ("source", "devices", "energy together"), rows))
    return Section("Energy, latency and memory", blocks)


def _failures(found: Gathered) -> Section:
    groups: dict[tuple[str, str], list[DeviceAnswer]] = {}
    for device in found.having(*_NO_SUCCESS):
        groups.setdefault((device.state, device.reason), []).append(device)
    if not groups:
        return Section("Failures and their reasons", [Text("No device failed, refused or ran out of time.")])
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        (
            Badge(state_word(state), _TONES.get(state, "calm")),
            reason or "-",
            f"{len(members):,}",
            clipped(Counter(d.detail for d in members).most_common(1)[0][0], 300) or "-",
            names_text([d.name for d in members], _NAMES),
        )
        for (state, reason), members in ordered[:40]
    ]
    left_out = len(ordered) - len(rows)
    columns = ("state", "reason", "devices", "most often in these words", "which")
    note = f"{left_out} rarer reasons are left out." if left_out > 0 else ""
    return Section(
        "Failures and their reasons",
        [Table("Devices that did not forget the class", columns, rows, frozenset({0, 1, 3, 4}), note)],
    )


def _erased(found: Gathered) -> Section:
    erasures = [d.receipt.erasure for d in found.devices if d.receipt is not None and d.receipt.HasField("erasure")]
    if not erasures:
        return Section("What was erased", [Text("No device has reported that it erased anything.")])
    samples, originals = sum(e.samples for e in erasures), sum(e.originals for e in erasures)
    models = sum(e.old_model for e in erasures)
    text = (
        f"{count(len(erasures), 'device')} erased together {count(samples, 'sealed image')} of the class and "
        f"{count(originals, 'original file')}; {count(models, 'device')} destroyed the key of the model that knew it. "
        "Erasing is done by destroying the key that a thing lies encrypted under. This is what the devices say and "
        "have signed; nobody else can see their cards."
    )
    notes = Counter(clipped(e.detail, 300) for e in erasures if e.detail).most_common(10)
    rows = [(words, f"{devices:,}") for words, devices in notes]
    blocks: list[Block] = [Text(text)]
    if rows:
        blocks.append(Table("In their words", ("how, and what was left", "devices"), rows))
    return Section("What was erased", blocks)


def _devices(found: Gathered) -> Section:
    ordered = sorted(
        found.devices, key=lambda d: (_RANK.get(d.state, 7), -(d.ra_drop if d.ra_drop is not None else -1e9))
    )
    rows = [_row(device) for device in ordered[:MOST_ROWS]]
    columns = ("device", "state", "UA %", "RA %", "RA lost", "latency, s", "energy, J", "peak, MiB", "wave", "receipt")
    left_out = len(ordered) - len(rows)
    note = (
        f"{left_out:,} further devices are left out: the ones shown did worst. 'clue-coordinator request show "
        f"{found.view.request_id} --all' lists every one."
        if left_out
        else ""
    )
    caption = "What every device answered, failures first, then by loss of RA"
    return Section("Devices", [Table(caption, columns, rows, frozenset({0, 1, 9}), note)])


def _row(device: DeviceAnswer) -> Sequence[str | Badge]:
    receipt = device.receipt if device.worked else None
    both = {name: (device.rate(f"{name}_before"), device.rate(f"{name}_after")) for name in ("ua", "ra")}
    arrows = {
        name: "-" if before is None or after is None else f"{before:.1f} → {after:.1f}"
        for name, (before, after) in both.items()
    }
    if device.receipt is None:
        checked = Badge("none yet" if device.state in ("QUEUED", "IN_PROGRESS") else "none")
    else:
        checked = Badge("verified", "good") if device.verified else Badge("NOT VERIFIED", "bad")
    return (
        device.name,
        Badge(state_word(device.state), _TONES.get(device.state, "calm")),
        arrows["ua"],
        arrows["ra"],
        "-" if device.ra_drop is None else f"{device.ra_drop:.1f}",
        "-" if receipt is None else f"{receipt.latency_seconds:,.1f}",
        "-" if receipt is None else energy_text(receipt.energy.joules, receipt.energy.source),
        "-" if receipt is None else f"{receipt.peak_memory_bytes / 2**20:,.0f}",
        ("canary" if device.wave == 0 else f"{device.wave}") + _again(device),
        checked,
    )


def _again(device: DeviceAnswer) -> str:
    return f", attempt {device.attempts}" if device.attempts > 1 else ""


def _history(found: Gathered) -> Section:
    rows = [
        (
            time_text(event.at),
            event.actor or "the coordinator",
            event.kind,
            event.device_id or "-",
            clipped(event.detail, 300),
        )
        for event in found.events
    ]
    actors: dict[str, Counter[str]] = {}
    for event in found.events:
        if event.actor:
            actors.setdefault(event.actor, Counter())[event.kind] += 1
    who = [
        (name, ", ".join(f"{kind} × {n}" if n > 1 else kind for kind, n in kinds.items()))
        for name, kinds in actors.items()
    ]
    blocks: list[Block] = []
    if who:
        blocks.append(Table("Who acted", ("token", "what"), who, frozenset({0, 1})))
    others = sum(found.events_of_devices.values())
    listed = ", ".join(f"{kind} × {n:,}" for kind, n in found.events_of_devices.most_common(12))
    note = f"{others:,} further entries are left out, most of them of single devices: {listed}." if others else ""
    columns = ("when (UTC)", "who", "what", "device", "in words")
    blocks.append(Table("History, oldest first", columns, rows, frozenset(range(5)), note))
    return Section("Who did what", blocks)


def _request(view: pb.RequestView) -> Section:
    rollout, rows = view.rollout, []
    rows = [
        ("request", view.request_id),
        ("fleet, class", f"{view.fleet}, {view.forget_class}"),
        ("method", view.method or "the device's choice"),
        ("made", f"{time_text(view.created_at)} by {view.created_by or '-'}"),
        ("deadline", time_text(view.expires_at)),
        ("ended", time_text(view.finished_at) if view.HasField("finished_at") else "not yet"),
        ("allowed", f"UA at most {percent(view.policy.max_ua)}, RA lost at most {percent(view.policy.max_ra_drop)}"),
        (
            "target",
            clipped(view.target.where or names_text(view.target.devices, _NAMES) or "all devices of the fleet", 300),
        ),
        ("stops if", ", ".join(rule_text(rule) for rule in rollout.abort_if) or "-"),
    ]
    if rollout.canary_count or rollout.canary_share:
        rows.append(("canary", f"{rollout.canary_count}" if rollout.canary_count else percent(rollout.canary_share)))
    if rollout.rate:
        rows.append(("rate", f"{rollout.rate} in {days_and_hours(rollout.rate_period_seconds or 60.0)}"))
    if view.reason:
        rows.append(("stopped because", view.reason))
    if view.retry_of:
        rows.append(("repeats", view.retry_of))
    return Section("The request", [Facts(rows)])


def _values(devices: Sequence[DeviceAnswer], name: str) -> list[float]:
    return [value for value in (device.rate(name) for device in devices) if value is not None]


def _spread(label: str, values: Sequence[float], text: Callable[[float], str]) -> Sequence[str]:
    if not values:
        return (label, "-", "-", "-", "-", "0")
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    found = (ordered[0], statistics.median(ordered), high, ordered[-1])
    return (label, *(text(value) for value in found), f"{len(values):,}")


def _joules(joules: float) -> str:
    return f"{joules / 1000:,.1f} kJ" if joules >= 10_000 else f"{joules:,.1f} J"
