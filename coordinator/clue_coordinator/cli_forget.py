"""``clue-coordinator forget``."""

import uuid
from typing import Annotated

import typer

from clue_coordinator.cli_options import (
    Home,
    JsonFile,
    check_writable,
    complete_device,
    complete_fleet,
    operator_client,
    write_json,
)
from clue_coordinator.cli_values import (
    parse_canary,
    parse_duration,
    parse_quiet,
    parse_rate,
    parse_rule,
    parse_settings,
)
from clue_coordinator.errors import UsageError
from clue_coordinator.plain import approvals_text, full_request_data, plan_data
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb

_WHICH, _HOW, _POLICY = "Which devices", "Rollout", "What a device does"


def forget(
    forget_class: Annotated[str, typer.Option("--class", help="Name of the class to forget.")],
    fleet: Annotated[
        str, typer.Option("--fleet", help="Fleet whose devices forget it.", autocompletion=complete_fleet)
    ],
    home: Home = None,
    where: Annotated[
        str,
        typer.Option("--where", help="Only devices with these labels: site=paris,hw!=pi4.", rich_help_panel=_WHICH),
    ] = "",
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="Only this device; may be repeated.",
            rich_help_panel=_WHICH,
            autocompletion=complete_device,
        ),
    ] = None,
    continuous: Annotated[
        bool,
        typer.Option(
            "--continuous", help="Also devices that join or come to match before the deadline.", rich_help_panel=_WHICH
        ),
    ] = False,
    canary: Annotated[
        str,
        typer.Option("--canary", help="5% or 3: so many go first, the others when they have.", rich_help_panel=_HOW),
    ] = "",
    rate: Annotated[
        str, typer.Option("--rate", help="50/min, 10/h: so many begin in that time.", rich_help_panel=_HOW)
    ] = "",
    growth: Annotated[
        float,
        typer.Option(
            "--growth", min=1, max=100, help="Every wave is so many times the one before.", rich_help_panel=_HOW
        ),
    ] = 1.0,
    abort_if: Annotated[
        list[str] | None,
        typer.Option(
            "--abort-if",
            help="failed>10%, rejected>.., timed_out>.., any>..; may be repeated [default with a canary: failed>10%].",
            rich_help_panel=_HOW,
        ),
    ] = None,
    after: Annotated[
        int,
        typer.Option(
            "--after", min=0, max=1_000_000, help="Abort only once so many have answered.", rich_help_panel=_HOW
        ),
    ] = 0,
    timeout: Annotated[
        str,
        typer.Option("--timeout", help="A device that has begun must answer within 30m, 2h, ..", rich_help_panel=_HOW),
    ] = "",
    attempts: Annotated[
        int,
        typer.Option(
            "--attempts",
            min=1,
            max=20,
            help="Ask so often: again after a failure that may pass.",
            rich_help_panel=_HOW,
        ),
    ] = 1,
    backoff: Annotated[
        str,
        typer.Option("--backoff", help="Pause before the second attempt, then doubled.", rich_help_panel=_HOW),
    ] = "1m",
    deadline: Annotated[
        str, typer.Option("--deadline", help="The request expires after that: 12h, 7d, 2w.", rich_help_panel=_HOW)
    ] = "7d",
    quiet_hours: Annotated[
        str,
        typer.Option(
            "--quiet", help="07:00-22:00 on a device's own clock: it does not begin then.", rich_help_panel=_HOW
        ),
    ] = "",
    without_samples: Annotated[
        str,
        typer.Option(
            "--without-samples",
            help="Devices without images: reject, or aggregate (patch them with what others learnt).",
            rich_help_panel=_HOW,
        ),
    ] = "reject",
    min_updates: Annotated[
        int,
        typer.Option(
            "--min-updates", min=1, max=100, help="Devices that a patch is made of at least.", rich_help_panel=_HOW
        ),
    ] = 3,
    method: Annotated[
        str,
        typer.Option("--method", help="Unlearning method [default: the device's choice].", rich_help_panel=_POLICY),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Hyper-parameter of the method, name=value; may be repeated.", rich_help_panel=_POLICY
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, rich_help_panel=_POLICY)] = 0,
    max_ua: Annotated[
        float,
        typer.Option(
            "--max-ua",
            min=0,
            max=1,
            help="Highest accuracy on the forgotten class that a device accepts.",
            rich_help_panel=_POLICY,
        ),
    ] = 0.10,
    max_ra_drop: Annotated[
        float,
        typer.Option(
            "--max-ra-drop",
            min=0,
            max=1,
            help="Largest loss of accuracy on the other classes.",
            rich_help_panel=_POLICY,
        ),
    ] = 0.05,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which devices, in which waves; change nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until every device has answered.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Make a fleet forget a class.

    With --wait the exit code is 0 only if every device succeeded.
    """
    check_writable(json_file)
    if dry_run and wait:
        raise UsageError("--dry-run starts nothing that --wait could wait for: give one of them")
    if without_samples not in ("reject", "aggregate"):
        raise UsageError(f"--without-samples must be reject or aggregate, got '{without_samples}'")
    share, count = parse_canary(canary) if canary else (0.0, 0)
    devices_per, period = parse_rate(rate) if rate else (0, 0.0)
    quiet_from, quiet_until = parse_quiet(quiet_hours) if quiet_hours else (0, 0)
    call = pb.ForgetCall(
        fleet=fleet,
        forget_class=forget_class,
        method=method,
        hyperparameters_json=parse_settings(settings or []),
        seed=seed,
        policy=forget_pb2.Policy(max_ua=max_ua, max_ra_drop=max_ra_drop),
        expires_in_seconds=parse_duration("--deadline", deadline),
        idempotency_key=uuid.uuid4().hex,
        target=pb.Target(where=where, devices=device or [], continuous=continuous),
        rollout=pb.Rollout(
            canary_share=share,
            canary_count=count,
            rate=devices_per,
            rate_period_seconds=period,
            growth=growth,
            abort_if=[parse_rule(text) for text in abort_if or []],
            abort_after=after,
            timeout_seconds=parse_duration("--timeout", timeout) if timeout else 0.0,
            max_attempts=attempts,
            backoff_seconds=parse_duration("--backoff", backoff),
            quiet_from=quiet_from,
            quiet_until=quiet_until,
            without_samples=pb.WithoutSamples.Value(f"WITHOUT_SAMPLES_{without_samples.upper()}"),
            min_updates=min_updates,
        ),
    )
    # Nothing but the JSON on standard output, so that it can be piped.
    quiet = json_file is not None and str(json_file) == "-"
    with operator_client(home) as client:
        if dry_run:
            plan = client.plan(call)
            if not quiet:
                from clue_coordinator.render import plan_page
                from clue_coordinator.terminal import console

                console().print(plan_page(plan))
            if json_file is not None:
                write_json(json_file, plan_data(plan))
            return
        view = client.forget(call)
        if not quiet:
            number = sum(view.counts.values())
            print(f"request {view.request_id}: {number} device(s) of {fleet} will forget '{forget_class}'")
            if view.state == pb.REQUEST_STATE_AWAITING_APPROVAL:
                print(
                    f"it waits for {approvals_text(view)}; who may gives one with 'clue-coordinator request approve "
                    f"{view.request_id} --key FILE'"
                )
        if wait:
            from clue_coordinator.cli_watch import watch

            view = watch(client, view.request_id, home, quiet=quiet)
        if json_file is not None:
            write_json(json_file, full_request_data(view, list(client.list_executions(view.request_id))))
        if wait and view.counts.get("SUCCEEDED", 0) != sum(view.counts.values()):
            raise typer.Exit(1)
