"""Which keys a role of the root names."""

from securesystemslib.signer import Key

from clue_protocol.trust import Role
from clue_protocol.trust.keys import fingerprint


def holds(role: Role, key: Key) -> bool:
    """True if the role holds this key, under whatever key id."""
    return fingerprint(key) in {fingerprint(other) for other in role.keys}
