"""What time it is on a device that nobody has told the time, as far as that can be known.

A Raspberry Pi has no real-time clock: after a power cut it wakes up in 1970, or on the day it was last shut down, or,
with a bad NTP server, in 2090. What it can know is an interval. Signed time gives the lower bound: it was at least
that late when the attestation was made, and since then the boot clock has run on. Only an answer to a fresh nonce
gives an upper bound: the attestation cannot have been made before the question was asked.

All times are integers in nanoseconds; ``boot`` times are readings of ``CLOCK_BOOTTIME``, which also counts sleep.
"""

from dataclasses import dataclass, replace
from enum import Enum

from clue_protocol.trust.times import DAY

# The upper bound is used no longer than this after the question.
MAX_ATTESTATION_AGE = DAY
# How wrong a board's oscillator may be: the largest frequency error that NTP corrects. 43 s a day.
DRIFT_PPM = 500


class Verdict(Enum):
    """Of an expiry date."""

    VALID = "valid"
    EXPIRED = "expired"
    WAITING_FOR_TIME = "waiting for time"


@dataclass(frozen=True)
class ClockReading:
    """Everything that is known of the time at one instant.

    Attributes:
        lower_ns: it is at least this late, by signed time.
        upper_ns: it is at most this late, by a signed answer to a nonce; None without a recent one.
        device_ns: what the device's clock says.
        synchronised: the kernel says that the device's clock was set by NTP, PTP or an RTC, and the owner wants that
            to be believed. False is always safe: the device then asks for signed time before every request.
    """

    lower_ns: int
    upper_ns: int | None
    device_ns: int
    synchronised: bool


def judge_expiry(expires_ns: int, reading: ClockReading) -> Verdict:
    r"""Is something that is good until ``expires_ns`` (exclusive) still good?

    With e = expires, L = lower, U = upper, D = device clock:

    ========  ===========  ========================  ================
    e and L   e and U      device clock              verdict
    ========  ===========  ========================  ================
    e <= L    any          any                       EXPIRED
    e > L     e > U        any                       VALID
    e > L     e <= U       any                       WAITING_FOR_TIME
    e > L     no U         D < L                     WAITING_FOR_TIME
    e > L     no U         not synchronised          WAITING_FOR_TIME
    e > L     no U         synchronised, L <= D < e  VALID
    e > L     no U         synchronised, D >= e      WAITING_FOR_TIME
    ========  ===========  ========================  ================

    So only signed time makes anything expire: a clock that is ahead cannot refuse a valid request for ever. And only
    signed time, or a clock that was set and does not contradict it, makes anything valid: one that is behind cannot
    accept an expired request. Waiting ends with the next answer to a nonce; in the third row by itself, within the
    duration of that answer's round trip.
    """
    if expires_ns <= reading.lower_ns:
        return Verdict.EXPIRED
    if reading.upper_ns is not None:
        return Verdict.VALID if expires_ns > reading.upper_ns else Verdict.WAITING_FOR_TIME
    if reading.synchronised and reading.lower_ns <= reading.device_ns < expires_ns:
        return Verdict.VALID
    return Verdict.WAITING_FOR_TIME


@dataclass(frozen=True)
class TimeKnowledge:
    """Both bounds, and when they were learnt. It lives as long as the boot; the lower bound is stored.

    Attributes:
        known_ns: at ``known_boot_ns`` it was at least this late.
        known_boot_ns: see ``known_ns``.
        answered_ns: time of the newest attestation that answered a nonce; None if there was none in this boot.
        asked_boot_ns: when its nonce was sent.
    """

    known_ns: int
    known_boot_ns: int
    answered_ns: int | None = None
    asked_boot_ns: int = 0

    @classmethod
    def after_start(cls, stored_ns: int, boot_ns: int) -> "TimeKnowledge":
        """From the stored lower bound: it is later now than when it was stored."""
        return cls(stored_ns, boot_ns)

    def learn(self, time_ns: int, boot_ns: int) -> "TimeKnowledge":
        """An attestation of ``time_ns`` came; it may be old, so only the lower bound may rise."""
        if time_ns <= self.lower(boot_ns):
            return self
        return replace(self, known_ns=time_ns, known_boot_ns=boot_ns)

    def learn_answer(self, time_ns: int, boot_ns: int, asked_boot_ns: int) -> "TimeKnowledge":
        """An attestation of ``time_ns`` came that carries the nonce sent at ``asked_boot_ns``."""
        return replace(self.learn(time_ns, boot_ns), answered_ns=time_ns, asked_boot_ns=asked_boot_ns)

    def lower(self, boot_ns: int) -> int:
        """It is at least this late: ``known + elapsed * (1 - drift)``."""
        return self.known_ns + _less_drift(max(boot_ns - self.known_boot_ns, 0))

    def upper(self, boot_ns: int) -> int | None:
        """It is at most this late: ``answered + elapsed * (1 + drift)``; None without a recent answer."""
        elapsed = boot_ns - self.asked_boot_ns
        if self.answered_ns is None or not 0 <= elapsed <= MAX_ATTESTATION_AGE:
            return None
        return self.answered_ns + elapsed + _drift(elapsed)

    def reading(self, boot_ns: int, device_ns: int, synchronised: bool) -> ClockReading:
        """For :func:`judge_expiry`."""
        return ClockReading(self.lower(boot_ns), self.upper(boot_ns), device_ns, synchronised)


def _drift(elapsed: int) -> int:
    return -(-elapsed * DRIFT_PPM // 10**6)


def _less_drift(elapsed: int) -> int:
    return elapsed - _drift(elapsed)
