"""Requests, devices and plans as plain data: what ``--json`` prints. docs/json.md says what each field means."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb


def request_state(view: pb.RequestView) -> str:
    """State of a request as one word."""
    return pb.RequestState.Name(view.state).removeprefix("REQUEST_STATE_")


def execution_state(view: pb.ExecutionView) -> str:
    """State of an execution as one word."""
    return pb.ExecutionState.Name(view.state).removeprefix("EXECUTION_STATE_")


def request_data(view: pb.RequestView, executions: Sequence[pb.ExecutionView] | None = None) -> dict[str, Any]:
    """A request; with ``devices`` if executions are given. Accuracies are shares in [0, 1], null where not measured."""
    data = {
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
    }
    if executions is not None:
        data["devices"] = [device_data(execution) for execution in executions]
    return data


def target_data(target: pb.Target) -> dict[str, Any]:
    """Which devices."""
    return {"where": target.where, "devices": list(target.devices), "continuous": target.continuous}


def rollout_data(rollout: pb.Rollout) -> dict[str, Any]:
    """How: the fields of ``Rollout`` in operator.proto, states as words."""
    data = MessageToDict(rollout, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    data["abort_if"] = [
        {
            "state": "ANY" if not rule.state else pb.ExecutionState.Name(rule.state).removeprefix("EXECUTION_STATE_"),
            "share": rule.share,
        }
        for rule in rollout.abort_if
    ]
    word = pb.WithoutSamples.Name(rollout.without_samples).removeprefix("WITHOUT_SAMPLES_")
    data["without_samples"] = word.lower()
    return data


def device_data(execution: pb.ExecutionView) -> dict[str, Any]:
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
        "started_at": _time(execution, "started_at"),
        "finished_at": _time(execution, "finished_at"),
        "not_before": _time(execution, "not_before"),
        "ua_before": _share(receipt.ua_before),
        "ua_after": _share(receipt.ua_after),
        "ra_before": _share(receipt.ra_before),
        "ra_after": _share(receipt.ra_after),
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


def enrolled_device_data(device: pb.Device) -> dict[str, Any]:
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


def event_data(event: pb.Event) -> dict[str, Any]:
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


def plan_data(plan: pb.ForgetPlan) -> dict[str, Any]:
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


def _share(accuracy: forget_pb2.Accuracy) -> float | None:
    return accuracy.correct / accuracy.samples if accuracy.samples else None


def _time(message: Any, name: str) -> str | None:
    stamp = getattr(message, name)
    return stamp.ToJsonString() if message.HasField(name) and stamp.seconds else None
