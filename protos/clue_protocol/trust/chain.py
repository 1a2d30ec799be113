"""From the root a device has to the newest one, step by step, as TUF clients do.

Each root is signed by a threshold of the root keys of the version before *and* of its own: the old holders hand over,
the new ones show that they have their keys. Versions rise by one and each names the digest of the last, so there is
one chain only. A device that missed some rotations is given all of them; only the last one has to be in date.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Key

from clue_protocol.envelope import parse_payload
from clue_protocol.trust.envelopes import ROOT_TYPE, payload_digest, read_envelope, require_threshold
from clue_protocol.trust.errors import (
    RootContentError,
    RootForkError,
    RootGapError,
    RootInstallationError,
    RootPinError,
    RootRevocationError,
    RootRollbackError,
)
from clue_protocol.trust.root import FleetTrust, Revocation, Role, Root
from clue_protocol.v1 import trust_pb2 as pb


@dataclass(frozen=True)
class TrustedRoot:
    """A root whose signatures were verified.

    Attributes:
        root: its content.
        digest: SHA-256 of its payload (32 bytes).
        envelope: its bytes, to be kept in a file and passed on.
    """

    root: Root
    digest: bytes
    envelope: bytes


def pin_root(data: bytes, digest: bytes) -> TrustedRoot:
    """The first root of a device, of any version, known by its digest from a source the device trusts (enrolment).

    Args:
        data: the envelope.
        digest: SHA-256 of the root's payload, 32 bytes.

    Raises:
        RootPinError: another root.
        ThresholdError: not signed by a threshold of its own root keys.
        EnvelopeError, PublicKeyError, RootContentError: not a root.
    """
    envelope = read_envelope(data, ROOT_TYPE)
    if payload_digest(envelope) != digest:
        raise RootPinError("the root is not the one that this device was told to trust")
    return _accept(data, envelope, Root.from_payload(envelope.payload))


def next_root(trusted: TrustedRoot, data: bytes) -> TrustedRoot:
    """Go one version further.

    Raises:
        ThresholdError: too few of the old root keys signed, or too few of the new.
        RootInstallationError, RootRollbackError, RootForkError, RootGapError, RootRevocationError: see there.
        EnvelopeError, PublicKeyError, RootContentError: not a root.
    """
    old = trusted.root
    envelope = read_envelope(data, ROOT_TYPE)
    # To refuse something for what it claims to be is safe before its signatures are looked at, and says more: after a
    # rotation, roots that are too old or too new are not signed by the keys that this device knows.
    claimed = parse_payload(envelope, pb.Root).version
    if claimed < old.version:
        raise RootRollbackError(f"root version {claimed} is older than version {old.version}, which this device has")
    if claimed > old.version + 1:
        raise RootGapError(f"root version {claimed} came, but version {old.version + 1} is needed first")
    require_threshold(envelope, old.root.keys, old.root.threshold, "the new root (by the keys of the last one)")
    new = Root.from_payload(envelope.payload)
    if new.installation != old.installation:
        raise RootInstallationError("the new root is of another installation")
    if new.version == old.version:
        raise RootForkError(f"two different roots have version {new.version}: root keys were misused")
    if new.previous_digest != trusted.digest:
        raise RootForkError(f"root version {new.version} follows another version {old.version}: root keys were misused")
    if new.issued_ns < old.issued_ns:
        raise RootContentError(f"root version {new.version} is dated before version {old.version}")
    _check_kept(old, new)
    return _accept(data, envelope, new)


def walk_chain(trusted: TrustedRoot, envelopes: Iterable[bytes]) -> TrustedRoot:
    """Follow successors in order; the root that is trusted already may stand at the beginning.

    Whether the last one is in date is for :func:`.request.verify_request` to say: a chain of expired roots is how a
    device comes back after a year.

    Raises:
        As :func:`next_root`. Nothing is kept in between, so the caller still trusts what it did.
    """
    for data in envelopes:
        if payload_digest(read_envelope(data, ROOT_TYPE)) == trusted.digest:
            continue
        trusted = next_root(trusted, data)
    return trusted


def successor(
    trusted: TrustedRoot,
    issued_ns: int,
    expires_ns: int,
    *,
    root: Role | None = None,
    timestamp: Role | None = None,
    log: Role | None = None,
    fleets: dict[str, FleetTrust] | None = None,
    revoke: Iterable[tuple[Key, str]] = (),
) -> Root:
    """The next version, to be signed; what is not named stays as it is.

    Args:
        trusted: the version before.
        issued_ns: when it is made, ns since 1970.
        expires_ns: when it must have been replaced, ns since 1970.
        root: who signs roots from now on.
        timestamp: who signs time attestations from now on.
        log: who signs the transparency log from now on; keys that it was signed with before stay readable if they stay.
        fleets: fleets that are added or changed, by name.
        revoke: keys and why; the roles that are not replaced must not hold them.

    Raises:
        RootContentError: the result contradicts itself, as where a revoked key still has a role.
    """
    old = trusted.root
    gone = tuple(Revocation(key, issued_ns, reason) for key, reason in revoke)
    return replace(
        old,
        version=old.version + 1,
        issued_ns=issued_ns,
        expires_ns=expires_ns,
        root=root or old.root,
        timestamp=timestamp or old.timestamp,
        log=log or old.log,
        fleets={**old.fleets, **(fleets or {})},
        revoked=(*old.revoked, *gone),
        previous_digest=trusted.digest,
    )


def _accept(data: bytes, envelope: Envelope, root: Root) -> TrustedRoot:
    require_threshold(envelope, root.root.keys, root.root.threshold, "the root (by its own keys)")
    return TrustedRoot(root, payload_digest(envelope), data)


def _check_kept(old: Root, new: Root) -> None:
    if not old.revoked_fingerprints() <= new.revoked_fingerprints():
        raise RootRevocationError("the new root drops a revocation")
    for name, fleet in new.fleets.items():
        if name in old.fleets and fleet.epoch < old.fleets[name].epoch:
            raise RootRevocationError(f"the new root lowers the epoch of fleet {name}")
