"""What ``--json`` prints, field by field; ``docs/generate_json.py`` makes docs/json.md and the JSON Schemas from here.

Fields may be added; none changes its meaning or goes away. Times are RFC 3339 in UTC, shares are in [0, 1], and null
means that there is none or that it was not measured.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

_exact = with_config(ConfigDict(extra="forbid"))

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
RequestStateWord = Literal["AWAITING_APPROVAL", "SCHEDULED", "IN_PROGRESS", "COMPLETED", "CANCELED", "ABORTED"]
ExecutionStateWord = Literal[
    "QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "CANCELED", "REMOVED"
]


def _says(text: str) -> object:
    return Field(description=text)


@_exact
class PolicyData(TypedDict):
    """What a device must meet."""

    max_ua: Annotated[float, _says("highest accuracy on the forgotten class that is accepted")]
    max_ra_drop: Annotated[float, _says("largest loss of accuracy on the other classes")]


@_exact
class TargetData(TypedDict):
    """Which devices."""

    where: Annotated[str, _says("label selector; empty for all")]
    devices: Annotated[list[str], _says("named devices; empty for all")]
    continuous: Annotated[bool, _says("devices that come to match before the deadline are asked too")]


@_exact
class AbortRuleData(TypedDict):
    """When to stop."""

    state: Annotated[
        Literal["FAILED", "REJECTED", "TIMED_OUT", "ANY"], _says("which answers count; ANY: the three together")
    ]
    share: Annotated[float, _says("stop above this share of all answers")]


@_exact
class RolloutData(TypedDict):
    """How a request goes through its devices."""

    canary_share: Annotated[float, _says("share of the devices that go first; 0 if it is a number or there are none")]
    canary_count: Annotated[int, _says("number of devices that go first; 0 if it is a share or there are none")]
    rate: Annotated[int, _says("devices that begin in a period; 0 for all at once")]
    rate_period_seconds: Annotated[float, _says("length of that period")]
    growth: Annotated[float, _says("every wave is so many times the one before")]
    abort_if: Annotated[list[AbortRuleData], _says("rules that stop the request; the default one is shown too")]
    abort_after: Annotated[int, _says("answers before the rules are looked at; the end of the canary is enough")]
    timeout_seconds: Annotated[float, _says("a device that has begun must answer within this time; 0 for no limit")]
    max_attempts: Annotated[int, _says("times that a device is asked")]
    backoff_seconds: Annotated[float, _says("pause before the second attempt, doubled for each further one")]
    quiet_from: Annotated[int, _says("minutes after midnight on the device's clock from which it does not begin")]
    quiet_until: Annotated[int, _says("end of that span; the same as quiet_from for none")]
    without_samples: Annotated[
        Literal["reject", "aggregate"], _says("what is done for devices without images of the class")
    ]
    min_updates: Annotated[int, _says("updates that a patch is made of at least")]


@_exact
class ExecutionData(TypedDict):
    """One device's part of a request."""

    device_id: Annotated[str, _says("name of the device")]
    state: Annotated[ExecutionStateWord, _says("docs/fleet.md says which may follow which")]
    reason: Annotated[str, _says("why it is no success, as one word (POLICY_NOT_MET, DEADLINE, ...); else empty")]
    detail: Annotated[str, _says("the same in words; for a queued device why it was put off")]
    wave: Annotated[int, _says("its wave; 0 is the canary")]
    attempt: Annotated[int, _says("the newest attempt, from 1")]
    online: Annotated[bool, _says("whether the device is online now")]
    patched: Annotated[bool, _says("it got a patch instead of unlearning from images")]
    stage: Annotated[str, _says("what a device that is at work does; empty before it has said")]
    fraction: Annotated[float, _says("how far it is with that")]
    started_at: Annotated[Time | None, _says("begin of the newest attempt")]
    finished_at: Annotated[Time | None, _says("end; null while it is open")]
    not_before: Annotated[Time | None, _says("it begins no earlier: back-off, or quiet hours")]
    ua_before: Annotated[float | None, _says("accuracy on the forgotten class before, on the device's holdout")]
    ua_after: Annotated[float | None, _says("the same after")]
    ra_before: Annotated[float | None, _says("accuracy on the other classes before")]
    ra_after: Annotated[float | None, _says("the same after")]
    ra_drop: Annotated[float | None, _says("ra_before - ra_after of the accepted receipt")]
    ua_samples: Annotated[int, _says("images behind UA; 0 without a receipt")]
    ra_samples: Annotated[int, _says("images behind RA; 0 without a receipt")]
    forget_samples: Annotated[int, _says("images of the class that were used")]
    method: Annotated[str, _says("unlearning method that was used; empty without a receipt")]
    latency_seconds: Annotated[float | None, _says("from receiving the request to the receipt, on the device")]
    unlearning_seconds: Annotated[float | None, _says("the unlearning alone")]
    energy_joules: Annotated[float | None, _says("energy of the work, idle power subtracted where it was known")]
    energy_source: Annotated[str | None, _says("meter, or estimated")]
    peak_memory_bytes: Annotated[int | None, _says("largest memory of the worker")]
    model_digest_before: Annotated[str, _says("SHA-256 of the weights before; empty without a receipt")]
    model_digest_after: Annotated[str, _says("SHA-256 of the weights after")]
    receipt_verified: Annotated[bool, _says("the receipt carries a valid signature of this device over this request")]
    receipt: Annotated[str, _says("the receipt's DSSE envelope as received, JSON in a string; empty without one")]


