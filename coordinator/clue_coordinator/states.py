"""The states of requests and executions, and which change may follow which.

The words are those of AWS IoT Jobs. Every change goes through :func:`check_change`, so a bug
shows up as an error and not as a device that silently forgets twice.
"""

from enum import StrEnum


class RequestState(StrEnum):
    """State of a request."""

    # Not enough of those who decide over the fleet have signed it.
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    # Stopped by its own abort criteria.
    ABORTED = "ABORTED"


class ExecutionState(StrEnum):
    """State of a request on one device."""

    QUEUED = "QUEUED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    REMOVED = "REMOVED"


FINAL = frozenset(set(ExecutionState) - {ExecutionState.QUEUED, ExecutionState.IN_PROGRESS})
ACTIVE = frozenset({ExecutionState.QUEUED, ExecutionState.IN_PROGRESS})
# Answers that are no success, and none at all in time.
UNSUCCESSFUL = (ExecutionState.FAILED, ExecutionState.REJECTED, ExecutionState.TIMED_OUT)
FINAL_REQUEST = frozenset({RequestState.COMPLETED, RequestState.CANCELED, RequestState.ABORTED})
OPEN_REQUEST = frozenset(set(RequestState) - FINAL_REQUEST)
# Devices may be asked.
APPROVED_REQUEST = frozenset({RequestState.SCHEDULED, RequestState.IN_PROGRESS})
_ANSWERED = frozenset({ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.REJECTED})

_NEXT = {
    ExecutionState.QUEUED: FINAL | {ExecutionState.IN_PROGRESS},
    # Back to the queue when the device went away before it answered.
    ExecutionState.IN_PROGRESS: FINAL | {ExecutionState.QUEUED},
    # The work was done after all: the receipt of a device that came back late is the truth.
    ExecutionState.TIMED_OUT: _ANSWERED,
    ExecutionState.CANCELED: _ANSWERED,
}


def may_follow(old: ExecutionState, new: ExecutionState) -> bool:
    """True if an execution in ``old`` may become ``new``."""
    return new in _NEXT.get(old, frozenset())


def check_change(old: ExecutionState, new: ExecutionState) -> None:
    """Raise ValueError unless :func:`may_follow`."""
    if not may_follow(old, new):
        raise ValueError(f"an execution cannot go from {old} to {new}")
