"""Leaves: what the log remembers of an event, namely its kind, the digest of its document and where that is."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from clue_protocol.tlog.errors import LeafError

KINDS = ("request", "approval", "receipt", "rotation", "revocation", "enrolment", "statement")
MAX_REFERENCE = 255
_FORMAT = "clue-log-leaf/1"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_REFERENCE = re.compile(r"[!-~]{1,255}\Z")


@dataclass(frozen=True)
class Leaf:
    """One event. LeafError if it could not be one.

    Attributes:
        kind: one of :data:`KINDS`.
        digest: SHA-256 of the signed document, byte for byte, as 64 hexadecimal digits.
        reference: where the document is, such as a request id or ``request-id/device``; printable ASCII without spaces.
    """

    kind: str
    digest: str
    reference: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LeafError(f"a leaf is of the kind {', '.join(KINDS)}, not {self.kind!r}")
        if not isinstance(self.digest, str) or not _DIGEST.match(self.digest):
            raise LeafError("the digest of a leaf is 64 hexadecimal digits in small letters")
        if not isinstance(self.reference, str) or not _REFERENCE.match(self.reference):
            raise LeafError(f"the reference of a leaf is 1-{MAX_REFERENCE} printable ASCII characters without spaces")

    @classmethod
    def of(cls, kind: str, document: bytes, reference: str) -> "Leaf":
        """The leaf of a signed document."""
        return cls(kind, hashlib.sha256(document).hexdigest(), reference)

    def to_bytes(self) -> bytes:
        """The bytes that are hashed: JSON with sorted keys and no spaces."""
        fields = {"digest": self.digest, "format": _FORMAT, "kind": self.kind, "reference": self.reference}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Leaf":
        """The leaf whose :meth:`to_bytes` is ``data``; LeafError for anything else."""
        try:
            fields: Any = json.loads(data)
            leaf = cls(fields["kind"], fields["digest"], fields["reference"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LeafError(f"the bytes are not a leaf ({_FORMAT})") from None
        # There is one way to write a leaf: nothing can be added that would be hashed, but not read.
        if leaf.to_bytes() != data:
            raise LeafError(f"the bytes are not a leaf ({_FORMAT}) in its one canonical form")
        return leaf
