"""Ledger rows as the messages that operators see."""

from google.protobuf.timestamp_pb2 import Timestamp
from securesystemslib.signer import Key

from clue_coordinator.enrol import fleet_classes
from clue_coordinator.models import Device, Event, Execution, Fleet, Request
from clue_coordinator.plain import rule_state, rule_word
from clue_coordinator.plan import RolloutPlan
from clue_coordinator.progress import Progress
from clue_coordinator.quiet import quiet_until
from clue_coordinator.receipts import is_verified
from clue_coordinator.requests import ForgetOrder, Planned
from clue_coordinator.role_keys import holds
from clue_coordinator.states import ExecutionState
from clue_protocol.envelope import RECEIPT_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import Root
from clue_protocol.v1 import agent_pb2, forget_pb2
from clue_protocol.v1 import operator_pb2 as pb


def stamp(seconds: float | None) -> Timestamp | None:
    """A protobuf timestamp, None for None."""
    return None if seconds is None else Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def fleet_view(fleet: Fleet, root: Root | None = None, own: Key | None = None) -> pb.Fleet:
    """A fleet with its devices loaded; ``own`` is the coordinator's request key."""
    trust = root.fleets.get(fleet.name) if root is not None else None
    role = trust.request if trust is not None else None
    return pb.Fleet(
        approvers=[str(key.keyid) for key in role.keys] if role else [],
        require=role.threshold if role else 0,
        self_approved=role is not None and own is not None and role.threshold == 1 and holds(role, own),
        name=fleet.name,
        devices=sum(device.retired_at is None for device in fleet.devices),
        classes=fleet_classes(fleet),
        created_at=stamp(fleet.created_at),
    )


def device_view(device: Device) -> pb.Device:
    """A device with its fleet loaded."""
    return pb.Device(
        device_id=device.device_id,
        fleet=device.fleet.name,
        node_id=int(device.node_id),
        online=device.online,
        last_seen=stamp(device.last_seen),
        classes=device.classes,
        model_digest=device.model_digest,
        software_version=device.software_version,
        labels=device.labels,
        enrolled_at=stamp(device.enrolled_at),
        retired_at=stamp(device.retired_at),
        revoked_at=stamp(device.revoked_at),
        revocation_reason=device.revocation_reason,
        refused_receipts=device.refused_receipts,
        cut_off_at=stamp(device.cut_off_at),
    )


def request_view(request: Request, progress: Progress | None = None) -> pb.RequestView:
    """A request; ``progress`` adds how far it is and the executions worth showing."""
    view = pb.RequestView(
        request_id=request.id,
        fleet=request.fleet.name,
        forget_class=request.forget_class,
        method=request.method,
        state=pb.RequestState.Value(f"REQUEST_STATE_{request.state}"),
        created_at=stamp(request.created_at),
        finished_at=stamp(request.finished_at),
        expires_at=stamp(request.expires_at),
        policy=forget_pb2.Policy(max_ua=request.max_ua, max_ra_drop=request.max_ra_drop),
        created_by=request.created_by,
        counts={state: number for state, number in request.counts.items() if number},
        target=target_view(request.target),
        rollout=rollout_view(RolloutPlan.model_validate(request.plan)),
        paused=request.paused_at is not None,
        reason=request.reason,
        wave=request.wave,
        waves=request.waves,
        retry_of=request.retry_of or "",
        approvals=map(approval_view, request.approvals),
        approvals_needed=request.approvals_needed,
    )
    if progress is not None:
        view.executions.extend(execution_view(execution) for execution in progress.executions)
        view.waiting_offline, view.waiting_patch = progress.waiting_offline, progress.waiting_patch
        if progress.eta_seconds is not None:
            view.eta_seconds = progress.eta_seconds
    return view


def approval_view(entry: dict[str, object]) -> pb.Approval:
    """An entry of a request's approvals."""
    return pb.Approval(key_id=str(entry["keyid"]), name=str(entry["name"]), at=stamp(float(str(entry["at"]))))


def target_view(target: dict[str, object]) -> pb.Target:
    """A target as kept with a request."""
    return pb.Target(**target)  # type: ignore[arg-type]


def rollout_view(plan: RolloutPlan) -> pb.Rollout:
    """A plan, with the rules that apply."""
    data = plan.model_dump(mode="json")
    data["abort_if"] = [pb.AbortRule(state=rule_state(rule.state), share=rule.share) for rule in plan.rules()]
    data["without_samples"] = pb.WithoutSamples.Value(f"WITHOUT_SAMPLES_{plan.without_samples.upper()}")
    return pb.Rollout(**data)


def rollout_data(rollout: pb.Rollout) -> dict[str, object]:
    """The plain data of a plan; 0 and absent fields are left to its defaults."""
    data: dict[str, object] = {
        field.name: value for field, value in rollout.ListFields() if field.name not in ("abort_if", "without_samples")
    }
    data["abort_if"] = [{"state": rule_word(rule), "share": rule.share} for rule in rollout.abort_if]
    aggregate = rollout.without_samples == pb.WITHOUT_SAMPLES_AGGREGATE
    data["without_samples"] = "aggregate" if aggregate else "reject"
    return data


def plan_view(order: ForgetOrder, planned: Planned, now: float) -> pb.ForgetPlan:
    """What a request would do."""
    plan = order.plan
    view = pb.ForgetPlan(
        fleet=order.fleet,
        forget_class=order.forget_class,
        rollout=rollout_view(plan),
        target=target_view(order.target.model_dump(mode="json")),
        expires_at=stamp(planned.expires_at),
    )
    for number, members in enumerate(planned.waves):
        if not members:
            continue
        wave = view.waves.add(number=number, earliest_seconds=max(0, number - 1) * plan.rate_period_seconds)
        for device in members:
            wave.devices.add(
                device_id=device.device_id,
                online=device.online,
                quiet_until=stamp(quiet_until(plan, device.labels, now)),
                unknown_class=order.forget_class not in device.classes,
            )
    return view


def execution_view(execution: Execution) -> pb.ExecutionView:
    """One execution; its receipt is verified again each time it is shown."""
    return pb.ExecutionView(
        device_id=execution.device.device_id,
        state=pb.ExecutionState.Value(f"EXECUTION_STATE_{ExecutionState(execution.state)}"),
        progress=agent_pb2.Progress(stage=execution.stage, fraction=execution.fraction),
        reason=execution.reason,
        detail=execution.detail,
        attempts=execution.attempt,
        receipt=stored_receipt(execution),
        receipt_envelope=execution.receipt_envelope or b"",
        receipt_verified=is_verified(execution.receipt_envelope, execution),
        updated_at=stamp(execution.updated_at),
        wave=execution.wave,
        online=execution.device.online,
        started_at=stamp(execution.started_at if execution.state != ExecutionState.QUEUED else None),
        finished_at=stamp(execution.finished_at),
        not_before=stamp(execution.not_before),
        ra_drop=execution.ra_drop,
        patched=execution.patch_id is not None,
    )


def event_view(event: Event) -> pb.Event:
    """One line of the history."""
    return pb.Event(
        id=event.id,
        at=stamp(event.at),
        kind=event.kind,
        fleet=event.fleet,
        device_id=event.device_id,
        request_id=event.request_id,
        detail=event.detail,
        actor=event.actor,
    )


def stored_receipt(execution: Execution) -> forget_pb2.Receipt | None:
    """What the stored receipt says, verified or not; None without one."""
    if not execution.receipt_envelope:
        return None
    try:
        return peek_message(execution.receipt_envelope, RECEIPT_TYPE, forget_pb2.Receipt)
    except ProtocolError:
        return None
