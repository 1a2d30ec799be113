"""The installation's roots in the ledger: the newest one, those that a device misses, and the next one."""

import logging
from collections.abc import Mapping
from functools import lru_cache

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from clue_coordinator import tlog
from clue_coordinator.errors import ConflictError, RootRefusedError, UsageError
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Fleet, KeyName, RootVersion
from clue_coordinator.role_keys import holds
from clue_protocol.errors import EnvelopeError, ProtocolError
from clue_protocol.trust import (
    ROOT_TYPE,
    FleetTrust,
    Role,
    Root,
    TrustedRoot,
    add_signature,
    new_installation_id,
    next_root,
    pin_root,
    successor,
)
from clue_protocol.trust.envelopes import payload_digest, read_envelope
from clue_protocol.trust.request import EPOCH_SHIFT
from clue_protocol.trust.times import DAY

log = logging.getLogger(__name__)

LIFETIME_NS = 365 * DAY
# What the first root's keys are called: the one that signs roots, and the two that the coordinator works with.
OWN_NAMES = ("home", "coordinator")
# A root that expires stops every device: people are told so long before.
WARN_SECONDS = 30 * 86400.0


def latest(session: Session) -> TrustedRoot:
    """The newest root; ConflictError if the ledger has none yet."""
    row = session.execute(
        select(RootVersion.envelope, RootVersion.digest).order_by(RootVersion.version.desc()).limit(1)
    ).one_or_none()
    if row is None:
        raise ConflictError("this installation has no root yet: it is made when the coordinator starts")
    return _opened(bytes(row.envelope), row.digest)


def latest_or_none(session: Session) -> TrustedRoot | None:
    """The newest root, None before there is one."""
    return latest(session) if session.scalar(select(RootVersion.version).limit(1)) is not None else None


def at_version(session: Session, version: int) -> TrustedRoot:
    """The root of this version; ConflictError if there is none."""
    row = session.get(RootVersion, version)
    if row is None:
        raise ConflictError(f"there is no root version {version}: the newest is version {latest(session).root.version}")
    return _opened(bytes(row.envelope), row.digest)


def since(session: Session, version: int) -> list[bytes]:
    """The envelopes of all later versions, oldest first."""
    query = select(RootVersion.envelope).where(RootVersion.version > version).order_by(RootVersion.version)
    return [bytes(envelope) for envelope in session.scalars(query)]


def publish(ledger: Ledger, envelope: bytes, keys: HomeKeys, names: Mapping[str, str] | None = None) -> TrustedRoot:
    """Make ``envelope`` the newest root; what is the newest root already changes nothing.

    Args:
        ledger: where.
        envelope: signed by enough holders.
        keys: the coordinator's own, to see whether it can still tell the time.
        names: what people call the keys, by key id.

    Raises:
        UsageError: it is no root.
        RootRefusedError: it does not follow the newest root, too few holders have signed, it has expired, or it names
            no timestamp key of this coordinator.
    """
    with ledger.write() as session:
        return publish_in(session, ledger, envelope, keys, names)


def publish_in(
    session: Session, ledger: Ledger, envelope: bytes, keys: HomeKeys, names: Mapping[str, str] | None = None
) -> TrustedRoot:
    """:func:`publish` in a transaction of the caller's."""
    from clue_coordinator.approvals import after_root

    old = latest(session)
    try:
        if payload_digest(read_envelope(envelope, ROOT_TYPE)) == old.digest:
            return old
        new = next_root(old, envelope)
    except EnvelopeError as error:
        raise UsageError(f"this is no signed root: {error}") from None
    except ProtocolError as error:
        raise RootRefusedError(str(error)) from None
    if new.root.expires_ns <= ledger.clock() * 1e9:
        raise RootRefusedError(f"root version {new.root.version} has expired: draft another one")
    role = new.root.timestamp
    if role.threshold > 1 or not any(holds(role, signer.public_key) for signer in keys.timestamps):
        raise RootRefusedError(
            f"root version {new.root.version} names no timestamp key of this coordinator that is enough by itself: "
            "devices would no longer be told the time"
        )
    _store(session, ledger, new, names)
    if len(new.root.revoked) > len(old.root.revoked):
        tlog.append(session, "revocation", envelope, f"root-{new.root.version}")
    after_root(session, ledger, new.root)
    return new


