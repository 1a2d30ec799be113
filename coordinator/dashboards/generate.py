"""Writes the dashboards beside this file as JSON for Grafana: ``make dashboards``. ``--check``: are they up to date?

Expressions whose series may be missing in a healthy installation end in ``or vector(...)``: an empty panel always
means that something is wrong. Panels that say "now" ask for one moment, so that they cost little.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from _panels import Query, buckets, dashboard, lines, number, over_time, rows, value, variable
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FLEETS = variable("fleet", "Fleet", "label_values(clue_devices, fleet)", every=True)
FLEET = variable("fleet", "Fleet", "label_values(clue_devices, fleet)")
IN = '{fleet=~"$fleet"}'
OF = '{fleet="$fleet", request="$request"}'
ON = '{fleet="$fleet", device="$device"}'


def overview() -> Dashboard:
    """How the fleets are."""
    made = dashboard("clue-fleets", "CLUE: fleet overview", "Devices, requests and what became of them.")
    made.with_variable(FLEETS)
    for panel in (
        value("Devices", "short", Query(f"sum(clue_devices{IN})")),
        value("Online", "percentunit", Query(f"sum(clue_devices_online{IN}) / sum(clue_devices{IN})")),
        value(
            "Open requests",
            "short",
            Query('sum(clue_requests{fleet=~"$fleet", state=~"SCHEDULED|IN_PROGRESS"})'),
        ),
        value("Oldest in the queue", "s", Query(f"max(clue_queue_age_seconds{IN})"), bad_above=86_400),
        value(
            "Since the last receipt",
            "s",
            Query(f"(time() - max(clue_last_receipt_timestamp_seconds{IN})) or vector(-1)"),
            never="none yet",
        ),
        value("Alerts that fire", "short", Query('count(ALERTS{alertstate="firing"}) or vector(0)'), bad_above=1),
        lines("Executions by state", "short", Query(f"sum by (state) (clue_executions{IN})", "{{state}}")),
        lines(
            "Executions by reason",
            "short",
            Query('sum by (reason) (clue_executions{fleet=~"$fleet", reason!=""})', "{{reason}}"),
            description="Why they did not succeed. What is watched for is there with 0.",
        ),
        lines(
            "Receipts an hour",
            "short",
            Query(f"sum by (outcome) (increase(clue_receipts_total{IN}[1h]))", "{{outcome}}"),
        ),
        lines("Devices online", "percentunit", Query(f"fleet:clue_devices_online:ratio{IN}", "{{fleet}}")),
        lines(
            "Accuracy on the forgotten class (UA), median of all receipts",
            "percentunit",
            Query(f"histogram_quantile(0.5, sum by (le, when) (clue_ua_ratio_bucket{IN}))", "{{when}}"),
        ),
        lines(
            "Accuracy on the retained classes (RA), median of all receipts",
            "percentunit",
            Query(f"histogram_quantile(0.5, sum by (le, when) (clue_ra_ratio_bucket{IN}))", "{{when}}"),
        ),
    ):
        made.with_panel(panel)
    return made


def request() -> Dashboard:
    """How one request gets on."""
    made = dashboard("clue-request", "CLUE: request", "Rollout, loss of accuracy, and who is late.")
    made.with_variable(FLEET)
    made.with_variable(variable("request", "Request", 'label_values(clue_request_info{fleet="$fleet"}, request)'))
    for panel in (
        value("Done", "percentunit", Query(f"clue_request_progress_ratio{OF}")),
        value("Until the deadline", "s", Query(f"clue_request_deadline_timestamp_seconds{OF} - time()")),
        value("Since the last news", "s", Query(f"time() - clue_request_last_change_timestamp_seconds{OF}")),
        value("Slowest device at work", "s", Query(f"clue_request_longest_running_seconds{OF}"), bad_above=3600),
        value("Whose turn it is", "short", Query(f"clue_request_devices_due{OF}")),
        value("Beyond the policy", "short", Query(f"sum(clue_request_policy_missed_total{OF})"), bad_above=1),
        rows("What is to be forgotten", "short", Query(f"clue_request_info{OF}"), span=24),
        lines("Devices by state", "short", Query(f"sum by (state) (clue_request_executions{OF})", "{{state}}")),
        lines(
            "Devices that have not answered",
            "short",
            Query(f"sum by (online) (clue_request_devices_pending{OF})", "online: {{online}}"),
        ),
        buckets(
            "Loss of retained accuracy, devices by bucket",
            f"sum by (le) (clue_request_ra_drop_ratio_bucket{OF})",
            description="0 where it rose.",
        ),
        lines(
            "Loss of retained accuracy beside the policy",
            "percentunit",
            Query(f"histogram_quantile(0.5, sum by (le) (clue_request_ra_drop_ratio_bucket{OF}))", "median"),
            Query(f"histogram_quantile(0.95, sum by (le) (clue_request_ra_drop_ratio_bucket{OF}))", "p95"),
            Query(f"max(clue_request_max_ra_drop_ratio{OF})", "allowed"),
        ),
        rows(
            "Stragglers",
            "s",
            Query('topk(20, clue_device_pending_seconds{fleet="$fleet"})'),
            description="Age of the oldest request that a device has not answered; of those on the fleet's endpoint.",
        ),
        lines(
            "Beyond the policy",
            "short",
            Query(f"sum by (bound) (clue_request_policy_missed_total{OF})", "{{bound}}"),
        ),
    ):
        made.with_panel(panel)
    return made


def device() -> Dashboard:
    """One device."""
    made = dashboard("clue-device", "CLUE: device", "What one device has told last; needs the scrape of its fleet.")
    made.with_variable(FLEET)
    made.with_variable(variable("device", "Device", 'label_values(clue_device_online{fleet="$fleet"}, device)'))
    for panel in (
        value("Online", "bool_yes_no", Query(f"clue_device_online{ON}")),
        value(
            "Last seen",
            "s",
            Query(f"(time() - clue_device_last_seen_timestamp_seconds{ON}) or vector(-1)"),
            never="never",
        ),
        value(
            "Last receipt",
            "s",
            Query(f"(time() - clue_device_last_receipt_timestamp_seconds{ON}) or vector(-1)"),
            never="none yet",
        ),
        value("Oldest unanswered request", "s", Query(f"clue_device_pending_seconds{ON}"), bad_above=86_400),
        value("Clock wrong by", "s", Query(f"abs(clue_device_clock_skew_seconds{ON}) or vector(0)"), bad_above=300),
        value("Peak memory", "bytes", Query(f"clue_device_peak_memory_bytes{ON}")),
        lines("Accuracy on the forgotten class (UA)", "percentunit", Query(f"clue_device_ua_ratio{ON}", "{{when}}")),
        lines("Accuracy on the retained classes (RA)", "percentunit", Query(f"clue_device_ra_ratio{ON}", "{{when}}")),
        lines(
            "Time",
            "s",
            Query(f"clue_device_latency_seconds{ON}", "request to new model"),
            Query(f"clue_device_unlearning_seconds{ON}", "unlearning alone"),
        ),
        lines("Energy", "joule", Query(f"clue_device_energy_joules{ON}", "{{source}}")),
        lines("Loss of retained accuracy", "percentunit", Query(f"clue_device_ra_drop_ratio{ON}", "loss")),
    ):
        made.with_panel(panel)
    return made


def cost() -> Dashboard:
    """What unlearning costs, beside the paper's figures."""
    made = dashboard(
        "clue-cost",
        "CLUE: energy and latency",
        "What unlearning costs on the devices. The paper's figures are ratios: type in what Retrain and Boundary "
        "Shrinking take on your board (clue bench measures it); the defaults are of two x86 cores.",
    )
    made.with_variable(FLEETS)
    made.with_variable(number("retrain_seconds", "Retrain, s", "2353", "30 epochs of Retrain on such a board."))
    made.with_variable(number("shrinking_seconds", "Boundary Shrinking, s", "57.3", "On such a board."))
    made.with_variable(number("shrinking_mib", "Boundary Shrinking, MiB", "503", "Its peak memory."))
    mean_seconds = f"(sum(clue_unlearning_seconds_sum{IN}) / sum(clue_unlearning_seconds_count{IN}))"
    mean_bytes = f"(sum(clue_peak_memory_bytes_sum{IN}) / sum(clue_peak_memory_bytes_count{IN}))"
    for panel in (
        lines(
            "Energy of an unlearning, mean, by meter",
            "joule",
            Query(f"fleet_source:clue_energy_joules:mean{IN}", "{{fleet}} {{source}}"),
            description="'estimated' was not measured.",
        ),
        over_time("Energy, receipts by bucket", "joule", f"sum by (le) (clue_energy_joules_bucket{IN})"),
        lines(
            "Request to new model in use",
            "s",
            Query(f"histogram_quantile(0.5, sum by (le) (clue_latency_seconds_bucket{IN}))", "median"),
            Query(f"histogram_quantile(0.95, sum by (le) (clue_latency_seconds_bucket{IN}))", "p95"),
            Query(f"fleet:clue_latency_seconds:p95_1d{IN}", "p95 of a day, {{fleet}}"),
        ),
        over_time("Latency, receipts by bucket", "s", f"sum by (le) (clue_latency_seconds_bucket{IN})"),
        lines(
            "Times faster than 30 epochs of Retrain",
            "short",
            Query(f"$retrain_seconds / {mean_seconds}", "this fleet"),
            Query("vector(28.7)", "the paper"),
            span=8,
        ),
        lines(
            "Times faster than Boundary Shrinking",
            "short",
            Query(f"$shrinking_seconds / {mean_seconds}", "this fleet"),
            Query("vector(5.77)", "the paper"),
            span=8,
        ),
        lines(
            "Peak memory beside Boundary Shrinking",
            "percentunit",
            Query(f"{mean_bytes} / ($shrinking_mib * 1048576)", "this fleet"),
            Query("vector(0.7)", "the paper"),
            span=8,
        ),
        lines(
            "Peak memory",
            "bytes",
            Query(f"histogram_quantile(0.5, sum by (le) (clue_peak_memory_bytes_bucket{IN}))", "median"),
            Query(f"histogram_quantile(0.95, sum by (le) (clue_peak_memory_bytes_bucket{IN}))", "p95"),
        ),
        lines("Unlearning alone, mean", "s", Query(f"fleet:clue_unlearning_seconds:mean{IN}", "{{fleet}}")),
    ):
        made.with_panel(panel)
    return made


