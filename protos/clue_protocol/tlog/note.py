"""Signed notes (c2sp.org/signed-note): a text and the signatures of keys that have names.

Key ids, signature lines and verifier keys are tlog-scales'; parsing is stricter than its, because what it reads may
come from anybody: one text has one form, so that every flipped bit is either refused or changes what was signed.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import Key, Signer
from tlog_scales.signing import NoteSignature, Vkey

from clue_protocol.tlog.errors import NoteError, NoteKeyError

LOG_KEY = 0x01
WITNESS_KEY = 0x04
MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 64
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z")
_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True)
class NoteKey:
    """A public Ed25519 key with a name.

    Attributes:
        name: of the log (its origin) or of the witness; no spaces, no plus sign.
        kind: :data:`LOG_KEY` signs checkpoints, :data:`WITNESS_KEY` cosigns them.
        public: 32 bytes.
    """

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if self.kind not in (LOG_KEY, WITNESS_KEY):
            raise NoteKeyError(
                f"key {self.name}: signature type {self.kind:#04x} is not known here, only 0x01 and 0x04"
            )
        try:
            Ed25519PublicKey.from_public_bytes(self.public)
        except ValueError:
            raise NoteKeyError(f"key {self.name}: an Ed25519 key has 32 bytes, not {len(self.public)}") from None

    @classmethod
    def of(cls, name: str, kind: int, key: Key) -> "NoteKey":
        """The key of a securesystemslib signer under a name; NoteKeyError unless it is Ed25519."""
        if (key.keytype, key.scheme) != ("ed25519", "ed25519"):
            raise NoteKeyError(f"key {name} is {key.scheme}: the log is signed with Ed25519")
        return cls(name, kind, bytes.fromhex(key.keyval["public"]))

    @classmethod
    def from_text(cls, text: str) -> "NoteKey":
        """Read ``name+keyid+base64``; NoteKeyError if it is anything else, or the key id is not that of the key."""
        try:
            vkey = Vkey.from_string(text.strip())
            key = cls(vkey.name, vkey.sig_type, vkey.pubkey)
        except (ValueError, IndexError):
            raise NoteKeyError(f"{text.strip()[:80]!r} is not a verifier key: name+keyid+base64") from None
        if key.to_text() != text.strip():
            raise NoteKeyError(f"verifier key {key.name} does not match its key id, or is not in its one form")
        return key

    def to_text(self) -> str:
        """``name+keyid+base64``, the form that c2sp.org/signed-note calls a verifier key."""
        return f"{self.name}+{self.vkey.key_id:08x}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @cached_property
    def vkey(self) -> Vkey:
        """As the library has it."""
        return Vkey(self.name, None, self.kind, self.public)


def check_key_name(name: str) -> str:
    """Return ``name`` if a log or a witness may be called so; NoteKeyError says what is allowed."""
    if not _NAME.match(name):
        raise NoteKeyError(f"key name {name!r} must be 1-255 characters without spaces and plus signs")
    return name


def sign_text(key: NoteKey, message: bytes, signer: Signer, prefix: bytes = b"") -> NoteSignature:
    """The signature line of ``key`` over ``message``, made by its signer; ``prefix`` stands before the signature."""
    if NoteKey.of(key.name, key.kind, signer.public_key) != key:
        raise NoteKeyError(f"the signer does not hold the key {key.name}")
    signature = bytes.fromhex(signer.sign(message).signature)
    return NoteSignature.from_vkey_signature(key.vkey, prefix + signature)


def parse_note(data: bytes | str) -> tuple[str, list[NoteSignature]]:
    """The text of a note, with its last newline, and its signatures, none of them verified; NoteError if it is none."""
    try:
        raw = data.encode() if isinstance(data, str) else data
        text = raw.decode()
    except UnicodeError:
        raise NoteError("not a signed note: it is not UTF-8") from None
    if len(raw) > MAX_NOTE_BYTES:
        raise NoteError(f"not a signed note: it is larger than {MAX_NOTE_BYTES} bytes")
    if _CONTROL.search(text):
        raise NoteError("not a signed note: it holds control characters")
    body, blank, tail = text.rpartition("\n\n")
    if not blank or not body or not tail.endswith("\n"):
        raise NoteError("not a signed note: a text, an empty line and signature lines are expected")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"not a signed note: it has more than {MAX_SIGNATURES} signatures")
    return body + "\n", [_parse_line(line) for line in lines]


def decode_base64(text: str) -> bytes:
    """Strict base64; ValueError also if there is another way to write the same bytes."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical")
    return data


def _parse_line(line: str) -> NoteSignature:
    found = _LINE.match(line)
    if found is None:
        raise NoteError(f"not a signature line: {line[:80]!r}")
    try:
        payload = decode_base64(found[2])
    except ValueError:
        raise NoteError(f"the signature of {found[1]} is not base64 in its one form") from None
    if len(payload) < 5:
        raise NoteError(f"the signature of {found[1]} is too short")
    return NoteSignature(found[1], int.from_bytes(payload[:4], "big"), payload[4:])
