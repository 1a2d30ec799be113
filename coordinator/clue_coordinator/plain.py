"""Requests, devices and plans as plain data: what ``--json`` prints. json_types.py says what each field means."""

import time
from collections.abc import Sequence
from typing import Any, cast

from clue_coordinator import json_types as js
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb


def request_state(view: pb.RequestView) -> js.RequestStateWord:
    """State of a request as one word."""
    return cast(js.RequestStateWord, pb.RequestState.Name(view.state).removeprefix("REQUEST_STATE_"))


def execution_state(view: pb.ExecutionView) -> js.ExecutionStateWord:
    """State of an execution as one word."""
    return cast(js.ExecutionStateWord, pb.ExecutionState.Name(view.state).removeprefix("EXECUTION_STATE_"))


def rule_text(rule: pb.AbortRule) -> str:
    """``failed>10%``."""
    return f"{rule_word(rule).lower()}>{100 * rule.share:g}%"


def rule_state(word: str) -> pb.ExecutionState.ValueType:
    """The state of an abort rule; ``ANY`` is unspecified."""
    return pb.EXECUTION_STATE_UNSPECIFIED if word == "ANY" else pb.ExecutionState.Value(f"EXECUTION_STATE_{word}")


def rule_word(rule: pb.AbortRule) -> str:
    """Its state as one word, the other way round."""
    return pb.ExecutionState.Name(rule.state).removeprefix("EXECUTION_STATE_") if rule.state else "ANY"


def request_data(view: pb.RequestView) -> js.RequestData:
    """A request without its devices."""
    return {
        "request_id": view.request_id,
        "fleet": view.fleet,
        "forget_class": view.forget_class,
        "method": view.method,
        "state": request_state(view),
        "paused": view.paused,
        "reason": view.reason,
        "created_by": view.created_by,
        "created_at": _time(view, "created_at"),
        "expires_at": _time(view, "expires_at"),
        "finished_at": _time(view, "finished_at"),
        "policy": {"max_ua": view.policy.max_ua, "max_ra_drop": view.policy.max_ra_drop},
        "target": target_data(view.target),
        "rollout": rollout_data(view.rollout),
        "counts": dict(sorted(view.counts.items())),
        "wave": view.wave,
        "waves": view.waves,
        "waiting_offline": view.waiting_offline,
        "waiting_patch": view.waiting_patch,
        "eta_seconds": view.eta_seconds if view.HasField("eta_seconds") else None,
        "retry_of": view.retry_of or None,
        "approvals": [{"key_id": a.key_id, "name": a.name, "at": _time(a, "at")} for a in view.approvals],
        "approvals_needed": view.approvals_needed,
    }


def approvals_text(view: pb.RequestView) -> str:
    """``1 of 2 approvals: alice (key ab12cd34)``."""
    who = ", ".join(f"{a.name or 'somebody'} (key {a.key_id[:8]})" for a in view.approvals)
    plural = "s" if view.approvals_needed > 1 else ""
    return f"{len(view.approvals)} of {view.approvals_needed} approval{plural}" + (f": {who}" if who else "")


def full_request_data(view: pb.RequestView, executions: Sequence[pb.ExecutionView]) -> js.RequestWithDevicesData:
    """A request and its devices."""
    return {**request_data(view), "devices": [execution_data(execution) for execution in executions]}


def target_data(target: pb.Target) -> js.TargetData:
    """Which devices."""
    return {"where": target.where, "devices": list(target.devices), "continuous": target.continuous}


def rollout_data(rollout: pb.Rollout) -> js.RolloutData:
    """How."""
    word = pb.WithoutSamples.Name(rollout.without_samples).removeprefix("WITHOUT_SAMPLES_").lower()
    return {
        "canary_share": rollout.canary_share,
        "canary_count": rollout.canary_count,
        "rate": rollout.rate,
        "rate_period_seconds": rollout.rate_period_seconds,
        "growth": rollout.growth,
        "abort_if": [{"state": cast(Any, rule_word(rule)), "share": rule.share} for rule in rollout.abort_if],
        "abort_after": rollout.abort_after,
        "timeout_seconds": rollout.timeout_seconds,
        "max_attempts": rollout.max_attempts,
        "backoff_seconds": rollout.backoff_seconds,
        "quiet_from": rollout.quiet_from,
        "quiet_until": rollout.quiet_until,
        "without_samples": cast(Any, word),
        "min_updates": rollout.min_updates,
    }