def trust() -> Dashboard:
    """Signatures, log, root and clocks."""
    made = dashboard("clue-trust", "CLUE: trust", "Signatures that were refused, the log, the root, the clocks.")
    made.with_variable(FLEETS)
    signatures = '{fleet=~"$fleet", state="REJECTED", reason=~"BAD_SIGNATURE|BAD_ENVELOPE"}'
    for panel in (
        value(
            "Receipts with a bad signature",
            "short",
            Query('sum(clue_receipts_refused_total{fleet=~"$fleet", reason="signature"})'),
            bad_above=1,
        ),
        value("Requests whose signature was refused", "short", Query(f"sum(clue_executions{signatures})"), bad_above=1),
        value("Entries of the log", "short", Query("sum(clue_log_leaves)")),
        value("Entries that no checkpoint covers", "short", Query("sum(clue_log_uncheckpointed_leaves)")),
        value(
            "Since the last checkpoint",
            "s",
            Query("(time() - max(clue_log_last_checkpoint_timestamp_seconds)) or vector(-1)"),
            never="none yet",
            bad_above=86_400,
        ),
        value(
            "Until the root expires",
            "s",
            Query("(min(clue_root_expiry_timestamp_seconds) - time()) or vector(-1)"),
            never="no root",
        ),
        lines(
            "Answers that were no valid receipt",
            "short",
            Query(f"sum by (reason) (clue_receipts_refused_total{IN})", "{{reason}}"),
        ),
        lines(
            "Requests that devices refused to trust",
            "short",
            Query(f"sum by (reason) (clue_executions{signatures})", "{{reason}}"),
        ),
        lines(
            "Log",
            "short",
            Query("sum(clue_log_leaves)", "entries"),
            Query("sum(clue_log_uncheckpointed_leaves)", "not covered"),
        ),
        lines("Worst clock", "s", Query(f"clue_clock_skew_max_seconds{IN}", "{{fleet}}")),
        rows(
            "Clocks that are wrong",
            "s",
            Query(f"topk(20, abs(clue_device_clock_skew_seconds{IN})) or vector(0)"),
            description="As their last receipts show; of the devices on the fleet's endpoint.",
        ),
        value("Version of the root", "short", Query("max(clue_root_version) or vector(-1)"), never="no root"),
    ):
        made.with_panel(panel)
    return made


def files() -> Iterator[tuple[Path, str]]:
    """Every dashboard's file and what belongs into it."""
    for name, build in (
        ("fleets", overview),
        ("request", request),
        ("device", device),
        ("cost", cost),
        ("trust", trust),
    ):
        text = JSONEncoder(sort_keys=True, indent=2).encode(build().build())
        yield Path(__file__).parent / f"{name}.json", text + "\n"


def main() -> None:
    """Write what is not up to date, or say so."""
    stale = [(path, text) for path, text in files() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"{', '.join(path.name for path, _ in stale)} is not up to date: run 'make dashboards'")
        return
    for path, text in stale:
        path.write_text(text, encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
