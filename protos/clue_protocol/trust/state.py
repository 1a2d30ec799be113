"""What a device must remember so that nobody can take it back in time: the highest of everything it has accepted.

A :class:`TrustState` is a value; what was accepted makes a new one, which is written to the disk before anything is
done with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clue_protocol.files import write_atomic
from clue_protocol.trust.attestation import AttestedTime
from clue_protocol.trust.chain import TrustedRoot
from clue_protocol.trust.errors import (
    RootForkError,
    RootRollbackError,
    TrustStateError,
    TrustStateRollbackError,
)
from clue_protocol.trust.keys import fingerprint
from clue_protocol.trust.times import LATEST

STATE_FORMAT = "clue-trust-state/1"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class FleetMark:
    """The request with the highest sequence number that was accepted, and SHA-256 of its payload (32 bytes)."""

    sequence: int
    digest: bytes


@dataclass(frozen=True)
class TrustState:
    """The highest of everything.

    Attributes:
        root_version: of the newest root that was accepted.
        root_digest: SHA-256 of its payload (32 bytes).
        attested_ns: it is at least this late, by signed dates.
        attestation_sequence: of the last time attestation.
        announced_root: the newest root version that an attestation named.
        fleets: the last request of each fleet.
    """

    root_version: int
    root_digest: bytes
    attested_ns: int
    attestation_sequence: int = 0
    announced_root: int = 0
    fleets: Mapping[str, FleetMark] = field(default_factory=dict)

    @classmethod
    def first(cls, root: TrustedRoot) -> "TrustState":
        """After enrolment. The root's own date is the first thing a device knows of the time."""
        return cls(root.root.version, root.digest, root.root.issued_ns)

    def after_root(self, old: TrustedRoot, new: TrustedRoot) -> "TrustState":
        """``new`` followed ``old`` by :func:`.chain.next_root`.

        If a timestamp key was taken out of its role, everything that it said is forgotten: a thief may have attested
        the year 2090, and all requests would have expired for ever (TUF calls it a fast-forward attack).
        """
        state = replace(self, root_version=new.root.version, root_digest=new.digest)
        if forgets_time(old, new):
            return replace(state, attested_ns=new.root.issued_ns, attestation_sequence=0, announced_root=0)
        return replace(state, attested_ns=max(state.attested_ns, new.root.issued_ns))

    def after_attestation(self, attested: AttestedTime) -> "TrustState":
        """``attested`` was accepted."""
        return replace(
            self,
            attested_ns=max(self.attested_ns, attested.time_ns),
            attestation_sequence=max(self.attestation_sequence, attested.sequence),
            announced_root=max(self.announced_root, attested.root_version),
        )

    def after_time(self, lower_ns: int) -> "TrustState":
        """It is at least ``lower_ns`` by now: to be stored now and then, so that a restart loses little."""
        return replace(self, attested_ns=max(self.attested_ns, lower_ns))

    def after_request(self, fleet: str, sequence: int, digest: bytes) -> "TrustState":
        """A request was accepted."""
        return replace(self, fleets={**self.fleets, fleet: FleetMark(sequence, digest)})

    def check_root(self, root: TrustedRoot) -> None:
        """That ``root``, read from the disk, is the one this state speaks of, or a newer one.

        The root is written before the state, so a power cut between the two leaves a root that is ahead.

        Raises:
            RootRollbackError: somebody put an older root there.
            RootForkError: another one of the same version.
        """
        if root.root.version < self.root_version:
            raise RootRollbackError(
                f"the stored root has version {root.root.version}, this device has accepted version {self.root_version}"
            )
        if root.root.version == self.root_version and root.digest != self.root_digest:
            raise RootForkError(f"the stored root of version {self.root_version} is not the one that was accepted")

    def is_behind(self, other: "TrustState") -> bool:
        """Would it be a step back to replace ``other`` by this state? Time may go back only with a newer root."""
        if self.root_version < other.root_version:
            return True
        if any(
            name not in self.fleets or self.fleets[name].sequence < mark.sequence for name, mark in other.fleets.items()
        ):
            return True
        return self.root_version == other.root_version and (
            self.root_digest != other.root_digest
            or self.attested_ns < other.attested_ns
            or self.attestation_sequence < other.attestation_sequence
            or self.announced_root < other.announced_root
        )

    def to_json(self) -> str:
        """The state's text."""
        fleets = {name: {"sequence": mark.sequence, "digest": mark.digest.hex()} for name, mark in self.fleets.items()}
        body = {
            "format": STATE_FORMAT,
            "root_version": self.root_version,
            "root_digest": self.root_digest.hex(),
            "attested_ns": self.attested_ns,
            "attestation_sequence": self.attestation_sequence,
            "announced_root": self.announced_root,
            "fleets": fleets,
        }
        return json.dumps(body, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "TrustState":
        """Parse it; TrustStateError if anything is missing or out of range."""
        try:
            data = json.loads(text)
            if data["format"] != STATE_FORMAT:
                raise TrustStateError(f"the trust state is not of format {STATE_FORMAT!r}")
            return cls(
                root_version=_integer(data["root_version"], 2**63),
                root_digest=_digest(data["root_digest"]),
                attested_ns=_integer(data["attested_ns"], LATEST + 1),
                attestation_sequence=_integer(data["attestation_sequence"], 2**64),
                announced_root=_integer(data["announced_root"], 2**64),
                fleets={
                    name: FleetMark(_integer(mark["sequence"], 2**64), _digest(mark["digest"]))
                    for name, mark in data["fleets"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise TrustStateError("the trust state is damaged") from None


def forgets_time(old: TrustedRoot, new: TrustedRoot) -> bool:
    """Was a timestamp key taken out of its role? What it said of the time is then worth nothing."""
    left = {fingerprint(key) for key in new.root.timestamp.keys}
    return bool({fingerprint(key) for key in old.root.timestamp.keys} - left)


def load_state(path: Path) -> TrustState:
    """Read the state.

    Raises:
        TrustStateError: it is missing, unreadable or damaged. The device then stops: to begin anew would let every old
            request in.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TrustStateError(
            f"cannot read the trust state {path}: {error.strerror}. Restore it, or enrol the device anew"
        ) from None
    if len(data) > _MAX_BYTES:
        raise TrustStateError(f"the trust state {path} is larger than {_MAX_BYTES} bytes")
    try:
        return TrustState.from_json(data)
    except TrustStateError as error:
        raise TrustStateError(f"{error}: {path}. Restore it, or enrol the device anew") from None


def save_state(path: Path, state: TrustState) -> None:
    """Write the state durably (temporary file, fsync, rename, fsync of the folder), mode 0600; one process may.

    Raises:
        TrustStateRollbackError: the stored state knows more.
        TrustStateError: the stored state is damaged, or the disk cannot be written; the stored one stays.
    """
    if path.exists() and state.is_behind(load_state(path)):
        raise TrustStateRollbackError(f"the trust state {path} knows more than what should replace it")
    try:
        write_atomic(path, state.to_json().encode(), mode=0o600)
    except OSError as error:
        raise TrustStateError(f"cannot write the trust state {path}: {error.strerror}") from None


def _integer(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError("not a number in range")
    return value


def _digest(value: str) -> bytes:
    digest = bytes.fromhex(value)
    if len(digest) != 32:
        raise ValueError("not a digest")
    return digest