def execution_data(execution: pb.ExecutionView) -> js.ExecutionData:
    """One device's part of a request."""
    receipt = execution.receipt if execution.HasField("receipt") else forget_pb2.Receipt()
    has_energy = receipt.HasField("energy")
    return {
        "device_id": execution.device_id,
        "state": execution_state(execution),
        "reason": execution.reason,
        "detail": execution.detail,
        "wave": execution.wave,
        "attempt": execution.attempts,
        "online": execution.online,
        "patched": execution.patched,
        "stage": execution.progress.stage,
        "fraction": execution.progress.fraction,
        "started_at": _time(execution, "started_at"),
        "finished_at": _time(execution, "finished_at"),
        "not_before": _time(execution, "not_before"),
        "ua_before": _share(receipt.ua_before),
        "ua_after": _share(receipt.ua_after),
        "ra_before": _share(receipt.ra_before),
        "ra_after": _share(receipt.ra_after),
        "ra_drop": execution.ra_drop if execution.HasField("ra_drop") else None,
        "ua_samples": receipt.ua_after.samples,
        "ra_samples": receipt.ra_after.samples,
        "forget_samples": receipt.forget_samples,
        "method": receipt.method,
        "latency_seconds": receipt.latency_seconds if execution.HasField("receipt") else None,
        "unlearning_seconds": receipt.unlearning_seconds if has_energy else None,
        "energy_joules": receipt.energy.joules if has_energy else None,
        "energy_source": receipt.energy.source if has_energy else None,
        "peak_memory_bytes": receipt.peak_memory_bytes if has_energy else None,
        "model_digest_before": receipt.model_digest_before,
        "model_digest_after": receipt.model_digest_after,
        "receipt_verified": execution.receipt_verified,
        "receipt": execution.receipt_envelope.decode(errors="replace"),
    }


def device_data(device: pb.Device) -> js.DeviceData:
    """A device."""
    return {
        "device_id": device.device_id,
        "fleet": device.fleet,
        "node_id": str(device.node_id),
        "online": device.online,
        "last_seen": _time(device, "last_seen"),
        "labels": dict(sorted(device.labels.items())),
        "classes": list(device.classes),
        "model_digest": device.model_digest,
        "software_version": device.software_version,
        "enrolled_at": _time(device, "enrolled_at"),
        "retired_at": _time(device, "retired_at"),
    }


def full_device_data(device: pb.Device, events: Sequence[pb.Event]) -> js.DeviceWithEventsData:
    """A device and its newest history."""
    return {**device_data(device), "events": [event_data(event) for event in events]}


def event_data(event: pb.Event) -> js.EventData:
    """One entry of the history."""
    return {
        "id": event.id,
        "at": _time(event, "at"),
        "kind": event.kind,
        "fleet": event.fleet,
        "device_id": event.device_id,
        "request_id": event.request_id,
        "actor": event.actor,
        "detail": event.detail,
    }


def plan_data(plan: pb.ForgetPlan) -> js.PlanData:
    """What a request would do."""
    return {
        "fleet": plan.fleet,
        "forget_class": plan.forget_class,
        "expires_at": _time(plan, "expires_at"),
        "target": target_data(plan.target),
        "rollout": rollout_data(plan.rollout),
        "waves": [
            {
                "wave": wave.number,
                "earliest_seconds": wave.earliest_seconds,
                "devices": [
                    {
                        "device_id": device.device_id,
                        "online": device.online,
                        "quiet_until": _time(device, "quiet_until"),
                        "unknown_class": device.unknown_class,
                    }
                    for device in wave.devices
                ],
            }
            for wave in plan.waves
        ],
    }


def status_data(info: pb.GetServerInfoResponse, devices: int, online: int, open_requests: int) -> js.StatusData:
    """How the coordinator is."""
    return {
        "version": info.version,
        "superlink_running": info.superlink_running,
        "dispatcher_running": info.dispatcher_running,
        "superlink_address": info.superlink_address,
        "metrics_url": info.metrics_url,
        "devices": devices,
        "online": online,
        "root_version": info.root_version,
        "root_expires_at": _time(info, "root_expires_at"),
        "open_requests": open_requests,
    }


def fleet_data(fleet: pb.Fleet) -> js.FleetData:
    """A fleet."""
    return {
        "name": fleet.name,
        "devices": fleet.devices,
        "classes": list(fleet.classes),
        "created_at": _time(fleet, "created_at"),
        "approvers": list(fleet.approvers),
        "require": fleet.require,
        "self_approved": fleet.self_approved,
    }


def token_data(token: pb.Token) -> js.TokenData:
    """A token, without its secret."""
    expired = token.HasField("expires_at") and token.expires_at.ToNanoseconds() <= time.time_ns()
    return {
        "name": token.name,
        "role": cast(Any, pb.Role.Name(token.role).removeprefix("ROLE_").lower()),
        "state": "revoked" if token.HasField("revoked_at") else "expired" if expired else "active",
        "created_by": token.created_by,
        "created_at": _time(token, "created_at"),
        "expires_at": _time(token, "expires_at"),
        "revoked_at": _time(token, "revoked_at"),
        "last_used_at": _time(token, "last_used_at"),
    }


def new_token_data(token: pb.Token, secret: str | None) -> js.NewTokenData:
    """A token that was just made."""
    return {**token_data(token), "secret": secret}


def _share(accuracy: forget_pb2.Accuracy) -> float | None:
    return accuracy.correct / accuracy.samples if accuracy.samples else None


def _time(message: Any, name: str) -> str | None:
    stamp = getattr(message, name)
    return stamp.ToJsonString() if message.HasField(name) and stamp.seconds else None