@_exact
class ApprovalData(TypedDict):
    """A signature over a request."""

    key_id: Annotated[str, _says("key that signed")]
    name: Annotated[str, _says("what people call it, or the token it came with; coordinator for its own")]
    at: Annotated[Time | None, _says("when it came")]


@_exact
class RequestData(TypedDict):
    """A request."""

    request_id: Annotated[str, _says("UUID; commands take a unique beginning of at least 4 characters")]
    fleet: Annotated[str, _says("name of the fleet")]
    forget_class: Annotated[str, _says("class to forget")]
    method: Annotated[str, _says("method that was asked for; empty for the device's choice")]
    state: Annotated[RequestStateWord, _says("docs/fleet.md says which may follow which")]
    paused: Annotated[bool, _says("no device begins until it is resumed")]
    reason: Annotated[str, _says("why it was aborted or cancelled; else empty")]
    created_by: Annotated[str, _says("name of the token that made it")]
    created_at: Annotated[Time | None, _says("when it was made")]
    expires_at: Annotated[Time | None, _says("deadline")]
    finished_at: Annotated[Time | None, _says("when its last device was done; null while one is not")]
    policy: Annotated[PolicyData, _says("what a device must meet")]
    target: Annotated[TargetData, _says("which devices")]
    rollout: Annotated[RolloutData, _says("how it goes through them")]
    counts: Annotated[dict[str, int], _says("devices by execution state; states without devices are left out")]
    wave: Annotated[int, _says("newest wave that may begin; 0 while the canary goes")]
    waves: Annotated[int, _says("number of waves, the canary not counted")]
    waiting_offline: Annotated[int, _says("open devices that are offline; 0 in 'request list', which does not look")]
    waiting_patch: Annotated[int, _says("devices that wait for a patch; 0 in 'request list'")]
    eta_seconds: Annotated[float | None, _says("until those that are online have answered; null if unknown")]
    retry_of: Annotated[str | None, _says("request that this one repeats")]
    approvals: Annotated[list[ApprovalData], _says("signatures of keys that may approve")]
    approvals_needed: Annotated[int, _says("how many there must be before a device is asked")]


@_exact
class RequestWithDevicesData(RequestData):
    """A request and its devices."""

    devices: Annotated[list[ExecutionData], _says("by name; with --state only those in that state")]


@_exact
class DeviceData(TypedDict):
    """A device."""

    device_id: Annotated[str, _says("name")]
    fleet: Annotated[str, _says("fleet")]
    node_id: Annotated[str, _says("its node in Flower; a string, because JSON numbers lose bits")]
    online: Annotated[bool, _says("whether it is online")]
    last_seen: Annotated[Time | None, _says("exact to half a minute")]
    labels: Annotated[dict[str, str], _says("labels")]
    classes: Annotated[list[str], _says("classes that its model was enrolled with")]
    model_digest: Annotated[str, _says("SHA-256 of the weights in use, by its newest receipt")]
    software_version: Annotated[str, _says("of its agent")]
    enrolled_at: Annotated[Time | None, _says("when it was added")]
    retired_at: Annotated[Time | None, _says("when it was retired; null while it is in use")]


@_exact
class EventData(TypedDict):
    """One entry of the history."""

    id: Annotated[int, _says("place in the history, growing")]
    at: Annotated[Time | None, _says("when")]
    kind: Annotated[str, _says("what: execution.succeeded, request.aborted, device.retired, ...")]
    fleet: Annotated[str, _says("fleet, or empty")]
    device_id: Annotated[str, _says("device, or empty")]
    request_id: Annotated[str, _says("request, or empty")]
    actor: Annotated[str, _says("name of the token that did it; empty for the coordinator and for devices")]
    detail: Annotated[str, _says("in words")]


@_exact
class DeviceWithEventsData(DeviceData):
    """A device and its newest history."""

    events: Annotated[list[EventData], _says("the newest 20, newest first")]


@_exact
class PlannedDeviceData(TypedDict):
    """A device in a plan."""

    device_id: Annotated[str, _says("name")]
    online: Annotated[bool, _says("whether it is online now")]
    quiet_until: Annotated[Time | None, _says("end of the quiet hours that it is in now")]
    unknown_class: Annotated[bool, _says("its model does not know the class: it will answer REJECTED")]


@_exact
class WaveData(TypedDict):
    """A wave of a plan."""

    wave: Annotated[int, _says("number; 0 is the canary")]
    earliest_seconds: Annotated[float, _says("after the canary, or after the request if there is none")]
    devices: Annotated[list[PlannedDeviceData], _says("in the order in which they begin")]


