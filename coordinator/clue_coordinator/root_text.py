"""A root, and what is new in one, as people read it before they sign."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from securesystemslib.signer import Key

from clue_coordinator import json_types as js
from clue_coordinator.root_files import RootFile
from clue_protocol.trust import FleetTrust, Role, Root
from clue_protocol.trust.keys import fingerprint
from clue_protocol.trust.times import to_timestamp


def key_text(key: Key, names: Mapping[str, str]) -> str:
    """``alice (key ab12cd34)``."""
    name = names.get(str(key.keyid), "")
    return f"{name} (key {key.keyid[:8]})" if name else f"key {key.keyid[:8]}"


def role_text(role: Role, names: Mapping[str, str]) -> str:
    """``2 of 3: alice (key ...), bob (key ...), carol (key ...)``."""
    listed = ", ".join(sorted(key_text(key, names) for key in role.keys))
    return f"{role.threshold} of {len(role.keys)}: {listed}"


def root_lines(file: RootFile, names: Mapping[str, str]) -> Iterator[str]:
    """All of a root."""
    root = file.root
    yield f"root version {root.version} of installation {root.installation}"
    yield f"sha256     {file.digest.hex()}"
    yield f"valid      {date(root.issued_ns)} to {date(root.expires_ns)}"
    yield f"root       {role_text(root.root, names)}"
    yield f"timestamp  {role_text(root.timestamp, names)}"
    for name, fleet in sorted(root.fleets.items()):
        yield f"fleet {name}: {_fleet_text(fleet, names)}"
    for entry in root.revoked:
        why = f": {entry.reason}" if entry.reason else ""
        yield f"revoked    {key_text(entry.key, names)} on {date(entry.revoked_ns)}{why}"
    known = {str(key.keyid): key for key in (*root.root.keys, *_base_holders(file))}
    yield f"signed by  {', '.join(key_text(known[keyid], names) for keyid in file.signed_by()) or 'nobody yet'}"


def change_lines(old: Root, new: Root, names: Mapping[str, str]) -> Iterator[str]:
    """What is new in ``new``; nothing that matters is left out."""
    if new.root != old.root:
        yield f"root holders: {role_text(old.root, names)}  ->  {role_text(new.root, names)}"
    if new.timestamp != old.timestamp:
        yield f"timestamp: {role_text(old.timestamp, names)}  ->  {role_text(new.timestamp, names)}"
    for name in sorted({*old.fleets, *new.fleets}):
        before, after = old.fleets.get(name), new.fleets.get(name)
        if before is None and after is not None:
            yield f"new fleet {name}: {_fleet_text(after, names)}"
        elif after is None:
            yield f"fleet {name} is REMOVED: its devices refuse every request"
        elif before is not None and before != after:
            yield f"fleet {name}: {_fleet_text(before, names)}  ->  {_fleet_text(after, names)}"
    gone = old.revoked_fingerprints()
    for entry in new.revoked:
        if fingerprint(entry.key) not in gone:
            why = f": {entry.reason}" if entry.reason else ""
            yield f"REVOKED for ever: {key_text(entry.key, names)}{why}"
    yield f"expires: {date(old.expires_ns)}  ->  {date(new.expires_ns)}"


def root_data(file: RootFile, names: Mapping[str, str]) -> js.RootData:
    """What ``--json`` prints."""
    root = file.root
    return {
        "installation": root.installation,
        "version": root.version,
        "sha256": file.digest.hex(),
        "issued_at": to_timestamp(root.issued_ns).ToJsonString(),
        "expires_at": to_timestamp(root.expires_ns).ToJsonString(),
        "root": _role_data(root.root, names),
        "timestamp": _role_data(root.timestamp, names),
        "fleets": [
            {"fleet": name, "request": _role_data(fleet.request, names), "epoch": fleet.epoch}
            for name, fleet in sorted(root.fleets.items())
        ],
        "revoked": [
            {
                **key_data(entry.key, names.get(str(entry.key.keyid), "")),
                "revoked_at": to_timestamp(entry.revoked_ns).ToJsonString(),
                "reason": entry.reason,
            }
            for entry in root.revoked
        ],
        "signed_by": file.signed_by(),
    }


def key_data(key: Key, name: str) -> js.KeyData:
    """A public key."""
    return {"key_id": str(key.keyid), "name": name, "scheme": str(key.scheme)}


def date(time_ns: int) -> str:
    """``2027-01-31``."""
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d}"


def _role_data(role: Role, names: Mapping[str, str]) -> js.RoleData:
    keys = [key_data(key, names.get(str(key.keyid), "")) for key in role.keys]
    return {"threshold": role.threshold, "keys": keys}


def _fleet_text(fleet: FleetTrust, names: Mapping[str, str]) -> str:
    epoch = f", epoch {fleet.epoch}" if fleet.epoch else ""
    enrolment = f", enrolment {role_text(fleet.enrolment, names)}" if fleet.enrolment else ""
    return f"{role_text(fleet.request, names)}{epoch}{enrolment}"


def _base_holders(file: RootFile) -> tuple[Key, ...]:
    return RootFile(file.base).root.root.keys if file.base else ()
