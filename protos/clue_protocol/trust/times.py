"""Points in time as integers: nanoseconds since 1970-01-01 UTC, leap seconds ignored."""

from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 10**9
DAY = 86_400 * SECOND
# 9999-12-31 23:59:59, the last second that a protobuf Timestamp may hold.
LATEST = 253_402_300_799 * SECOND


def to_timestamp(time_ns: int) -> Timestamp:
    """``time_ns`` as protobuf has it; ValueError before 1970 or after 9999."""
    if not 0 <= time_ns <= LATEST:
        raise ValueError(f"{time_ns} ns lies outside of the years 1970 to 9999")
    return Timestamp(seconds=time_ns // SECOND, nanos=time_ns % SECOND)


def from_timestamp(timestamp: Timestamp) -> int:
    """The time in nanoseconds; ValueError before 1970, after 9999, or with malformed nanoseconds."""
    if not 0 <= timestamp.nanos < SECOND:
        raise ValueError("the nanoseconds of a date are out of range")
    time_ns = timestamp.seconds * SECOND + timestamp.nanos
    if not 0 <= time_ns <= LATEST:
        raise ValueError("a date lies outside of the years 1970 to 9999")
    return time_ns