@_exact
class PlanData(TypedDict):
    """What a request would do."""

    fleet: Annotated[str, _says("name of the fleet")]
    forget_class: Annotated[str, _says("class to forget")]
    expires_at: Annotated[Time | None, _says("deadline")]
    target: Annotated[TargetData, _says("which devices")]
    rollout: Annotated[RolloutData, _says("how it goes through them")]
    waves: Annotated[list[WaveData], _says("waves that have devices")]


@_exact
class FleetData(TypedDict):
    """A fleet."""

    name: Annotated[str, _says("name")]
    devices: Annotated[int, _says("devices in use")]
    classes: Annotated[list[str], _says("classes that at least one of them knows")]
    created_at: Annotated[Time | None, _says("when it was made")]
    approvers: Annotated[list[str], _says("key ids that decide over its requests")]
    require: Annotated[int, _says("how many of them must sign; 0 if the root does not name the fleet")]
    self_approved: Annotated[bool, _says("the coordinator's own key is enough")]


@_exact
class TokenData(TypedDict):
    """A token, without its secret."""

    name: Annotated[str, _says("name")]
    role: Annotated[Literal["viewer", "operator", "approver", "admin"], _says("what it may do")]
    state: Annotated[Literal["active", "expired", "revoked"], _says("whether it can be used")]
    created_by: Annotated[str, _says("token that made it")]
    created_at: Annotated[Time | None, _says("when")]
    expires_at: Annotated[Time | None, _says("null for never")]
    revoked_at: Annotated[Time | None, _says("null if it is not")]
    last_used_at: Annotated[Time | None, _says("exact to the minute; null if it never was")]


@_exact
class NewTokenData(TokenData):
    """A token that was just made."""

    secret: Annotated[str | None, _says("the token itself, this once; null if --out keeps it")]


@_exact
class KeyData(TypedDict):
    """A public key."""

    key_id: Annotated[str, _says("SHA-256 over the key, as securesystemslib makes it")]
    name: Annotated[str, _says("what people call it; empty if nobody said")]
    scheme: Annotated[str, _says("such as ed25519")]


@_exact
class RoleData(TypedDict):
    """So many of these keys."""

    threshold: Annotated[int, _says("how many must sign")]
    keys: Annotated[list[KeyData], _says("which may")]


@_exact
class RootFleetData(TypedDict):
    """What the root says of a fleet."""

    fleet: Annotated[str, _says("name")]
    request: Annotated[RoleData, _says("who decides over its requests")]
    epoch: Annotated[int, _says("highest 32 bits of the numbers of its requests")]


@_exact
class RevokedData(KeyData):
    """A key that may never have a role again."""

    revoked_at: Annotated[Time | None, _says("since when")]
    reason: Annotated[str, _says("why")]


@_exact
class RootData(TypedDict):
    """A root, or the draft of one."""

    installation: Annotated[str, _says("32 hex digits, the same in every version")]
    version: Annotated[int, _says("from 1")]
    sha256: Annotated[str, _says("digest of what is signed")]
    issued_at: Annotated[Time | None, _says("when it was made")]
    expires_at: Annotated[Time | None, _says("devices stop then unless there is a newer one")]
    root: Annotated[RoleData, _says("holders of the root")]
    timestamp: Annotated[RoleData, _says("who signs the time")]
    fleets: Annotated[list[RootFleetData], _says("by name")]
    revoked: Annotated[list[RevokedData], _says("keys that were revoked")]
    signed_by: Annotated[list[str], _says("key ids of its holders whose valid signature it carries")]


@_exact
class StatusData(TypedDict):
    """How the coordinator is."""

    version: Annotated[str, _says("of its software")]
    superlink_running: Annotated[bool, _says("devices can connect")]
    dispatcher_running: Annotated[bool, _says("devices are asked")]
    superlink_address: Annotated[str, _says("where devices connect")]
    metrics_url: Annotated[str, _says("for Prometheus")]
    devices: Annotated[int, _says("devices in use")]
    online: Annotated[int, _says("devices that are online")]
    root_version: Annotated[int, _says("version of the newest root")]
    root_expires_at: Annotated[Time | None, _says("devices stop then unless there is a newer root")]
    open_requests: Annotated[int, _says("requests that are AWAITING_APPROVAL, SCHEDULED or IN_PROGRESS")]


# Document -> the commands that print it. A list of them is marked with [].
DOCUMENTS: dict[str, tuple[object, str]] = {
    "status": (StatusData, "status"),
    "request": (
        RequestData,
        "request list [], request watch (one line each), request pause, resume, cancel, retry, approve and reject",
    ),
    "request-with-devices": (RequestWithDevicesData, "forget, request show"),
    "plan": (PlanData, "forget --dry-run"),
    "device": (DeviceData, "device list [], device add, trust, label and retire"),
    "device-with-events": (DeviceWithEventsData, "device show"),
    "event": (EventData, "history []"),
    "fleet": (FleetData, "fleet list [], fleet create and approvers"),
    "token": (TokenData, "token list [], token revoke"),
    "root": (RootData, "root show, draft, sign, publish and renew"),
    "key": (KeyData, "key create, key show"),
    "new-token": (NewTokenData, "token create"),
}
