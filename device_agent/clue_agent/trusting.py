"""Whom this device obeys, and what it knows of the time: the judge of every request, before anything is touched.

The rules are those of :mod:`clue_protocol.trust`; here are the files, the clocks and the threads. Roots and times come
with every delivery and are taken or left by their signatures alone. What a device cannot judge yet it holds: the
answer says what is missing, and the request is judged again when it is delivered again.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clue_agent.boottime import Clock, Instant, SystemClock
from clue_agent.trust_files import TrustFiles
from clue_protocol.documents import Trust
from clue_protocol.envelope import REQUEST_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import (
    ROOT_TYPE,
    AttestedTime,
    Challenge,
    ClockReading,
    FleetMark,
    TimeKnowledge,
    TrustedRoot,
    TrustState,
    VerifiedRequest,
    check_approvals,
    next_root,
    open_attestation,
    verify_request,
)
from clue_protocol.trust.clock import MAX_ATTESTATION_AGE
from clue_protocol.trust.envelopes import payload_digest, read_envelope
from clue_protocol.trust.errors import (
    AttestationReplayError,
    NonceError,
    RequestEpochError,
    RootForkError,
    TrustStateError,
    WaitingForTimeError,
)
from clue_protocol.trust.request import EPOCH_SHIFT
from clue_protocol.trust.state import forgets_time
from clue_protocol.trust.times import SECOND
from clue_protocol.v1 import forget_pb2 as pb
from clue_protocol.v1 import trust_pb2

log = logging.getLogger(__name__)

# How much of the time a power cut may cost, of what was signed before it; each store is a write to the card.
_STORE_NS = 600 * SECOND
# A question that nobody has answered so long is asked anew: its answer would say little.
_ASK_AGAIN_NS = MAX_ATTESTATION_AGE // 4


@dataclass(frozen=True)
class TrustReport:
    """For people: what this device trusts and knows of the time.

    Attributes:
        installation: 32 hex digits.
        root_version: of the newest root that it has accepted.
        root_expires_ns: when that must have been replaced, ns since 1970.
        announced_root: the newest version that it has heard of.
        knows_fleet: does the root say who decides over the device's fleet?
        at_least_ns: it is at least that late, by signed time.
        at_most_ns: it is at most that late; None until a question was answered.
        asking: a question is open.
    """

    installation: str
    root_version: int
    root_expires_ns: int
    announced_root: int
    knows_fleet: bool
    at_least_ns: int
    at_most_ns: int | None = None
    asking: bool = False


class DeviceTrust:
    """The trust of one device. Any thread may call it.

    Args:
        folder: ``home/trust``; the caller holds the home's lock.
        trust: the document that the device was given.
        clock: the device's clocks.

    Raises:
        TrustStateError: what was stored is missing or damaged, or does not belong to ``trust``.
    """

    def __init__(self, folder: Path, trust: Trust, clock: Clock | None = None) -> None:
        self._files = TrustFiles(folder)
        self._fleet = trust.fleet
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._root, self._state = self._files.load()
        check_belongs(self._files, self._root, trust)
        self._files.save_state(self._state)
        self._start(self._clock.now())

    def _start(self, now: Instant) -> None:
        """A new boot: nothing is left of what was measured with the boot clock."""
        self._boot_id = now.boot_id
        self._challenge: Challenge | None = None
        self._knowledge = TimeKnowledge.after_start(self._state.attested_ns, now.boot_ns)
        self._stored_ns = self._state.attested_ns

    # What it has

    @property
    def root_version(self) -> int:
        """Of the newest root that was accepted."""
        return self._root.root.version

    @property
    def nonce(self) -> bytes:
        """The open question for the time; empty if there is none."""
        with self._lock:
            self._now()
            return self._challenge.nonce if self._challenge is not None else b""

    def report(self) -> TrustReport:
        """For people."""
        with self._lock:
            now = self._now()
            return replace(
                report_of(self._root, self._state, self._fleet),
                at_least_ns=self._knowledge.lower(now.boot_ns),
                at_most_ns=self._knowledge.upper(now.boot_ns),
                asking=self._challenge is not None,
            )

    # What comes with a delivery

    def receive(self, roots: Sequence[bytes], attestation: bytes) -> bool:
        """Take in what is new of roots and time; True if anything was. What is not properly signed is left, and logged.

        Raises:
            TrustStateError: it cannot be stored, and so does not count.
        """
        if not roots and not attestation:
            return False
        with self._lock:
            before = (self._root, self._knowledge)
            self._follow(roots)
            if attestation:
                self._learn(attestation)
            return before != (self._root, self._knowledge)

    def _follow(self, roots: Sequence[bytes]) -> None:
        """Walk as far as the roots lead: each one is good in itself, whatever follows."""
        root = self._root
        for data in roots:
            try:
                envelope = read_envelope(data, ROOT_TYPE)
                # The sender may not have heard yet how far this device is.
                claimed = peek_message(data, ROOT_TYPE, trust_pb2.Root).version
                if claimed < root.root.version or payload_digest(envelope) == root.digest:
                    continue
                root = next_root(root, data)
            except RootForkError as error:
                log.error("a root was refused: %s", error)
                break
            except ProtocolError as error:
                log.warning("a root was refused: %s", error)
                break
        if root is not self._root:
            self._go_to(root)

    def _go_to(self, new: TrustedRoot) -> None:
        old, now = self._root, self._now()
        state = self._state.after_time(self._knowledge.lower(now.boot_ns)).after_root(old, new)
        self._files.save(old, new, state)
        self._root, self._state = new, state
        log.info("root version %d was accepted", new.root.version)
        self._stored_ns = state.attested_ns
        if forgets_time(old, new):
            self._knowledge = TimeKnowledge.after_start(state.attested_ns, now.boot_ns)
        else:
            self._knowledge = self._knowledge.learn(new.root.issued_ns, now.boot_ns)

    def _learn(self, data: bytes) -> None:
        now = self._now()
        try:
            attested = self._open(data, now)
        except AttestationReplayError as error:
            log.info("a time attestation says nothing new: %s", error)  # two deliveries crossed
            return
        except ProtocolError as error:
            log.warning("a time attestation was refused: %s", error)
            return
        announced = attested.root_version > self._state.announced_root
        self._state = self._state.after_attestation(attested)
        if attested.answers is None:
            self._knowledge = self._knowledge.learn(attested.time_ns, now.boot_ns)
        else:
            asked = attested.answers.asked_boot_ns
            self._knowledge = self._knowledge.learn_answer(attested.time_ns, now.boot_ns, asked)
            self._challenge = None
        # That a newer root exists must survive a power cut at once; a few minutes need not.
        if announced or attested.time_ns - self._stored_ns >= _STORE_NS:
            self._store(self._state)

    def _open(self, data: bytes, now: Instant) -> AttestedTime:
        def opened(challenge: Challenge | None) -> AttestedTime:
            return open_attestation(
                data,
                self._root,
                lower_ns=self._knowledge.lower(now.boot_ns),
                last_sequence=self._state.attestation_sequence,
                challenge=challenge,
            )

        if self._challenge is not None:
            try:
                return opened(self._challenge)
            except NonceError:
                pass  # for everyone, perhaps
        return opened(None)

    # Judging

    def judge(self, envelope: bytes, *, again: bool = False) -> VerifiedRequest:
        """May this request be carried out? Nothing is changed, but that a question for the time may be open then.

        Args:
            envelope: the request.
            again: this very request was accepted before, as the journal knows: another attempt at it is no replay,
                even if a later request was accepted in between.

        Raises:
            TrustError, EnvelopeError: as :func:`clue_protocol.trust.verify_request`.
        """
        with self._lock:
            now = self._now()
            state = self._state
            if again:
                state = _as_if_last(envelope, state)
            lower, upper = self._knowledge.lower(now.boot_ns), self._knowledge.upper(now.boot_ns)
            reading = ClockReading(lower, upper, now.device_ns, synchronised=False)
            try:
                return verify_request(envelope, root=self._root, fleet=self._fleet, state=state, reading=reading)
            except WaitingForTimeError:
                self._ask(now)
                raise

    def accept(self, verified: VerifiedRequest) -> None:
        """Store that a request was accepted; to be called before it is promised.

        Raises:
            TrustStateError: that cannot be stored.
        """
        with self._lock:
            mark = self._state.fleets.get(self._fleet)
            if mark is not None and verified.request.sequence <= mark.sequence:
                return
            self._store(verified.accepted(self._state))

    def approved(self, envelope: bytes) -> pb.ForgetRequest:
        """A request that the right people signed, by the root as it is now. Number, dates and model are not looked at.

        Raises:
            TrustError, EnvelopeError: they did not, or its epoch is over.
        """
        with self._lock:
            check_approvals(envelope, self._root.root, self._fleet)
            request = peek_message(envelope, REQUEST_TYPE, pb.ForgetRequest)
            epoch = self._root.root.fleets[self._fleet].epoch
            if request.sequence >> EPOCH_SHIFT != epoch:
                raise RequestEpochError(f"the root has opened epoch {epoch} since this request was made")
            return request

    def _ask(self, now: Instant) -> None:
        if self._challenge is None or now.boot_ns - self._challenge.asked_boot_ns > _ASK_AGAIN_NS:
            self._challenge = Challenge.new(now.boot_ns)

    # Keeping

    def keep_time(self, *, at_once: bool = False) -> None:
        """Store how late it is at least: now and then, and at the end. A card that cannot be written is logged."""
        with self._lock:
            lower = self._knowledge.lower(self._now().boot_ns)
            if lower - self._stored_ns < (SECOND if at_once else _STORE_NS):
                return
            try:
                self._store(self._state)
            except TrustStateError as error:
                log.warning("the time is not kept: %s", error)
                self._stored_ns = lower  # not again in a moment

    def _store(self, state: TrustState) -> None:
        state = state.after_time(self._knowledge.lower(self._now().boot_ns))
        self._files.save_state(state)
        self._state = state
        self._stored_ns = state.attested_ns

    def _now(self) -> Instant:
        now = self._clock.now()
        if now.boot_id != self._boot_id:
            self._start(now)
        return now


def _as_if_last(envelope: bytes, state: TrustState) -> TrustState:
    request = peek_message(envelope, REQUEST_TYPE, pb.ForgetRequest)
    mark = FleetMark(request.sequence, payload_digest(read_envelope(envelope, REQUEST_TYPE)))
    return replace(state, fleets={**state.fleets, request.fleet: mark})


def check_belongs(files: TrustFiles, root: TrustedRoot, trust: Trust) -> None:
    """That the stored root is of the installation that the trust document names, and not older than its root.

    Raises:
        TrustStateError: it is not.
    """
    claimed = peek_message(trust.root, ROOT_TYPE, trust_pb2.Root)
    if claimed.installation != root.root.installation or claimed.version > root.root.version:
        raise TrustStateError(
            f"the trust document and {files.folder} do not belong together: run 'clue-agent trust' again"
        )


def report_of(root: TrustedRoot, state: TrustState, fleet: str) -> TrustReport:
    """What the files alone say."""
    return TrustReport(
        installation=root.root.installation,
        root_version=root.root.version,
        root_expires_ns=root.root.expires_ns,
        announced_root=state.announced_root,
        knows_fleet=fleet in root.root.fleets,
        at_least_ns=state.attested_ns,
    )


__all__ = ["DeviceTrust", "TrustReport", "check_belongs", "report_of"]
