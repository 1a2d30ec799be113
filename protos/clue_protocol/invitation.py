"""The token that a device is invited with: one string that a person can paste, type or scan.

``CLUE1-`` and base32 without padding, which a QR code holds densely and which does not care for case. The bytes::

    version  1   always 1
    secret   16  known to the token's holder alone
    ca       32  SHA-256 of the CA certificate's DER
    root     32  SHA-256 of the payload of the root that the device pins
    house    16  installation id
    port     2   big-endian
    host     *   UTF-8
    check    4   the beginning of the SHA-256 of all before
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from clue_protocol.errors import ProtocolError

SECRET_BYTES = 16
PREFIX = "CLUE1-"
_VERSION = 1
_FIXED = 1 + SECRET_BYTES + 32 + 32 + 16 + 2
_CHECK_BYTES = 4
_LONGEST = 1024
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}\Z")


class InvitationError(ProtocolError):
    """What was given is no invitation token, or not a whole one."""


@dataclass(frozen=True)
class Invitation:
    """What the token says. InvitationError if it cannot be one.

    Attributes:
        host: name or address of the enrolment service.
        port: its port.
        secret: 16 bytes; the coordinator keeps their SHA-256 alone.
        ca_digest: SHA-256 of the DER of the certificate authority (32 bytes).
        root_digest: SHA-256 of the payload of the root to pin (32 bytes).
        installation: 32 hex digits.
    """

    host: str
    port: int
    secret: bytes
    ca_digest: bytes
    root_digest: bytes
    installation: str

    def __post_init__(self) -> None:
        whole = (len(self.secret), len(self.ca_digest), len(self.root_digest)) == (SECRET_BYTES, 32, 32)
        if not whole or not re.fullmatch(r"[0-9a-f]{32}", self.installation):
            raise InvitationError("the token's secret, fingerprints or installation have the wrong length")
        if not _HOST.match(self.host) or not 1 <= self.port <= 65535:
            raise InvitationError(f"the token names no address: {self.host!r}, port {self.port}")

    def __repr__(self) -> str:
        """Without the secret: this may end in a log."""
        return f"Invitation({self.address}, installation {self.installation})"

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def to_token(self) -> str:
        """The string."""
        body = b"".join(
            (
                bytes([_VERSION]),
                self.secret,
                self.ca_digest,
                self.root_digest,
                bytes.fromhex(self.installation),
                self.port.to_bytes(2, "big"),
                self.host.encode("ascii"),
            )
        )
        return PREFIX + base64.b32encode(body + _check(body)).decode("ascii").rstrip("=")

    @classmethod
    def from_token(cls, text: str) -> "Invitation":
        """Parse the string; blanks and line breaks in it, and its case, do not matter.

        InvitationError says what is wrong: it is none, or a typo made it one no more.
        """
        if len(text) > 2 * _LONGEST:
            raise InvitationError("this is no invitation token: it is too long")
        token = "".join(text.split()).upper()
        if not token.startswith(PREFIX):
            raise InvitationError(
                f"this is no invitation token: it begins with {PREFIX}; 'clue-coordinator device invite' prints one"
            )
        encoded = token.removeprefix(PREFIX)
        try:
            data = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
        except ValueError:
            data = b""
        body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        # The encoding of some bytes is one string only: unused bits in the last character are refused, too.
        if len(body) <= _FIXED or _check(body) != check or base64.b32encode(data).decode().rstrip("=") != encoded:
            raise InvitationError("the token is not whole: a character is wrong or missing; copy it once more")
        if body[0] != _VERSION:
            raise InvitationError(f"the token is of version {body[0]}, which this version does not know: update it")
        at = 1
        parts = []
        for length in (SECRET_BYTES, 32, 32, 16, 2):
            parts.append(body[at : at + length])
            at += length
        secret, ca_digest, root_digest, installation, port = parts
        host = body[at:].decode("ascii", errors="replace")
        return cls(host, int.from_bytes(port, "big"), secret, ca_digest, root_digest, installation.hex())


def new_secret() -> bytes:
    """128 random bits."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_digest(secret: bytes) -> str:
    """What the coordinator keeps of a secret: its SHA-256, in hex. With that much entropy nothing can be guessed."""
    return hashlib.sha256(secret).hexdigest()


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"clue invitation" + body).digest()[:_CHECK_BYTES]
