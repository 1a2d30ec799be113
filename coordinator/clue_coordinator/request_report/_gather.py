"""Everything that a report needs, by way of the operator API."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clue_coordinator.client import OperatorClient
from clue_coordinator.plain import execution_state
from clue_coordinator.terminal import natural
from clue_protocol.v1 import forget_pb2
from clue_protocol.v1 import operator_pb2 as pb

# A device leaves a handful of events; what it did is in its execution too.
_MOST_EVENTS = 200_000
_KEPT_EVENTS = 300
ENDED = ("SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "CANCELED", "REMOVED")


@dataclass(frozen=True)
class DeviceAnswer:
    """What a report says of one device.

    Attributes:
        name: of the device.
        state: one word.
        reason: why it is no success, one word; empty for one.
        detail: the same in words.
        wave: 0 is the canary.
        attempts: times that it was asked.
        patched: it got a patch instead of unlearning from images.
        began: seconds after the request was made; None if it has not begun.
        ended: likewise.
        receipt: None if it has not answered.
        verified: the receipt's signature is that of the device, over this request.
    """

    name: str
    state: str
    reason: str
    detail: str
    wave: int
    attempts: int
    patched: bool
    began: float | None
    ended: float | None
    receipt: forget_pb2.Receipt | None
    verified: bool

    def rate(self, name: str) -> float | None:
        """``ua_before``, ``ua_after``, ``ra_before`` or ``ra_after`` of the receipt, in percent."""
        if self.receipt is None:
            return None
        accuracy: forget_pb2.Accuracy = getattr(self.receipt, name)
        return 100.0 * accuracy.correct / accuracy.samples if accuracy.samples else None

    @property
    def ra_drop(self) -> float | None:
        """RA before less RA after, in points."""
        before, after = self.rate("ra_before"), self.rate("ra_after")
        return None if before is None or after is None else before - after

    @property
    def worked(self) -> bool:
        """The device got as far as measuring what its work cost."""
        return self.receipt is not None and self.receipt.HasField("energy")


@dataclass(frozen=True)
class Gathered:
    """A request, its devices, and its history.

    Attributes:
        view: the request.
        devices: by name, cam-9 before cam-10.
        events: of the request itself and of people, oldest first.
        events_of_devices: how many others there are, by kind.
        made_at: when all of this was read.
        version: of the coordinator.
    """

    view: pb.RequestView
    devices: list[DeviceAnswer]
    events: list[pb.Event]
    made_at: datetime
    version: str
    events_of_devices: Counter[str] = field(default_factory=Counter)

    def having(self, *states: str) -> list[DeviceAnswer]:
        """Devices in one of these states."""
        return [device for device in self.devices if device.state in states]


def gather(client: OperatorClient, request_id: str) -> Gathered:
    """Ask for everything about a request; a unique beginning of its id is enough."""
    view = client.get_request(request_id, executions=1)
    start = _seconds(view, "created_at") or 0.0
    devices = sorted(
        (_answer(execution, start) for execution in client.list_executions(view.request_id)),
        key=lambda device: natural(device.name),
    )
    kept: list[pb.Event] = []
    others: Counter[str] = Counter()
    for event in client.list_events(request_id=view.request_id, limit=_MOST_EVENTS):
        if event.actor or not event.device_id:
            kept.append(event)
        else:
            others[event.kind] += 1
    events = kept[:_KEPT_EVENTS][::-1]
    others.update(event.kind for event in kept[_KEPT_EVENTS:])
    # As it is after the devices were read: a request may go on meanwhile.
    view = client.get_request(view.request_id, executions=1)
    return Gathered(view, devices, events, datetime.now(UTC), client.server_info().version, others)


def _answer(execution: pb.ExecutionView, start: float) -> DeviceAnswer:
    began, ended = _seconds(execution, "started_at"), _seconds(execution, "finished_at")
    return DeviceAnswer(
        name=execution.device_id,
        state=execution_state(execution),
        reason=execution.reason,
        detail=execution.detail,
        wave=execution.wave,
        attempts=execution.attempts,
        patched=execution.patched,
        began=None if began is None else began - start,
        ended=None if ended is None else ended - start,
        receipt=execution.receipt if execution.HasField("receipt") else None,
        verified=execution.receipt_verified,
    )


def _seconds(message: Any, name: str) -> float | None:
    stamp = getattr(message, name)
    return stamp.ToNanoseconds() / 1e9 if message.HasField(name) and stamp.seconds else None