def found(ledger: Ledger, keys: HomeKeys) -> TrustedRoot:
    """Version 1, signed by the home's root key, with the fleets there are; the newest one if there is one already."""
    with ledger.write() as session:
        if (there := latest_or_none(session)) is not None:
            return there
        if keys.root is None or not keys.timestamps:
            raise ConflictError("a first root needs a root key and a timestamp key in the home folder")
        now = _now_ns(ledger)
        own = FleetTrust(Role((keys.request.public_key,)))
        root = Root(
            installation=keys.log.installation if keys.log else new_installation_id(),
            version=1,
            issued_ns=now,
            expires_ns=now + LIFETIME_NS,
            root=Role((keys.root.public_key,)),
            timestamp=Role((keys.timestamps[0].public_key,)),
            fleets=dict.fromkeys(session.scalars(select(Fleet.name)), own),
            log=Role((keys.log.signer.public_key,)) if keys.log else None,
        )
        envelope = add_signature(root.to_envelope(), ROOT_TYPE, keys.root)
        trusted = pin_root(envelope, payload_digest(read_envelope(envelope, ROOT_TYPE)))
        home, coordinator = OWN_NAMES
        own_keys = ((keys.root, home), (keys.timestamps[0], coordinator), (keys.request, coordinator))
        _store(session, ledger, trusted, {str(signer.public_key.keyid): name for signer, name in own_keys})
        return trusted


def add_fleet(
    session: Session, ledger: Ledger, keys: HomeKeys, fleet: str, request: Role | None, names: Mapping[str, str]
) -> bool:
    """Put a fleet into the next root, if the home's root key alone may sign that; False if it may not.

    Args:
        session: of the transaction that makes the fleet.
        ledger: its ledger.
        keys: of the home.
        fleet: its name.
        request: who approves its requests; None for the coordinator's own key.
        names: what people call the keys, by key id.
    """
    trusted = latest_or_none(session)
    if trusted is None or not is_held(trusted.root, keys):
        return False
    trust = FleetTrust(request or Role((keys.request.public_key,)))
    now = max(_now_ns(ledger), trusted.root.issued_ns)
    try:
        new = successor(trusted, now, max(now + LIFETIME_NS, trusted.root.expires_ns), fleets={fleet: trust})
        assert keys.root is not None  # noqa: S101
        publish_in(session, ledger, add_signature(new.to_envelope(), ROOT_TYPE, keys.root), keys, names)
    except ProtocolError as error:
        raise RootRefusedError(str(error)) from None
    return True


def renew_if_due(ledger: Ledger, keys: HomeKeys) -> bool:
    """Give a root that expires within a month another year, if the home's root key alone may sign that."""
    with ledger.read() as session:
        trusted = latest(session)
    if not expires_soon(trusted.root, ledger.clock()) or not is_held(trusted.root, keys):
        return False
    now = max(_now_ns(ledger), trusted.root.issued_ns)
    new = successor(trusted, now, now + LIFETIME_NS)
    assert keys.root is not None  # noqa: S101
    publish(ledger, add_signature(new.to_envelope(), ROOT_TYPE, keys.root), keys)
    return True


def is_held(root: Root, keys: HomeKeys) -> bool:
    """True if the home's root key alone may sign the next root."""
    return keys.root is not None and root.root.threshold == 1 and holds(root.root, keys.root.public_key)


def next_sequence(root: Root | None, fleet: Fleet) -> int:
    """The number of the fleet's next request: one more than the last, and of the epoch that the root says."""
    trust = root.fleets.get(fleet.name) if root is not None else None
    return max(fleet.sequence + 1, ((trust.epoch if trust is not None else 0) << EPOCH_SHIFT) + 1)


def key_names(session: Session) -> dict[str, str]:
    """What people call the keys, by key id."""
    return {row.keyid: row.name for row in session.scalars(select(KeyName))}


def expires_soon(root: Root, now: float) -> bool:
    """True if it has expired or will within a month."""
    return root.expires_ns / 1e9 < now + WARN_SECONDS


def _store(session: Session, ledger: Ledger, new: TrustedRoot, names: Mapping[str, str] | None) -> None:
    version = new.root.version
    session.add(RootVersion(version=version, envelope=new.envelope, digest=new.digest.hex(), created_at=ledger.clock()))
    for keyid, name in (names or {}).items():
        session.merge(KeyName(keyid=keyid, name=name[:63]))
    fleets = ", ".join(sorted(new.root.fleets)) or "none"
    detail = f"version {version}, sha256 {new.digest.hex()}, fleets: {fleets}"
    ledger.record(session, "root.published", detail=detail)
    tlog.append(session, "rotation", new.envelope, f"root-{version}")
    session.flush()


def newest_version(session: Session) -> int:
    """Of the roots; 0 if there is none."""
    return session.scalar(select(func.max(RootVersion.version))) or 0


def _now_ns(ledger: Ledger) -> int:
    return int(ledger.clock()) * 10**9


@lru_cache(maxsize=64)
def _opened(envelope: bytes, digest: str) -> TrustedRoot:
    return pin_root(envelope, bytes.fromhex(digest))
