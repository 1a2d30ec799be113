"""A household's root, its keys and its time, for tests that need somebody whom a device obeys.

Keys are made from their names, so that every process of a test knows the same ones.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signer

from clue_protocol.documents import Trust
from clue_protocol.envelope import REQUEST_TYPE
from clue_protocol.trust import (
    ROOT_TYPE,
    FleetTrust,
    Role,
    Root,
    TrustedRoot,
    add_signature,
    attest_time,
    pin_root,
    successor,
    unsigned,
)
from clue_protocol.trust.envelopes import payload_digest, read_envelope
from clue_protocol.trust.times import DAY, SECOND, to_timestamp
from clue_protocol.v1 import forget_pb2 as pb

# 2026-01-01: a test's root is older than the test.
BEGINNING = 1_767_225_600 * SECOND
CENTURY = 36_500 * DAY
INSTALLATION = hashlib.sha256(b"house").hexdigest()[:32]
FLEET = "yard"
SUPERLINK = "127.0.0.1:9092"
_STARTED = time.time_ns() // SECOND * SECOND


def key(name: str) -> CryptoSigner:
    """The Ed25519 key of that name; the same one every time."""
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"test key {name}".encode()).digest()))


def role(*signers: Signer, threshold: int = 1) -> Role:
    return Role(tuple(signer.public_key for signer in signers), threshold)


def signed(data: bytes, payload_type: str, signers: Sequence[Signer]) -> bytes:
    for signer in signers:
        data = add_signature(data, payload_type, signer)
    return data


class House:
    """One installation whose keys are all in one hand: the fleets "yard" and "farm" have one operator."""

    def __init__(self) -> None:
        self.holder, self.timer, self.operator = key("root"), key("timestamp"), key("operator")
        self._lock = threading.Lock()
        self._attestations = 0
        first = Root(
            installation=INSTALLATION,
            version=1,
            issued_ns=BEGINNING,
            expires_ns=BEGINNING + CENTURY,
            root=role(self.holder),
            timestamp=role(self.timer),
            fleets={FLEET: FleetTrust(role(self.operator)), "farm": FleetTrust(role(self.operator))},
        )
        data = signed(first.to_envelope(), ROOT_TYPE, [self.holder])
        self.roots = [data]
        self.root: TrustedRoot = pin_root(data, payload_digest(read_envelope(data, ROOT_TYPE)))

    def publish(self, *, signers: Sequence[Signer] = (), **changes: Any) -> bytes:
        """Make the next root; ``changes`` are those of :func:`successor`. Returns its envelope."""
        changes = {"issued_ns": self.root.root.issued_ns + SECOND, "expires_ns": BEGINNING + CENTURY} | changes
        root = successor(self.root, changes.pop("issued_ns"), changes.pop("expires_ns"), **changes)
        data = signed(root.to_envelope(), ROOT_TYPE, signers or [self.holder])
        self.root = TrustedRoot(root, payload_digest(read_envelope(data, ROOT_TYPE)), data)
        self.roots.append(data)
        return data

    def trust(self, version: int | None = None, fleet: str = FLEET, superlink: str = SUPERLINK) -> Trust:
        """The document for a device, with the newest root or that of ``version``."""
        data = self.roots[(version or len(self.roots)) - 1]
        return Trust(fleet, data, superlink, "(no certificate)")

    def time(self, nonce: bytes = b"", at: int | None = None, signer: Signer | None = None, sequence: int = 0) -> bytes:
        """A signed time, now unless ``at`` says otherwise."""
        now = time.time_ns() if at is None else at
        with self._lock:
            self._attestations = max(self._attestations + 1, now // 10**6)
            number = sequence or self._attestations
        return attest_time(self.root, signer or self.timer, now, number, nonce)


# Of version 1 only: a test that goes on from there makes a House of its own.
HOUSE = House()


def request_message(**changes: Any) -> pb.ForgetRequest:
    """A whole request, its number that of its id ("r-7" has 7); ``expires_in`` is in seconds from now."""
    name = str(changes.get("request_id", "r-1"))
    digits = "".join(letter for letter in name if letter.isdigit())
    # The same bytes each time, unless it matters when it ends.
    now = time.time_ns() // SECOND * SECOND if "expires_in" in changes else _STARTED
    expires_in = changes.pop("expires_in", 3600)
    fields: dict[str, Any] = {
        "request_id": "r-1",
        "installation": INSTALLATION,
        "fleet": FLEET,
        "sequence": int(digits or 1),
        "forget_class": "red",
        "policy": pb.Policy(max_ua=1, max_ra_drop=1),
        "nonce": hashlib.sha256(name.encode()).digest()[:16],
    }
    request = pb.ForgetRequest(**(fields | changes))
    if not request.HasField("issued_at"):
        # Before it ends, also where it has ended already.
        request.issued_at.CopyFrom(to_timestamp(now - 30 * DAY))
    if not request.HasField("expires_at"):
        request.expires_at.seconds = now // SECOND + int(expires_in)
    return request


def sign_request(request: pb.ForgetRequest, *signers: Signer) -> bytes:
    return signed(unsigned(request, REQUEST_TYPE), REQUEST_TYPE, signers or [key("operator")])
