"""The next root, as its holders will be asked to sign it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from securesystemslib.signer import Key

from clue_coordinator.errors import UsageError
from clue_protocol.errors import ProtocolError
from clue_protocol.trust import FleetTrust, Role, Root, TrustedRoot, successor
from clue_protocol.trust.keys import fingerprint

_MIN_KEY_ID = 8
# Numbers of requests are kept in signed 64 bits.
_MAX_EPOCH = 2**31 - 1


@dataclass(frozen=True)
class Changes:
    """What is to be new; what is not named stays.

    Attributes:
        holders: the root's keys, all of them, and how many must sign.
        timestamp: who signs the time.
        fleets: who decides, by fleet.
        revoke: key ids, or beginnings of them, and why.
        raise_epoch: fleets whose numbers begin anew, above all that were ever given.
    """

    holders: Role | None = None
    timestamp: Role | None = None
    fleets: Mapping[str, Role] = field(default_factory=dict)
    revoke: Mapping[str, str] = field(default_factory=dict)
    raise_epoch: Sequence[str] = ()


def draft(trusted: TrustedRoot, changes: Changes, now_ns: int, expires_ns: int) -> Root:
    """The root after ``trusted``; a key that is revoked leaves its roles, as far as enough others stay.

    Raises:
        UsageError: it would contradict itself, or names what is not there.
    """
    old = trusted.root
    gone = {_find(old, keyid): reason for keyid, reason in changes.revoke.items()}
    prints = {fingerprint(key) for key in gone}
    fleets = dict(old.fleets)
    for name, role in changes.fleets.items():
        known = fleets.get(name)
        fleets[name] = FleetTrust(role, known.enrolment if known else None, known.epoch if known else 0)
    for name in changes.raise_epoch:
        if name not in fleets:
            raise UsageError(f"--raise-epoch: the root has no fleet '{name}'")
        if fleets[name].epoch >= _MAX_EPOCH:
            raise UsageError(f"--raise-epoch: fleet '{name}' has the last epoch already")
        fleets[name] = FleetTrust(fleets[name].request, fleets[name].enrolment, fleets[name].epoch + 1)
    for name, fleet in fleets.items():
        enrolment = _without(fleet.enrolment, prints, f"enrolment of fleet {name}") if fleet.enrolment else None
        fleets[name] = FleetTrust(_without(fleet.request, prints, f"fleet {name}"), enrolment, fleet.epoch)
    try:
        return successor(
            trusted,
            max(now_ns, old.issued_ns),
            expires_ns,
            root=_without(changes.holders or old.root, prints, "the root"),
            timestamp=_without(changes.timestamp or old.timestamp, prints, "timestamp"),
            fleets=fleets,
            revoke=list(gone.items()),
        )
    except ProtocolError as error:
        raise UsageError(str(error)) from None


def _find(root: Root, text: str) -> Key:
    if len(text) < _MIN_KEY_ID:
        raise UsageError(f"--revoke {text}: give at least {_MIN_KEY_ID} characters of the key id")
    found = [key for key in root.all_keys() if key.keyid.startswith(text)]
    if len(found) != 1:
        what = "more than one key begins" if found else "the root has no key whose id begins"
        raise UsageError(f"--revoke {text}: {what} so: see 'clue-coordinator root show'")
    return found[0]


def _without(role: Role, prints: set[str], what: str) -> Role:
    kept = tuple(key for key in role.keys if fingerprint(key) not in prints)
    if len(kept) == len(role.keys):
        return role
    if len(kept) < role.threshold:
        raise UsageError(
            f"without the revoked key {what} has {len(kept)} key(s), and {role.threshold} must sign: "
            "name its keys anew in the same draft"
        )
    return Role(kept, role.threshold)
