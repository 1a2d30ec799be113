"""The root: which keys may do what in one installation. It is checked for sense here, not for signatures.

A root is built, given to its key holders to sign one after the other (:func:`~.envelopes.add_signature`), and verified
by :mod:`.chain`.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from securesystemslib.signer import Key

from clue_protocol.documents import check_name
from clue_protocol.errors import DocumentError, EnvelopeError
from clue_protocol.trust.envelopes import ROOT_TYPE, unsigned
from clue_protocol.trust.errors import RootContentError
from clue_protocol.trust.keys import checked_key, fingerprint, key_from_message, key_to_message
from clue_protocol.trust.times import from_timestamp, to_timestamp
from clue_protocol.v1 import trust_pb2 as pb

# What a device must be able to check in one breath.
MAX_KEYS = 1024
MAX_FLEETS = 4096
MAX_REVOKED = 4096
MAX_EPOCH = 2**32 - 1
_INSTALLATION = re.compile(r"[0-9a-f]{32}\Z")


def new_installation_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Role:
    """At least ``threshold`` of ``keys``, sorted by key id; RootContentError if too few different ones are there."""

    keys: tuple[Key, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        prints = {fingerprint(checked_key(key)) for key in self.keys}
        if len(prints) != len(self.keys):
            raise RootContentError("a role holds one key twice")
        if not 1 <= self.threshold <= len(self.keys):
            raise RootContentError(f"a role with {len(self.keys)} key(s) cannot have the threshold {self.threshold}")
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda key: str(key.keyid))))


@dataclass(frozen=True)
class FleetTrust:
    """Who decides over a fleet.

    Attributes:
        request: signs forget requests.
        enrolment: certifies the keys of new devices; None if nobody may.
        epoch: highest 32 bits of the sequence numbers of its requests.
    """

    request: Role
    enrolment: Role | None = None
    epoch: int = 0


@dataclass(frozen=True)
class Revocation:
    """A key that may never have a role again, since when (ns) and why."""

    key: Key
    revoked_ns: int
    reason: str = ""


@dataclass(frozen=True)
class Root:
    """One version of the root; RootContentError where it contradicts itself.

    Attributes:
        installation: 32 hex digits, the same in every version.
        version: from 1.
        issued_ns: when it was made, ns since 1970.
        expires_ns: when it must have been replaced, ns since 1970.
        root: signs roots.
        timestamp: signs time attestations; its keys are online and may have no other role.
        log: each of its Ed25519 keys may sign the transparency log; online, so no other role either. None if the root
            knows of no log.
        fleets: by name.
        revoked: every key that was ever revoked.
        previous_digest: SHA-256 of the payload of the version before, empty in version 1.
    """

    installation: str
    version: int
    issued_ns: int
    expires_ns: int
    root: Role
    timestamp: Role
    fleets: Mapping[str, FleetTrust] = field(default_factory=dict)
    revoked: tuple[Revocation, ...] = ()
    previous_digest: bytes = b""
    log: Role | None = None

    def __post_init__(self) -> None:
        self._check_header()
        self._check_fleets()
        if len(self.all_keys()) > MAX_KEYS:
            raise RootContentError(f"a root holds at most {MAX_KEYS} keys")
        ids = {key.keyid: fingerprint(key) for key in self.all_keys()}
        if len(set(ids.values())) != len(ids):
            raise RootContentError("one public key stands in the root under two key ids")
        if len(self.revoked) > MAX_REVOKED:
            raise RootContentError(f"a root revokes at most {MAX_REVOKED} keys")
        gone = self.revoked_fingerprints()
        if len(gone) != len(self.revoked):
            raise RootContentError("a key is revoked twice")
        for key in self.all_keys():
            if fingerprint(key) in gone:
                raise RootContentError(f"the revoked key {key.keyid[:16]} has a role")
        self._check_online()

    def _check_header(self) -> None:
        if not _INSTALLATION.match(self.installation):
            raise RootContentError("the installation id is not 32 hex digits")
        if not 1 <= self.version < 2**63:
            raise RootContentError(f"a root cannot have the version {self.version}")
        if len(self.previous_digest) != (0 if self.version == 1 else 32):
            raise RootContentError("a root must name the digest of the version before, and version 1 must not")
        try:
            to_timestamp(self.issued_ns)
            to_timestamp(self.expires_ns)
        except ValueError as error:
            raise RootContentError(str(error)) from None
        if self.expires_ns <= self.issued_ns:
            raise RootContentError("a root expires before it is issued")

    def _check_fleets(self) -> None:
        if len(self.fleets) > MAX_FLEETS:
            raise RootContentError(f"a root holds at most {MAX_FLEETS} fleets")
        for name, fleet in self.fleets.items():
            try:
                check_name("fleet", name)
            except DocumentError as error:
                raise RootContentError(str(error)) from None
            if not 0 <= fleet.epoch <= MAX_EPOCH:
                raise RootContentError(f"fleet {name} cannot have the epoch {fleet.epoch}")

    def _check_online(self) -> None:
        """Whoever takes over the machine that tells the time, or keeps the log, must not have more than that."""
        offline = {fingerprint(key) for role in self._offline_roles() for key in role.keys}
        stamps = {fingerprint(key) for key in self.timestamp.keys}
        if stamps & offline:
            raise RootContentError("a timestamp key has another role too: it is online and must not")
        if self.log is None:
            return
        if {fingerprint(key) for key in self.log.keys} & (offline | stamps):
            raise RootContentError("a log key has another role too: it is online and must not")
        if self.log.threshold != 1 or any(key.scheme != "ed25519" for key in self.log.keys):
            raise RootContentError("the log is signed by one Ed25519 key at a time")

    def _offline_roles(self) -> Iterable[Role]:
        yield self.root
        for fleet in self.fleets.values():
            yield fleet.request
            if fleet.enrolment is not None:
                yield fleet.enrolment

    def _roles(self) -> Iterable[Role]:
        yield self.timestamp
        if self.log is not None:
            yield self.log
        yield from self._offline_roles()

    def all_keys(self) -> tuple[Key, ...]:
        """Every key that has a role, sorted by key id."""
        found = {key.keyid: key for role in self._roles() for key in role.keys}
        return tuple(found[keyid] for keyid in sorted(found))

    def revoked_fingerprints(self) -> frozenset[str]:
        """Of every revoked key."""
        return frozenset(fingerprint(revocation.key) for revocation in self.revoked)

    def to_message(self) -> pb.Root:
        """As it is signed: two equal roots give equal bytes."""
        message = pb.Root(
            installation=self.installation,
            version=self.version,
            issued_at=to_timestamp(self.issued_ns),
            expires_at=to_timestamp(self.expires_ns),
            previous_digest=self.previous_digest,
            keys=[key_to_message(key) for key in self.all_keys()],
            root=_role_to_message(self.root),
            timestamp=_role_to_message(self.timestamp),
            log=_role_to_message(self.log) if self.log is not None else None,
        )
        for name in sorted(self.fleets):
            fleet = self.fleets[name]
            entry = message.fleets.add(fleet=name, request=_role_to_message(fleet.request), epoch=fleet.epoch)
            if fleet.enrolment is not None:
                entry.enrolment.CopyFrom(_role_to_message(fleet.enrolment))
        for revocation in sorted(self.revoked, key=lambda item: item.key.keyid):
            message.revoked.add(
                key=key_to_message(revocation.key),
                revoked_at=to_timestamp(revocation.revoked_ns),
                reason=revocation.reason,
            )
        return message

    def to_envelope(self) -> bytes:
        """An envelope that is to be signed."""
        return unsigned(self.to_message(), ROOT_TYPE)

    @classmethod
    def from_payload(cls, payload: bytes) -> "Root":
        """Parse what was signed.

        Raises:
            EnvelopeError: not a Root message.
            PublicKeyError: a key of it is malformed.
            RootContentError: it contradicts itself.
        """
        message = pb.Root()
        try:
            message.ParseFromString(payload)
        except DecodeError:
            raise EnvelopeError("the payload is not a Root") from None
        if max(len(message.keys), len(message.fleets), len(message.revoked)) > MAX_FLEETS:
            raise RootContentError("the root is too large")
        keys = {key.keyid: key for key in map(key_from_message, message.keys)}
        names = [entry.fleet for entry in message.fleets]
        if len(set(names)) != len(names):
            raise RootContentError("the root names a fleet twice")
        try:
            root = cls(
                installation=message.installation,
                version=message.version,
                issued_ns=from_timestamp(message.issued_at),
                expires_ns=from_timestamp(message.expires_at),
                root=_role_from_message(message.root, keys),
                timestamp=_role_from_message(message.timestamp, keys),
                fleets={entry.fleet: _fleet_from_message(entry, keys) for entry in message.fleets},
                revoked=tuple(
                    Revocation(key_from_message(entry.key), from_timestamp(entry.revoked_at), entry.reason)
                    for entry in message.revoked
                ),
                previous_digest=message.previous_digest,
                log=_role_from_message(message.log, keys) if message.HasField("log") else None,
            )
        except ValueError as error:
            raise RootContentError(str(error)) from None
        if root.to_message() != message:
            raise RootContentError("the root is not in its normal form, or holds what this version does not know")
        return root


def _role_to_message(role: Role) -> pb.KeyRole:
    return pb.KeyRole(threshold=role.threshold, key_ids=sorted(key.keyid for key in role.keys))


def _role_from_message(message: pb.KeyRole, keys: Mapping[str, Key]) -> Role:
    missing = [keyid for keyid in message.key_ids if keyid not in keys]
    if missing:
        raise RootContentError(f"a role names the key {missing[0][:16]!r}, which the root does not hold")
    return Role(tuple(keys[keyid] for keyid in message.key_ids), message.threshold)


def _fleet_from_message(message: pb.FleetTrust, keys: Mapping[str, Key]) -> FleetTrust:
    enrolment = _role_from_message(message.enrolment, keys) if message.HasField("enrolment") else None
    return FleetTrust(_role_from_message(message.request, keys), enrolment, message.epoch)
