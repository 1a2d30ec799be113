"""Roots in files: exported ones, and drafts on their way from holder to holder."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clue_coordinator.errors import RootRefusedError, UsageError
from clue_protocol.errors import ProtocolError
from clue_protocol.files import write_atomic
from clue_protocol.trust import ROOT_TYPE, Root, TrustedRoot, pin_root
from clue_protocol.trust.envelopes import payload_digest, read_envelope, signers

DRAFT_FORMAT = "clue-root-draft/1"
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class RootFile:
    """A root as it lies in a file.

    Attributes:
        envelope: the root with the signatures that it has.
        base: of a draft, the envelope of the root that it follows; empty otherwise.
        names: what people call the keys, by key id; it proves nothing.
    """

    envelope: bytes
    base: bytes = b""
    names: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Root:
        """Its content, not verified."""
        return Root.from_payload(read_envelope(self.envelope, ROOT_TYPE).payload)

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is signed."""
        return payload_digest(read_envelope(self.envelope, ROOT_TYPE))

    def signed_by(self) -> list[str]:
        """Key ids of holders, of the root itself and of the one before, whose signatures are valid."""
        keys = {key.keyid: key for key in self.root.root.keys}
        if self.base:
            keys |= {key.keyid: key for key in RootFile(self.base).root.root.keys}
        return [str(key.keyid) for key in signers(read_envelope(self.envelope, ROOT_TYPE), keys.values())]

    def trusted(self) -> TrustedRoot:
        """Verified by its own holders; RootRefusedError if they are too few."""
        try:
            return pin_root(self.envelope, self.digest)
        except ProtocolError as error:
            raise RootRefusedError(str(error)) from None

    def verified_base(self) -> TrustedRoot:
        """The root that a draft follows: what is signed names it by its digest, so it cannot be another.

        RootRefusedError if the draft does not fit it.
        """
        root = self.root
        if not self.base:
            raise RootRefusedError("the file holds a root, but no draft of one: see 'clue-coordinator root draft'")
        try:
            base = pin_root(self.base, root.previous_digest)
        except ProtocolError as error:
            raise RootRefusedError(f"the draft does not follow the root that is kept with it: {error}") from None
        if (base.root.installation, base.root.version + 1) != (root.installation, root.version):
            raise RootRefusedError(f"root version {root.version} does not follow version {base.root.version}")
        return base

    def with_signatures(self, envelope: bytes) -> "RootFile":
        """The same with another envelope."""
        return replace(self, envelope=envelope)

    def write(self, path: Path) -> None:
        """Write a draft with all that belongs to it, or the bare envelope of a root."""
        if not self.base:
            write_atomic(path, self.envelope + b"\n")
            return
        body = {
            "format": DRAFT_FORMAT,
            "root": json.loads(self.envelope),
            "base": json.loads(self.base),
            "names": self.names,
        }
        write_atomic(path, json.dumps(body, indent=2, sort_keys=True).encode() + b"\n")


def read_root_file(path: Path) -> RootFile:
    """An exported root or a draft; UsageError if it is neither."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    try:
        body = json.loads(data) if len(data) <= _MAX_BYTES else None
        found = _parse(body)
        assert found.root  # noqa: S101  # parsed here, so that nobody else has to expect an error
        if found.base:
            assert RootFile(found.base).root  # noqa: S101
    except ProtocolError as error:
        raise UsageError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is neither a root nor the draft of one") from None
    return found


def trusted_root(path: Path) -> TrustedRoot:
    """The root of a file that its owner trusts; UsageError if it is not signed by its own holders."""
    try:
        return read_root_file(path).trusted()
    except RootRefusedError as error:
        raise UsageError(f"{path}: {error}") from None


def _parse(body: Any) -> RootFile:
    if body.get("format") == DRAFT_FORMAT:
        names = {str(keyid): str(name) for keyid, name in body["names"].items()}
        return RootFile(_compact(body["root"]), _compact(body["base"]), names)
    return RootFile(_compact(body))


def _compact(envelope: object) -> bytes:
    return json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()
